//! One worker: how it stands, and the way to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cosec_proto::{ErrorCode, Operation, OperationError, OperationReply, WorkerDescription};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::WorkerConnection;
use super::health::WorkerHealth;
use super::matching;
use super::metrics::PoolMetrics;
use crate::discovery::Member;

/// How a worker stands.
#[derive(Clone)]
pub(super) enum WorkerState {
    /// Not reached, and why.
    Down(String),
    /// Connected.
    Up {
        connection: Arc<WorkerConnection>,
        description: Arc<WorkerDescription>,
        /// By its health service.
        serving: bool,
    },
}

/// Handle of a worker.
pub struct Worker {
    pub(super) member: Member,
    pub(super) state: watch::Sender<WorkerState>,
    /// Whether it is a member no more. Its sessions may go on.
    pub(super) leaving: watch::Sender<bool>,
    /// Whether its sessions should move: it leaves or drains, and another worker hosts the same model.
    pub(super) hands_over: AtomicBool,
    pub(super) health: WorkerHealth,
    /// Sessions of this coordinator that the worker holds.
    pub(super) load: AtomicUsize,
    pub(super) metrics: PoolMetrics,
}

impl Worker {
    pub(super) fn new(member: Member, metrics: PoolMetrics) -> Self {
        Self {
            member,
            state: watch::Sender::new(WorkerState::Down("not connected yet".to_owned())),
            leaving: watch::Sender::new(false),
            hands_over: AtomicBool::new(false),
            health: WorkerHealth::new(),
            load: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Labels of its metrics.
    pub(super) fn labels(&self) -> [&str; 3] {
        [&self.member.model, self.member.role.name(), &self.member.address]
    }

    /// What it says of itself and whether it serves, while it is connected.
    pub(super) fn description(&self) -> Option<(Arc<WorkerDescription>, bool)> {
        match &*self.state.borrow() {
            WorkerState::Up { description, serving, .. } => Some((Arc::clone(description), *serving)),
            WorkerState::Down(_) => None,
        }
    }

    /// Performs an operation of a session that computes with the model `fingerprint`. Dropping the future withdraws it.
    ///
    /// # Errors
    /// As the worker says, `Unavailable` when it is not connected or hosts another model by now, `DeadlineExceeded`, or
    /// `WorkerFault` for an answer that cannot be true.
    pub(super) async fn call(
        &self,
        operation: &Operation,
        fingerprint: &str,
        deadline: Duration,
    ) -> Result<OperationReply, OperationError> {
        let connection = self.connection(operation, fingerprint)?;
        let began = Instant::now();
        let patience = self.health.patience(operation, deadline);
        let outcome = connection.call(operation, patience, &self.member, &self.metrics).await;
        if let Some(is_avoided) = self.health.note(operation, began, outcome.as_ref()) {
            let Member { role, address, .. } = &self.member;
            match is_avoided {
                true => tracing::warn!(address, role = role.name(), "worker fails again and again; avoided"),
                false => tracing::info!(address, role = role.name(), "worker serves again"),
            }
            self.metrics.circuit_open.with_label_values(&self.labels()).set(i64::from(is_avoided));
        }
        outcome
    }

    fn connection(&self, operation: &Operation, fingerprint: &str) -> Result<Arc<WorkerConnection>, OperationError> {
        let unavailable = |why: String| Err(OperationError::new(ErrorCode::Unavailable, why));
        let needs_model = operation.needs_model();
        match &*self.state.borrow() {
            WorkerState::Down(why) => unavailable(format!("the worker is down: {why}")),
            WorkerState::Up { connection, description, .. } => {
                let adapter = Some(operation.adapter.as_str()).filter(|adapter| !adapter.is_empty());
                if needs_model && matching::fingerprint(description, adapter) != Ok(fingerprint) {
                    return unavailable("the worker came back with another model".to_owned());
                }
                if needs_model && self.hands_over.load(Ordering::Acquire) {
                    return unavailable("the worker drains; its sessions move on".to_owned());
                }
                Ok(Arc::clone(connection))
            }
        }
    }
}
