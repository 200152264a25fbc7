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
    /// where passes of the most rows and of half as many or fewer tell that they grow more slowly.
    fn guess(&self, others: &Self, rows: f64) -> Option<f64> {
        let seen = || self.0.iter().chain(&others.0).map(point);
        let by_rows = |one: &(f64, f64), other: &(f64, f64)| one.0.total_cmp(&other.0);
        let (fewest, most) = (seen().min_by(by_rows)?, seen().max_by(by_rows)?);
        if rows <= fewest.0 {
            return Some(line((0.0, 0.0), fewest, rows));
        }
        let in_proportion = line((0.0, 0.0), most, rows);
        let fewer = seen().filter(|seen| 2.0 * seen.0 <= most.0).max_by(by_rows);
        Some(fewer.map_or(in_proportion, |fewer| line(fewer, most, rows).max(most.1).min(in_proportion)))
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
    /// Seconds of a pass while the other model rests; as long as none was seen, one beside the other stands in for it.
    fn seconds_alone(&self, rows: f64) -> Option<f64> {
        let measured = self.alone.known(rows).or_else(|| self.beside.known(rows));
        measured.or_else(|| self.alone.guess(&self.beside, rows))
    }
}

/// What paces of one mode have in common.
#[derive(Clone, Debug, Default)]
struct ModeCosts {
    /// Operations like one's own in a pass, over the sessions under way: 1 when all ride in the same pass.
    share: Option<Average>,
    /// What rounds took over the time of their passes: queues, ways and whatever else the passes do not tell.
    surcharge: Option<Average>,
    /// The same by the number of drafts, where it was measured of late.
    surcharges: BTreeMap<u32, Average>,
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

