//! What a GPU is asked about rows of logits, in the layout of draw.cu.

use std::ops::Range;

use cosec_proto::LogitsView;
use cosec_proto::sampling::SamplingParams;

use crate::logits_view::LogitsTask;

/// Tokens whose numbers are summed before those of others.
const CHUNK: usize = 512;

/// Tokens of a block of threads.
pub(super) const SEGMENT: usize = 4 * CHUNK;

/// Most tokens that the GPU hands over for one distribution.
const MOST_CANDIDATES: usize = 8192;

/// The pool has room for the most candidates of this many tasks.
const FULL_TASKS: usize = 32;

/// Candidates of each task that are copied with the rest of the answers, on average.
const FIRST_CANDIDATES: usize = 1024;

// Of a task; see draw.cu.
const NEEDS_TOTAL: u32 = 1;
const NEEDS_PROBABILITIES: u32 = 2;
pub(super) const NEEDS_CANDIDATES: u32 = 4;

// Numbers of 32 bits in the structures of draw.cu.
pub(super) const RESULT_WORDS: usize = 8;
const BEST_WORDS: usize = 3;

/// The questions about the logits of one forward pass. Reused for its memory.
#[derive(Debug, Default)]
pub(super) struct LogitsQuestions {
    pub(super) vocabulary: usize,
    pub(super) rows: Vec<RowQuestions>,
    pub(super) tasks: Vec<DistributionTask>,
    pub(super) draws: Vec<TokenDraw>,
    pub(super) lookups: Vec<LogitLookup>,
    /// Tasks with candidates.
    parts: usize,
    input: Vec<u32>,
}

/// The part of the questions that concerns one row.
#[derive(Clone, Debug)]
pub(super) struct RowQuestions {
    pub(super) tasks: Range<usize>,
    pub(super) first_draw: usize,
    pub(super) first_lookup: usize,
    /// The host reads the row itself.
    pub(super) is_for_host: bool,
}

/// A distribution to compute from a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct DistributionTask {
    row: usize,
    pub(super) sampling: SamplingParams,
    pub(super) flags: u32,
    top_k: usize,
    /// Number of earlier tasks with candidates.
    pub(super) part: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct TokenDraw {
    u: f64,
    task: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LogitLookup {
    row: usize,
    id: u32,
}

/// Which kernels of the program to launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeededKernels {
    pub(super) totals: bool,
    pub(super) probabilities: bool,
    pub(super) thresholds: bool,
    pub(super) candidates: bool,
}

/// Whether a probability is just weight by total: no cuts, no greedy choice.
pub(super) fn is_plain(sampling: &SamplingParams) -> bool {
    sampling.temperature() > 0.0 && !sampling.cuts()
}

