use super::*;

const MOST: RangeInclusive<u32> = 1..=8;

/// Sessions in step on two devices, or on one that computes one model after the other.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Seconds of a pass of the base: what does not and what does grow with its rows, and the rows that are free.
    fixed: f64,
    per_row: f64,
    free_rows: u32,
    /// Seconds of a pass of the expert.
    draft: f64,
    is_shared: bool,
    /// What pipelined rounds take over the time of their passes.
    overhead: f64,
    /// Workers of each role that share the sessions.
    workers: u32,
}

impl Machine {
    /// Sessions of one worker.
    fn load(&self, sessions: u32) -> u32 {
        sessions.div_ceil(self.workers)
    }

    /// Seconds of a round without waste.
    fn busy(&self, plan: DraftPlan, sessions: u32) -> f64 {
        let rows = self.load(sessions) * plan.num_draft_tokens;
        let verify = self.fixed + self.per_row * f64::from(rows.saturating_sub(self.free_rows));
        let draft = self.draft * f64::from(plan.num_draft_tokens);
        let overlaps = (plan.pipelined || plan == DraftPlan::SEQUENTIAL) && !self.is_shared;
        if overlaps { verify.max(draft) } else { verify + draft }
    }

    /// Seconds of a round. After a rejection what was drafted ahead was in vain.
    fn round(&self, plan: DraftPlan, acceptance: f64, sessions: u32) -> f64 {
        let busy = self.busy(plan, sessions);
        if !plan.pipelined {
            return busy;
        }
        let rejected = 1.0 - acceptance.powf(f64::from(plan.num_draft_tokens));
        (busy + rejected * self.draft * f64::from(plan.num_draft_tokens)) * self.overhead
    }

    /// Expected tokens per second of a session.
    fn rate(&self, plan: DraftPlan, acceptance: f64, sessions: u32) -> f64 {
        let tokens: f64 = (0..plan.num_draft_tokens).map(|i| acceptance.powf(f64::from(i))).sum();
        tokens / self.round(plan, acceptance, sessions)
    }

    fn best_rate(&self, acceptance: f64, sessions: u32) -> f64 {
        let plans = MOST.flat_map(|num_draft_tokens| {
            [true, false]
                .map(|pipelined| DraftPlan { num_draft_tokens, pipelined: pipelined && num_draft_tokens > 1 })
        });
        plans.map(|plan| self.rate(plan, acceptance, sessions)).fold(0.0, f64::max)
    }

    /// Lets `sessions` decode for so many rounds; returns their goodput over that of sequential decoding, and the plan
    /// that they keep.
    fn settle(
        &self,
        controller: &mut SpeculationController,
        acceptance: f64,
        sessions: u32,
        rounds: u32,
        noise: &mut Noise,
    ) -> (f64, DraftPlan) {
        let (mut tokens, mut seconds) = (0.0, 0.0);
        let load = self.load(sessions) as usize;
        let mut before = (DraftPlan::SEQUENTIAL, 0);
        for _ in 0..rounds {
            let plan = controller.plan(load);
            before = (plan, if plan == before.0 { before.1 + 1 } else { 1 });
            let took = self.round(plan, acceptance, sessions);
            seconds += took;
            tokens += took * self.rate(plan, acceptance, sessions);
            for _ in 0..sessions {
                controller.acceptance = AcceptanceRate::known(acceptance);
                let seconds = Some(took * noise.factor());
                let block = VerifiedBlock::default();
                controller.on_round(load, MeasuredRound { plan, rounds_at_plan: before.1, seconds, block });
            }
        }
        let kept = controller.at(load).plan;
        (tokens / seconds / self.rate(DraftPlan::SEQUENTIAL, acceptance, sessions), kept)
    }
}

/// Multiplies what is measured by a number about 1.
struct Noise {
    width: f64,
    state: u64,
}

impl Noise {
    fn none() -> Self {
        Self { width: 0.0, state: 1 }
    }

    fn factor(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (self.state >> 11) as f64 / (1u64 << 53) as f64;
        1.0 + self.width * (2.0 * uniform - 1.0)
    }
}

const APART: Machine =
    Machine { fixed: 0.1, per_row: 0.001, free_rows: 0, draft: 0.01, is_shared: false, overhead: 1.0, workers: 1 };
const FLEET: Machine = Machine { workers: 4, ..APART };
const ONE_DEVICE: Machine = Machine { is_shared: true, overhead: 1.4, ..APART };
/// Up to six rows take no longer than one; more are bound by arithmetic.
const CPU: Machine = Machine { per_row: 0.025, free_rows: 6, ..ONE_DEVICE };

fn settle(machine: Machine, acceptance: f64, sessions: u32, rounds: u32) -> (f64, DraftPlan) {
    machine.settle(&mut SpeculationController::new(MOST), acceptance, sessions, rounds, &mut Noise::none())
}

#[test]
fn a_base_bound_by_memory_verifies_many_while_the_expert_drafts_on() {
    let (_, plan) = settle(APART, 0.9, 1, 200);
    assert!(plan.num_draft_tokens == 8 && plan.pipelined, "{plan:?}");
    let (_, plan) = settle(APART, 0.5, 1, 200);
    assert!((2..=5).contains(&plan.num_draft_tokens), "{plan:?}");
}

#[test]
fn on_one_device_nothing_is_drafted_in_vain() {
    let (gain, plan) = settle(ONE_DEVICE, 0.8, 1, 200);
    assert!(plan.num_draft_tokens >= 3 && !plan.pipelined, "{plan:?}");
    assert!(gain > 1.5, "{gain}");
}

