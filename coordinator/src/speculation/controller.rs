//! Chooses how many tokens to draft: a hill climb on measured goodput, clock-free.
//!
//! Goodput is the tokens that a round is expected to decide over the seconds that rounds took. Every session of one
//! load follows one plan, so that their operations share forward passes and the seconds are those of the whole load.
//! From time to time all of them try a neighbouring plan for a few rounds; a better one is kept. What failing trials
//! cost is bounded by a share of the time, so a plan that is far worse is tried rarely and one that is nearly as good
//! often. When a climb stops, the plan before the last is tried once more.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use cosec_proto::MovingAverage;

use super::acceptance::AcceptanceRate;
use super::tally::VerifiedBlock;

/// Rounds at a new plan that are not measured: drafts of the old plan are under way, and sessions change one by one.
const SETTLING_ROUNDS: u32 = 1;

/// Rounds of a trial that are measured, and the rounds of single sessions that suffice before: many sessions tell in one
/// round what one session tells in some.
const MEASURED_ROUNDS: u32 = 2;
const MEASURED_SESSION_ROUNDS: u32 = 8;

/// Rounds at the present plan before a trial: by then, the prompts of a load that has just begun are computed.
const STEADY_ROUNDS: u32 = 5;

/// A plan must gain this much to replace the present one: measurements are noisy.
const SWITCH_GAIN: f64 = 1.03;

/// A trial ends early below this share of the present plan's goodput.
const ABORT_GAIN: f64 = 0.85;

/// Share of the time that failing trials may cost.
const TRIAL_BUDGET: f64 = 0.015;

/// Rounds that the present plan's seconds are averaged over.
const MEMORY_ROUNDS: f64 = 8.0;

/// A round counts as at most so many average ones: a prompt in the same batch, a pause.
const OUTLIER: f64 = 2.5;

/// How a session drafts its next tokens. It changes the time, never the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DraftPlan {
    /// Tokens that the expert drafts at a time. At 1, base and expert compute the same position at the same time.
    pub num_draft_tokens: u32,
    /// Whether the expert drafts the next block while the base verifies this one.
    pub pipelined: bool,
}

impl DraftPlan {
    /// One position at a time.
    pub const SEQUENTIAL: Self = Self { num_draft_tokens: 1, pipelined: false };

    /// Plans that differ from this one in one thing, within the allowed draft lengths.
    fn neighbours(self, allowed: &RangeInclusive<u32>) -> impl Iterator<Item = Self> {
        let Self { num_draft_tokens: k, pipelined } = self;
        let longer = k + (k / 2).max(1);
        let candidates = [(longer, pipelined), (k - 1, pipelined), (k.max(2), !pipelined), (k + 1, pipelined)];
        let (least, most) = (*allowed.start(), *allowed.end());
        let plans = candidates.map(|(k, pipelined)| {
            let num_draft_tokens = k.clamp(least, most);
            Self { num_draft_tokens, pipelined: pipelined && num_draft_tokens > 1 }
        });
        plans.into_iter().filter(move |&plan| plan != self)
    }
}

/// A round of one session.
#[derive(Clone, Copy, Debug)]
pub struct MeasuredRound {
    /// Followed in this round.
    pub plan: DraftPlan,
    /// Rounds in a row at this plan and load, this one included.
    pub rounds_at_plan: u32,
    /// Absent where something else held the session up.
    pub seconds: Option<f64>,
    /// What it verified.
    pub block: VerifiedBlock,
}

/// Chooses the plan of all sessions of one kind. See the module.
#[derive(Debug)]
pub struct SpeculationController {
    /// Draft lengths.
    allowed: RangeInclusive<u32>,
    acceptance: AcceptanceRate,
    /// By [`load_octave`].
    loads: BTreeMap<u32, LoadState>,
}

/// What sessions of one load do and have measured.
#[derive(Debug)]
struct LoadState {
    plan: DraftPlan,
    round_seconds: MovingAverage,
    trial: Option<Trial>,
    /// What failing trials have cost in seconds, by plan, since the present plan was adopted.
    costs: BTreeMap<DraftPlan, f64>,
    /// What failing trials have cost beyond their budget.
    debt: f64,
    /// The plan before the present one, until it is tried once more: it may have been judged in a busy moment.
    doubt: Option<DraftPlan>,
}

/// A plan on trial.
#[derive(Debug)]
struct Trial {
    plan: DraftPlan,
    round_seconds: MovingAverage,
    /// That have finished a round at it.
    sessions: u32,
    /// Rounds in `round_seconds`.
    measured: u32,
    is_recheck: bool,
}

/// Loads between two powers of two learn together.
#[must_use]
pub fn load_octave(load: usize) -> u32 {
    load.next_power_of_two().trailing_zeros()
}

