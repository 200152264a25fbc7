//! One operation from its start to its outcome.

use std::ops::Range;
use std::time::Instant;

use cosec_proto::SessionId;
use cosec_proto::draw::{InvalidLogits, Purpose, Warp};

use super::fairness::Party;
use super::request_queue::JobId;
use crate::engine::operation::{Effort, Operation, Outcome, RowRequest, Work};
use crate::kv_cache::PrefixHash;
use crate::rows::{Content, Row};

/// Most tokens of an operation that is served ahead of longer ones: a decode step or a block of drafts, not a prompt.
pub(crate) const SHORT_TOKENS: usize = 64;

/// An operation and how far it is. Its memory is taken when it is received, not by the engine's thread.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) operation: Operation,
    /// Place in the order of arrival.
    pub(crate) arrival: u64,
    /// The next job of its session.
    pub(crate) next: Option<JobId>,
    pub(crate) stage: Stage,
    /// Blocks that it lacked when it was last looked at; 0 when it does not wait for blocks.
    pub(crate) missing_blocks: usize,
    /// The block that it fills next and that others might wait for.
    pub(crate) fills: Option<PrefixHash>,
    /// To feed; drafted tokens are appended.
    tokens: Vec<u32>,
    /// How many of them the caller gave.
    given: usize,
    fed: usize,
    /// Indices of the row requests, ascending by offset.
    by_offset: Vec<usize>,
    /// Offset and content, in the order of the requests.
    contents: Vec<(usize, Content)>,
    ids: Vec<u32>,
    probabilities: Vec<f64>,
    /// The row behind the last token fed.
    last_row: Vec<f32>,
    pub(crate) first_pass: Option<Instant>,
    pub(crate) effort: Effort,
}

/// Whether an operation has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Waits,
    Runs {
        /// Whether the operation opened its session.
        opened: bool,
    },
}

/// What one row of logits means to a job.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) job: JobId,
    /// Of the row, behind `at`.
    pub(crate) offset: usize,
    contents: Vec<(usize, Content)>,
    drawn: Option<(u32, f64)>,
    /// Memory for the row, where it has to be kept.
    pub(crate) row: Option<Vec<f32>>,
    pub(crate) invalid: Option<InvalidLogits>,
}

impl Reading {
    /// Is to read the row behind the first `offset` tokens of `job`.
    pub(crate) fn begin(&mut self, job: JobId, offset: usize) {
        (self.job, self.offset, self.drawn, self.invalid) = (job, offset, None, None);
        self.contents.clear();
    }
}

impl Job {
    pub(crate) fn new(mut operation: Operation) -> Self {
        let blank = |request: &RowRequest| (request.offset, Content::Gathered(Vec::new()));
        let (tokens, contents, k): (_, Vec<_>, _) = match &mut operation.work {
            Work::Extend { tokens, rows, .. } => (std::mem::take(tokens), rows.iter().map(blank).collect(), 0),
            Work::Draft { tokens, rows, k, .. } => (std::mem::take(tokens), rows.iter().map(blank).collect(), *k),
            Work::Release => (Vec::new(), Vec::new(), 0),
        };
        let mut job = Self {
            operation,
            arrival: 0,
            next: None,
            stage: Stage::Waits,
            missing_blocks: 0,
            fills: None,
            given: tokens.len(),
            tokens,
            fed: 0,
            by_offset: (0..contents.len()).collect(),
            contents,
            ids: Vec::with_capacity(k),
            probabilities: Vec::with_capacity(k),
            last_row: Vec::new(),
            first_pass: None,
            effort: Effort::default(),
        };
        job.tokens.reserve_exact(k);
        let mut by_offset = std::mem::take(&mut job.by_offset);
        by_offset.sort_by_key(|&index| job.offset(index));
        job.by_offset = by_offset;
        job
    }

    pub(crate) fn session(&self) -> SessionId {
        self.operation.session
    }

    /// On whose account it runs.
    pub(crate) fn party(&self) -> Party {
        Party { stream: self.operation.stream, tenant: self.operation.tenant }
    }

