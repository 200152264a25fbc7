//! Whether a connected worker does its work: how long it may take, and when new sessions avoid it.

mod circuit_breaker;
mod deadline;

use std::time::Duration;

use cosec_proto::{ErrorCode, Operation, OperationError, OperationReply};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::circuit_breaker::CircuitBreaker;
use self::deadline::{OperationTime, SlowestOperation};

/// An operation that feeds more tokens than this takes time by its length, in units of so many.
const SHORT_TOKENS: usize = 16;

/// Least time of a short operation before it counts as hung: what a busy machine may pause for.
const LEAST_DEADLINE: Duration = Duration::from_secs(2);

/// The same of a long one.
const LEAST_LONG_DEADLINE: Duration = Duration::from_secs(5);

/// What the coordinator has seen of a worker.
pub(super) struct WorkerHealth {
    circuit: Mutex<CircuitBreaker>,
    short_operations: Mutex<OperationTime>,
    long_operations: Mutex<SlowestOperation>,
}

impl WorkerHealth {
    pub(super) fn new() -> Self {
        Self {
            circuit: Mutex::new(CircuitBreaker::new()),
            short_operations: Mutex::new(OperationTime::new()),
            long_operations: Mutex::default(),
        }
    }

    /// After how long `operation` counts as hung, at most `deadline`.
    pub(super) fn patience(&self, operation: &Operation, deadline: Duration) -> Duration {
        match OperationWork::of(operation) {
            OperationWork::Short { passes } => {
                self.short_operations.lock().deadline(passes, LEAST_DEADLINE, deadline)
            }
            OperationWork::Long { units } => {
                self.long_operations.lock().deadline(units, LEAST_LONG_DEADLINE, deadline)
            }
            OperationWork::Bookkeeping => deadline,
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
        if outcome.is_ok() || was_given_up {
            let seconds = (now - began).as_secs_f64();
            match OperationWork::of(operation) {
                OperationWork::Short { passes } => self.short_operations.lock().note(seconds, passes),
                OperationWork::Long { units } => self.long_operations.lock().note(seconds, units),
                OperationWork::Bookkeeping => {}
            }
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

/// What an operation's time is measured in.
enum OperationWork {
    Short {
        passes: u32,
    },
    /// Feeds many tokens.
    Long {
        units: u32,
    },
    /// Needs no forward pass.
    Bookkeeping,
}

impl OperationWork {
    fn of(operation: &Operation) -> Self {
        // A draft is one forward pass per token.
        let passes = operation.kind.drafted_tokens().max(1);
        if !operation.needs_model() {
            return Self::Bookkeeping;
        }
        if operation.tokens.len() <= SHORT_TOKENS {
            return Self::Short { passes };
        }
        let units = u32::try_from(operation.tokens.len().div_ceil(SHORT_TOKENS)).unwrap_or(u32::MAX);
        Self::Long { units: units.saturating_add(passes) }
    }
}
