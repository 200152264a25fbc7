//! Whether a connected worker does its work: how long it may take, and when new sessions avoid it.

mod circuit_breaker;
mod deadline;

use std::time::Duration;

use cosec_proto::{ErrorCode, Operation, OperationError, OperationReply};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::circuit_breaker::CircuitBreaker;
use self::deadline::OperationTime;

/// An operation that feeds more tokens than this takes time by its length, which the measured time of short ones does
/// not tell.
const SHORT_TOKENS: usize = 16;

/// Least time of a short operation before it counts as hung: what a busy machine may pause for.
const LEAST_DEADLINE: Duration = Duration::from_secs(2);

/// What the coordinator has seen of a worker.
pub(super) struct WorkerHealth {
    circuit: Mutex<CircuitBreaker>,
    short_operations: Mutex<OperationTime>,
}

impl WorkerHealth {
    pub(super) fn new() -> Self {
        Self { circuit: Mutex::new(CircuitBreaker::new()), short_operations: Mutex::new(OperationTime::new()) }
    }

    /// After how long `operation` counts as hung, at most `deadline`.
    pub(super) fn patience(&self, operation: &Operation, deadline: Duration) -> Duration {
        match short_passes(operation) {
            Some(passes) => self.short_operations.lock().deadline(passes, LEAST_DEADLINE, deadline),
            None => deadline,
        }
    }

    /// Notes how an operation went. Says whether the worker is avoided from now on, or not any more, where that
    /// changed.
    pub(super) fn note(
        &self,
        operation: &Operation,
        began: Instant,
        outcome: Result<&OperationReply, &OperationError>,
    ) -> Option<bool> {
        let now = Instant::now();
        // One that was given up took at least so long: a worker that has become slow soon gets more time.
        let was_given_up = matches!(outcome, Err(error) if error.code == ErrorCode::DeadlineExceeded);
        if let Some(passes) = short_passes(operation)
            && (outcome.is_ok() || was_given_up)
        {
            self.short_operations.lock().note((now - began).as_secs_f64(), passes);
        }
        let mut circuit = self.circuit.lock();
        let was_open = circuit.is_open();
        circuit.ended(now, outcome);
        (was_open != circuit.is_open()).then(|| circuit.is_open())
    }

    /// Whether the worker failed so often that a session should rather go elsewhere.
    pub(super) fn is_avoided(&self) -> bool {
        !self.circuit.lock().lets_through(Instant::now())
    }

    /// A session was placed here: a probe, if the worker is avoided.
    pub(super) fn placed(&self) {
        self.circuit.lock().sent(Instant::now());
    }
}

/// Forward passes of a short operation; `None` for others.
fn short_passes(operation: &Operation) -> Option<u32> {
    let is_short = operation.tokens.len() <= SHORT_TOKENS && operation.needs_model();
    // A draft is one forward pass per token.
    is_short.then(|| operation.kind.drafted_tokens().max(1))
}
