//! How many tokens to draft at a time, from acceptance and costs. Pure: measurements in, a choice out.
//!
//! With acceptance `a` a round of `k` drafts decides `(1 - a^k) / (1 - a)` tokens: those before the first rejection and
//! the token in place of it; there is no token beyond the drafts. What a round takes is predicted from the measured times
//! of the operations, in which queues, batches and shared devices are contained.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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
}

/// Moving average of how many proposals stand.
#[derive(Clone, Copy, Debug)]
pub struct Acceptance(f64);

impl Acceptance {
    /// Of a model about which nothing is known.
    pub const PRIOR: Self = Self(0.75);

    /// Weight of one proposal.
    const STEP: f64 = 1.0 / 16.0;

    /// Notes whether a proposal stood.
    pub fn note(&mut self, stood: bool) {
        self.0 += Self::STEP * (f64::from(u8::from(stood)) - self.0);
    }

    /// In (0, 1).
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.0
    }
}

/// Times of one kind of operation by its tokens.
#[derive(Clone, Debug)]
struct Times {
    seen: BTreeMap<u32, Seen>,
    /// Cost of a token beside the first, as a share of the first, where only other numbers of tokens were seen.
    growth: f64,
}

/// A moving average.
#[derive(Clone, Copy, Debug)]
struct Seen {
    seconds: f64,
    /// Round of the last measurement.
    round: u64,
}

impl Times {
    /// Weight of a measurement that follows on another, and of one that follows after long.
    const GAIN: (f64, f64) = (0.1, 1.0);

    /// After so many rounds the next measurement replaces an average: the load is another one by then.
    const MEMORY: f64 = 64.0;

    /// A measurement counts as at most so many times the average: a prompt in the same batch, a pause.
    const SURPRISE: f64 = 2.5;

    fn new(growth: f64) -> Self {
        Self { seen: BTreeMap::new(), growth }
    }

    fn observe(&mut self, tokens: u32, seconds: f64, round: u64) {
        let seen = self.seen.entry(tokens).or_insert(Seen { seconds, round });
        let age = round.saturating_sub(seen.round) as f64;
        let gain = (age / Self::MEMORY).clamp(Self::GAIN.0, Self::GAIN.1);
        seen.seconds += gain * (seconds.min(Self::SURPRISE * seen.seconds) - seen.seconds);
        seen.round = round;
    }

    /// What was measured, else an optimistic guess from the nearest that was: it is tried, and then it is known.
    fn at(&self, tokens: u32) -> Option<f64> {
        let (&nearest, seen) = self.seen.iter().min_by_key(|(other, _)| other.abs_diff(tokens))?;
        let shape = |tokens: u32| 1.0 + self.growth * (f64::from(tokens) - 1.0);
        Some(seen.seconds * shape(tokens) / shape(nearest))
    }
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The base's forward pass over so many tokens.
    Verify(u32),
    /// So many drafts of the expert.
    Draft(u32),
    /// Read a row that the base keeps.
    LookUp,
}

/// Times of operations, in seconds as the session sees them.
#[derive(Clone, Debug)]
pub struct Costs {
    /// While the other model rests, and while it computes.
    verify: [Times; 2],
    draft: [Times; 2],
    look_up: Times,
    rounds: u64,
}

impl Default for Costs {
    fn default() -> Self {
        // A base forward is bound by memory: it grows little with its tokens. A draft is a forward pass per token.
        let (verify, draft) = (Times::new(0.1), Times::new(1.0));
        let look_up = Times::new(0.0);
        Self { verify: [verify.clone(), verify], draft: [draft.clone(), draft], look_up, rounds: 0 }
    }
}

/// What lookahead must gain over sequential decoding to be preferred: measurements are noisy.
const ADVANTAGE: f64 = 1.03;

impl Costs {
    /// Takes note of an operation; `beside` when the other model computed at the same time.
    pub fn observe(&mut self, work: Work, beside: bool, seconds: f64) {
        let beside = usize::from(beside);
        match work {
            Work::Verify(tokens) => {
                self.rounds += 1;
                self.verify[beside].observe(tokens, seconds, self.rounds);
            }
            Work::Draft(tokens) => self.draft[beside].observe(tokens, seconds, self.rounds),
            Work::LookUp => self.look_up.observe(1, seconds, self.rounds),
        }
    }