#[test]
fn where_every_token_costs_a_forward_pass_decoding_is_sequential() {
    let bound = Machine { fixed: 0.002, per_row: 0.098, draft: 0.02, ..ONE_DEVICE };
    for acceptance in [0.3, 0.6, 0.85] {
        let (gain, plan) = settle(bound, acceptance, 16, 100);
        assert_eq!(plan, DraftPlan::SEQUENTIAL, "{acceptance}");
        // A few rounds in which two tokens were tried.
        assert!(gain > 0.96, "{acceptance}: {gain}");
    }
    // A slow expert gains nothing by drafting either.
    let slow = Machine { fixed: 0.01, per_row: 0.005, draft: 0.03, ..ONE_DEVICE };
    assert_eq!(settle(slow, 0.5, 1, 100).1, DraftPlan::SEQUENTIAL);
}

#[test]
fn an_expert_half_as_slow_as_its_base_is_worth_while_only_pipelined() {
    let (gain, plan) = settle(Machine { draft: 0.05, ..APART }, 0.8, 1, 200);
    assert!(plan.pipelined && gain > 1.2, "{plan:?}: {gain}");
}

#[test]
fn at_any_load_it_is_soon_near_the_best_and_never_much_slower_than_sequential() {
    // Measurements without noise, and with some: a share of sequential over the first rounds, then of the best.
    for (width, early, late) in [(0.0, 0.95, 0.9), (0.1, 0.93, 0.85)] {
        for machine in [APART, FLEET, ONE_DEVICE, CPU] {
            for acceptance in [0.5, 0.7, 0.9] {
                for sessions in [1, 2, 4, 16, 64] {
                    let mut controller = SpeculationController::new(MOST);
                    let mut noise = Noise { width, state: 7 };
                    let (gain, plan) = machine.settle(&mut controller, acceptance, sessions, 40, &mut noise);
                    let of = format!("{machine:?} {sessions} at {acceptance}, noise {width}: {plan:?}");
                    assert!(gain > early, "{of} gains {gain}");
                    let (gain, plan) = machine.settle(&mut controller, acceptance, sessions, 200, &mut noise);
                    let sequential = machine.rate(DraftPlan::SEQUENTIAL, acceptance, sessions);
                    let best = machine.best_rate(acceptance, sessions);
                    let (now, mean) = (machine.rate(plan, acceptance, sessions) / best, gain * sequential / best);
                    assert!(now > late && mean > late, "{of}, then {plan:?}: {now}, {mean} of the best");
                }
            }
        }
    }
}

#[test]
fn the_plan_follows_the_load_down_and_up() {
    let mut controller = SpeculationController::new(MOST);
    let (_, idle) = CPU.settle(&mut controller, 0.8, 1, 50, &mut Noise::none());
    assert!(idle.num_draft_tokens >= 4, "{idle:?}");
    for (sessions, rounds) in [(16, 10), (1, 10), (64, 10), (4, 10), (1, 10)] {
        let (gain, plan) = CPU.settle(&mut controller, 0.8, sessions, rounds, &mut Noise::none());
        assert!(gain > 0.9, "{sessions}: {gain} at last with {plan:?}");
    }
    let (_, again) = CPU.settle(&mut controller, 0.8, 1, 50, &mut Noise::none());
    assert!(again.num_draft_tokens.abs_diff(idle.num_draft_tokens) <= 1, "{idle:?}, then {again:?}");
}

#[test]
fn allowed_lengths_hold_and_a_fixed_length_may_still_be_pipelined() {
    for (allowed, pipelined) in [(1..=1, false), (1..=2, true), (3..=3, true), (64..=64, true)] {
        let mut controller = SpeculationController::new(allowed.clone());
        let mut seen = Vec::new();
        let mut rounds_at_plan = 0;
        for _ in 0..300 {
            let plan = controller.plan(1);
            rounds_at_plan = if seen.last() == Some(&plan) { rounds_at_plan + 1 } else { 1 };
            seen.push(plan);
            let seconds = Some(APART.round(plan, 0.99, 1));
            let (proposals, accepted, stood) = [plan.num_draft_tokens; 3].into();
            let block = VerifiedBlock { proposals, accepted, stood };
            controller.on_round(1, MeasuredRound { plan, rounds_at_plan, seconds, block });
        }
        assert!(seen.iter().all(|plan| allowed.contains(&plan.num_draft_tokens)), "{allowed:?}");
        assert_eq!(seen.iter().any(|plan| plan.pipelined), pipelined, "{allowed:?}");
    }
}

#[test]
fn loads_learn_together_up_to_the_next_power_of_two() {
    assert_eq!([0, 1, 2, 3, 4, 5, 8, 9].map(load_octave), [0, 0, 1, 2, 2, 3, 3, 4]);
}

#[test]
fn prompts_in_the_first_rounds_mislead_it_only_for_a_moment() {
    for slow_rounds in [2, 4, 6] {
        let mut controller = SpeculationController::new(MOST);
        let mut rounds_at_plan = 0;
        let (mut plan, mut drafted) = (DraftPlan::SEQUENTIAL, 0);
        for round in 0..40 {
            rounds_at_plan = if controller.plan(16) == plan { rounds_at_plan + 1 } else { 1 };
            plan = controller.plan(16);
            drafted += u32::from(plan != DraftPlan::SEQUENTIAL);
            let seconds = Some(CPU.round(plan, 0.5, 16) * if round < slow_rounds { 2.0 } else { 1.0 });
            for _ in 0..16 {
                controller.acceptance = AcceptanceRate::known(0.5);
                let block = VerifiedBlock::default();
                controller.on_round(16, MeasuredRound { plan, rounds_at_plan, seconds, block });
            }
        }
        assert!(drafted <= 12, "{drafted} rounds after {slow_rounds}");
        assert_eq!(controller.at(16).plan, DraftPlan::SEQUENTIAL);
    }
}
