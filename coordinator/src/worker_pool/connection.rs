//! One stream of operations to one worker, shared by all sessions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cosec_proto::wire::worker;
use cosec_proto::{ErrorCode, Operation, OperationError, OperationReply, StepCost};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Streaming;

use super::metrics::PoolMetrics;
use crate::discovery::Member;

/// Operations that wait for the stream's flow control; more wait in their sessions.
pub(super) const OUTGOING_OPERATIONS: usize = 256;

/// The worker enforces an operation's deadline; this much later it counts as hung.
const GRACE: Duration = Duration::from_millis(500);

/// Those who wait for a response, by the number of their operation.
type ResponseWaiters = BTreeMap<u64, oneshot::Sender<worker::StepResponse>>;

/// The way to a worker while it is up.
pub(super) struct WorkerConnection {
    outgoing: mpsc::Sender<worker::StepRequest>,
    /// Ordered, so that what a lost connection fails, fails in order; `None` once the stream has ended.
    waiting: Mutex<Option<ResponseWaiters>>,
    next_op: AtomicU64,
    vocabulary: u32,
}

impl WorkerConnection {
    pub(super) fn new(outgoing: mpsc::Sender<worker::StepRequest>, vocabulary: u32) -> Self {
        Self { outgoing, waiting: Mutex::new(Some(BTreeMap::new())), next_op: AtomicU64::new(1), vocabulary }
    }

    /// Hands responses to their waiters until the stream ends, and says why it did.
    pub(super) async fn deliver(&self, mut responses: Streaming<worker::StepResponse>) -> String {
        loop {
            match responses.message().await {
                Ok(Some(response)) => {
                    // Without a waiter the operation was cancelled.
                    if let Some(waiter) = self.take_waiter(response.op) {
                        let _ = waiter.send(response);
                    }
                }
                Ok(None) => return "it closed the stream".to_owned(),
                Err(status) => return beginning(status.message()).to_owned(),
            }
        }
    }

    fn take_waiter(&self, op: u64) -> Option<oneshot::Sender<worker::StepResponse>> {
        self.waiting.lock().as_mut()?.remove(&op)
    }

    /// Fails all that wait and all that come later.
    pub(super) fn close(&self) {
        self.waiting.lock().take();
    }

    /// Performs an operation. Dropping the future withdraws it.
    pub(super) async fn call(
        &self,
        operation: &Operation,
        deadline: Duration,
        member: &Member,
        metrics: &PoolMetrics,
    ) -> Result<OperationReply, OperationError> {
        let started = Instant::now();
        let op = self.next_op.fetch_add(1, Ordering::Relaxed);
        let request = operation.encode(op, u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX));
        let role = member.role;
        let bytes = |direction, size: usize| {
            let labels = [member.model.as_str(), role.name(), direction, operation.view_name()];
            metrics.wire_bytes.with_label_values(&labels).inc_by(size as u64);
        };
        bytes("sent", request.encoded_len());
        let response = match tokio::time::timeout(deadline + GRACE, self.exchange(op, request)).await {
            Ok(response) => response?,
            Err(_) => {
                let message = format!("no answer within {} ms", deadline.as_millis());
                return Err(OperationError::new(ErrorCode::DeadlineExceeded, message));
            }
        };
        bytes("received", response.encoded_len());
        let cost = StepCost::from(&response);
        let (queue_us, compute_us) = (i64::from(response.queue_us), i64::from(response.compute_us));
        tracing::debug!(queue_us, compute_us, "answer arrived");
        let wire = started.elapsed().saturating_sub(cost.queue + cost.compute);
        for (phase, time) in [("queue", cost.queue), ("compute", cost.compute), ("wire", wire)] {
            metrics.step_seconds.with_label_values(&[role.name(), phase]).observe(time.as_secs_f64());
        }
        if let Some(worker::step_response::Outcome::Failure(failure)) = &response.outcome {
            let (code, said) = (beginning(&failure.code), beginning(&failure.message));
            tracing::debug!(address = member.address, code, said, "the worker refused an operation");
        }
        OperationReply::decode(operation, self.vocabulary, response)
    }

    async fn exchange(&self, op: u64, request: worker::StepRequest) -> Result<worker::StepResponse, OperationError> {
        let gone = || OperationError::new(ErrorCode::Unavailable, "the connection to the worker was lost");
        let (waiter, response) = oneshot::channel();
        self.waiting.lock().as_mut().ok_or_else(gone)?.insert(op, waiter);
        let mut withdraw = WithdrawGuard { connection: self, op, sent: false };
        self.outgoing.send(request).await.map_err(|_| gone())?;
        withdraw.sent = true;
        response.await.map_err(|_| gone())
    }
}

/// The most that is repeated of what a worker says, in characters.
const SAID_CHARACTERS: usize = 200;

/// The beginning of what a worker says, for logs and the state of workers.
pub(super) fn beginning(said: &str) -> &str {
    said.char_indices().nth(SAID_CHARACTERS).map_or(said, |(end, _)| &said[..end])
}

/// Forgets an operation, and cancels it at the worker if it has not answered.
struct WithdrawGuard<'a> {
    connection: &'a WorkerConnection,
    op: u64,
    sent: bool,
}

impl Drop for WithdrawGuard<'_> {
    fn drop(&mut self) {
        let unanswered = self.connection.take_waiter(self.op).is_some();
        if unanswered && self.sent {
            let cancel = worker::step_request::Operation::Cancel(worker::Cancel { target: self.op });
            let request = worker::StepRequest { op: 0, deadline_ms: 0, operation: Some(cancel) };
            // If the stream is full the operation runs in vain, and its answer is ignored.
            let _ = self.connection.outgoing.try_send(request);
        }
    }
}
