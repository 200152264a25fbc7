//! How many tokens to draft at a time, from acceptance and costs. Pure: measurements in, a choice out.
//!
//! With acceptance `a` a round of `k` drafts decides `(1 - a^k) / (1 - a)` tokens: those before the first rejection and
//! the token in place of it; there is no token beyond the drafts. What a round takes is for [`Costs`] to say.

use std::ops::RangeInclusive;

use super::costs::Costs;

/// How a session decodes its next tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Tokens that the expert drafts at a time. At 1 base and expert compute the same position side by side.
    pub drafted: u32,
    /// Whether the expert drafts on while the base verifies.
    pub runs_ahead: bool,
}

impl Pace {
    /// One position at a time.
    pub const SEQUENTIAL: Self = Self { drafted: 1, runs_ahead: false };

    /// How it uses the devices.
    #[must_use]
    pub fn mode(self) -> Mode {
        match self {
            Self { drafted: 1, .. } => Mode::Sequential,
            Self { runs_ahead: false, .. } => Mode::ByTurns,
            Self { runs_ahead: true, .. } => Mode::SideBySide,
        }
    }
}

/// Paces that use the devices alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One position at a time, by both models at once.
    Sequential,
    /// The expert drafts, then the base verifies.
    ByTurns,
    /// The expert drafts the next block while the base verifies.
    SideBySide,
}

impl Mode {
    /// Number of modes.
    pub const COUNT: usize = 3;
}

/// How many proposals stand: the mean of the first ones, then of the last few.
#[derive(Clone, Copy, Debug)]
pub struct Acceptance {
    /// In (0, 1).
    rate: f64,
    /// Proposals that it stands for.
    weight: f64,
}

impl Acceptance {
    /// Of a model about which nothing is known.
    pub const PRIOR: Self = Self::like(0.75);

    const MOST_WEIGHT: f64 = 32.0;

    /// Of a session whose likes had this `rate`, in (0, 1): that counts as a few proposals.
    #[must_use]
    pub const fn like(rate: f64) -> Self {
        Self { rate, weight: 4.0 }
    }

    /// Notes whether a proposal stood.
    pub fn note(&mut self, stood: bool) {
        self.weight = (self.weight + 1.0).min(Self::MOST_WEIGHT);
        self.rate += (f64::from(u8::from(stood)) - self.rate) / self.weight;
    }

    /// In (0, 1).
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }
}

/// What lookahead must gain over sequential decoding to be preferred: measurements are noisy.
const ADVANTAGE: f64 = 1.03;

/// What another pace must gain over the one that is kept to: every change costs a round of disorder.
const INERTIA: f64 = 1.04;

/// What a pace of its own must gain a session: operations of different length do not ride in the same passes.
const OWN_WAY: f64 = 1.1;

/// Drafts of the first rounds with drafts: few, as many sessions may begin at once.
const FIRST_DRAFT: u32 = 2;

/// What is gone at before paces are judged, if anything: one position at a time at a load not met before, which is safe
/// there, then once a few drafts, each model alone. What passes take beside and without the other tells of all other paces.
#[must_use]
pub fn opening(costs: &Costs, allowed: &RangeInclusive<u32>, sessions: usize) -> Option<Pace> {
    if allowed.contains(&1) && !costs.knows_sequential(sessions) {
        return Some(Pace::SEQUENTIAL);
    }
    let drafted = FIRST_DRAFT.clamp(*allowed.start(), *allowed.end());
    (drafted > 1 && !costs.knows_drafting()).then_some(Pace { drafted, runs_ahead: false })
}

/// One period in so many is decoded at a neighbouring pace, so that its costs are known, too.
const PROBE_INTERVAL: u64 = 16;

/// A neighbour that is expected to be slower than this share of the best is tried once in [`HOPELESS_INTERVAL`] probes only.
const HOPEFUL: f64 = 0.85;
const HOPELESS_INTERVAL: u64 = 5;

