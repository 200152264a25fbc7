//! Work on clients' text that takes time in proportion to it: parsing, rendering, tokenizing. It runs on threads of its
//! own, no more at a time than there are cores, and the clients that wait for it take their turns fairly.

use std::sync::Arc;
use std::time::Duration;

use cosec_proto::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::admission::fair_queue::FairQueue;
use crate::tenant::{ShareKey, Tenant};

/// Most work that waits, in pieces and in bytes of text; more is refused.
const MAX_WAITING: (usize, usize) = (512, 64 << 20);

/// After how long a piece of work is given up: others get its place, though its thread may go on.
const WORK_LIMIT: Duration = Duration::from_secs(30);

/// Does the work, a few pieces at a time. Clones share the threads.
#[derive(Clone)]
pub(crate) struct TextWorkers(Arc<Mutex<WorkQueue>>);

struct WorkQueue {
    /// Pieces that may begin.
    free: usize,
    waiting: usize,
    waiting_bytes: usize,
    next_id: u64,
    queue: FairQueue<oneshot::Sender<()>>,
}

/// Why a piece of work has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextWorkError {
    #[error("too much text is waiting to be read; try again later")]
    Overloaded,
    #[error("the request's time was over before its text was read")]
    Late,
    #[error("the text could not be read in time")]
    GivenUp,
}

impl TextWorkError {
    pub(crate) fn code(self) -> ErrorCode {
        match self {
            Self::Overloaded => ErrorCode::Overloaded,
            Self::Late => ErrorCode::DeadlineExceeded,
            Self::GivenUp => ErrorCode::Internal,
        }
    }
}

impl TextWorkers {
    /// As many threads as there are cores.
    pub(crate) fn new() -> Self {
        let free = std::thread::available_parallelism().map_or(1, usize::from);
        let queue = FairQueue::default();
        Self(Arc::new(Mutex::new(WorkQueue { free, waiting: 0, waiting_bytes: 0, next_id: 0, queue })))
    }

    /// Has `work` done on `bytes` of text of `tenant`'s, once it is its turn. When the future is dropped, work that
    /// waits is not begun; work under way sees that by the token that it is given.
    ///
    /// # Errors
    /// [`TextWorkError`]; also when the work panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        bytes: usize,
        until: Instant,
        work: impl FnOnce(&CancellationToken) -> T + Send + 'static,
    ) -> Result<T, TextWorkError> {
        let waiting = self.join(tenant, bytes)?;
        let permit = timeout_at(until, waiting.turn()).await.map_err(|_| TextWorkError::Late)?;
        let abandoned = CancellationToken::new();
        let _abandon = abandoned.clone().drop_guard();
        let (done, result) = oneshot::channel();
        let work = tokio::task::spawn_blocking(move || work(&abandoned));
        // Not the client's future: that may be dropped while the work goes on, and must not let more begin.
        tokio::spawn(async move {
            let _permit = permit;
            if let Ok(Ok(value)) = timeout(WORK_LIMIT, work).await {
                let _ = done.send(value);
            }
        });
        timeout_at(until, result).await.map_err(|_| TextWorkError::Late)?.map_err(|_| TextWorkError::GivenUp)
    }

    fn join(&self, tenant: &Tenant, bytes: usize) -> Result<WaitingWork, TextWorkError> {
        let state = &mut *self.0.lock();
        let (most, most_bytes) = MAX_WAITING;
        if state.waiting >= most || state.waiting_bytes.saturating_add(bytes) > most_bytes {
            return Err(TextWorkError::Overloaded);
        }
        let (turn, given) = oneshot::channel();
        let id = state.next_id;
        state.next_id += 1;
        state.waiting += 1;
        state.waiting_bytes += bytes;
        state.queue.join(&tenant.share, (bytes.max(1) as f64, tenant.weight), id, turn);
        state.dispatch();
        Ok(WaitingWork { workers: self.clone(), share: tenant.share.clone(), id, bytes, given: Some(given) })
    }
}

