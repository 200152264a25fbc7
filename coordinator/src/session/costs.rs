//! What a round takes, predicted from what the workers said of the passes so far.
//!
//! A session cannot see by its own times what its drafts cost: one more row among those of fifteen others makes a pass
//! hardly longer, but sixteen sessions that think so make it longer for all. So the time of a pass is learned by the rows
//! of *all* operations in it, and a pace is judged as if every session that rides along took it. What passes do not tell,
//! rounds do: they are held against the prediction, which is corrected by what they took.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pace::{Mode, Pace};
use crate::worker_pool::reply::Effort;

/// What a forward pass was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The base verified so many tokens.
    Verify(u32),
    /// The expert drafted.
    Draft,
}

/// When something was measured, and among how many sessions, at least 1.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Rounds of all sessions so far.
    round: u64,
    sessions: usize,
}

/// A moving average that outliers move little: the mean of the first measurements, then of the last few.
#[derive(Clone, Copy, Debug)]
struct Average {
    value: f64,
    /// Measurements that it stands for.
    weight: f64,
    /// [`Load::round`] of the last one.
    round: u64,
}

impl Average {
    /// Measurements of a whole round that it stands for at most.
    const MOST_WEIGHT: f64 = 10.0;

    /// After so many rounds of every session nothing is left of it.
    const MEMORY: f64 = 64.0;

    /// A measurement counts as at most so many times the average: a prompt in the same batch, a pause.
    const SURPRISE: f64 = 2.5;

    fn note_in(average: &mut Option<Self>, measured: f64, load: Load) {
        let first = Self { value: measured, weight: 0.0, round: load.round };
        average.get_or_insert(first).note(measured, load);
    }

    /// What it says, unless nothing was measured for as long as it remembers.
    fn fresh(self, now: u64, sessions: usize) -> Option<f64> {
        let age = now.saturating_sub(self.round) as f64 / sessions as f64;
        (age < Self::MEMORY).then_some(self.value)
    }

    /// All sessions that ride in a pass tell of it: together they have the weight of one.
    fn note(&mut self, measured: f64, load: Load) {
        let sessions = load.sessions as f64;
        let age = load.round.saturating_sub(self.round) as f64 / sessions;
        let kept = (self.weight * (1.0 - age / Self::MEMORY)).clamp(0.0, Self::MOST_WEIGHT);
        self.weight = kept + 1.0 / sessions;
        self.value += (measured.min(Self::SURPRISE * self.value) - self.value) / (sessions * self.weight);
        self.round = load.round;
    }
}

/// Seconds of a forward pass by the rows in it.
#[derive(Clone, Debug, Default)]
struct PassTimes(BTreeMap<u32, Average>);

impl PassTimes {
    /// Numbers of rows up to it are told apart; of larger ones, eight in each octave are.
    const EXACT: u32 = 16;

    fn observe(&mut self, rows: u32, seconds: f64, load: Load) {
        let coarse =
            (rows / Self::EXACT).checked_ilog2().map_or(rows, |octaves| rows >> (octaves + 1) << (octaves + 1));
        let first = Average { value: seconds, weight: 0.0, round: load.round };
        self.0.entry(coarse).or_insert(first).note(seconds, load);
    }

    /// What was measured, or lies between what was; no more than more rows took.
    fn known(&self, rows: f64) -> Option<f64> {
        let below = point(self.0.range(..=rows.floor() as u32).next_back()?);
        let above = point(self.0.range(rows.ceil() as u32..).next()?);
        let measured = if below.0 == above.0 { below.1 } else { line(below, above, rows) };
        Some(self.0.range(above.0 as u32..).map(|(_, more)| more.value).fold(measured, f64::min))
    }

    /// What to expect of so many rows after what was seen of fewer or more, here or among `others`: in proportion, or less
    /// where two measurements tell that passes grow more slowly.
    fn guess(&self, others: &Self, rows: f64) -> Option<f64> {
        let ends = [self, others].map(|times| [times.0.first_key_value(), times.0.last_key_value()]);
        let ends = || ends.iter().flatten().flatten().map(|&end| point(end));
        let fewest = ends().min_by(|one, other| one.0.total_cmp(&other.0))?;
        let most = ends().max_by(|one, other| one.0.total_cmp(&other.0))?;
        if rows <= fewest.0 || fewest.0 == most.0 {
            return Some(line((0.0, 0.0), fewest, rows));
        }
        let (grown, in_proportion) = (line(fewest, most, rows), line((0.0, 0.0), most, rows));
        Some(grown.min(in_proportion).max(fewest.1))
    }

    fn most_rows(&self) -> u32 {
        self.0.last_key_value().map_or(0, |(&rows, _)| rows)
    }
}

/// Rows and seconds.
fn point((&rows, seconds): (&u32, &Average)) -> (f64, f64) {
    (f64::from(rows), seconds.value)
}

/// The line through two points, at `x`.
fn line(from: (f64, f64), to: (f64, f64), x: f64) -> f64 {
    from.1 + (to.1 - from.1) / (to.0 - from.0) * (x - from.0)
}

