//! Keeps new sessions away from a worker that is connected and yet fails: hangs, answers nonsense, or is full.

use std::time::Duration;

use cosec_proto::{ErrorCode, OperationError};
use tokio::time::Instant;

/// Failures in a row that open the circuit.
const THRESHOLD: u32 = 3;

/// Pauses between two probes grow from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Closed at first. Once open it lets one session through per pause, as a probe; one success closes it.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    failures: u32,
    open: Option<OpenCircuit>,
}

#[derive(Debug)]
struct OpenCircuit {
    next_probe: Instant,
    pause: Duration,
}

impl CircuitBreaker {
    pub(super) fn new() -> Self {
        Self { failures: 0, open: None }
    }

    /// Whether a session may be sent to the worker.
    pub(super) fn lets_through(&self, now: Instant) -> bool {
        self.open.as_ref().is_none_or(|open| open.next_probe <= now)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A session was sent: the probe, if the circuit is open.
    pub(super) fn sent(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.next_probe = now + open.pause;
            open.pause = (open.pause * 2).min(PAUSE.1);
        }
    }

    /// An operation ended. A lost connection does not count: whether one is there, the connection itself tells.
    pub(super) fn ended<T>(&mut self, now: Instant, outcome: Result<&T, &OperationError>) {
        match outcome.map_err(|error| error.code) {
            Err(
                ErrorCode::DeadlineExceeded | ErrorCode::WorkerFault | ErrorCode::OutOfBlocks | ErrorCode::Overloaded,
            ) => {
                self.failures += 1;
                if self.failures >= THRESHOLD && self.open.is_none() {
                    self.open = Some(OpenCircuit { next_probe: now + PAUSE.0, pause: PAUSE.0 * 2 });
                }
            }
            Ok(_) => *self = Self::new(),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_closes_after_a_probe() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let hung = OperationError::new(ErrorCode::DeadlineExceeded, "hung");
        let lost = OperationError::new(ErrorCode::Unavailable, "lost");
        let mut breaker = CircuitBreaker::new();
        for error in [&hung, &hung, &lost] {
            breaker.ended::<()>(start, Err(error));
        }
        breaker.ended(start, Ok(&()));
        for _ in 0..THRESHOLD {
            assert!(!breaker.is_open());
            breaker.ended::<()>(start, Err(&hung));
        }
        assert!(breaker.is_open() && !breaker.lets_through(at(999)) && breaker.lets_through(at(1000)));
        // One probe, which fails; the next may come after twice the pause.
        breaker.sent(at(1000));
        breaker.ended::<()>(at(1100), Err(&hung));
        assert!(!breaker.lets_through(at(2999)) && breaker.lets_through(at(3000)));
        breaker.sent(at(3000));
        assert!(!breaker.lets_through(at(3001)));
        breaker.ended(at(3100), Ok(&()));
        assert!(!breaker.is_open() && breaker.lets_through(at(3100)));
    }

    #[test]
    fn pauses_stop_growing() {
        let mut now = Instant::now();
        let mut breaker = CircuitBreaker::new();
        let hung = OperationError::new(ErrorCode::DeadlineExceeded, "hung");
        (0..THRESHOLD).for_each(|_| breaker.ended::<()>(now, Err(&hung)));
        for _ in 0..20 {
            now += PAUSE.1;
            assert!(breaker.lets_through(now));
            breaker.sent(now);
            assert!(!breaker.lets_through(now));
        }
    }
}