    /// Cached tokens that the operation assumes.
    pub(crate) fn at(&self) -> usize {
        match self.operation.work {
            Work::Extend { at, .. } | Work::Draft { at, .. } => at,
            Work::Release => 0,
        }
    }

    fn requests(&self) -> &[RowRequest] {
        match &self.operation.work {
            Work::Extend { rows, .. } | Work::Draft { rows, .. } => rows,
            Work::Release => &[],
        }
    }

    /// Offset of request `index` behind `at`.
    fn offset(&self, index: usize) -> usize {
        let drawn_behind = if let Work::Draft { .. } = self.operation.work { self.given } else { 0 };
        drawn_behind + self.requests()[index].offset
    }

    /// Tokens to draw.
    fn k(&self) -> usize {
        match self.operation.work {
            Work::Draft { k, .. } => k,
            Work::Extend { .. } | Work::Release => 0,
        }
    }

    /// Cached tokens when it is done.
    pub(crate) fn length_afterwards(&self) -> usize {
        self.at() + self.given + self.k().saturating_sub(1)
    }

    /// Tokens given by the caller that are still to be fed.
    pub(crate) fn waiting_tokens(&self) -> usize {
        self.given.saturating_sub(self.fed)
    }

    /// Whether a forward pass is needed to answer it.
    pub(crate) fn needs_pass(&self) -> bool {
        match self.operation.work {
            Work::Extend { .. } => self.given > 0,
            // The first token comes from the kept row.
            Work::Draft { k, .. } => self.given > 0 || k > 1,
            Work::Release => false,
        }
    }

    /// Whether it reads the row behind the token before `at`.
    pub(crate) fn needs_kept_row(&self) -> bool {
        match self.operation.work {
            Work::Extend { .. } => self.by_offset.first().is_some_and(|&index| self.offset(index) == 0),
            Work::Draft { .. } => self.given == 0,
            Work::Release => false,
        }
    }

    /// Whether it feeds a prompt.
    pub(crate) fn is_long(&self) -> bool {
        self.given > SHORT_TOKENS
    }

    pub(crate) fn runs(&self) -> bool {
        self.stage != Stage::Waits
    }

    /// The tokens whose keys and values may come from elsewhere: those before the first row that it reads.
    pub(crate) fn shareable(&self) -> &[u32] {
        let asked = self.by_offset.iter().map(|&index| self.offset(index)).find(|&offset| offset > 0);
        // The last row is always kept.
        let first_row = asked.unwrap_or(self.given).min(self.given);
        &self.tokens[..first_row.saturating_sub(1)]
    }

    /// Counts the first `tokens` as fed.
    pub(crate) fn skip(&mut self, tokens: usize) {
        self.fed = tokens;
    }

    /// Tokens that were found in the cache; to be asked before any is fed.
    pub(crate) fn shared_tokens(&self) -> usize {
        self.fed
    }

    /// Tokens that are still to be fed.
    pub(crate) fn rest(&self) -> &[u32] {
        &self.tokens[self.fed..]
    }

    /// The tokens that ride next, at most `tokens` of them with at most `rows` rows: how many, and which of their rows.
    pub(crate) fn next_slice(&self, tokens: usize, rows: usize) -> Option<(usize, Range<usize>)> {
        let count = tokens.min(self.rest().len());
        let wanted = self.wanted(count);
        let (count, wanted) = if wanted.len() > rows {
            let count = wanted.start + rows;
            (count, self.wanted(count))
        } else {
            (count, wanted)
        };
        (count > 0).then_some((count, wanted))
    }

    /// Which rows behind the next `count` tokens are wanted, as one range of indices into them.
    fn wanted(&self, count: usize) -> Range<usize> {
        let fed = self.fed;
        let offset = |&index: &usize| self.offset(index);
        let from = self.by_offset.partition_point(|index| offset(index) <= fed);
        let to = self.by_offset.partition_point(|index| offset(index) <= fed + count);
        let asked = &self.by_offset[from..to];
        let last = if self.ends_at(fed + count) { Some(fed + count) } else { asked.last().map(offset) };
        match last {
            Some(last) if count > 0 => asked.first().map_or(last, offset) - fed - 1..last - fed,
            _ => 0..0,
        }
    }

