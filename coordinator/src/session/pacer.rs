//! Where sessions of one kind share what they measured, and learn how fast to decode.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::costs::{Costs, Work, crowding};
use super::pace::{Acceptance, Pace, best, opening, own, probe};
use super::plan::Plan;
use super::speculation::Speculation;
use crate::worker_pool::reply::Effort;

/// Rounds of every session for which all keep to one mode.
const PERIOD: f64 = 4.0;

/// The same where drafts are tried for the first time: passes tell soon what they take.
const FIRST_PERIOD: f64 = 2.0;

/// Rounds after a change of mode that tell nothing: what they take depends on what the mode before left.
const DISORDER: u32 = 2;

/// The pacers of all kinds of sessions.
#[derive(Debug)]
pub(crate) struct Pacers {
    speculation: Speculation,
    max_draft: u32,
    /// By model, rule and transport: what makes an operation cheap or dear.
    pacers: Mutex<HashMap<Kind, Arc<Pacer>>>,
}

type Kind = (String, &'static str, &'static str);

impl Pacers {
    pub(crate) fn new(speculation: Speculation, max_draft: u32) -> Self {
        Self { speculation, max_draft, pacers: Mutex::default() }
    }

    /// The pacer of sessions with this model and plan.
    pub(crate) fn of(&self, model: &str, plan: &Plan) -> Arc<Pacer> {
        let kind = (model.to_owned(), plan.rule.name(), plan.transport());
        let mut pacers = self.pacers.lock();
        let new = || Arc::new(Pacer::new(self.speculation, self.max_draft));
        Arc::clone(pacers.entry(kind).or_insert_with(new))
    }
}

/// Shared by the sessions of one kind.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// Numbers of drafts.
    allowed: RangeInclusive<u32>,
    /// That decode now.
    sessions: AtomicUsize,
    measured: Mutex<Measured>,
}

#[derive(Debug)]
struct Measured {
    costs: Costs,
    /// Of the last sessions.
    acceptance: f64,
    /// Whose mode all sessions keep to: what one does among others that do something else tells little.
    common: Pace,
    /// The load for which it was chosen; see [`crowding`].
    crowding: usize,
    /// Whether it is tried, so that its costs are known; then no session goes its own way.
    is_trial: bool,
    /// Rounds of every session until another one is chosen, and how many such periods there were.
    left: f64,
    periods: u64,
}

impl Pacer {
    fn new(speculation: Speculation, max_draft: u32) -> Self {
        let measured = Measured {
            costs: Costs::default(),
            acceptance: Acceptance::PRIOR.rate(),
            common: Pace::SEQUENTIAL,
            crowding: 0,
            is_trial: false,
            left: 0.0,
            periods: 0,
        };
        let allowed = match speculation {
            Speculation::Off => 1..=1,
            Speculation::Fixed(drafted) => drafted..=drafted,
            Speculation::Adaptive => 1..=max_draft,
        };
        Self { allowed, sessions: AtomicUsize::new(0), measured: Mutex::new(measured) }
    }

    /// A session begins to decode, at the pace of this.
    pub(crate) fn join(self: &Arc<Self>) -> Paced {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut measured = self.measured();
        let acceptance = measured.acceptance;
        let pace = measured.pace(acceptance, &self.allowed, self.sessions(), 0.0);
        Paced { pacer: Arc::clone(self), expected: Acceptance::like(acceptance), pace, steady: 0, round: None }
    }

    fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed).max(1)
    }

    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock()
    }
}

impl Measured {
    /// How fast a session goes next, one of so many that decode, after so many of its `rounds`.
    fn pace(&mut self, acceptance: f64, allowed: &RangeInclusive<u32>, sessions: usize, rounds: f64) -> Pace {
        let share = rounds / sessions as f64;
        self.acceptance += (acceptance - self.acceptance) * share;
        self.left -= share;
        if self.left <= 0.0 || self.crowding != crowding(sessions) {
            self.choose(allowed, sessions);
        }
        let common = self.common;
        let pace = if self.is_trial { common } else { own(&self.costs, acceptance, allowed, sessions, common) };
        tracing::trace!(pace.drafted, pace.runs_ahead, sessions, acceptance, "pace");
        pace
    }

    /// Chooses the common pace: at the end of a period, or at another load.
    fn choose(&mut self, allowed: &RangeInclusive<u32>, sessions: usize) {
        let (is_over, costs, acceptance) = (self.left <= 0.0, &self.costs, self.acceptance);
        self.periods += u64::from(is_over);
        let best = best(costs, acceptance, allowed, sessions, self.common);
        let first = opening(costs, allowed, sessions);
        let probe = || probe(costs, best.filter(|_| is_over)?, acceptance, allowed, sessions, self.periods);
        let trial = first.or_else(probe);
        // A load that goes to and fro does not put off the end of a period.
        if is_over || first.is_some() {
            self.left = if first.is_some_and(|first| first.drafted > 1) { FIRST_PERIOD } else { PERIOD };
        }
        self.common = trial.or(best).unwrap_or(self.common);
        self.crowding = crowding(sessions);
        self.is_trial = trial.is_some();
    }
}

