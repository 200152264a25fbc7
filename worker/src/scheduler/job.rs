//! One operation from its start to its outcome.

use std::ops::Range;
use std::time::Instant;

use cosec_proto::SessionId;
use cosec_proto::sampling::DrawPurpose;

use super::fairness::Party;
use super::request_queue::JobId;
use crate::engine::operation::{Effort, Operation, Outcome, Work};
use crate::kv_cache::PrefixHash;
use crate::rows::{Content, Found, KeptRow, RowTask, View};

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
    /// Behind `at`, of the row of each of the views; ascending.
    offsets: Vec<usize>,
    /// What is asked of the rows, with the index of the request.
    views: Vec<(usize, View)>,
    /// Offset and content, in the order of the requests.
    contents: Vec<(usize, Content)>,
    ids: Vec<u32>,
    probabilities: Vec<f64>,
    /// The row behind the last token fed.
    last_row: Option<KeptRow>,
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

impl Job {
    pub(crate) fn new(mut operation: Operation) -> Self {
        let (tokens, rows, k) = match &mut operation.work {
            Work::Extend { tokens, rows, .. } => (std::mem::take(tokens), std::mem::take(rows), 0),
            Work::Draft { tokens, rows, k, .. } => (std::mem::take(tokens), std::mem::take(rows), *k),
            Work::Release => (Vec::new(), Vec::new(), 0),
        };
        let drawn_behind = if let Work::Draft { .. } = operation.work { tokens.len() } else { 0 };
        let contents = rows.iter().map(|row| (row.offset, Content::Gathered(Vec::new()))).collect();
        let mut views: Vec<_> = rows.into_iter().enumerate().collect();
        views.sort_by_key(|(_, row)| row.offset);
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
            offsets: views.iter().map(|(_, row)| drawn_behind + row.offset).collect(),
            views: views.into_iter().map(|(index, row)| (index, row.view)).collect(),
            contents,
            ids: Vec::with_capacity(k),
            probabilities: Vec::with_capacity(k),
            last_row: None,
            first_pass: None,
            effort: Effort::default(),
        };
        job.tokens.reserve_exact(k);
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
            Work::Extend { .. } => self.offsets.first() == Some(&0),
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
        let asked = self.offsets.iter().copied().find(|&offset| offset > 0);
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
        let asked = &self.offsets[self.asked(fed + 1..fed + count + 1)];
        let last = if self.ends_at(fed + count) { Some(fed + count) } else { asked.last().copied() };
        match last {
            Some(last) if count > 0 => asked.first().copied().unwrap_or(last) - fed - 1..last - fed,
            _ => 0..0,
        }
    }

    /// Which of the views are of rows in `offsets`.
    fn asked(&self, offsets: Range<usize>) -> Range<usize> {
        let before = |end: usize| self.offsets.partition_point(|&offset| offset < end);
        before(offsets.start)..before(offsets.end)
    }

    /// Whether the row `offset` is the one behind the last token known.
    fn ends_at(&self, offset: usize) -> bool {
        offset == self.tokens.len()
    }

    /// Offset of the row behind the next token.
    pub(crate) fn next_offset(&self) -> usize {
        self.fed + 1
    }

    /// What the operation wants of the row `offset`; the last row is to stay, for the operation that comes next.
    pub(crate) fn task<'a>(&'a self, offset: usize, found: &'a mut Found) -> RowTask<'a> {
        let is_last = self.ends_at(offset);
        let draw = match &self.operation.work {
            Work::Draft { at, warp, randomness, .. } if is_last => {
                // Positions fit: the context is a u32 on the wire.
                let position = u32::try_from(at + offset).unwrap_or(u32::MAX);
                Some((*warp, randomness.uniform(DrawPurpose::Draft, position)))
            }
            _ => None,
        };
        RowTask { views: &self.views[self.asked(offset..offset + 1)], draw, keep: is_last, found }
    }

    /// Takes over what a row gave.
    pub(crate) fn take_up(&mut self, found: &mut Found) {
        for (index, content) in found.contents.drain(..) {
            self.contents[index].1 = content;
        }
        if let Some((id, probability)) = found.drawn.take() {
            self.ids.push(id);
            self.probabilities.push(probability);
            if self.ids.len() < self.k() {
                self.tokens.push(id);
            }
        }
        if let Some(row) = found.kept.take() {
            self.last_row = Some(row);
        }
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

    /// The row behind the last token fed, if it was computed.
    pub(crate) fn last_row(&mut self) -> Option<KeptRow> {
        self.last_row.take()
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
