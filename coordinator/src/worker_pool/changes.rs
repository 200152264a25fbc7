//! Counts whatever changes which workers can serve, and wakes those who wait for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Told of changes, in the order in which they come; wakes those who wait in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct ChangeCount {
    count: AtomicU64,
    waiting: Notify,
}

impl ChangeCount {
    /// Notes a change, and wakes those who wait for one.
    pub(super) fn tell(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.waiting.notify_waiters();
    }

    /// The next change after this call.
    pub(super) fn next(&self) -> Notified<'_> {
        self.waiting.notified()
    }

    /// How many there were: what was looked up at the same count still holds.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }
}