/// The pace with the most tokens per second for a session among `sessions` under way, with as many drafts as is `allowed`,
/// where all keep to the pace `now`. `None` before anything was measured.
#[must_use]
pub fn best(
    costs: &Costs,
    acceptance: f64,
    allowed: &RangeInclusive<u32>,
    sessions: usize,
    now: Pace,
) -> Option<Pace> {
    let inertia = |pace: Pace| if pace == now { INERTIA } else { 1.0 };
    let paces = paces(costs, allowed, sessions);
    fastest(paces.filter_map(|pace| Some((pace, inertia(pace) * rate(costs, pace, acceptance, sessions)?))))
}

/// The pace of a session with this `acceptance` among others that go at `common`: theirs, or another one of the same mode that
/// gains much.
#[must_use]
pub fn own(costs: &Costs, acceptance: f64, allowed: &RangeInclusive<u32>, sessions: usize, common: Pace) -> Pace {
    let reluctance = |pace: Pace| if pace == common && sessions > 1 { OWN_WAY } else { 1.0 };
    let paces = paces(costs, allowed, sessions).filter(|pace| pace.mode() == common.mode());
    fastest(paces.filter_map(|pace| Some((pace, reluctance(pace) * rate(costs, pace, acceptance, sessions)?))))
        .unwrap_or(common)
}

/// Expected tokens per second of a session at `pace` when all take it, in favour of sequential decoding. `None` before anything
/// was measured.
fn rate(costs: &Costs, pace: Pace, acceptance: f64, sessions: usize) -> Option<f64> {
    let seconds = costs.round_seconds(pace, acceptance, sessions)?.max(f64::MIN_POSITIVE);
    let advantage = if pace == Pace::SEQUENTIAL { ADVANTAGE } else { 1.0 };
    Some(advantage * expected_tokens(pace.drafted, acceptance) / seconds)
}

/// All that is allowed and whose costs can be foreseen.
fn paces(costs: &Costs, allowed: &RangeInclusive<u32>, sessions: usize) -> impl Iterator<Item = Pace> {
    let lookahead = allowed.clone().filter(|&drafted| drafted > 1);
    let lookahead = lookahead.flat_map(|drafted| [false, true].map(|runs_ahead| Pace { drafted, runs_ahead }));
    let lookahead = lookahead.filter(move |&pace| pace.drafted == *allowed.start() || costs.foresee(pace, sessions));
    let sequential = allowed.contains(&1).then_some(Pace::SEQUENTIAL);
    sequential.into_iter().chain(lookahead)
}

/// The first of equals: running ahead is for what it gains.
fn fastest(rated: impl Iterator<Item = (Pace, f64)>) -> Option<Pace> {
    rated.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(pace, _)| pace)
}

/// What is tried in place of `best` in this `period`.
#[must_use]
pub fn probe(
    costs: &Costs,
    best: Pace,
    acceptance: f64,
    allowed: &RangeInclusive<u32>,
    sessions: usize,
    period: u64,
) -> Option<Pace> {
    let probe = period / PROBE_INTERVAL;
    let tried = neighbour(best, probe, allowed);
    let rate = |pace| rate(costs, pace, acceptance, sessions);
    let is_hopeful = || rate(tried) >= rate(best).map(|best| HOPEFUL * best);
    (period.is_multiple_of(PROBE_INTERVAL) && (is_hopeful() || probe.is_multiple_of(HOPELESS_INTERVAL)))
        .then_some(tried)
}

/// A pace that differs from `best` in one thing or is the least, another one for each `probe`.
fn neighbour(best: Pace, probe: u64, allowed: &RangeInclusive<u32>) -> Pace {
    let (least, most) = (*allowed.start(), *allowed.end());
    let tried = match (best.drafted, probe % 4) {
        (1, _) => Pace { drafted: most.min(2), runs_ahead: probe.is_multiple_of(2) },
        (drafted, 1) => Pace { drafted: most.min(drafted + 1), ..best },
        (drafted, 2) => Pace { drafted: least.max(drafted - 1), ..best },
        (_, 3) => Pace { runs_ahead: !best.runs_ahead, ..best },
        (_, _) => Pace { drafted: least, runs_ahead: false },
    };
    if tried.drafted == 1 { Pace::SEQUENTIAL } else { tried }
}

