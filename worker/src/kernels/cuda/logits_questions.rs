//! What a GPU is asked of rows of logits, and what its answers mean.
//!
//! The program in draw.cu finds sums, draws and the few tokens that can matter; what can be decided by these is decided
//! here, by the code that the host has for whole rows.

use std::ops::Range;

use cosec_proto::sampling::{Distribution, InvalidLogits, LogitsProcessor, LogitsSums, SamplingParams};

use crate::rows::{Content, RowTask, View, nucleus};

/// Tokens whose numbers are summed before those of others.
const CHUNK: usize = 512;

/// Tokens of a block of threads.
pub(super) const SEGMENT: usize = 4 * CHUNK;

/// Most tokens that the GPU hands over of a row under one warp.
const MOST_CANDIDATES: usize = 8192;

/// There is room for the candidates of so many tasks that have all they may.
const FULL_TASKS: usize = 32;

/// Candidates of each task that are copied with the rest of the answers, on average.
const FIRST_CANDIDATES: usize = 1024;

const NONE: u32 = u32::MAX;

// Of a task; see draw.cu.
const NEEDS_TOTAL: u32 = 1;
const NEEDS_PROBABILITIES: u32 = 2;
const NEEDS_CANDIDATES: u32 = 4;

// Numbers of 32 bits in the structures of draw.cu.
const RESULT_WORDS: usize = 8;
const BEST_WORDS: usize = 3;

/// What is wanted of the rows of one forward pass. Kept from one to the next for its memory.
#[derive(Debug, Default)]
pub(super) struct Questions {
    vocabulary: usize,
    rows: Vec<OfRow>,
    tasks: Vec<Task>,
    draws: Vec<Draw>,
    lookups: Vec<Lookup>,
    /// Tasks with candidates.
    parts: usize,
    input: Vec<u32>,
}

/// What belongs to a row.
#[derive(Clone, Debug)]
struct OfRow {
    tasks: Range<usize>,
    first_draw: usize,
    first_lookup: usize,
    /// The host is to read the row itself.
    is_for_host: bool,
}

/// A distribution that is wanted of a row.
#[derive(Clone, Copy, Debug)]
struct Task {
    row: usize,
    warp: SamplingParams,
    flags: u32,
    top_k: usize,
    /// How many tasks with candidates come before.
    part: usize,
}

#[derive(Clone, Copy, Debug)]
struct Draw {
    u: f64,
    task: usize,
}

#[derive(Clone, Copy, Debug)]
struct Lookup {
    row: usize,
    id: u32,
}

/// Which functions of the program are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) totals: bool,
    pub(super) probabilities: bool,
    pub(super) thresholds: bool,
    pub(super) candidates: bool,
}

/// Memory in which answers are finished.
#[derive(Debug, Default)]
pub(super) struct Desk {
    processor: LogitsProcessor,
    ids: Vec<u32>,
    logits: Vec<f32>,
    /// Whose distribution the processor has.
    warped: Option<usize>,
}

/// What the GPU found for a task.
struct Summary {
    sums: LogitsSums,
    arg_max: u32,
    invalid: Option<InvalidLogits>,
}

/// Whether probabilities are weights by the total, nothing else.
fn is_plain(warp: &SamplingParams) -> bool {
    warp.temperature() > 0.0 && !warp.cuts()
}

