//! How fast sessions end, and so how long the queue will take.

use cosec_proto::MovingAverage;
use tokio::time::Instant;

/// Sessions over which the averages go.
const MEMORY_SESSIONS: f64 = 32.0;

/// Most seconds that a client is told to wait: estimates beyond that mean little.
const MOST_SECONDS: f64 = 60.0;

/// Averages over the sessions that ended last.
#[derive(Debug)]
pub(super) struct Throughput {
    tokens: MovingAverage,
    /// Of work since the session before.
    seconds: MovingAverage,
    /// Of work since the last session ended.
    busy_seconds: f64,
    last: Option<Instant>,
}

impl Default for Throughput {
    fn default() -> Self {
        let average = MovingAverage::over(MEMORY_SESSIONS);
        Self { tokens: average, seconds: average, busy_seconds: 0.0, last: None }
    }
}

impl Throughput {
    /// Notes that it is `now`, and whether there was work since the last note.
    pub(super) fn note_time(&mut self, now: Instant, was_busy: bool) {
        let seconds = self.last.replace(now).map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        if was_busy {
            self.busy_seconds += seconds;
        }
    }

    /// Notes that a session of so many tokens has ended.
    pub(super) fn note_end(&mut self, now: Instant, tokens: u64) {
        self.note_time(now, true);
        self.tokens.add(tokens as f64);
        self.seconds.add(std::mem::take(&mut self.busy_seconds));
    }

    /// Seconds in which sessions of `tokens` tokens will have ended, at least 1; `None` before there was anything to
    /// measure.
    pub(super) fn seconds_for(&self, tokens: u64) -> Option<u64> {
        let seconds = match (self.seconds.mean(), self.tokens.mean()) {
            (Some(seconds), Some(ended)) if ended > 0.0 => tokens as f64 * seconds / ended,
            // Where nothing has ended yet, it takes at least as long again.
            _ if self.busy_seconds > 0.0 => self.busy_seconds,
            _ => return None,
        };
        Some(seconds.ceil().clamp(1.0, MOST_SECONDS) as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn waits_follow_the_measured_rate_within_bounds() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut throughput = Throughput::default();
        assert_eq!(throughput.seconds_for(1000), None);
        throughput.note_time(at(0.0), false);
        throughput.note_time(at(7.0), true);
        assert_eq!(throughput.seconds_for(1000), Some(7), "nothing has ended in 7 seconds");
        // 100 tokens a second, with an hour of nothing to do in their midst.
        for second in 8..300 {
            throughput.note_end(at(f64::from(second)), 100);
        }
        throughput.note_time(at(4000.0), false);
        for (tokens, least, most) in [(0, 1, 1), (50, 1, 1), (1000, 10, 11), (1_000_000, 60, 60)] {
            let seconds = throughput.seconds_for(tokens).unwrap();
            assert!((least..=most).contains(&seconds), "{tokens} tokens: {seconds}");
        }
        // Ten times as fast for some minutes.
        for second in 4001..4200 {
            throughput.note_end(at(f64::from(second)), 1000);
        }
        assert!((1..=2).contains(&throughput.seconds_for(1000).unwrap()));
    }
}
