//! A session's place on a worker, given back on drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::SessionId;
use cosec_proto::sampling::SamplingSeed;
use cosec_proto::wire::worker::DescribeResponse;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::operation::{Ask, Operation};
use super::reply::{Answer, OperationError};
use super::{Worker, WorkerPool, matching};

/// Counts in the worker's load; dropping it has the worker release the session's cache.
pub struct Seat {
    worker: Arc<Worker>,
    description: Arc<DescribeResponse>,
    adapter: Option<String>,
    session: SessionId,
    tracker: TaskTracker,
    runtime: Handle,
    deadline: Duration,
}

impl Seat {
    pub(super) fn new(
        pool: &WorkerPool,
        worker: Arc<Worker>,
        description: Arc<DescribeResponse>,
        adapter: Option<&str>,
        session: SessionId,
    ) -> Self {
        worker.load.fetch_add(1, Ordering::AcqRel);
        let (tracker, runtime) = (pool.tracker.clone(), pool.runtime.clone());
        let adapter = adapter.map(str::to_owned);
        Self { worker, description, adapter, session, tracker, runtime, deadline: pool.config.step_deadline }
    }

    /// Who serves.
    #[must_use]
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// Where.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.worker.member.address
    }

    /// An operation on the session's cache there.
    #[must_use]
    pub fn operation(
        &self,
        tenant: u64,
        randomness: SamplingSeed,
        (at, tokens): (u32, Vec<u32>),
        ask: Ask,
    ) -> Operation {
        let adapter = self.adapter.clone().unwrap_or_default();
        Operation { session: self.session, adapter, tenant, randomness, at, tokens, ask }
    }

    /// Of what the session computes with there.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        // A worker without the adapter is not able and gets no seat.
        matching::fingerprint(&self.description, self.adapter.as_deref()).unwrap_or_default()
    }

    /// Performs an operation of the session. Dropping the future withdraws it.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub async fn call(&self, operation: &Operation, deadline: Duration) -> Result<Answer, OperationError> {
        self.worker.call(operation, self.fingerprint(), deadline).await
    }

    /// What the worker said of itself when the seat was taken.
    #[must_use]
    pub fn description(&self) -> &DescribeResponse {
        &self.description
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (worker, session, deadline) = (Arc::clone(&self.worker), self.session, self.deadline);
        let release = async move {
            if let Err(error) = worker.call(&Operation::release(session), "", deadline).await {
                // The worker's lease on the session ends by itself.
                tracing::debug!(%session, address = worker.member.address, %error, "release not confirmed");
            }
            worker.load.fetch_sub(1, Ordering::AcqRel);
        };
        self.tracker.spawn_on(release, &self.runtime);
    }
}
