//! What a GPU's answers about rows of logits mean.
//!
//! The program in draw.cu finds sums, draws and the few tokens that can matter. The code that the host has for whole rows
//! decides by these.

use std::ops::Range;

use cosec_proto::sampling::{
    Distribution, InvalidLogits, LogitsProcessor, LogitsSums, SamplingParams, TokenProbability,
};
use cosec_proto::{LogitsResult, LogitsView};

use super::logits_questions::{
    DistributionTask, LogitsQuestions, NEEDS_CANDIDATES, RESULT_WORDS, RowQuestions, is_plain,
};
use crate::logits_view::LogitsTask;

const NONE: u32 = u32::MAX;

/// Memory for finishing answers.
#[derive(Debug, Default)]
pub(super) struct AnswerScratch {
    processor: LogitsProcessor,
    ids: Vec<u32>,
    logits: Vec<f32>,
    /// The task whose distribution the processor holds.
    warped: Option<usize>,
}

/// The GPU's answer to a task.
struct TaskSummary {
    sums: LogitsSums,
    arg_max: u32,
    invalid: Option<InvalidLogits>,
}

/// The words that a GPU answered with.
#[derive(Clone, Copy)]
pub(super) struct LogitsAnswers<'a> {
    pub(super) questions: &'a LogitsQuestions,
    pub(super) words: &'a [u32],
}

impl<'a> LogitsAnswers<'a> {
    /// Whether the host must read the row: all of its tokens matter, or more than the GPU hands
    /// over.
    pub(super) fn is_for_host(&self, row: usize) -> bool {
        let RowQuestions { tasks, is_for_host, .. } = &self.questions.rows[row];
        let is_lost = |task: &DistributionTask| {
            task.flags & NEEDS_CANDIDATES > 0 && self.parts(task).any(|(first, _)| first == NONE)
        };
        *is_for_host || self.questions.tasks[tasks.clone()].iter().any(is_lost)
    }

    /// Takes from the `answers` what `task` wants of row `row`, unless it is for the host; whether the row stays is not its
    /// business.
    pub(super) fn finish(&self, row: usize, task: &mut LogitsTask<'_>, desk: &mut AnswerScratch) {
        let RowQuestions { tasks, mut first_draw, mut first_lookup, .. } = self.questions.rows[row].clone();
        let found = &mut *task.found;
        found.clear();
        found.invalid = tasks.clone().find_map(|task| self.summary(task).invalid);
        if found.invalid.is_some() {
            return;
        }
        desk.warped = None;
        let mut token = |desk: &mut AnswerScratch, warp: &SamplingParams, u: f64| {
            let at = self.task_of(&tasks, warp);
            if is_plain(warp) {
                let (id, logit) = self.drawn(first_draw);
                first_draw += 1;
                return TokenProbability { id, probability: self.summary(at).sums.probability(logit, warp) };
            }
            self.distribution(at, desk).sample_token(u)
        };
        for (index, view) in task.views {
            let content = match view {
                LogitsView::Gather { sampling: warp, ids } if is_plain(warp) => {
                    let sums = self.summary(self.task_of(&tasks, warp)).sums;
                    let logits = self.looked_up(first_lookup..first_lookup + ids.len());
                    first_lookup += ids.len();
                    let token = |(&id, logit)| TokenProbability { id, probability: sums.probability(logit, warp) };
                    LogitsResult::Gathered(ids.iter().zip(logits).map(token).collect())
                }
                LogitsView::Gather { sampling: warp, ids } => {
                    let distribution = self.distribution(self.task_of(&tasks, warp), desk);
                    let token = |&id: &u32| TokenProbability { id, probability: distribution.probability(id) };
                    LogitsResult::Gathered(ids.iter().map(token).collect())
                }
                LogitsView::Nucleus { sampling: warp, cap } => {
                    let distribution = self.distribution(self.task_of(&tasks, warp), desk);
                    let (survivors, complete) = distribution.most_probable(*cap as usize);
                    LogitsResult::Nucleus { survivors, complete }
                }
                LogitsView::Sample { sampling: warp, u } => LogitsResult::Sampled(token(desk, warp, *u)),
                // Such a row is for the host.
                _ => continue,
            };
            found.views.push((*index, content));
        }
        found.drawn = task.draw.map(|(warp, u)| token(desk, &warp, u));
    }

    /// The task of `warp`; every warp has one.
    fn task_of(&self, tasks: &Range<usize>, warp: &SamplingParams) -> usize {
        tasks.clone().find(|&task| self.questions.tasks[task].warp == *warp).unwrap_or(tasks.start)
    }

    /// The distribution of a task; of a plain warp only the likeliest tokens.
    fn distribution<'b>(&self, task: usize, desk: &'b mut AnswerScratch) -> &'b Distribution {
        if desk.warped != Some(task) {
            let TaskSummary { sums, arg_max, .. } = self.summary(task);
            let DistributionTask { warp, flags, .. } = self.questions.tasks[task];
            desk.ids.clear();
            desk.logits.clear();
            if flags & NEEDS_CANDIDATES > 0 {
                self.take_candidates(task, desk);
            } else {
                desk.ids.push(arg_max);
                desk.logits.push(sums.max);
            }
            desk.processor.process_partial(&sums, (&desk.ids, &desk.logits), &warp);
            desk.warped = Some(task);
        }
        desk.processor.distribution()
    }

    fn take_candidates(&self, task: usize, desk: &mut AnswerScratch) {
        for (first, count) in self.parts(&self.questions.tasks[task]) {
            let tokens = &self.words[self.questions.fixed_words() + 2 * first as usize..][..2 * count as usize];
            desk.ids.extend(tokens.chunks_exact(2).map(|token| token[0]));
            desk.logits.extend(tokens.chunks_exact(2).map(|token| f32::from_bits(token[1])));
        }
    }

    /// First index and number of each segment's candidates.
    fn parts(&self, task: &DistributionTask) -> impl Iterator<Item = (u32, u32)> + 'a {
        let (segments, parts) = (
            self.questions.segments(),
            2 + RESULT_WORDS * self.questions.tasks.len() + 2 * self.questions.draws.len(),
        );
        let parts = &self.words[parts + 2 * segments * task.part..][..2 * segments];
        parts.chunks_exact(2).map(|part| (part[0], part[1]))
    }

    fn summary(&self, task: usize) -> TaskSummary {
        let words = &self.words[2 + RESULT_WORDS * task..][..RESULT_WORDS];
        let total = f64::from_bits(u64::from(words[1]) << 32 | u64::from(words[0]));
        let sums = LogitsSums { max: f32::from_bits(words[2]), total, vocabulary: self.questions.vocabulary };
        let invalid = match words[4] {
            NONE if sums.max == f32::NEG_INFINITY => Some(InvalidLogits::NoSupport),
            NONE => None,
            index => Some(InvalidLogits::Value { index: index as usize, value: f32::from_bits(words[5]) }),
        };
        TaskSummary { sums, arg_max: words[3], invalid }
    }

    fn drawn(&self, draw: usize) -> (u32, f32) {
        let words = &self.words[2 + RESULT_WORDS * self.questions.tasks.len() + 2 * draw..][..2];
        (words[0], f32::from_bits(words[1]))
    }

    fn looked_up(&self, lookups: Range<usize>) -> impl Iterator<Item = f32> + 'a {
        let first = self.questions.fixed_words() - self.questions.lookups.len();
        self.words[first + lookups.start..first + lookups.end].iter().map(|&bits| f32::from_bits(bits))
    }
}