    /// Takes note of an operation while `sessions` (at least 1) were under way; `beside` when the other model computed at the
    /// same time. `steady` is the pace that was kept to for some rounds, if one was.
    pub fn observe(&mut self, work: Work, beside: bool, effort: Effort, sessions: usize, steady: Option<Pace>) {
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
        if let Some(pace) = steady {
            let share = (rows / own_rows).max(1.0) / sessions as f64;
            Average::note_in(&mut self.of_mode(pace, sessions).share, share, load);
            Average::note_in(&mut self.share, share, load);
        }
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

    /// Of so many drafts if it was measured of late, else of the mode at this load, else at the load that is most like it; what
    /// is saved there is not believed here. A mode not seen at all is believed to be like drafting by turns.
    fn surcharge(&self, pace: Pace, sessions: usize) -> f64 {
        let (load, mode) = (crowding(sessions), pace.mode());
        let at = |load: usize, mode: Mode| &self.modes[load][mode as usize];
        let own = at(load, mode).surcharges.get(&pace.drafted).and_then(|own| own.fresh(self.rounds, sessions));
        let elsewhere = |mode| {
            let loads = (0..self.modes.len()).filter_map(|load| Some((load, at(load, mode).surcharge?.value)));
            loads.min_by_key(|(other, _)| other.abs_diff(load)).map(|(_, surcharge)| surcharge.max(1.0))
        };
        let here = || at(load, mode).surcharge.map(|here| here.value);
        own.or_else(here).or_else(|| elsewhere(mode)).or_else(|| elsewhere(Mode::ByTurns)).unwrap_or(1.0)
    }

    /// Whether sequential decoding was seen at this load.
    #[must_use]
    pub fn knows_sequential(&self, sessions: usize) -> bool {
        self.modes[crowding(sessions)][Mode::Sequential as usize].share.is_some()
    }

    /// Whether drafting was seen at all while the base rested.
    #[must_use]
    pub fn knows_drafting(&self) -> bool {
        !self.draft.alone.0.is_empty()
    }

    fn passes_seconds(&self, pace: Pace, acceptance: f64, sessions: usize) -> Option<f64> {
        let (crowd, k) = (self.crowd(pace, sessions), f64::from(pace.drafted));
        let (verify, draft) = (self.verify.seconds_alone(crowd * k)?, self.draft.seconds_alone(crowd)?);
        let (by_turns, lost) = (verify + k * draft, self.company() * verify.min(k * draft));
        let verify = self.verify.beside.known(crowd * k).unwrap_or(verify + lost);
        let side_by_side = verify.max(self.draft.beside.known(crowd).map_or(k * draft + lost, |draft| k * draft));
        match pace.mode() {
            Mode::Sequential => Some(side_by_side),
            Mode::ByTurns => Some(by_turns),
            Mode::SideBySide => {
                // After a rejection the base waits for new drafts, and so do all that ride in the same pass.
                let stands = acceptance.powf(crowd * k);
                Some(stands * side_by_side + (1.0 - stands) * (verify + k * draft))
            }
        }
    }

    /// What a model loses of the time for which the other one computes, too: nothing on a device of its own, up to all of it
    /// on a shared one. The expert's passes tell, being the shorter ones; the least is believed, as a pass is soon slow for
    /// other reasons.
    fn company(&self) -> f64 {
        let lost = |(rows, beside): (_, &Average)| Some(beside.value / self.draft.alone.0.get(rows)?.value - 1.0);
        self.draft.beside.0.iter().filter_map(lost).reduce(f64::min).map_or(0.0, |lost| lost.clamp(0.0, 1.0))
    }

    fn of_mode(&mut self, pace: Pace, sessions: usize) -> &mut ModeCosts {
        &mut self.modes[crowding(sessions)][pace.mode() as usize]
    }

    /// Operations like one's own in a pass.
    fn crowd(&self, pace: Pace, sessions: usize) -> f64 {
        let here = &self.modes[crowding(sessions)];
        let share =
            here[pace.mode() as usize].share.or_else(|| here.iter().find_map(|mode| mode.share)).or(self.share);
        (share.map_or(1.0, |share| share.value) * sessions as f64).max(1.0)
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
#[must_use]
pub fn crowding(sessions: usize) -> usize {
    (sessions.max(1) - 1).checked_ilog2().map_or(0, |octave| (octave as usize + 1).min(15))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURNS: Pace = Pace { drafted: 2, runs_ahead: false };

    fn pass(millis: u64, tokens: u32, rows: u32) -> Effort {
        Effort { compute: Duration::from_millis(millis), passes: 1, tokens, rows, ..Effort::default() }
    }

    #[test]
    fn passes_with_prompts_tell_nothing() {
        let mut costs = Costs::default();
        costs.observe(Work::Verify(2), false, pass(900, 66, 4), 2, Some(TURNS));
        costs.observe(Work::Draft, false, pass(90, 66, 2), 2, Some(TURNS));
        assert_eq!(costs.round_seconds(TURNS, 0.8, 2), None);
        costs.observe(Work::Verify(2), false, pass(100, 4, 4), 2, Some(TURNS));
        costs.observe(Work::Draft, false, pass(10, 2, 2), 2, Some(TURNS));
        let seconds = costs.round_seconds(TURNS, 0.8, 2).unwrap();
        assert!((seconds - 0.12).abs() < 1e-9, "{seconds}");
    }

    #[test]
    fn a_pace_is_judged_as_if_all_took_it() {
        let mut costs = Costs::default();
        for rows in [16, 32, 64] {
            costs.observe(Work::Verify(rows / 16), false, pass(10 * u64::from(rows), rows, rows), 16, Some(TURNS));
        }
        costs.observe(Work::Draft, false, pass(10, 16, 16), 16, Some(TURNS));
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
        costs.observe(Work::Verify(2), false, pass(100, 2, 2), 1, Some(TURNS));
        costs.observe(Work::Draft, false, pass(10, 1, 1), 1, Some(TURNS));
        (0..100).for_each(|_| costs.observe_round(TURNS, 0.8, 1, Duration::from_millis(180)));
        let seconds = costs.round_seconds(TURNS, 0.8, 1).unwrap();
        assert!((seconds - 0.18).abs() < 1e-3, "{seconds}");
    }

    #[test]
    fn whatever_a_worker_says_little_is_kept() {
        let mut costs = Costs::default();
        for rows in (0..1_000_000).step_by(7).chain([u32::MAX]) {
            costs.observe(Work::Verify(1), false, pass(u64::from(u32::MAX), rows, rows), 1, Some(TURNS));
        }
        assert!(costs.verify.alone.0.len() < 300, "{}", costs.verify.alone.0.len());
        costs.observe(Work::Draft, false, pass(1, u32::MAX, u32::MAX), 1, Some(TURNS));
        assert!(costs.round_seconds(TURNS, 0.8, 1).is_some_and(f64::is_finite));
    }
}