impl Questions {
    /// Forgets the last questions and takes down what `tasks` want of rows of `vocabulary`.
    pub(super) fn ask(&mut self, vocabulary: usize, tasks: &[RowTask<'_>]) {
        self.vocabulary = vocabulary;
        self.rows.clear();
        self.tasks.clear();
        self.draws.clear();
        self.lookups.clear();
        self.parts = 0;
        for (row, task) in tasks.iter().enumerate() {
            let of_row = OfRow {
                tasks: self.tasks.len()..self.tasks.len(),
                first_draw: self.draws.len(),
                first_lookup: self.lookups.len(),
                is_for_host: self.is_asked_of_host(task),
            };
            self.rows.push(of_row);
            if !self.rows[row].is_for_host {
                self.ask_of_row(row, task);
            }
        }
        for task in &mut self.tasks {
            task.part = self.parts;
            self.parts += usize::from(task.flags & NEEDS_CANDIDATES > 0);
        }
    }

    /// Whether more is wanted than the GPU hands over.
    fn is_asked_of_host(&self, task: &RowTask<'_>) -> bool {
        let is_too_much = |warp: &SamplingParams| self.rank(warp) > MOST_CANDIDATES;
        let of_view = |view: &View| match view {
            View::Full(_) => true,
            View::Nucleus { warp, cap } if is_plain(warp) => (*cap).min(self.vocabulary) >= MOST_CANDIDATES,
            View::Gather { warp, .. } | View::Nucleus { warp, .. } | View::Sample { warp, .. } => is_too_much(warp),
        };
        task.views.iter().any(|(_, view)| of_view(view)) || task.draw.is_some_and(|(warp, _)| is_too_much(&warp))
    }

    /// The rank of the last token of the top-k; 0 when all are in it.
    fn rank(&self, warp: &SamplingParams) -> usize {
        let k = warp.top_k() as usize;
        if k < self.vocabulary { k } else { 0 }
    }

    fn ask_of_row(&mut self, row: usize, task: &RowTask<'_>) {
        for (_, view) in task.views {
            match view {
                View::Gather { warp, ids } if is_plain(warp) => {
                    self.task(row, warp, NEEDS_TOTAL, 0);
                    self.lookups.extend(ids.iter().map(|&id| Lookup { row, id }));
                }
                View::Nucleus { warp, cap } if is_plain(warp) => {
                    // One more than the cap tells whether that was all.
                    let rank = cap.saturating_add(1).min(self.vocabulary);
                    self.task(row, warp, NEEDS_TOTAL | NEEDS_CANDIDATES, rank);
                }
                View::Gather { warp, .. } | View::Nucleus { warp, .. } => self.ask_distribution(row, warp),
                View::Sample { warp, u } => self.ask_draw(row, warp, *u),
                View::Full(_) => {}
            }
        }
        if let Some((warp, u)) = &task.draw {
            self.ask_draw(row, warp, *u);
        }
    }

    fn ask_draw(&mut self, row: usize, warp: &SamplingParams, u: f64) {
        if is_plain(warp) {
            let task = self.task(row, warp, NEEDS_TOTAL | NEEDS_PROBABILITIES, 0);
            self.draws.push(Draw { u, task });
        } else {
            self.ask_distribution(row, warp);
        }
    }

    fn ask_distribution(&mut self, row: usize, warp: &SamplingParams) {
        let (flags, rank) = match (warp.temperature() > 0.0, self.rank(warp)) {
            (false, _) => (0, 0),
            (true, 0) => (NEEDS_TOTAL | NEEDS_CANDIDATES, 0),
            (true, rank) => (NEEDS_CANDIDATES, rank),
        };
        self.task(row, warp, flags, rank);
    }

    /// The task of the newest row for this warp, with these needs among others.
    fn task(&mut self, row: usize, warp: &SamplingParams, flags: u32, top_k: usize) -> usize {
        let tasks = &mut self.rows[row].tasks;
        let known = self.tasks[tasks.clone()].iter_mut().position(|task| task.warp == *warp);
        let at = known.map_or(tasks.end, |known| tasks.start + known);
        if at == tasks.end {
            self.tasks.push(Task { row, warp: *warp, flags: 0, top_k: 0, part: 0 });
            tasks.end += 1;
        }
        let task = &mut self.tasks[at];
        (task.flags, task.top_k) = (task.flags | flags, task.top_k.max(top_k));
        at
    }

    /// Whether the GPU has nothing to answer.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// How many distributions and how many draws are wanted.
    pub(super) fn tasks_and_draws(&self) -> (usize, usize) {
        (self.tasks.len(), self.draws.len())
    }

    pub(super) fn needs(&self) -> Needs {
        let any = |flag| self.tasks.iter().any(|task| task.flags & flag > 0);
        Needs {
            totals: any(NEEDS_TOTAL),
            probabilities: any(NEEDS_PROBABILITIES),
            thresholds: self.tasks.iter().any(|task| task.top_k > 0),
            candidates: any(NEEDS_CANDIDATES),
        }
    }

    /// Blocks that a row takes.
    pub(super) fn segments(&self) -> usize {
        self.vocabulary.div_ceil(SEGMENT)
    }

    /// Numbers of 32 bits that the functions leave for each other.
    pub(super) fn scratch_words(&self) -> usize {
        let chunks = self.vocabulary.div_ceil(CHUNK);
        self.tasks.len() * (4 * chunks + 1) + self.rows.len() * self.segments() * BEST_WORDS
    }

    /// Numbers of 32 bits that the GPU answers with, candidates not counted.
    fn fixed_words(&self) -> usize {
        let of_tasks = RESULT_WORDS * self.tasks.len() + 2 * self.parts * self.segments();
        2 + of_tasks + 2 * self.draws.len() + self.lookups.len()
    }

    /// The same with room for candidates.
    pub(super) fn answer_words(&self) -> usize {
        self.fixed_words() + 2 * self.pool()
    }

    /// How much of the answers is to be looked at first.
    pub(super) fn first_words(&self) -> usize {
        self.fixed_words() + 2 * self.pool().min(self.parts * FIRST_CANDIDATES)
    }

    /// How much of them is of interest, by the first part.
    pub(super) fn words_of_interest(&self, answers: &[u32]) -> usize {
        self.fixed_words() + 2 * self.pool().min(answers[0] as usize)
    }

    fn pool(&self) -> usize {
        self.parts.min(FULL_TASKS) * MOST_CANDIDATES.min(self.vocabulary)
    }

    /// What the program takes; the addresses are those of the logits, of scratch and of the answers.
    pub(super) fn input(&mut self, addresses: [u64; 3]) -> &[u32] {
        let sizes = [
            self.vocabulary,
            self.segments(),
            self.vocabulary.div_ceil(CHUNK),
            self.tasks.len(),
            self.draws.len(),
            self.lookups.len(),
            self.parts,
            self.pool(),
        ];
        let Self { vocabulary, tasks, draws, lookups, input, .. } = self;
        input.clear();
        input.extend(addresses.into_iter().flat_map(halves));
        input.extend(sizes.map(|size| size as u32));
        for task in tasks {
            input.extend(halves(task.warp.temperature().to_bits()));
            // The margin is for rounding: the host decides.
            input.extend(halves((0.999 * task.warp.least_share(*vocabulary)).to_bits()));
            input.extend([task.row as u32, task.flags, task.top_k as u32, task.part as u32]);
        }
        for draw in draws {
            input.extend(halves(draw.u.to_bits()));
            input.extend([draw.task as u32, 0]);
        }
        input.extend(lookups.iter().flat_map(|lookup| [lookup.row as u32, lookup.id]));
        input
    }

    /// Rows of the forward pass.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Whether all tokens of a row matter, or by the first of the `answers` more than the GPU hands over: then the host has
    /// to read the row.
    pub(super) fn is_for_host(&self, answers: &[u32], row: usize) -> bool {
        let OfRow { tasks, is_for_host, .. } = &self.rows[row];
        let is_lost = |task: &Task| {
            task.flags & NEEDS_CANDIDATES > 0 && self.parts(answers, task).any(|(first, _)| first == NONE)
        };
        *is_for_host || self.tasks[tasks.clone()].iter().any(is_lost)
    }

    /// Takes from the `answers` what `task` wants of row `row`, unless it is for the host; whether the row stays is not its
    /// business.
    pub(super) fn finish(&self, answers: &[u32], row: usize, task: &mut RowTask<'_>, desk: &mut Desk) {
        let OfRow { tasks, mut first_draw, mut first_lookup, .. } = self.rows[row].clone();
        let found = &mut *task.found;
        found.clear();
        found.invalid = tasks.clone().find_map(|task| self.summary(answers, task).invalid);
        if found.invalid.is_some() {
            return;
        }
        desk.warped = None;
        let mut token = |desk: &mut Desk, warp: &SamplingParams, u: f64| {
            let at = self.task_of(&tasks, warp);
            if is_plain(warp) {
                let (id, logit) = self.drawn(answers, first_draw);
                first_draw += 1;
                return (id, self.summary(answers, at).sums.probability(logit, warp));
            }
            let distribution = self.distribution(answers, at, desk);
            let id = distribution.sample(u);
            (id, distribution.probability(id))
        };
        for (index, view) in task.views {
            let content = match view {
                View::Gather { warp, ids } if is_plain(warp) => {
                    let sums = self.summary(answers, self.task_of(&tasks, warp)).sums;
                    let logits = self.looked_up(answers, first_lookup..first_lookup + ids.len());
                    first_lookup += ids.len();
                    Content::Gathered(logits.map(|logit| sums.probability(logit, warp)).collect())
                }
                View::Gather { warp, ids } => {
                    let distribution = self.distribution(answers, self.task_of(&tasks, warp), desk);
                    Content::Gathered(ids.iter().map(|&id| distribution.probability(id)).collect())
                }
                View::Nucleus { warp, cap } => {
                    nucleus(self.distribution(answers, self.task_of(&tasks, warp), desk), *cap)
                }
                View::Sample { warp, u } => {
                    let (id, probability) = token(desk, warp, *u);
                    Content::Sampled { id, probability }
                }
                // Such a row is for the host.
                View::Full(_) => continue,
            };
            found.contents.push((*index, content));
        }
        found.drawn = task.draw.map(|(warp, u)| token(desk, &warp, u));
    }

    /// Every warp was asked for.
    fn task_of(&self, tasks: &Range<usize>, warp: &SamplingParams) -> usize {
        tasks.clone().find(|&task| self.tasks[task].warp == *warp).unwrap_or(tasks.start)
    }

    /// The distribution of a task, but for a plain warp only its likeliest tokens.
    fn distribution<'a>(&self, answers: &[u32], task: usize, desk: &'a mut Desk) -> &'a Distribution {
        if desk.warped != Some(task) {
            let Summary { sums, arg_max, .. } = self.summary(answers, task);
            let Task { warp, flags, .. } = self.tasks[task];
            desk.ids.clear();
            desk.logits.clear();
            if flags & NEEDS_CANDIDATES > 0 {
                self.take_candidates(answers, task, desk);
            } else {
                desk.ids.push(arg_max);
                desk.logits.push(sums.max);
            }
            desk.processor.process_partial(&sums, (&desk.ids, &desk.logits), &warp);
            desk.warped = Some(task);
        }
        desk.processor.distribution()
    }

    fn take_candidates(&self, answers: &[u32], task: usize, desk: &mut Desk) {
        for (first, count) in self.parts(answers, &self.tasks[task]) {
            let tokens = &answers[self.fixed_words() + 2 * first as usize..][..2 * count as usize];
            desk.ids.extend(tokens.chunks_exact(2).map(|token| token[0]));
            desk.logits.extend(tokens.chunks_exact(2).map(|token| f32::from_bits(token[1])));
        }
    }

    /// Where the candidates of each segment lie, and how many they are.
    fn parts<'a>(&self, answers: &'a [u32], task: &Task) -> impl Iterator<Item = (u32, u32)> + 'a {
        let (segments, parts) = (self.segments(), 2 + RESULT_WORDS * self.tasks.len() + 2 * self.draws.len());
        let parts = &answers[parts + 2 * segments * task.part..][..2 * segments];
        parts.chunks_exact(2).map(|part| (part[0], part[1]))
    }

    fn summary(&self, answers: &[u32], task: usize) -> Summary {
        let words = &answers[2 + RESULT_WORDS * task..][..RESULT_WORDS];
        let total = f64::from_bits(u64::from(words[1]) << 32 | u64::from(words[0]));
        let sums = LogitsSums { max: f32::from_bits(words[2]), total, vocabulary: self.vocabulary };
        let invalid = match words[4] {
            NONE if sums.max == f32::NEG_INFINITY => Some(InvalidLogits::NoSupport),
            NONE => None,
            index => Some(InvalidLogits::Value { index: index as usize, value: f32::from_bits(words[5]) }),
        };
        Summary { sums, arg_max: words[3], invalid }
    }

    fn drawn(&self, answers: &[u32], draw: usize) -> (u32, f32) {
        let words = &answers[2 + RESULT_WORDS * self.tasks.len() + 2 * draw..][..2];
        (words[0], f32::from_bits(words[1]))
    }

    fn looked_up<'a>(&self, answers: &'a [u32], lookups: Range<usize>) -> impl Iterator<Item = f32> + 'a {
        let first = self.fixed_words() - self.lookups.len();
        answers[first + lookups.start..first + lookups.end].iter().map(|&bits| f32::from_bits(bits))
    }
}

/// The lower one first.
fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}
