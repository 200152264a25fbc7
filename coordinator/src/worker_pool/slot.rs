//! A session's slot on a worker, given back on drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::{Operation, OperationError, OperationKind, OperationReply, SessionId, WorkerDescription};

use super::matching;
use super::readiness::ReadyWorker;
use super::worker::Worker;
use crate::tasks::TaskSpawner;

/// Counts in the worker's load; dropping it has the worker release the session's cache.
pub struct SessionSlot {
    worker: Arc<Worker>,
    description: Arc<WorkerDescription>,
    adapter: Option<String>,
    session: SessionId,
    tasks: TaskSpawner,
    deadline: Duration,
}

impl SessionSlot {
    pub(super) fn new(
        ReadyWorker { worker, description }: ReadyWorker,
        adapter: Option<&str>,
        session: SessionId,
        deadline: Duration,
        tasks: TaskSpawner,
    ) -> Self {
        worker.load.fetch_add(1, Ordering::AcqRel);
        Self { worker, description, adapter: adapter.map(str::to_owned), session, tasks, deadline }
    }

    /// Sessions of this coordinator that the worker holds, this one included.
    #[must_use]
    pub fn load(&self) -> usize {
        self.worker.load.load(Ordering::Relaxed)
    }

    /// `host:port` of the worker.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.worker.member.address
    }

    /// An operation on the session's cache there.
    #[must_use]
    pub fn operation(&self, tenant: u64, (at, tokens): (u32, Vec<u32>), kind: OperationKind) -> Operation {
        let adapter = self.adapter.clone().unwrap_or_default();
        Operation { session: self.session, adapter, tenant, at, tokens, kind }
    }

    /// Of what the session computes with there.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        // A worker without the adapter is not able and gets no slot.
        matching::fingerprint(&self.description, self.adapter.as_deref()).unwrap_or_default()
    }

    /// Performs an operation of the session. Dropping the future withdraws it.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub async fn call(&self, operation: &Operation, deadline: Duration) -> Result<OperationReply, OperationError> {
        self.worker.call(operation, self.fingerprint(), deadline).await
    }

    /// What the worker said of itself when the slot was taken.
    #[must_use]
    pub fn description(&self) -> &WorkerDescription {
        &self.description
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        let (worker, session, deadline) = (Arc::clone(&self.worker), self.session, self.deadline);
        let release = async move {
            if let Err(error) = worker.call(&Operation::release(session), "", deadline).await {
                // The worker's lease on the session ends by itself.
                tracing::debug!(%session, address = worker.member.address, %error, "release not confirmed");
            }
            worker.load.fetch_sub(1, Ordering::AcqRel);
        };
        self.tasks.spawn(release);
    }
}
