//! Measures one session's rounds for its controller.

use tokio::time::Instant;

use super::controller::{DraftPlan, MeasuredRound, load_octave};
use super::shared::SharedController;
use super::tally::VerifiedBlock;

/// A session's part in a controller.
#[derive(Debug)]
pub(crate) struct RoundTimer {
    controller: SharedController,
    plan: DraftPlan,
    /// Of the rounds counted.
    load_octave: u32,
    rounds_at_plan: u32,
    /// When the round began, unless something else held it up.
    began: Option<Instant>,
}

impl RoundTimer {
    pub(crate) fn new(controller: SharedController) -> Self {
        let plan = controller.lock().plan(1);
        Self { controller, plan, load_octave: 0, rounds_at_plan: 0, began: None }
    }

    /// How the session drafts now.
    pub(crate) fn plan(&self) -> DraftPlan {
        self.plan
    }

    /// The session's worker holds so many sessions; it begins as they go.
    pub(crate) fn begin(&mut self, load: usize) -> DraftPlan {
        let plan = self.controller.lock().plan(load);
        self.follow(load, plan);
        plan
    }

    /// The time of this round says nothing of the plan: something else held it up.
    pub(crate) fn interrupt(&mut self) {
        self.began = None;
    }

    /// A round is over; returns the plan of the next one.
    pub(crate) fn round_ended(&mut self, load: usize, now: Instant, block: VerifiedBlock) -> DraftPlan {
        let seconds = self.began.replace(now).map(|began| (now - began).as_secs_f64());
        let rounds_at_plan = if load_octave(load) == self.load_octave { self.rounds_at_plan + 1 } else { 1 };
        let round = MeasuredRound { plan: self.plan, rounds_at_plan, seconds, block };
        let next = self.controller.lock().on_round(load, round);
        tracing::trace!(load, next.num_draft_tokens, next.pipelined, seconds, "round");
        self.rounds_at_plan = rounds_at_plan;
        self.follow(load, next);
        next
    }

    fn follow(&mut self, load: usize, plan: DraftPlan) {
        if (load_octave(load), plan) != (self.load_octave, self.plan) {
            (self.load_octave, self.plan, self.rounds_at_plan) = (load_octave(load), plan, 0);
        }
    }
}