/// A session's part in a pacer, while it decodes.
#[derive(Debug)]
pub(crate) struct Paced {
    pacer: Arc<Pacer>,
    expected: Acceptance,
    pace: Pace,
    /// Rounds in the mode of this one before it.
    steady: u32,
    /// Since when the round lasts.
    round: Option<Instant>,
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.pacer.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Paced {
    /// What to expect of its proposals at first.
    pub(crate) fn expected(&self) -> Acceptance {
        self.expected
    }

    /// How fast the session goes now.
    pub(crate) fn pace(&self) -> Pace {
        self.pace
    }

    /// What the round takes tells nothing of its pace: it was held up by something else.
    pub(crate) fn interrupt(&mut self) {
        self.round = None;
    }

    /// Takes note of a forward pass, `beside` one of the other model. With the base's a round is over, and the next one gets
    /// a pace.
    pub(crate) fn observe(&mut self, work: Work, beside: bool, effort: Effort, acceptance: f64) {
        let (sessions, now) = (self.pacer.sessions(), Instant::now());
        let mut measured = self.pacer.measured();
        let steady = (self.steady >= DISORDER).then_some(self.pace);
        measured.costs.observe(work, beside, effort, sessions, steady);
        if let Work::Verify(_) = work {
            if let (Some(began), Some(pace)) = (self.round.replace(now), steady) {
                measured.costs.observe_round(pace, acceptance, sessions, now - began);
            }
            let next = measured.pace(acceptance, &self.pacer.allowed, sessions, 1.0);
            self.steady = if next.mode() == self.pace.mode() { self.steady.saturating_add(1) } else { 0 };
            self.pace = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn observe(paced: &mut Paced, acceptance: f64) {
        let pace = paced.pace();
        let effort = |passes: u32, rows: u32, micros: u64| {
            let compute = Duration::from_micros(micros);
            Effort { compute, passes, tokens: rows, rows, ..Effort::default() }
        };
        let drafted = effort(pace.drafted, pace.drafted, 200 * u64::from(pace.drafted));
        paced.observe(Work::Draft, pace.runs_ahead, drafted, acceptance);
        let verified = effort(1, pace.drafted, 10_000);
        tokio::time::advance(drafted.compute + verified.compute).await;
        paced.observe(Work::Verify(pace.drafted), pace.runs_ahead, verified, acceptance);
    }

    #[tokio::test(start_paused = true)]
    async fn settings_hold_whatever_is_measured() {
        let sets = [Speculation::Off, Speculation::Fixed(3)];
        let [mut off, mut fixed] = sets.map(|set| Arc::new(Pacer::new(set, 2)).join());
        for _ in 0..100 {
            assert_eq!(off.pace(), Pace::SEQUENTIAL);
            assert_eq!(fixed.pace().drafted, 3);
            observe(&mut off, 0.9).await;
            observe(&mut fixed, 0.9).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn neighbours_are_tried_now_and_then_and_stay_within_bounds() {
        let mut paced = Arc::new(Pacer::new(Speculation::Adaptive, 6)).join();
        assert_eq!(paced.pace(), Pace::SEQUENTIAL);
        let mut tried = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            assert!((1..=6).contains(&paced.pace().drafted));
            tried.insert(paced.pace().drafted);
            observe(&mut paced, 0.9).await;
        }
        assert!(tried.contains(&6) && tried.contains(&5), "{tried:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_not_met_before_begins_sequentially_and_one_known_as_it_was() {
        let pacer = Arc::new(Pacer::new(Speculation::Adaptive, 6));
        let mut first = pacer.join();
        for _ in 0..100 {
            observe(&mut first, 0.9).await;
        }
        assert!(first.pace().drafted > 1, "{:?}", first.pace());
        let more: Vec<_> = (0..3).map(|_| pacer.join()).collect();
        assert!(more.iter().all(|paced| paced.pace() == Pace::SEQUENTIAL));
        drop(more);
        observe(&mut first, 0.9).await;
        assert!(first.pace().drafted > 1, "{:?}", first.pace());
    }

    #[test]
    fn sessions_are_counted_while_they_decode() {
        let pacer = Arc::new(Pacer::new(Speculation::Adaptive, 6));
        let paced: Vec<_> = (0..3).map(|_| pacer.join()).collect();
        assert_eq!(pacer.sessions(), 3);
        drop(paced);
        assert_eq!(pacer.join().pacer.sessions(), 1);
    }
}