/// Tokens that a round of `k` drafts decides; see the module.
#[must_use]
pub fn expected_tokens(k: u32, acceptance: f64) -> f64 {
    (0..k).map(|i| acceptance.powf(f64::from(i))).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::costs::Work;
    use crate::worker_pool::reply::Effort;

    const MOST: RangeInclusive<u32> = 1..=8;

    /// Sessions in step on two devices, or on one that computes one model behind the other.
    #[derive(Clone, Copy, Debug)]
    struct Machine {
        /// Seconds of a pass of the base: what does not and what does grow with its rows, and the rows that come for nothing.
        fixed: f64,
        per_row: f64,
        free_rows: u32,
        /// Of a pass of the expert.
        draft: f64,
        is_shared: bool,
        /// What rounds of running ahead take over what their passes tell.
        surcharge: f64,
        /// Workers of each role that share the sessions.
        workers: u32,
    }

    impl Machine {
        /// Sessions of one worker.
        fn crowd(&self, sessions: u32) -> u32 {
            sessions.div_ceil(self.workers)
        }

        /// Seconds of a pass of the base.
        fn pass(&self, rows: u32) -> f64 {
            self.fixed + self.per_row * f64::from(rows.saturating_sub(self.free_rows))
        }

        /// Seconds of verifying, of drafting, and of both.
        fn round(&self, pace: Pace, sessions: u32) -> (f64, f64, f64) {
            let (verify, draft) =
                (self.pass(self.crowd(sessions) * pace.drafted), self.draft * f64::from(pace.drafted));
            let both = verify + draft;
            match (pace.runs_ahead || pace == Pace::SEQUENTIAL, self.is_shared) {
                (true, true) => (both, both, both),
                (true, false) => (verify, draft, verify.max(draft)),
                (false, _) => (verify, draft, both),
            }
        }

        /// Expected tokens per second of a session. After a rejection what was drafted ahead was in vain.
        fn rate(&self, pace: Pace, acceptance: f64, sessions: u32) -> f64 {
            let (_, _, mut seconds) = self.round(pace, sessions);
            if pace.runs_ahead {
                let rejected = 1.0 - acceptance.powf(f64::from(pace.drafted));
                seconds += rejected * self.draft * f64::from(pace.drafted);
                seconds *= self.surcharge;
            }
            expected_tokens(pace.drafted, acceptance) / seconds
        }

        /// What all sessions measure in a round.
        fn tell(&self, costs: &mut Costs, pace: Pace, acceptance: f64, sessions: u32) {
            let k = pace.drafted;
            let (verify, draft, _) = self.round(pace, sessions);
            let beside = pace.runs_ahead || pace == Pace::SEQUENTIAL;
            let effort = |passes: u32, seconds: f64| {
                let (compute, rows) = (Duration::from_secs_f64(seconds), self.crowd(sessions) * k);
                Effort { queue: Duration::ZERO, compute, passes, tokens: rows, rows }
            };
            let took = expected_tokens(k, acceptance) / self.rate(pace, acceptance, sessions);
            for _ in 0..sessions {
                costs.observe(Work::Draft, beside, effort(k, draft), sessions as usize, Some(pace));
                costs.observe(Work::Verify(k), beside, effort(1, verify), sessions as usize, Some(pace));
                costs.observe_round(pace, acceptance, sessions as usize, Duration::from_secs_f64(took));
            }
        }

        /// Lets `sessions` decode for so many rounds, as the pacer does; returns the share of sequential decoding's tokens that
        /// they got, and their last pace.
        fn settle(&self, costs: &mut Costs, acceptance: f64, sessions: u32, rounds: u32) -> (f64, Pace) {
            let (mut tokens, mut seconds) = (0.0, 0.0);
            let mut pace = Pace::SEQUENTIAL;
            for round in 0..rounds {
                let opening = opening(costs, &MOST, sessions as usize);
                let judged = || best(costs, acceptance, &MOST, sessions as usize, pace);
                pace = opening.or_else(judged).unwrap_or(pace);
                let probe = || probe(costs, pace, acceptance, &MOST, sessions as usize, u64::from(round / 4 + 1));
                let tried = if round % 4 == 0 && opening.is_none() { probe() } else { None }.unwrap_or(pace);
                let (_, _, took) = self.round(tried, sessions);
                tokens += took * self.rate(tried, acceptance, sessions);
                seconds += took;
                self.tell(costs, tried, acceptance, sessions);
            }
            (tokens / seconds / self.rate(Pace::SEQUENTIAL, acceptance, sessions), pace)
        }

        fn best_rate(&self, acceptance: f64, sessions: u32) -> f64 {
            let paces = MOST.flat_map(|drafted| [true, false].map(|runs_ahead| Pace { drafted, runs_ahead }));
            let rates = paces.filter(|pace| pace.drafted > 1).map(|pace| self.rate(pace, acceptance, sessions));
            rates.fold(self.rate(Pace::SEQUENTIAL, acceptance, sessions), f64::max)
        }
    }

    const APART: Machine = Machine {
        fixed: 0.1,
        per_row: 0.001,
        free_rows: 0,
        draft: 0.01,
        is_shared: false,
        surcharge: 1.0,
        workers: 1,
    };
    const FLEET: Machine = Machine { workers: 4, ..APART };
    const ONE_DEVICE: Machine = Machine { is_shared: true, surcharge: 1.4, ..APART };
    /// Up to six rows take no longer than one; more are bound by arithmetic.
    const CPU: Machine = Machine {
        fixed: 0.1,
        per_row: 0.025,
        free_rows: 6,
        draft: 0.01,
        is_shared: true,
        surcharge: 1.4,
        workers: 1,
    };

    #[test]
    fn the_sum_is_the_closed_form() {
        for (k, a) in [(1, 0.3), (4, 0.8), (16, 0.99)] {
            let closed = (1.0 - f64::powi(a, k)) / (1.0 - a);
            assert!((expected_tokens(k as u32, a) - closed).abs() < 1e-12);
        }
    }

    #[test]
    fn a_base_bound_by_memory_verifies_many_and_the_expert_runs_ahead() {
        let (_, pace) = APART.settle(&mut Costs::default(), 0.9, 1, 200);
        assert!(pace.drafted == 8 && pace.runs_ahead, "{pace:?}");
        let (_, pace) = APART.settle(&mut Costs::default(), 0.5, 1, 200);
        assert!((2..=5).contains(&pace.drafted), "{pace:?}");
    }

    #[test]
    fn on_one_device_nothing_is_drafted_in_vain() {
        let (gain, pace) = ONE_DEVICE.settle(&mut Costs::default(), 0.8, 1, 200);
        assert!(pace.drafted >= 3 && !pace.runs_ahead, "{pace:?}");
        assert!(gain > 1.5, "{gain}");
    }

    #[test]
    fn where_every_token_costs_a_forward_pass_decoding_is_sequential() {
        let bound = Machine {
            fixed: 0.002,
            per_row: 0.098,
            free_rows: 0,
            draft: 0.02,
            is_shared: true,
            surcharge: 1.4,
            workers: 1,
        };
        for acceptance in [0.3, 0.6, 0.85] {
            let (gain, pace) = bound.settle(&mut Costs::default(), acceptance, 16, 100);
            assert_eq!(pace, Pace::SEQUENTIAL, "{acceptance}");
            // A few rounds in which two tokens were tried.
            assert!(gain > 0.96, "{acceptance}: {gain}");
        }
        // A slow expert gains nothing by drafting either.
        let slow = Machine {
            fixed: 0.01,
            per_row: 0.005,
            free_rows: 0,
            draft: 0.03,
            is_shared: true,
            surcharge: 1.4,
            workers: 1,
        };
        assert_eq!(slow.settle(&mut Costs::default(), 0.5, 1, 100).1, Pace::SEQUENTIAL);
    }

    #[test]
    fn at_any_load_it_is_soon_near_the_best_and_never_much_slower_than_sequential() {
        for machine in [APART, FLEET, ONE_DEVICE, CPU] {
            for acceptance in [0.5, 0.7, 0.9] {
                for sessions in [1, 2, 4, 16, 64] {
                    let mut costs = Costs::default();
                    let (gain, pace) = machine.settle(&mut costs, acceptance, sessions, 40);
                    assert!(gain > 0.96, "{sessions} at {acceptance}: {gain} at last with {pace:?}");
                    let (_, pace) = machine.settle(&mut costs, acceptance, sessions, 200);
                    let (rate, best) =
                        (machine.rate(pace, acceptance, sessions), machine.best_rate(acceptance, sessions));
                    assert!(
                        rate > 0.9 * best,
                        "{machine:?} {sessions} at {acceptance}: {pace:?} has {rate} of {best}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_choice_follows_the_load_down_and_up() {
        let mut costs = Costs::default();
        let (_, idle) = CPU.settle(&mut costs, 0.8, 1, 50);
        assert!(idle.drafted >= 4, "{idle:?}");
        for (sessions, rounds) in [(16, 10), (1, 10), (64, 10), (4, 10), (1, 10)] {
            let (gain, pace) = CPU.settle(&mut costs, 0.8, sessions, rounds);
            assert!(gain > 0.95, "{sessions}: {gain} at last with {pace:?}");
        }
        let (_, again) = CPU.settle(&mut costs, 0.8, 1, 50);
        assert!(again.drafted.abs_diff(idle.drafted) <= 1, "{idle:?}, then {again:?}");
    }

    #[test]
    fn a_session_leaves_the_common_pace_only_where_that_gains_much() {
        let mut costs = Costs::default();
        let (_, common) = APART.settle(&mut costs, 0.8, 4, 100);
        assert!(common.drafted > 2 && common.drafted < 8, "{common:?}");
        for acceptance in [0.78, 0.8, 0.82] {
            assert_eq!(own(&costs, acceptance, &MOST, 4, common), common);
        }
        let hopeless = own(&costs, 0.2, &MOST, 4, common);
        assert!(hopeless.drafted < common.drafted && hopeless.mode() == common.mode(), "{hopeless:?}");
        assert_eq!(own(&Costs::default(), 0.2, &MOST, 4, common), common);
    }

    #[test]
    fn bounds_hold() {
        let mut costs = Costs::default();
        APART.settle(&mut costs, 0.99, 1, 50);
        for allowed in [1..=1, 1..=2, 1..=7, 3..=3, 64..=64] {
            for acceptance in [0.01, 0.5, 0.99] {
                let pace = best(&costs, acceptance, &allowed, 1, Pace::SEQUENTIAL).unwrap();
                assert!(allowed.contains(&pace.drafted), "{pace:?} of {allowed:?}");
            }
        }
        assert_eq!(best(&Costs::default(), 0.8, &MOST, 1, Pace::SEQUENTIAL), None);
        assert_eq!(neighbour(Pace::SEQUENTIAL, 1, &(1..=1)), Pace::SEQUENTIAL);
    }

    #[test]
    fn acceptance_follows_what_stands() {
        let mut acceptance = Acceptance::PRIOR;
        (0..200).for_each(|i| acceptance.note(i % 2 == 0));
        assert!((acceptance.rate() - 0.5).abs() < 0.05);
    }
}