/// Passes of one model.
#[derive(Clone, Debug, Default)]
struct Passes {
    /// While the other model rests, and while it computes.
    alone: PassTimes,
    beside: PassTimes,
}

impl Passes {
    fn seconds(&self, rows: f64, beside: bool) -> Option<f64> {
        let (alone, with_other) = (self.alone.known(rows), self.beside.known(rows));
        // Company makes nothing faster; as long as one of both was not measured, the other stands in for it.
        let known = if beside { alone.into_iter().chain(with_other).reduce(f64::max) } else { alone.or(with_other) };
        known.or_else(|| self.alone.guess(&self.beside, rows))
    }
}

/// What paces of one mode have in common.
#[derive(Clone, Debug, Default)]
struct ModeCosts {
    /// Operations like one's own in a pass, over the sessions under way: 1 when all ride in the same pass.
    share: Option<Average>,
    /// What rounds took over the time of their passes: queues, ways and whatever else the passes do not tell. As long as it
    /// is not known at any load it is believed to be nothing; so every mode is tried.
    surcharge: Option<Average>,
    /// The same by the number of drafts, where it was measured of late.
    surcharges: BTreeMap<u32, Average>,
}

fn value(average: Option<Average>) -> f64 {
    average.map_or(1.0, |average| average.value)
}

/// Times of passes and rounds, and what follows for others.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    verify: Passes,
    draft: Passes,
    /// By the sessions under way, to a power of two: how they get into each other's way depends on it.
    modes: [[ModeCosts; Mode::COUNT]; 16],
    /// Of whatever mode, at whatever load: where nothing better is known.
    share: Option<Average>,
    rounds: u64,
}

impl Costs {
    /// Surcharges that are believed: beyond them something else happened, such as a worker that was lost.
    const SURCHARGES: (f64, f64) = (0.4, 2.5);

    /// Takes note of an operation at `pace` while `sessions` (at least 1) were under way; `beside` when the other model computed
    /// at the same time.
    pub fn observe(&mut self, work: Work, (pace, beside): (Pace, bool), effort: Effort, sessions: usize) {
        let Effort { compute, passes, tokens, rows, .. } = effort;
        // Prompts that rode along took time that no row tells of.
        if passes == 0 || rows == 0 || compute.is_zero() || tokens > rows.saturating_mul(2) {
            return;
        }
        let (passes, load) = (f64::from(passes), Load { round: self.rounds, sessions });
        let (of_model, own_rows) = match work {
            Work::Verify(tokens) => (&mut self.verify, f64::from(tokens.max(1)) / passes),
            Work::Draft => (&mut self.draft, 1.0),
        };
        let rows = f64::from(rows) / passes;
        let times = if beside { &mut of_model.beside } else { &mut of_model.alone };
        times.observe(rows.round().max(1.0) as u32, compute.as_secs_f64() / passes, load);
        let share = (rows / own_rows).max(1.0) / sessions as f64;
        Average::note_in(&mut self.of_mode(pace, sessions).share, share, load);
        Average::note_in(&mut self.share, share, load);
    }

    /// Takes note of what a whole round took at `pace`.
    pub fn observe_round(&mut self, pace: Pace, acceptance: f64, sessions: usize, took: Duration) {
        self.rounds += 1;
        if let Some(passes) = self.passes_seconds(pace, acceptance, sessions)
            && passes > 0.0
        {
            let surcharge = (took.as_secs_f64() / passes).clamp(Self::SURCHARGES.0, Self::SURCHARGES.1);
            let load = Load { round: self.rounds, sessions };
            let mode = self.of_mode(pace, sessions);
            Average::note_in(&mut mode.surcharge, surcharge, load);
            let first = Average { value: surcharge, weight: 0.0, round: load.round };
            mode.surcharges.entry(pace.drafted).or_insert(first).note(surcharge, load);
        }
    }

    /// Expected seconds of a round at `pace` when all of so many sessions take it; `None` before anything was measured.
    #[must_use]
    pub fn round_seconds(&self, pace: Pace, acceptance: f64, sessions: usize) -> Option<f64> {
        Some(self.surcharge(pace, sessions) * self.passes_seconds(pace, acceptance, sessions)?)
    }

    /// Of so many drafts if it was measured of late, else of the mode at this load, else at the load that is most like it.
    fn surcharge(&self, pace: Pace, sessions: usize) -> f64 {
        let (load, mode) = (crowding(sessions), pace.mode() as usize);
        let own = self.modes[load][mode].surcharges.get(&pace.drafted);
        own.and_then(|own| own.fresh(self.rounds, sessions)).unwrap_or_else(|| {
            let measured = self.modes.iter().enumerate().filter(|(_, modes)| modes[mode].surcharge.is_some());
            value(measured.min_by_key(|(other, _)| other.abs_diff(load)).and_then(|(_, modes)| modes[mode].surcharge))
        })
    }

