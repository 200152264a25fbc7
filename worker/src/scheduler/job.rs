//! One operation from its start to its outcome.

use std::ops::Range;
use std::time::{Duration, Instant};

use cosec_proto::sampling::{DrawPurpose, SamplingParams, SamplingSeed, TokenProbability};
use cosec_proto::{
    LogitsResult, LogitsView, Operation, OperationError, OperationKind, OperationOutcome, SessionId, StepCost,
};

use super::fairness::FlowId;
use crate::kv_cache::PrefixHash;
use crate::logits_view::{KeptLogits, LogitsTask, TaskResult};
use crate::operation::{OperationAnswer, OperationCaller, OperationRequest, QueuedOperation};

/// Names a job in the queue; used again when the job is gone.
pub(crate) type JobId = usize;

/// Most tokens of an operation that is served ahead of longer ones: a decode step or a block of drafts, not a prompt.
pub(crate) const SHORT_TOKENS: usize = 64;

/// An operation and how far it is. Its memory is taken when it is received, not by the engine's thread.
#[derive(Debug)]
pub(crate) struct ScheduledJob {
    pub(crate) session: SessionId,
    pub(crate) flow: FlowId,
    /// Index of the LoRA adapter to apply.
    pub(crate) adapter: Option<usize>,
    /// Cached tokens that it assumes.
    pub(crate) at: usize,
    kind: JobKind,
    pub(crate) received: Instant,
    pub(crate) deadline: Instant,
    pub(crate) caller: OperationCaller,
    /// Place in the order of arrival.
    pub(crate) arrival: u64,
    /// The next job of its session.
    pub(crate) next: Option<JobId>,
    pub(crate) stage: JobStage,
    /// Blocks that it lacked when it was last looked at; 0 when it does not wait for blocks.
    pub(crate) missing_blocks: usize,
    /// The block that it fills next and that others might wait for.
    pub(crate) fills: Option<PrefixHash>,
    /// To feed; drafted tokens are appended.
    tokens: Vec<u32>,
    /// How many of them the caller gave.
    given: usize,
    fed: usize,
    /// Of the position of each view, counted from `at`; ascending.
    offsets: Vec<usize>,
    /// What is asked of the logits, with the index of the request.
    views: Vec<(usize, LogitsView)>,
    /// In the order of the requests.
    results: Vec<LogitsResult>,
    drafted: Vec<TokenProbability>,
    /// The logits after the last token fed.
    last_logits: Option<KeptLogits>,
    pub(crate) first_pass: Option<Instant>,
    pub(crate) cost: StepCost,
}

/// What a job is for.
#[derive(Clone, Copy, Debug)]
enum JobKind {
    Extend,
    Draft {
        /// Tokens to draw.
        k: usize,
        sampling: SamplingParams,
        seed: SamplingSeed,
    },
    Release,
    Recall {
        /// Tokens that are asked for.
        count: usize,
    },
}

/// Whether an operation has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobStage {
    Waits,
    Runs {
        /// Whether the operation opened its session.
        opened: bool,
    },
}

impl ScheduledJob {
    pub(crate) fn new(queued: QueuedOperation) -> Self {
        let QueuedOperation { request, caller } = queued;
        let OperationRequest { operation, adapter, stream, received, deadline } = request;
        let Operation { session, tenant, at, mut tokens, kind, .. } = operation;
        let given = tokens.len();
        // The logits of a draft follow the tokens that are given.
        let (kind, first, k, logits) = match kind {
            OperationKind::Extend { logits } => (JobKind::Extend, 0, 0, logits),
            OperationKind::Draft { k, sampling, seed, logits } => {
                let k = k as usize;
                (JobKind::Draft { k, sampling, seed }, given, k, logits)
            }
            OperationKind::Release => (JobKind::Release, 0, 0, Vec::new()),
            OperationKind::Recall { count } => (JobKind::Recall { count: count as usize }, 0, 0, Vec::new()),
        };
        tokens.reserve_exact(k);
        let results = logits.iter().map(|_| LogitsResult::Gathered(Vec::new())).collect();
        let mut requests: Vec<_> = logits.into_iter().enumerate().collect();
        requests.sort_by_key(|(_, request)| request.offset);
        Self {
            session,
            flow: FlowId { stream, tenant },
            adapter,
            at: at as usize,
            kind,
            received,
            deadline,
            caller,
            arrival: 0,
            next: None,
            stage: JobStage::Waits,
            missing_blocks: 0,
            fills: None,
            tokens,
            given,
            fed: 0,
            offsets: requests.iter().map(|(_, request)| first + request.offset as usize).collect(),
            views: requests.into_iter().map(|(index, request)| (index, request.view)).collect(),
            results,
            drafted: Vec::with_capacity(k),
            last_logits: None,
            first_pass: None,
            cost: StepCost::default(),
        }
    }

    /// Whether the operation gives its session back.
    pub(crate) fn is_release(&self) -> bool {
        matches!(self.kind, JobKind::Release)
    }

    /// From where on, and how many tokens the operation asks for of those that are known.
    pub(crate) fn recalls(&self) -> Option<(usize, usize)> {
        match self.kind {
            JobKind::Recall { count } => Some((self.at, count)),
            JobKind::Extend | JobKind::Draft { .. } | JobKind::Release => None,
        }
    }

    /// Tokens to draw.
    fn k(&self) -> usize {
        match self.kind {
            JobKind::Draft { k, .. } => k,
            JobKind::Extend | JobKind::Release | JobKind::Recall { .. } => 0,
        }
    }

    /// Cached tokens when it is done.
    pub(crate) fn length_afterwards(&self) -> usize {
        self.at + self.given + self.k().saturating_sub(1)
    }

