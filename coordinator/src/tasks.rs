//! Background tasks: all are counted by one tracker and end after one token.

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks, also from threads outside the runtime. Clones share tracker and token.
#[derive(Clone, Debug)]
pub struct TaskSpawner {
    /// Counts the tasks that have not ended.
    pub tracker: TaskTracker,
    /// Tells them to end.
    pub shutdown: CancellationToken,
    runtime: Handle,
}

impl TaskSpawner {
    /// Spawns on the runtime that the caller runs in.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(tracker: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { tracker, shutdown, runtime: Handle::current() }
    }

    /// Begins `task` in the background.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Lets what `make` creates, such as a channel with a task of its own, find the runtime.
    pub fn entered<T>(&self, make: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        make()
    }
}