    fn passes_seconds(&self, pace: Pace, acceptance: f64, sessions: usize) -> Option<f64> {
        let (crowd, k) = (self.crowd(pace, sessions), f64::from(pace.drafted));
        let verify = |beside| self.verify.seconds(crowd * k, beside);
        let draft = |beside| Some(k * self.draft.seconds(crowd, beside)?);
        match pace.mode() {
            Mode::Sequential => Some(verify(true)?.max(draft(true)?)),
            Mode::ByTurns => Some(verify(false)? + draft(false)?),
            Mode::SideBySide => {
                let stands = acceptance.powf(k);
                // After a rejection the base waits for new drafts.
                Some(stands * verify(true)?.max(draft(true)?) + (1.0 - stands) * (verify(true)? + draft(false)?))
            }
        }
    }

    fn of_mode(&mut self, pace: Pace, sessions: usize) -> &mut ModeCosts {
        &mut self.modes[crowding(sessions)][pace.mode() as usize]
    }

    /// Operations like one's own in a pass.
    fn crowd(&self, pace: Pace, sessions: usize) -> f64 {
        let here = &self.modes[crowding(sessions)];
        let share =
            here[pace.mode() as usize].share.or_else(|| here.iter().find_map(|mode| mode.share)).or(self.share);
        (value(share) * sessions as f64).max(1.0)
    }

    /// Whether the base's passes at `pace` would be at most twice as large as the largest that was measured: what large ones
    /// cost is found out step by step.
    #[must_use]
    pub fn foresee(&self, pace: Pace, sessions: usize) -> bool {
        let most = self.verify.alone.most_rows().max(self.verify.beside.most_rows());
        self.crowd(pace, sessions) * f64::from(pace.drafted) <= 2.0 * f64::from(most)
    }
}

/// Index of what so many sessions learn together.
fn crowding(sessions: usize) -> usize {
    (sessions.max(1) - 1).checked_ilog2().map_or(0, |octave| (octave as usize + 1).min(15))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURNS: (Pace, bool) = (Pace { drafted: 2, runs_ahead: false }, false);

    fn pass(millis: u64, tokens: u32, rows: u32) -> Effort {
        Effort { compute: Duration::from_millis(millis), passes: 1, tokens, rows, ..Effort::default() }
    }

    #[test]
    fn passes_with_prompts_tell_nothing() {
        let mut costs = Costs::default();
        costs.observe(Work::Verify(2), TURNS, pass(900, 66, 4), 2);
        costs.observe(Work::Draft, TURNS, pass(90, 66, 2), 2);
        assert_eq!(costs.round_seconds(TURNS.0, 0.8, 2), None);
        costs.observe(Work::Verify(2), TURNS, pass(100, 4, 4), 2);
        costs.observe(Work::Draft, TURNS, pass(10, 2, 2), 2);
        let seconds = costs.round_seconds(TURNS.0, 0.8, 2).unwrap();
        assert!((seconds - 0.12).abs() < 1e-9, "{seconds}");
    }

    #[test]
    fn a_pace_is_judged_as_if_all_took_it() {
        let mut costs = Costs::default();
        for rows in [16, 32, 64] {
            costs.observe(Work::Verify(rows / 16), TURNS, pass(10 * u64::from(rows), rows, rows), 16);
        }
        costs.observe(Work::Draft, TURNS, pass(10, 16, 16), 16);
        let four = Pace { drafted: 4, runs_ahead: false };
        // 64 rows of the base and four passes of the expert.
        let seconds = costs.round_seconds(four, 0.8, 16).unwrap();
        assert!((seconds - 0.68).abs() < 1e-9, "{seconds}");
        assert!(costs.round_seconds(four, 0.8, 4).unwrap() < 0.3);
        assert!(costs.foresee(Pace { drafted: 8, ..four }, 16) && !costs.foresee(Pace { drafted: 9, ..four }, 16));
    }

    #[test]
    fn rounds_correct_what_passes_predict() {
        let mut costs = Costs::default();
        costs.observe(Work::Verify(2), TURNS, pass(100, 2, 2), 1);
        costs.observe(Work::Draft, TURNS, pass(10, 1, 1), 1);
        (0..100).for_each(|_| costs.observe_round(TURNS.0, 0.8, 1, Duration::from_millis(180)));
        let seconds = costs.round_seconds(TURNS.0, 0.8, 1).unwrap();
        assert!((seconds - 0.18).abs() < 1e-3, "{seconds}");
    }

    #[test]
    fn whatever_a_worker_says_little_is_kept() {
        let mut costs = Costs::default();
        for rows in (0..1_000_000).step_by(7).chain([u32::MAX]) {
            costs.observe(Work::Verify(1), TURNS, pass(u64::from(u32::MAX), rows, rows), 1);
        }
        assert!(costs.verify.alone.0.len() < 300, "{}", costs.verify.alone.0.len());
        costs.observe(Work::Draft, TURNS, pass(1, u32::MAX, u32::MAX), 1);
        assert!(costs.round_seconds(TURNS.0, 0.8, 1).is_some_and(f64::is_finite));
    }
}