    /// As long as one of both was not measured, the other stands in for it.
    fn of(times: &[Times; 2], beside: bool, tokens: u32) -> f64 {
        let (these, others) = (&times[usize::from(beside)], &times[usize::from(!beside)]);
        these.at(tokens).or_else(|| others.at(tokens)).unwrap_or(0.0)
    }

    /// Expected seconds of a round at `pace`.
    #[must_use]
    pub fn round_seconds(&self, pace: Pace, acceptance: f64) -> f64 {
        let verify = |beside| Self::of(&self.verify, beside, pace.drafted);
        let draft = |beside| Self::of(&self.draft, beside, pace.drafted);
        if pace.drafted == 1 {
            return verify(true).max(draft(true)) + self.look_up.at(1).unwrap_or(0.0);
        }
        if !pace.runs_ahead {
            return verify(false) + draft(false);
        }
        let stands = acceptance.powf(f64::from(pace.drafted));
        // After a rejection the base waits for new drafts.
        stands * verify(true).max(draft(true)) + (1.0 - stands) * (verify(true) + draft(false))
    }

    /// The pace with the most tokens per second among those with as many drafts as is `allowed`.
    #[must_use]
    pub fn best(&self, acceptance: f64, allowed: RangeInclusive<u32>) -> Pace {
        let mut best = (Pace::SEQUENTIAL, 0.0);
        if *allowed.start() == 1 {
            best.1 = ADVANTAGE * self.tokens_per_second(Pace::SEQUENTIAL, acceptance);
        }
        for drafted in allowed.filter(|&drafted| drafted > 1) {
            for runs_ahead in [true, false] {
                let pace = Pace { drafted, runs_ahead };
                let rate = self.tokens_per_second(pace, acceptance);
                if rate > best.1 {
                    best = (pace, rate);
                }
            }
        }
        best.0
    }

    fn tokens_per_second(&self, pace: Pace, acceptance: f64) -> f64 {
        expected_tokens(pace.drafted, acceptance) / self.round_seconds(pace, acceptance).max(f64::MIN_POSITIVE)
    }

    /// Whether there is anything to choose by.
    #[must_use]
    pub fn are_known(&self) -> bool {
        let any = |times: &[Times; 2]| times.iter().any(|times| !times.seen.is_empty());
        any(&self.verify) && any(&self.draft)
    }
}

