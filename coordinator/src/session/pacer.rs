//! Where sessions of one kind share what they measured, and learn how fast to decode.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::pace::{Costs, Pace, Work, neighbour};
use super::plan::Plan;
use super::speculation::Speculation;

/// Draft length before anything was measured.
const FIRST_DRAFT: u32 = 4;

/// One round in so many is decoded at a neighbouring pace, so that its costs are known, too.
const PROBE_INTERVAL: u32 = 32;

/// Longer operations say nothing of a round.
const LONGEST_ROUND: usize = 64;

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
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    costs: Costs,
    rounds: u32,
}

impl Pacer {
    fn new(speculation: Speculation, max_draft: u32) -> Self {
        Self { speculation, max_draft, measured: Mutex::default() }
    }

    /// Takes note of an operation that fed `tokens` and drafted `drafts`, `beside` one of the other model.
    pub(crate) fn observe(&self, tokens: usize, drafts: u32, beside: bool, took: Duration) {
        let work = match (drafts, tokens) {
            // They feed a prompt.
            (0, LONGEST_ROUND..) | (1.., 3..) => return,
            (0, 0) => Work::LookUp,
            (0, tokens) => Work::Verify(tokens as u32),
            (drafts, _) => Work::Draft(drafts),
        };
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.costs.observe(work, beside, took.as_secs_f64());
    }

    /// How fast the next round of a session should go.
    pub(crate) fn pace(&self, acceptance: f64) -> Pace {
        let allowed = match self.speculation {
            Speculation::Off | Speculation::Fixed(1) => return Pace::SEQUENTIAL,
            Speculation::Fixed(drafted) => drafted..=drafted,
            Speculation::Adaptive => 1..=self.max_draft,
        };
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if !measured.costs.are_known() {
            // Both models alone at first. That to compute side by side costs nothing is then believed until it is tried.
            return Pace { drafted: FIRST_DRAFT.clamp(*allowed.start(), *allowed.end()), runs_ahead: false };
        }
        measured.rounds = measured.rounds.wrapping_add(1);
        let best = measured.costs.best(acceptance, allowed.clone());
        let probe = measured.rounds / PROBE_INTERVAL;
        if measured.rounds.is_multiple_of(PROBE_INTERVAL) { neighbour(best, probe, &allowed) } else { best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_hold_whatever_is_measured() {
        let (off, fixed) = (Pacer::new(Speculation::Off, 8), Pacer::new(Speculation::Fixed(3), 2));
        for _ in 0..100 {
            for pacer in [&off, &fixed] {
                pacer.observe(1, 0, true, Duration::from_millis(3));
                pacer.observe(1, 3, true, Duration::from_millis(1));
            }
            assert_eq!(off.pace(0.9), Pace::SEQUENTIAL);
            assert_eq!(fixed.pace(0.9).drafted, 3);
        }
    }

    #[test]
    fn neighbours_are_tried_now_and_then_and_stay_within_bounds() {
        let pacer = Pacer::new(Speculation::Adaptive, 6);
        assert_eq!(pacer.pace(0.8).drafted, FIRST_DRAFT);
        let mut tried = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let pace = pacer.pace(0.9);
            assert!((1..=6).contains(&pace.drafted));
            tried.insert(pace.drafted);
            pacer.observe(pace.drafted as usize, 0, true, Duration::from_micros(10_000));
            pacer.observe(1, pace.drafted, true, Duration::from_micros(200 * u64::from(pace.drafted)));
        }
        assert!(tried.contains(&6) && tried.contains(&5), "{tried:?}");
        assert_eq!(neighbour(Pace::SEQUENTIAL, 1, &(1..=1)), Pace::SEQUENTIAL);
    }
}