impl WorkQueue {
    fn dispatch(&mut self) {
        while self.free > 0
            && let Some(turn) = self.queue.next(|_| true)
        {
            // One that waits no more has taken itself out.
            self.free -= usize::from(turn.send(()).is_ok());
        }
    }
}

/// A piece of work in the line.
struct WaitingWork {
    workers: TextWorkers,
    share: ShareKey,
    id: u64,
    bytes: usize,
    /// Until it has become a [`WorkPermit`].
    given: Option<oneshot::Receiver<()>>,
}

impl WaitingWork {
    async fn turn(mut self) -> WorkPermit {
        if let Some(given) = &mut self.given {
            // The sender is in the line for as long as this is.
            let _ = given.await;
        }
        self.given = None;
        WorkPermit(self.workers.clone())
    }
}

impl Drop for WaitingWork {
    fn drop(&mut self) {
        let state = &mut *self.workers.0.lock();
        state.waiting -= 1;
        state.waiting_bytes -= self.bytes;
        state.queue.leave(&self.share, self.id);
        // A turn that came and was not taken.
        if self.given.as_mut().is_some_and(|given| given.try_recv().is_ok()) {
            state.free += 1;
            state.dispatch();
        }
    }
}

/// Work under way; gives its thread's place back by `Drop`.
struct WorkPermit(TextWorkers);

impl Drop for WorkPermit {
    fn drop(&mut self) {
        let state = &mut *self.0.0.lock();
        state.free += 1;
        state.dispatch();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant { share: ShareKey::Tenant(name.to_owned()), ..Tenant::default() }
    }

    fn workers(free: usize) -> TextWorkers {
        let workers = TextWorkers::new();
        workers.0.lock().free = free;
        workers
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn one_client_s_text_does_not_keep_the_others_waiting() {
        let workers = workers(1);
        let (order, done) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let (greedy, modest) = (tenant("greedy"), tenant("modest"));
        let first = workers.run(&greedy, 1000, soon(), move |_| gate.recv().unwrap());
        let mut pieces = vec![first.boxed()];
        for (who, bytes) in [(&greedy, 1000), (&greedy, 1000), (&greedy, 1000), (&modest, 10)] {
            let (order, name) = (order.clone(), format!("{:?}", who.share));
            pieces.push(workers.run(who, bytes, soon(), move |_| order.send(name).unwrap()).boxed());
        }
        let mut all = futures::future::join_all(pieces);
        assert!((&mut all).now_or_never().is_none());
        go.send(()).unwrap();
        assert!(all.await.iter().all(Result::is_ok));
        assert!(done.recv().unwrap().contains("modest"));
        let state = workers.0.lock();
        assert_eq!((state.free, state.waiting, state.waiting_bytes), (1, 0, 0));
    }

    #[tokio::test]
    async fn what_its_client_leaves_is_not_begun_and_what_has_begun_is_told() {
        let workers = workers(1);
        let tenant = tenant("a");
        let (told, saw) = mpsc::channel();
        let first = workers.run(&tenant, 1, soon(), move |abandoned| {
            while !abandoned.is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
            told.send(()).unwrap();
        });
        let mut first = Box::pin(first);
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(workers.run(&tenant, 1, soon(), |_| panic!("nobody waits for it")));
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        drop(first);
        assert_eq!(workers.run(&tenant, 1, soon(), |_| 3).await, Ok(3));
        saw.recv().unwrap();
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let workers = workers(0);
        let tenant = tenant("a");
        let first = workers.run(&tenant, MAX_WAITING.1, Instant::now() + Duration::from_millis(20), |_| ());
        let mut first = Box::pin(first);
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(workers.run(&tenant, 1, soon(), |_| ()).await, Err(TextWorkError::Overloaded));
        assert_eq!(first.await, Err(TextWorkError::Late));
        assert_eq!(workers.0.lock().waiting_bytes, 0);
    }
}