impl LogitsQuestions {
    /// Replaces the questions by those that `tasks` ask about rows of `vocabulary`.
    pub(super) fn ask(&mut self, vocabulary: usize, tasks: &[LogitsTask<'_>]) {
        self.vocabulary = vocabulary;
        self.rows.clear();
        self.tasks.clear();
        self.draws.clear();
        self.lookups.clear();
        self.parts = 0;
        for (row, task) in tasks.iter().enumerate() {
            let of_row = RowQuestions {
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

    /// Whether `task` needs more than the GPU hands over.
    fn is_asked_of_host(&self, task: &LogitsTask<'_>) -> bool {
        let is_too_much = |sampling: &SamplingParams| self.rank(sampling) > MOST_CANDIDATES;
        let of_view = |view: &LogitsView| match view {
            LogitsView::Nucleus { sampling, cap } if is_plain(sampling) => {
                (*cap as usize).min(self.vocabulary) >= MOST_CANDIDATES
            }
            LogitsView::Gather { sampling, .. }
            | LogitsView::Nucleus { sampling, .. }
            | LogitsView::Sample { sampling, .. } => is_too_much(sampling),
            // Raw logits, and views that the GPU does not know.
            _ => true,
        };
        task.views.iter().any(|(_, view)| of_view(view))
            || task.draw.is_some_and(|(sampling, _)| is_too_much(&sampling))
    }

    /// The rank of the last token within top-k; 0 without a top-k.
    fn rank(&self, sampling: &SamplingParams) -> usize {
        let k = sampling.top_k() as usize;
        if k < self.vocabulary { k } else { 0 }
    }

    fn ask_of_row(&mut self, row: usize, task: &LogitsTask<'_>) {
        for (_, view) in task.views {
            match view {
                LogitsView::Gather { sampling, ids } if is_plain(sampling) => {
                    self.task(row, sampling, NEEDS_TOTAL, 0);
                    self.lookups.extend(ids.iter().map(|&id| LogitLookup { row, id }));
                }
                LogitsView::Nucleus { sampling, cap } if is_plain(sampling) => {
                    // One more than the cap shows whether there are more.
                    let rank = (*cap as usize).saturating_add(1).min(self.vocabulary);
                    self.task(row, sampling, NEEDS_TOTAL | NEEDS_CANDIDATES, rank);
                }
                LogitsView::Gather { sampling, .. } | LogitsView::Nucleus { sampling, .. } => {
                    self.ask_distribution(row, sampling)
                }
                LogitsView::Sample { sampling, u } => self.ask_draw(row, sampling, *u),
                _ => {}
            }
        }
        if let Some((sampling, u)) = &task.draw {
            self.ask_draw(row, sampling, *u);
        }
    }

    fn ask_draw(&mut self, row: usize, sampling: &SamplingParams, u: f64) {
        if is_plain(sampling) {
            let task = self.task(row, sampling, NEEDS_TOTAL | NEEDS_PROBABILITIES, 0);
            self.draws.push(TokenDraw { u, task });
        } else {
            self.ask_distribution(row, sampling);
        }
    }

    fn ask_distribution(&mut self, row: usize, sampling: &SamplingParams) {
        let (flags, rank) = match (sampling.temperature() > 0.0, self.rank(sampling)) {
            (false, _) => (0, 0),
            (true, 0) => (NEEDS_TOTAL | NEEDS_CANDIDATES, 0),
            (true, rank) => (NEEDS_CANDIDATES, rank),
        };
        self.task(row, sampling, flags, rank);
    }

    /// Finds or adds the newest row's task for `sampling`, and adds these needs.
    fn task(&mut self, row: usize, sampling: &SamplingParams, flags: u32, top_k: usize) -> usize {
        let tasks = &mut self.rows[row].tasks;
        let known = self.tasks[tasks.clone()].iter_mut().position(|task| task.sampling == *sampling);
        let at = known.map_or(tasks.end, |known| tasks.start + known);
        if at == tasks.end {
            self.tasks.push(DistributionTask { row, sampling: *sampling, flags: 0, top_k: 0, part: 0 });
            tasks.end += 1;
        }
        let task = &mut self.tasks[at];
        (task.flags, task.top_k) = (task.flags | flags, task.top_k.max(top_k));
        at
    }

    /// Whether there is nothing to ask.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Number of distributions and of draws.
    pub(super) fn tasks_and_draws(&self) -> (usize, usize) {
        (self.tasks.len(), self.draws.len())
    }

    pub(super) fn needs(&self) -> NeededKernels {
        let any = |flag| self.tasks.iter().any(|task| task.flags & flag > 0);
        NeededKernels {
            totals: any(NEEDS_TOTAL),
            probabilities: any(NEEDS_PROBABILITIES),
            thresholds: self.tasks.iter().any(|task| task.top_k > 0),
            candidates: any(NEEDS_CANDIDATES),
        }
    }

    /// Thread blocks per row.
    pub(super) fn segments(&self) -> usize {
        self.vocabulary.div_ceil(SEGMENT)
    }

    /// Words of scratch memory that the kernels share.
    pub(super) fn scratch_words(&self) -> usize {
        let chunks = self.vocabulary.div_ceil(CHUNK);
        self.tasks.len() * (4 * chunks + 1) + self.rows.len() * self.segments() * BEST_WORDS
    }

    /// Words of the answers without candidates.
    pub(super) fn fixed_words(&self) -> usize {
        let of_tasks = RESULT_WORDS * self.tasks.len() + 2 * self.parts * self.segments();
        2 + of_tasks + 2 * self.draws.len() + self.lookups.len()
    }

    /// Words of the answers with room for candidates.
    pub(super) fn answer_words(&self) -> usize {
        self.fixed_words() + 2 * self.pool()
    }

    /// Words to fetch first.
    pub(super) fn first_words(&self) -> usize {
        self.fixed_words() + 2 * self.pool().min(self.parts * FIRST_CANDIDATES)
    }

    /// Words that are in use, according to the first ones.
    pub(super) fn words_of_interest(&self, answers: &[u32]) -> usize {
        self.fixed_words() + 2 * self.pool().min(answers[0] as usize)
    }

    fn pool(&self) -> usize {
        self.parts.min(FULL_TASKS) * MOST_CANDIDATES.min(self.vocabulary)
    }

    /// The program's input; `addresses` are those of the logits, the scratch memory and the answers.
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
            input.extend(halves(task.sampling.temperature().to_bits()));
            // With a margin for rounding: the host decides.
            input.extend(halves((0.999 * task.sampling.least_share(*vocabulary)).to_bits()));
            input.extend([task.row as u32, task.flags, task.top_k as u32, task.part as u32]);
        }
        for draw in draws {
            input.extend(halves(draw.u.to_bits()));
            input.extend([draw.task as u32, 0]);
        }
        input.extend(lookups.iter().flat_map(|lookup| [lookup.row as u32, lookup.id]));
        input
    }
}

/// The lower half first.
fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}