/// A pace that differs from `best` in one thing, another one for each `probe`.
#[must_use]
pub fn neighbour(best: Pace, probe: u32, allowed: &RangeInclusive<u32>) -> Pace {
    let (least, most) = (*allowed.start(), *allowed.end());
    let tried = match (best.drafted, probe % 3) {
        (1, _) => Pace { drafted: most.min(2), runs_ahead: probe.is_multiple_of(2) },
        (drafted, 0) => Pace { drafted: most.min(drafted + 1), ..best },
        (drafted, 1) => Pace { drafted: least.max(drafted - 1), ..best },
        (_, _) => Pace { runs_ahead: !best.runs_ahead, ..best },
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
    use super::*;

    /// Milliseconds of a base forward over one token, of each further one, and of one draft; on devices of their own, or
    /// on one, where computing side by side takes as long as one behind the other.
    fn costs(first: f64, further: f64, draft: f64, shared: bool) -> Costs {
        let mut costs = Costs::default();
        for round in 0..4000u32 {
            let k = 1 + round % 8;
            let (verify, drafts) = (first + further * f64::from(k - 1), draft * f64::from(k));
            let both = if shared { verify + drafts } else { 0.0 };
            costs.observe(Work::Verify(k), false, verify / 1e3);
            costs.observe(Work::Verify(k), true, verify.max(both) / 1e3);
            costs.observe(Work::Draft(k), false, drafts / 1e3);
            costs.observe(Work::Draft(k), true, drafts.max(both) / 1e3);
            costs.observe(Work::LookUp, false, 0.1 / 1e3);
        }
        costs
    }

    #[test]
    fn the_sum_is_the_closed_form() {
        for (k, a) in [(1, 0.3), (4, 0.8), (16, 0.99)] {
            let closed = (1.0 - f64::powi(a, k)) / (1.0 - a);
            assert!((expected_tokens(k as u32, a) - closed).abs() < 1e-12);
        }
    }

    #[test]
    fn a_base_bound_by_memory_verifies_many_and_the_expert_runs_ahead() {
        let pace = costs(100.0, 1.0, 10.0, false).best(0.9, 1..=16);
        assert!(pace.drafted >= 8 && pace.runs_ahead, "{pace:?}");
        let pace = costs(100.0, 1.0, 10.0, false).best(0.5, 1..=16);
        assert!((2..=5).contains(&pace.drafted), "{pace:?}");
    }

    #[test]
    fn on_one_device_nothing_is_drafted_in_vain() {
        let pace = costs(100.0, 1.0, 10.0, true).best(0.8, 1..=16);
        assert!(pace.drafted >= 3 && !pace.runs_ahead, "{pace:?}");
    }

    #[test]
    fn where_every_token_costs_a_forward_pass_decoding_is_sequential() {
        // Large batches: twice the tokens take twice the time.
        for acceptance in [0.3, 0.6, 0.85] {
            assert_eq!(costs(100.0, 98.0, 20.0, true).best(acceptance, 1..=16).drafted, 1, "{acceptance}");
        }
        // A slow expert gains nothing by drafting either.
        assert_eq!(costs(10.0, 5.0, 30.0, true).best(0.5, 1..=16).drafted, 1);
    }

    #[test]
    fn the_choice_follows_the_load_down_and_up() {
        let mut costs = Costs::default();
        let mut pace = Pace { drafted: 4, runs_ahead: true };
        // One device. Of a base forward, the part that does not and the part that does grow with the tokens.
        let mut settle = |fixed: f64, per_token: f64| {
            for round in 0..1500u32 {
                // Every now and then a neighbour, as the pacer does.
                let tried = if round % 32 == 0 { neighbour(pace, round / 32, &(1..=8)) } else { pace };
                let (verify, draft) = (fixed + per_token * f64::from(tried.drafted), 0.01 * f64::from(tried.drafted));
                let beside = tried.runs_ahead || tried.drafted == 1;
                let of = |alone: f64| if beside { verify + draft } else { alone };
                costs.observe(Work::Verify(tried.drafted), beside, of(verify));
                costs.observe(Work::Draft(tried.drafted), beside, of(draft));
                costs.observe(Work::Draft(tried.drafted), false, draft);
                costs.observe(Work::LookUp, false, 1e-4);
                pace = costs.best(0.8, 1..=8);
            }
            pace
        };
        let idle = settle(0.1, 0.001);
        assert!(idle.drafted >= 5 && !idle.runs_ahead, "{idle:?}");
        assert_eq!(settle(0.0, 0.3), Pace::SEQUENTIAL, "a batch bound by arithmetic");
        let idle = settle(0.1, 0.001);
        assert!(idle.drafted >= 5 && !idle.runs_ahead, "idle again: {idle:?}");
    }

    #[test]
    fn bounds_hold_and_no_choice_is_worse_than_sequential() {
        for most in [1, 2, 7] {
            for acceptance in [0.01, 0.5, 0.99] {
                for (first, further, draft) in [(1.0, 0.0, 0.1), (1.0, 1.0, 1.0), (5.0, 0.5, 9.0)] {
                    let costs = costs(first, further, draft, true);
                    let pace = costs.best(acceptance, 1..=most);
                    assert!((1..=most).contains(&pace.drafted));
                    let rate = |pace| costs.tokens_per_second(pace, acceptance);
                    assert!(rate(pace) >= rate(Pace::SEQUENTIAL));
                }
            }
        }
    }

    #[test]
    fn acceptance_follows_what_stands() {
        let mut acceptance = Acceptance::PRIOR;
        (0..200).for_each(|i| acceptance.note(i % 2 == 0));
        assert!((acceptance.rate() - 0.5).abs() < 0.05);
    }
}
