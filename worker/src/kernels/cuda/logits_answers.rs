//! What a GPU's answers about rows of logits mean.
//!
//! The program in draw.cu finds sums, draws and the few tokens that can matter. The code that the host has for whole
//! rows decides by these.

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
    processed: Option<usize>,
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

    /// Answers `task` about row `row`, which is not for the host. Does not keep the row.
    pub(super) fn finish(&self, row: usize, task: &mut LogitsTask<'_>, scratch: &mut AnswerScratch) {
        let RowQuestions { tasks, mut first_draw, mut first_lookup, .. } = self.questions.rows[row].clone();
        let found = &mut *task.found;
        found.clear();
        found.invalid = tasks.clone().find_map(|task| self.summary(task).invalid);
        if found.invalid.is_some() {
            return;
        }
        scratch.processed = None;
        let mut token = |scratch: &mut AnswerScratch, sampling: &SamplingParams, u: f64| {
            let at = self.task_of(&tasks, sampling);
            if is_plain(sampling) {
                let (id, logit) = self.drawn(first_draw);
                first_draw += 1;
                return TokenProbability { id, probability: self.summary(at).sums.probability(logit, sampling) };
            }
            self.distribution(at, scratch).sample_token(u)
        };
        for (index, view) in task.views {
            let content = match view {
                LogitsView::Gather { sampling, ids } if is_plain(sampling) => {
                    let sums = self.summary(self.task_of(&tasks, sampling)).sums;
                    let logits = self.looked_up(first_lookup..first_lookup + ids.len());
                    first_lookup += ids.len();
                    let token =
                        |(&id, logit)| TokenProbability { id, probability: sums.probability(logit, sampling) };
                    LogitsResult::Gathered(ids.iter().zip(logits).map(token).collect())
                }
                LogitsView::Gather { sampling, ids } => {
                    let distribution = self.distribution(self.task_of(&tasks, sampling), scratch);
                    let token = |&id: &u32| TokenProbability { id, probability: distribution.probability(id) };
                    LogitsResult::Gathered(ids.iter().map(token).collect())
                }
                LogitsView::Nucleus { sampling, cap } => {
                    let distribution = self.distribution(self.task_of(&tasks, sampling), scratch);
                    let (survivors, complete) = distribution.most_probable(*cap as usize);
                    LogitsResult::Nucleus { survivors, complete }
                }
                LogitsView::Sample { sampling, u } => LogitsResult::Sampled(token(scratch, sampling, *u)),
                // The host reads such a row.
                _ => continue,
            };
            found.views.push((*index, content));
        }
        found.drawn = task.draw.map(|(sampling, u)| token(scratch, &sampling, u));
    }

    /// The task of `sampling`; every sampling has one.
    fn task_of(&self, tasks: &Range<usize>, sampling: &SamplingParams) -> usize {
        tasks.clone().find(|&task| self.questions.tasks[task].sampling == *sampling).unwrap_or(tasks.start)
    }

    /// The distribution of a task; of a plain sampling only the likeliest tokens.
    fn distribution<'b>(&self, task: usize, scratch: &'b mut AnswerScratch) -> &'b Distribution {
        if scratch.processed != Some(task) {
            let TaskSummary { sums, arg_max, .. } = self.summary(task);
            let DistributionTask { sampling, flags, .. } = self.questions.tasks[task];
            scratch.ids.clear();
            scratch.logits.clear();
            if flags & NEEDS_CANDIDATES > 0 {
                self.take_candidates(task, scratch);
            } else {
                scratch.ids.push(arg_max);
                scratch.logits.push(sums.max);
            }
            scratch.processor.process_partial(&sums, (&scratch.ids, &scratch.logits), &sampling);
            scratch.processed = Some(task);
        }
        scratch.processor.distribution()
    }

    fn take_candidates(&self, task: usize, scratch: &mut AnswerScratch) {
        for (first, count) in self.parts(&self.questions.tasks[task]) {
            let tokens = &self.words[self.questions.fixed_words() + 2 * first as usize..][..2 * count as usize];
            scratch.ids.extend(tokens.chunks_exact(2).map(|token| token[0]));
            scratch.logits.extend(tokens.chunks_exact(2).map(|token| f32::from_bits(token[1])));
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