    /// Tokens given by the caller that are still to be fed.
    pub(crate) fn waiting_tokens(&self) -> usize {
        self.given.saturating_sub(self.fed)
    }

    /// Whether a forward pass is needed to answer it.
    pub(crate) fn needs_pass(&self) -> bool {
        match self.kind {
            JobKind::Extend => self.given > 0,
            // The first token comes from the kept logits.
            JobKind::Draft { k, .. } => self.given > 0 || k > 1,
            JobKind::Release | JobKind::Recall { .. } => false,
        }
    }

    /// Whether it reads the logits after the token before `at`.
    pub(crate) fn needs_kept_logits(&self) -> bool {
        match self.kind {
            JobKind::Extend => self.offsets.first() == Some(&0),
            JobKind::Draft { .. } => self.given == 0,
            JobKind::Release | JobKind::Recall { .. } => false,
        }
    }

    /// Whether it feeds a prompt.
    pub(crate) fn is_long(&self) -> bool {
        self.given > SHORT_TOKENS
    }

    pub(crate) fn runs(&self) -> bool {
        self.stage != JobStage::Waits
    }

    /// The tokens whose keys and values may come from elsewhere: those before the first logits that it reads.
    pub(crate) fn shareable(&self) -> &[u32] {
        let asked = self.offsets.iter().copied().find(|&offset| offset > 0);
        // The last logits are always kept.
        let first = asked.unwrap_or(self.given).min(self.given);
        &self.tokens[..first.saturating_sub(1)]
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

    /// The tokens that ride next, at most `tokens` of them and the logits of at most `positions`: how many, and which
    /// of their logits.
    pub(crate) fn next_slice(&self, tokens: usize, positions: usize) -> Option<(usize, Range<usize>)> {
        let count = tokens.min(self.rest().len());
        let wanted = self.wanted(count);
        let (count, wanted) = if wanted.len() > positions {
            let count = wanted.start + positions;
            (count, self.wanted(count))
        } else {
            (count, wanted)
        };
        (count > 0).then_some((count, wanted))
    }

    /// Which logits after the next `count` tokens are wanted, as one range of indices into them.
    fn wanted(&self, count: usize) -> Range<usize> {
        let fed = self.fed;
        let asked = &self.offsets[self.asked(fed + 1..fed + count + 1)];
        let last = if self.ends_at(fed + count) { Some(fed + count) } else { asked.last().copied() };
        match last {
            Some(last) if count > 0 => asked.first().copied().unwrap_or(last) - fed - 1..last - fed,
            _ => 0..0,
        }
    }

    /// Which of the views are of positions in `offsets`.
    fn asked(&self, offsets: Range<usize>) -> Range<usize> {
        let before = |end: usize| self.offsets.partition_point(|&offset| offset < end);
        before(offsets.start)..before(offsets.end)
    }

    /// Whether the logits at `offset` are those after the last token known.
    fn ends_at(&self, offset: usize) -> bool {
        offset == self.tokens.len()
    }

    /// Offset of the logits after the next token.
    pub(crate) fn next_offset(&self) -> usize {
        self.fed + 1
    }

    /// What the operation wants of the logits at `offset`; the last ones stay for the operation that comes next.
    pub(crate) fn task<'a>(&'a self, offset: usize, found: &'a mut TaskResult) -> LogitsTask<'a> {
        let is_last = self.ends_at(offset);
        let draw = match self.kind {
            JobKind::Draft { sampling, seed, .. } if is_last => {
                // Positions fit: the context is a u32 on the wire.
                let position = u32::try_from(self.at + offset).unwrap_or(u32::MAX);
                Some((sampling, seed.uniform(DrawPurpose::Draft, position)))
            }
            JobKind::Draft { .. } | JobKind::Extend | JobKind::Release | JobKind::Recall { .. } => None,
        };
        LogitsTask { views: &self.views[self.asked(offset..offset + 1)], draw, keep: is_last, found }
    }

    /// Takes over what was found in the logits of a position.
    pub(crate) fn take_found(&mut self, found: &mut TaskResult) {
        for (index, result) in found.views.drain(..) {
            self.results[index] = result;
        }
        if let Some(token) = found.drawn.take() {
            self.drafted.push(token);
            if self.drafted.len() < self.k() {
                self.tokens.push(token.id);
            }
        }
        if let Some(kept) = found.kept.take() {
            self.last_logits = Some(kept);
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

    /// Whether it has fed anything; then [`Self::last_logits`] tells what the session keeps.
    pub(crate) fn has_fed(&self) -> bool {
        self.fed > 0
    }

    /// The logits after the last token fed, if they were computed.
    pub(crate) fn last_logits(&mut self) -> Option<KeptLogits> {
        self.last_logits.take()
    }

    /// What came of it; to be called once, when it is done.
    pub(crate) fn outcome(&mut self) -> OperationOutcome {
        let logits = std::mem::take(&mut self.results);
        match self.kind {
            JobKind::Extend => OperationOutcome::Extended(logits),
            JobKind::Draft { .. } => OperationOutcome::Drafted { tokens: std::mem::take(&mut self.drafted), logits },
            JobKind::Release => OperationOutcome::Released,
            JobKind::Recall { .. } => OperationOutcome::Recalled(Vec::new()),
        }
    }

    /// Answers the caller. `now` ends the wait of an operation that no forward pass served.
    pub(crate) fn answer(self, result: Result<OperationOutcome, OperationError>, now: Instant) {
        let cost = StepCost { queue: self.queue_time(now), ..self.cost };
        self.caller.answer(OperationAnswer { result, cost });
    }

    /// From receipt to the first forward pass that served it, or to `now`.
    pub(crate) fn queue_time(&self, now: Instant) -> Duration {
        self.first_pass.unwrap_or(now).saturating_duration_since(self.received)
    }
}
