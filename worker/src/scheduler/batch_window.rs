//! Which sessions the next forward pass waits for.
//!
//! A pass for few positions takes hardly longer than one for a single position: the weights are read once for all.
//! Sessions that ride in separate passes pay for that each time. So halves of a batch that take turns run at half the
//! speed, and stay halves. Waiting for a session turns two passes into one and saves the part of a pass that does not
//! grow with its positions; it costs as long as the session stays away. So the pass waits for sessions expected within
//! that time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cosec_proto::SessionId;

/// When sessions come back, and what a pass costs that they ride in.
#[derive(Debug, Default)]
pub(crate) struct BatchWindow {
    sessions: HashMap<SessionId, ReturnEstimate>,
    passes: PassTimeModel,
    /// Sessions expected when the next pass began to wait, and until when; ascending.
    expected: Vec<(Instant, SessionId)>,
}

/// How long a session stays away between an answer and its next tokens.
#[derive(Clone, Copy, Debug, Default)]
struct ReturnEstimate {
    /// Since when it is away.
    left: Option<Instant>,
    /// How long it was away the last time, and the longer of the last two times.
    last: Duration,
    away: Option<Duration>,
}

/// Part of a pass, and of what a session usually stays away, by which it may be late.
const LATE_PASS: u32 = 16;
const LATE_AWAY: u32 = 8;

/// Part of a pass within which a session is expected that was never away before.
const UNKNOWN: u32 = 8;

/// Part of a pass for which a session is waited for in any case: where positions cost in proportion, one pass for all
/// is still no worse than two.
const ALWAYS: u32 = 4;

impl BatchWindow {
    /// A session has been answered and has nothing more to compute.
    pub(crate) fn left(&mut self, session: SessionId, now: Instant) {
        self.sessions.entry(session).or_default().left = Some(now);
    }

    /// It has more to compute.
    pub(crate) fn came(&mut self, session: SessionId, now: Instant) {
        let Some(estimate) = self.sessions.get_mut(&session) else { return };
        if let Some(left) = estimate.left.take() {
            let away = now.saturating_duration_since(left);
            estimate.away = Some(away.max(estimate.last));
            estimate.last = away;
        }
    }

    /// It is over.
    pub(crate) fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// A pass fed so many tokens and computed the logits of so many positions.
    pub(crate) fn passed(&mut self, tokens: usize, rows: usize, took: Duration) {
        // Prompts tell nothing of passes without them.
        if tokens <= 2 * rows {
            self.passes.observe(rows as f64, took.as_secs_f64());
        }
    }

    /// Begins to wait for the next pass.
    pub(crate) fn open(&mut self, now: Instant) {
        let pass = self.passes.mean();
        let horizon = now + self.passes.fixed().max(pass / ALWAYS);
        let until = |estimate: &ReturnEstimate| {
            let away = estimate.away.map_or(pass / UNKNOWN, |away| away + away / LATE_AWAY);
            Some(estimate.left? + away + pass / LATE_PASS).filter(|until| (now..=horizon).contains(until))
        };
        self.expected.clear();
        self.expected.extend(self.sessions.iter().filter_map(|(&id, estimate)| Some((until(estimate)?, id))));
        self.expected.sort_unstable_by_key(|&(until, _)| until);
    }

    /// Until when the last one is waited for that has not come yet.
    pub(crate) fn end(&mut self) -> Option<Instant> {
        while let Some((until, session)) = self.expected.last() {
            if self.sessions.get(session).is_some_and(|estimate| estimate.left.is_some()) {
                return Some(*until);
            }
            self.expected.pop();
        }
        None
    }
}

/// A line through the times of recent passes by their positions: sums for a regression with decaying weights.
#[derive(Clone, Copy, Debug, Default)]
struct PassTimeModel {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
}

impl PassTimeModel {
    /// What is left of a pass with the next one.
    const MEMORY: f64 = 0.97;

    /// Variance of the positions below which no line is drawn.
    const SPREAD: f64 = 0.5;

