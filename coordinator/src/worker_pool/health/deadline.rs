//! How long a worker's operations take, and so after how long one counts as hung.

use std::time::Duration;

use cosec_proto::MovingAverage;

/// Operations measured before a deadline is derived from them.
const ENOUGH: u32 = 32;

/// A deadline is so many times the expected time and its spread. Far above what a busy worker needs: a false alarm
/// costs a prefill on another worker.
const FACTOR: f64 = 8.0;

/// Moving mean and mean deviation, in seconds for each forward pass that an operation needs. They forget as TCP's do
/// (RFC 6298).
#[derive(Clone, Copy, Debug)]
pub(super) struct OperationTime {
    mean: MovingAverage,
    deviation: MovingAverage,
    measured: u32,
}

impl OperationTime {
    pub(super) fn new() -> Self {
        Self { mean: MovingAverage::over(8.0), deviation: MovingAverage::over(4.0), measured: 0 }
    }

    /// Notes that an operation of `passes` forward passes took `seconds`.
    pub(super) fn note(&mut self, seconds: f64, passes: u32) {
        let seconds = seconds / f64::from(passes.max(1));
        self.deviation.add((seconds - self.mean.mean().unwrap_or(seconds / 2.0)).abs());
        self.mean.add(seconds);
        self.measured = self.measured.saturating_add(1);
    }

    /// Time for an operation of `passes` forward passes, from `least` to `most`; `most` until enough is measured.
    pub(super) fn deadline(&self, passes: u32, least: Duration, most: Duration) -> Duration {
        let (Some(mean), Some(deviation)) = (self.mean.mean(), self.deviation.mean()) else { return most };
        if self.measured < ENOUGH {
            return most;
        }
        let seconds = FACTOR * (mean + 4.0 * deviation) * f64::from(passes.max(1));
        Duration::try_from_secs_f64(seconds).unwrap_or(most).max(least).min(most)
    }
}

/// What the slowest of the last operations is multiplied with when a faster one comes.
const FORGETTING: f64 = 0.98;

/// The slowest of the last operations that feed prompts, in seconds for each unit of work. Whether a prompt's beginning
/// is cached makes them differ by orders of magnitude, so their mean tells little.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlowestOperation {
    seconds: f64,
    measured: u32,
}

impl SlowestOperation {
    /// Notes that an operation of `units` of work took `seconds`.
    pub(super) fn note(&mut self, seconds: f64, units: u32) {
        self.seconds = (seconds / f64::from(units.max(1))).max(self.seconds * FORGETTING);
        self.measured = self.measured.saturating_add(1);
    }

    /// Time for an operation of `units`, from `least` to `most`; `most` until enough is measured.
    pub(super) fn deadline(&self, units: u32, least: Duration, most: Duration) -> Duration {
        if self.measured < ENOUGH {
            return most;
        }
        let seconds = FACTOR * self.seconds * f64::from(units.max(1));
        Duration::try_from_secs_f64(seconds).unwrap_or(most).max(least).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_are_cached_do_not_make_others_late() {
        let (least, most) = (Duration::from_secs(5), Duration::from_secs(30));
        let mut slowest = SlowestOperation::default();
        assert_eq!(slowest.deadline(60, least, most), most);
        slowest.note(1.8, 60);
        (0..ENOUGH).for_each(|_| slowest.note(0.001, 60));
        // More than twice what a prompt took that was not cached.
        assert!(slowest.deadline(60, least, most) > Duration::from_secs(5));
        (0..1000).for_each(|_| slowest.note(0.001, 60));
        assert_eq!(slowest.deadline(60, least, most), least);
        // One that was given up counts: the next gets several times as long.
        slowest.note(5.0, 60);
        assert_eq!(slowest.deadline(60, least, most), most);
    }

    #[test]
    fn deadlines_follow_the_measured_time_within_bounds() {
        let (least, most) = (Duration::from_millis(50), Duration::from_secs(30));
        let mut time = OperationTime::new();
        assert_eq!(time.deadline(1, least, most), most);
        (0..100).for_each(|_| time.note(0.02, 1));
        let steady = time.deadline(1, least, most);
        assert!(steady > Duration::from_millis(100) && steady < Duration::from_millis(300), "{steady:?}");
        assert!(time.deadline(10, least, most) > 9 * steady);
        assert_eq!(time.deadline(1, Duration::from_secs(2), most), Duration::from_secs(2));
        // A load that slows everything down raises the deadline before it is missed.
        (0..10).for_each(|_| time.note(0.1, 1));
        assert!(time.deadline(1, least, most) > Duration::from_millis(900));
        // One that was given up at its deadline counts with what it took: the next gets several times as long.
        let missed = time.deadline(1, least, most);
        time.note(missed.as_secs_f64(), 1);
        assert!(time.deadline(1, least, most) > 4 * missed);
        (0..100).for_each(|_| time.note(100.0, 1));
        assert_eq!(time.deadline(1, least, most), most);
    }
}