impl SpeculationController {
    /// A controller that begins with the shortest allowed drafts.
    #[must_use]
    pub fn new(allowed: RangeInclusive<u32>) -> Self {
        Self { allowed, acceptance: AcceptanceRate::default(), loads: BTreeMap::new() }
    }

    /// The plan of sessions whose worker holds `load` sessions.
    pub fn plan(&mut self, load: usize) -> DraftPlan {
        self.at(load).followed()
    }

    /// Adds a round of one session and returns the plan of its next one.
    pub fn on_round(&mut self, load: usize, round: MeasuredRound) -> DraftPlan {
        self.acceptance.add(round.block.proposals, round.block.stood);
        let (allowed, acceptance) = (self.allowed.clone(), self.acceptance);
        let state = self.at(load);
        state.observe(round);
        if round.plan == state.followed() {
            match state.trial.take() {
                Some(trial) => state.judge(trial, round.rounds_at_plan, &acceptance),
                None if round.rounds_at_plan >= STEADY_ROUNDS => state.trial = state.next_trial(&allowed),
                None => {}
            }
        }
        state.followed()
    }

    fn at(&mut self, load: usize) -> &mut LoadState {
        let num_draft_tokens = *self.allowed.start();
        self.loads.entry(load_octave(load)).or_insert_with(|| LoadState {
            plan: DraftPlan { num_draft_tokens, pipelined: false },
            round_seconds: MovingAverage::over(MEMORY_ROUNDS),
            trial: None,
            costs: BTreeMap::new(),
            debt: 0.0,
            doubt: None,
        })
    }
}

impl LoadState {
    fn followed(&self) -> DraftPlan {
        self.trial.as_ref().map_or(self.plan, |trial| trial.plan)
    }

    fn observe(&mut self, round: MeasuredRound) {
        let Some(seconds) = round.seconds else { return };
        let has_settled = round.rounds_at_plan > SETTLING_ROUNDS;
        if round.plan == self.plan {
            self.debt = (self.debt - TRIAL_BUDGET * seconds).max(0.0);
            if has_settled {
                self.round_seconds.add_capped(seconds, OUTLIER);
            }
        } else if let Some(trial) = self.trial.as_mut().filter(|trial| trial.plan == round.plan) {
            trial.sessions += u32::from(round.rounds_at_plan == 1);
            if has_settled {
                trial.round_seconds.add(seconds);
                trial.measured += 1;
            }
        }
    }

    /// Adopts the plan on trial, drops it, or goes on with it.
    fn judge(&mut self, trial: Trial, rounds_at_plan: u32, acceptance: &AcceptanceRate) {
        let is_over =
            rounds_at_plan >= SETTLING_ROUNDS + MEASURED_ROUNDS || trial.measured >= MEASURED_SESSION_ROUNDS;
        let goodput = |plan: DraftPlan, seconds: MovingAverage| {
            seconds.mean().map(|seconds| acceptance.expected_tokens(plan.num_draft_tokens) / seconds)
        };
        let measured = goodput(trial.plan, trial.round_seconds).zip(goodput(self.plan, self.round_seconds));
        let Some(gain) = measured.map(|(tried, present)| tried / present) else {
            self.trial = Some(trial);
            return;
        };
        let cost_of = |seconds: MovingAverage, gain: f64| {
            f64::from(trial.sessions * rounds_at_plan) * seconds.mean().unwrap_or_default() * (SWITCH_GAIN - gain)
        };
        if is_over && gain > SWITCH_GAIN {
            self.costs = BTreeMap::from([(self.plan, cost_of(self.round_seconds, 1.0 / gain))]);
            self.doubt = (!trial.is_recheck).then_some(self.plan);
            (self.plan, self.round_seconds) = (trial.plan, trial.round_seconds);
        } else if is_over || gain < ABORT_GAIN {
            let cost = cost_of(trial.round_seconds, gain);
            *self.costs.entry(trial.plan).or_default() += cost;
            self.debt += cost;
        } else {
            self.trial = Some(trial);
        }
    }

    /// The neighbour whose trials have cost the least, if the budget allows it, or else the plan in doubt.
    fn next_trial(&mut self, allowed: &RangeInclusive<u32>) -> Option<Trial> {
        let cost = |plan: &DraftPlan| self.costs.get(plan).copied().unwrap_or_default();
        let (plan, is_recheck) = if self.debt <= 0.0 {
            (self.plan.neighbours(allowed).min_by(|a, b| cost(a).total_cmp(&cost(b)))?, false)
        } else {
            (self.doubt.take()?, true)
        };
        Some(Trial { plan, round_seconds: MovingAverage::over(MEMORY_ROUNDS), sessions: 0, measured: 0, is_recheck })
    }
}

#[cfg(test)]
mod tests;
