//! Where sessions of one kind share what they measured, and learn how fast to decode.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::costs::{Costs, Work};
use super::pace::{Acceptance, Pace, best, neighbour, own, rate};
use super::plan::Plan;
use super::speculation::Speculation;
use crate::worker_pool::reply::Effort;

/// Draft length before anything was measured: few, as many sessions may begin at once.
const FIRST_DRAFT: u32 = 2;

/// Rounds of every session for which all keep to one mode.
const PERIOD: u64 = 4;

/// Rounds after a change of mode that tell nothing: what they take depends on what the mode before left.
const DISORDER: u32 = 2;

/// One such period in so many is decoded at a neighbouring pace, so that its costs are known, too.
const PROBE_INTERVAL: u64 = 16;

/// A neighbour that is expected to be slower than this share of the best is tried once in [`HOPELESS_INTERVAL`] probes only.
const HOPEFUL: f64 = 0.85;
const HOPELESS_INTERVAL: u64 = 5;

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
        let mut pacers = self.pacers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Pacer::new(self.speculation, self.max_draft));
        Arc::clone(pacers.entry(kind).or_insert_with(new))
    }
}

/// Shared by the sessions of one kind.
#[derive(Debug)]
pub(crate) struct Pacer {
    speculation: Speculation,
    max_draft: u32,
    /// That decode now.
    sessions: AtomicUsize,
    measured: Mutex<Measured>,
}

#[derive(Debug)]
struct Measured {
    costs: Costs,
    /// Of all sessions.
    acceptance: f64,
    /// Whose mode all sessions keep to: what one does among others that do something else tells little.
    common: Pace,
    is_probe: bool,
    /// Choices until the next common pace, and how many of them there were.
    left: u64,
    periods: u64,
}

impl Pacer {
    fn new(speculation: Speculation, max_draft: u32) -> Self {
        let measured = Measured {
            costs: Costs::default(),
            acceptance: Acceptance::PRIOR.rate(),
            common: Pace::SEQUENTIAL,
            is_probe: false,
            left: 0,
            periods: 0,
        };
        Self { speculation, max_draft, sessions: AtomicUsize::new(0), measured: Mutex::new(measured) }
    }

    /// A session begins to decode, at the pace of this.
    pub(crate) fn join(self: &Arc<Self>, acceptance: f64) -> Paced {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let pace = self.pace(acceptance);
        Paced { pacer: Arc::clone(self), pace, steady: 0, round: None }
    }

    /// How fast the next round of a session should go.
    fn pace(&self, acceptance: f64) -> Pace {
        let allowed = match self.speculation {
            Speculation::Off | Speculation::Fixed(1) => return Pace::SEQUENTIAL,
            Speculation::Fixed(drafted) => drafted..=drafted,
            Speculation::Adaptive => 1..=self.max_draft,
        };
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = measured.pace(acceptance, &allowed, self.sessions());
        tracing::trace!(pace.drafted, pace.runs_ahead, sessions = self.sessions(), acceptance, "pace");
        pace
    }

    fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed).max(1)
    }
}

impl Measured {
    fn pace(&mut self, acceptance: f64, allowed: &RangeInclusive<u32>, sessions: usize) -> Pace {
        let period = PERIOD * sessions as u64;
        self.acceptance += (acceptance - self.acceptance) / period as f64;
        self.left = self.left.min(period);
        if self.left == 0 {
            (self.left, self.periods) = (period, self.periods + 1);
            let best = best(&self.costs, self.acceptance, allowed, sessions, self.common);
            let probe = best.and_then(|best| self.probe(best, allowed, sessions));
            self.is_probe = probe.is_some();
            // Each model alone at first. That to compute side by side costs nothing is then believed until it is tried.
            self.common = probe.or(best).unwrap_or(match FIRST_DRAFT.clamp(*allowed.start(), *allowed.end()) {
                1 => Pace::SEQUENTIAL,
                drafted => Pace { drafted, runs_ahead: false },
            });
        }
        self.left -= 1;
        if self.is_probe { self.common } else { own(&self.costs, acceptance, allowed, sessions, self.common) }
    }

    /// What is tried in place of `best` in this period.
    fn probe(&self, best: Pace, allowed: &RangeInclusive<u32>, sessions: usize) -> Option<Pace> {
        let probe = self.periods / PROBE_INTERVAL;
        let tried = neighbour(best, probe, allowed);
        let rate = |pace| rate(&self.costs, pace, self.acceptance, sessions);
        let is_hopeful = || rate(tried) >= rate(best).map(|best| HOPEFUL * best);
        (self.periods.is_multiple_of(PROBE_INTERVAL) && (is_hopeful() || probe.is_multiple_of(HOPELESS_INTERVAL)))
            .then_some(tried)
    }
}

/// A session's part in a pacer, while it decodes.
#[derive(Debug)]
pub(crate) struct Paced {
    pacer: Arc<Pacer>,
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
        let mut measured = self.pacer.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.costs.observe(work, (self.pace, beside), effort, sessions);
        if let Work::Verify(_) = work {
            if let Some(began) = self.round.replace(now)
                && self.steady >= DISORDER
            {
                measured.costs.observe_round(self.pace, acceptance, sessions, now - began);
            }
            drop(measured);
            let next = self.pacer.pace(acceptance);
            self.steady = if next.mode() == self.pace.mode() { self.steady.saturating_add(1) } else { 0 };
            self.pace = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn observe(paced: &mut Paced, acceptance: f64) {
        let pace = paced.pace();
        let effort = |passes: u32, rows: u32, micros: u64| {
            let compute = Duration::from_micros(micros);
            Effort { compute, passes, tokens: rows, rows, ..Effort::default() }
        };
        let drafted = effort(pace.drafted, pace.drafted, 200 * u64::from(pace.drafted));
        paced.observe(Work::Draft, pace.runs_ahead, drafted, acceptance);
        let verified = effort(1, pace.drafted, 10_000);
        paced.observe(Work::Verify(pace.drafted), pace.runs_ahead, verified, acceptance);
    }

    #[test]
    fn settings_hold_whatever_is_measured() {
        let sets = [Speculation::Off, Speculation::Fixed(3)];
        let [mut off, mut fixed] = sets.map(|set| Arc::new(Pacer::new(set, 2)).join(0.9));
        for _ in 0..100 {
            assert_eq!(off.pace(), Pace::SEQUENTIAL);
            assert_eq!(fixed.pace().drafted, 3);
            observe(&mut off, 0.9);
            observe(&mut fixed, 0.9);
        }
    }

    #[test]
    fn neighbours_are_tried_now_and_then_and_stay_within_bounds() {
        let mut paced = Arc::new(Pacer::new(Speculation::Adaptive, 6)).join(0.9);
        assert_eq!(paced.pace().drafted, FIRST_DRAFT);
        let mut tried = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            assert!((1..=6).contains(&paced.pace().drafted));
            tried.insert(paced.pace().drafted);
            observe(&mut paced, 0.9);
        }
        assert!(tried.contains(&6) && tried.contains(&5), "{tried:?}");
    }

    #[test]
    fn sessions_are_counted_while_they_decode() {
        let pacer = Arc::new(Pacer::new(Speculation::Adaptive, 6));
        let paced: Vec<_> = (0..3).map(|_| pacer.join(0.8)).collect();
        assert_eq!(pacer.sessions(), 3);
        drop(paced);
        assert_eq!(pacer.join(0.8).pacer.sessions(), 1);
    }
}