    fn observe(&mut self, rows: f64, seconds: f64) {
        let added = [1.0, rows, seconds, rows * rows, rows * seconds];
        let Self { weight, rows, seconds, rows_squared, rows_seconds } = self;
        for (sum, added) in [weight, rows, seconds, rows_squared, rows_seconds].into_iter().zip(added) {
            *sum = *sum * Self::MEMORY + added;
        }
    }

    fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.seconds / self.weight.max(1.0))
    }

    /// The part that does not grow with the positions; half of a pass while all passes had equally many.
    fn fixed(&self) -> Duration {
        let weight = self.weight.max(1.0);
        let (rows, seconds) = (self.rows / weight, self.seconds / weight);
        let spread = self.rows_squared / weight - rows * rows;
        if spread < Self::SPREAD {
            return self.mean() / 2;
        }
        let growth = (self.rows_seconds / weight - rows * seconds) / spread;
        Duration::from_secs_f64((seconds - growth * rows).clamp(0.0, seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS: Duration = Duration::from_millis(1);

    /// Passes of 100 ms and 10 more for each position.
    fn window() -> BatchWindow {
        let mut window = BatchWindow::default();
        for rows in [2, 4, 2, 8] {
            window.passed(rows, rows, MILLIS * (100 + 10 * rows as u32));
        }
        window
    }

    /// Away for so long, twice; then gone again.
    fn returning(window: &mut BatchWindow, now: Instant, away: Duration) -> SessionId {
        let session = SessionId::random();
        for before in [2, 1] {
            window.left(session, now - before * away);
            window.came(session, now - (before - 1) * away);
        }
        window.left(session, now);
        session
    }

    #[test]
    fn the_fixed_part_of_a_pass_is_found_and_prompts_do_not_count() {
        let mut window = window();
        window.passed(512, 1, Duration::from_secs(9));
        assert!(window.passes.fixed().abs_diff(100 * MILLIS) < MILLIS, "{:?}", window.passes.fixed());
        let mut alike = PassTimeModel::default();
        assert_eq!(alike.fixed(), Duration::ZERO);
        (0..9).for_each(|_| alike.observe(4.0, 0.1));
        assert!(alike.fixed().abs_diff(50 * MILLIS) < MILLIS);
        // Twice the positions, twice the time: nothing is saved.
        (0..99).for_each(|i| alike.observe(f64::from(4 << (i % 2)), 0.1 * f64::from(1 << (i % 2))));
        assert!(alike.fixed() < 10 * MILLIS, "{:?}", alike.fixed());
    }

    #[test]
    fn sessions_back_within_the_fixed_part_are_waited_for_and_others_are_not() {
        let (mut window, now) = (window(), Instant::now());
        let soon = returning(&mut window, now, 50 * MILLIS);
        let late = returning(&mut window, now, 300 * MILLIS);
        window.open(now);
        let until = window.end().unwrap();
        assert!((now + 50 * MILLIS..now + 100 * MILLIS).contains(&until));
        window.came(soon, now + 40 * MILLIS);
        assert_eq!(window.end(), None);
        // Later the other one is about to come.
        window.open(now + 280 * MILLIS);
        assert!(window.end().is_some_and(|until| until > now + 300 * MILLIS));
        window.forget(late);
        assert_eq!(window.end(), None);
        window.open(now + 280 * MILLIS);
        assert_eq!(window.end(), None);
    }

    #[test]
    fn a_session_that_does_not_come_is_waited_for_once() {
        let (mut window, now) = (window(), Instant::now());
        returning(&mut window, now, 50 * MILLIS);
        window.open(now + 99 * MILLIS);
        assert_eq!(window.end(), None);
        // One that was never away before is expected at once.
        window.left(SessionId::random(), now + 99 * MILLIS);
        window.open(now + 99 * MILLIS);
        assert!(window.end().is_some_and(|until| until < now + 140 * MILLIS));
    }

    #[test]
    fn a_long_absence_is_remembered_once() {
        let (mut window, now) = (window(), Instant::now());
        let session = returning(&mut window, now, 10 * MILLIS);
        for (away, expected) in [(900, 900), (20, 900), (30, 30), (10, 30)] {
            window.left(session, now);
            window.came(session, now + away * MILLIS);
            assert_eq!(window.sessions[&session].away, Some(expected * MILLIS));
        }
    }
}
