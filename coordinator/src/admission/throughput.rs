//! How fast sessions come to their end, and hence how long what waits will take.

use tokio::time::Instant;

/// Seconds of work after which a measurement counts for 1/e.
const MEMORY_SECONDS: f64 = 30.0;

/// Most seconds that a client is told to wait: by then everything may be different.
const MOST_SECONDS: f64 = 60.0;

/// Tokens of ended sessions and the time in which there was work, both fading.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    tokens: f64,
    busy_seconds: f64,
    last: Option<Instant>,
}

impl Throughput {
    /// Notes that it is `now`, whether there was work since the last note, and that sessions of so many tokens have ended.
    pub(super) fn note(&mut self, now: Instant, was_busy: bool, ended_tokens: u64) {
        let seconds = self.last.replace(now).map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        if was_busy {
            let kept = (-seconds / MEMORY_SECONDS).exp();
            self.tokens *= kept;
            self.busy_seconds = self.busy_seconds * kept + MEMORY_SECONDS * (1.0 - kept);
        }
        self.tokens += ended_tokens as f64;
    }

    /// Seconds in which sessions of `tokens` tokens will have ended, at least 1; `None` before there was anything to
    /// measure.
    pub(super) fn seconds_for(&self, tokens: u64) -> Option<u64> {
        if self.busy_seconds <= 0.0 {
            return None;
        }
        // Where nothing has ended yet, it takes at least as long again.
        let seconds =
            if self.tokens > 0.0 { tokens as f64 * self.busy_seconds / self.tokens } else { self.busy_seconds };
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
        throughput.note(at(0.0), false, 0);
        throughput.note(at(7.0), true, 0);
        assert_eq!(throughput.seconds_for(1000), Some(7), "nothing has ended in 7 seconds");
        // 100 tokens a second, with an hour of nothing to do in their midst.
        for second in 8..300 {
            throughput.note(at(f64::from(second)), true, 100);
        }
        throughput.note(at(4000.0), false, 0);
        for (tokens, least, most) in [(0, 1, 1), (50, 1, 1), (1000, 10, 11), (1_000_000, 60, 60)] {
            let seconds = throughput.seconds_for(tokens).unwrap();
            assert!((least..=most).contains(&seconds), "{tokens} tokens: {seconds}");
        }
        // Ten times as fast for some minutes.
        for second in 4001..4200 {
            throughput.note(at(f64::from(second)), true, 1000);
        }
        assert!((1..=2).contains(&throughput.seconds_for(1000).unwrap()));
    }
}