    /// Whether the row `offset` is the one behind the last token known.
    pub(crate) fn ends_at(&self, offset: usize) -> bool {
        offset == self.tokens.len()
    }

    /// Offset of the row behind the next token.
    pub(crate) fn next_offset(&self) -> usize {
        self.fed + 1
    }

    /// Takes from the row of `reading` what the operation wants of it.
    pub(crate) fn read(&self, reading: &mut Reading, logits: &[f32]) {
        reading.invalid = self.try_read(reading, logits).err();
    }

    fn try_read(&self, reading: &mut Reading, logits: &[f32]) -> Result<(), InvalidLogits> {
        let offset = reading.offset;
        let from = self.by_offset.partition_point(|&index| self.offset(index) < offset);
        let to = self.by_offset.partition_point(|&index| self.offset(index) <= offset);
        let asked = &self.by_offset[from..to];
        let drafts = self.ends_at(offset) && matches!(self.operation.work, Work::Draft { .. });
        let views = |warp: &Warp| {
            let same = asked.iter().filter(|&&index| self.requests()[index].view.warp() == Some(warp));
            same.count() + usize::from(drafts)
        };
        Row::with(logits, views, |row| self.take_views(reading, asked, row))?;
        if let Some(row) = &mut reading.row {
            row.clear();
            row.extend_from_slice(logits);
        }
        Ok(())
    }

    fn take_views(&self, reading: &mut Reading, asked: &[usize], row: &mut Row<'_>) -> Result<(), InvalidLogits> {
        let offset = reading.offset;
        for &index in asked {
            reading.contents.push((index, self.requests()[index].view.of(row)?));
        }
        if let (true, Work::Draft { at, warp, randomness, .. }) = (self.ends_at(offset), &self.operation.work) {
            let distribution = row.distribution(warp)?;
            // Positions fit: the context is a u32 on the wire.
            let position = u32::try_from(at + offset).unwrap_or(u32::MAX);
            let id = distribution.sample(randomness.uniform(Purpose::Draft, position));
            reading.drawn = Some((id, distribution.probability(id)));
        }
        Ok(())
    }

    /// Takes over what a row gave; hands back memory that is of no use any more.
    pub(crate) fn take_up(&mut self, reading: &mut Reading) -> Option<Vec<f32>> {
        for (index, content) in reading.contents.drain(..) {
            self.contents[index].1 = content;
        }
        if let Some((id, probability)) = reading.drawn.take() {
            self.ids.push(id);
            self.probabilities.push(probability);
            if self.ids.len() < self.k() {
                self.tokens.push(id);
            }
        }
        let row = reading.row.take()?;
        Some(std::mem::replace(&mut self.last_row, row))
    }

    /// The next `count` tokens, which count as fed now.
    pub(crate) fn feed(&mut self, count: usize) -> &[u32] {
        let fed = self.fed;
        self.fed += count;
        &self.tokens[fed..self.fed]
    }

    /// Whether everything has been fed.
    pub(crate) fn is_done(&self) -> bool {
        self.runs() && self.fed == self.tokens.len()
    }

    /// Whether it has fed anything; then [`Self::last_row`] tells what the session keeps.
    pub(crate) fn has_fed(&self) -> bool {
        self.fed > 0
    }

    /// The row behind the last token fed; empty when it was not computed.
    pub(crate) fn last_row(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.last_row)
    }

    /// What came of it; to be called once, when it is done.
    pub(crate) fn outcome(&mut self) -> Outcome {
        let length = self.length_afterwards();
        let rows = std::mem::take(&mut self.contents);
        match self.operation.work {
            Work::Extend { .. } => Outcome::Rows { length, rows },
            Work::Draft { .. } => Outcome::Drafted {
                length,
                ids: std::mem::take(&mut self.ids),
                probabilities: std::mem::take(&mut self.probabilities),
                rows,
            },
            Work::Release => Outcome::Released,
        }
    }
}
