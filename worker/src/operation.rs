//! An operation on its way through the engine, and what comes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use cosec_proto::{Operation, OperationError, OperationOutcome, StepCost};
use tokio::sync::oneshot;

/// An operation that keeps to the worker's limits, and who asks for it.
#[derive(Clone, Debug)]
pub struct OperationRequest {
    /// What to do with which session.
    pub operation: Operation,
    /// Index of the LoRA adapter to apply.
    pub adapter: Option<usize>,
    /// The coordinator that asks.
    pub stream: u64,
    /// When the caller's message came; queue time counts from here.
    pub received: Instant,
    /// When the result is of no use any more.
    pub deadline: Instant,
}

/// The answer to an [`OperationRequest`].
#[derive(Clone, Debug)]
pub struct OperationAnswer {
    /// What came of it.
    pub result: Result<OperationOutcome, OperationError>,
    /// What it took.
    pub cost: StepCost,
}

/// An [`OperationRequest`] that the engine has accepted.
#[derive(Debug)]
pub(crate) struct QueuedOperation {
    pub(crate) request: OperationRequest,
    pub(crate) caller: OperationCaller,
}

/// The way back to whoever asked. Dropping it unanswered tells the caller that the engine is gone.
#[derive(Debug)]
pub(crate) struct OperationCaller {
    cancelled: Arc<AtomicBool>,
    reply: oneshot::Sender<OperationAnswer>,
    permit: OperationPermit,
}

impl QueuedOperation {
    pub(crate) fn new(request: OperationRequest, permit: OperationPermit) -> (Self, OperationTicket) {
        let (reply, answer) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let ticket = OperationTicket { answer, cancelled: Arc::clone(&cancelled) };
        (Self { request, caller: OperationCaller { cancelled, reply, permit } }, ticket)
    }
}

impl OperationCaller {
    /// Whether the caller asked to withdraw the operation.
    pub(crate) fn has_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }

    pub(crate) fn answer(self, answer: OperationAnswer) {
        // The permit is free before the answer is seen, so that the next operation finds it.
        drop(self.permit);
        // A caller that is gone does not want to know.
        let _ = self.reply.send(answer);
    }
}

/// The caller's end of an operation. Dropping it withdraws the operation.
#[derive(Debug)]
pub struct OperationTicket {
    pub(crate) answer: oneshot::Receiver<OperationAnswer>,
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// One of a bounded number of operations; given back by drop.
#[derive(Debug)]
pub(crate) struct OperationPermit(Arc<AtomicUsize>);

impl OperationPermit {
    /// Takes one of `limit` permits.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let next = |count| (count < limit).then_some(count + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for OperationPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
