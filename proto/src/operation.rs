//! One operation on a session's cache.

use crate::limits::{MAX_DRAFT_TOKENS, WorkerLimits};
use crate::logits_runs::{LogitsRun, decode_requests, encode_requests};
use crate::logits_view::{check_ids, decode_sampling};
use crate::sampling::{SamplingParams, SamplingSeed};
use crate::transport::MAX_MESSAGE_BYTES;
use crate::wire::worker as wire;
use crate::wire::worker::step_request::Operation as WireOperation;
use crate::{LogitsRequest, OperationError, SequenceName, SessionId};

/// Room of a response without its logits, in bytes.
const RESPONSE_OVERHEAD: usize = 1024;

/// Feeds `tokens` after the first `at` tokens of a session and asks for something.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Whose cache.
    pub session: SessionId,
    /// Name of the LoRA adapter to apply; empty for none.
    pub adapter: String,
    /// Whose session it is.
    pub tenant: u64,
    /// Cached tokens that the operation assumes.
    pub at: u32,
    /// To feed.
    pub tokens: Vec<u32>,
    /// What is asked for.
    pub kind: OperationKind,
}

/// What an operation asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum OperationKind {
    /// Views of logits, to be answered in this order. May be empty.
    Extend {
        /// Offset 0 stands for the logits before the first token fed.
        logits: Vec<LogitsRequest>,
    },
    /// Tokens that the model draws itself, one after the other.
    Draft {
        /// How many; 1 to [`MAX_DRAFT_TOKENS`].
        k: u32,
        /// Logits to distribution.
        sampling: SamplingParams,
        /// Names the random numbers.
        seed: SamplingSeed,
        /// Views of the logits that the tokens are drawn from, to be answered in this order.
        logits: Vec<LogitsRequest>,
    },
    /// Nothing; the session's cache is given back.
    Release,
    /// The tokens of whichever session decodes the sequence, from the operation's position on.
    Recall {
        /// How many.
        count: u32,
    },
}

/// How the reply to a received operation is laid out.
#[derive(Clone, Debug, Default)]
pub struct ReplyLayout {
    pub(crate) runs: Vec<LogitsRun>,
    /// Cached tokens after the operation.
    pub(crate) length: u32,
    /// The most bytes that the reply takes.
    pub max_bytes: usize,
}

impl OperationKind {
    /// The views asked for.
    #[must_use]
    pub fn logits(&self) -> &[LogitsRequest] {
        match self {
            Self::Extend { logits } | Self::Draft { logits, .. } => logits,
            Self::Release | Self::Recall { .. } => &[],
        }
    }

    /// Tokens that the worker is to draw.
    #[must_use]
    pub fn drafted_tokens(&self) -> u32 {
        match self {
            Self::Draft { k, .. } => *k,
            Self::Extend { .. } | Self::Release | Self::Recall { .. } => 0,
        }
    }

    /// What its operation is called in a trace.
    #[must_use]
    pub fn activity(&self) -> &'static str {
        match self {
            Self::Extend { logits } if logits.is_empty() => "prefill",
            Self::Extend { .. } => "verify",
            Self::Draft { .. } => "draft",
            Self::Release => "release",
            Self::Recall { .. } => "recall",
        }
    }
}

impl Operation {
    /// Gives the session's cache back.
    #[must_use]
    pub fn release(session: SessionId) -> Self {
        let (adapter, tokens) = (String::new(), Vec::new());
        Self { session, adapter, tenant: 0, at: 0, tokens, kind: OperationKind::Release }
    }

    /// Asks for `count` tokens of a sequence from position `at` on.
    #[must_use]
    pub fn recall(sequence: SequenceName, at: u32, count: u32) -> Self {
        let kind = OperationKind::Recall { count };
        Self { at, kind, ..Self::release(SessionId::all_of(sequence)) }
    }

    /// Whether it needs the model that its session computes with.
    #[must_use]
    pub fn needs_model(&self) -> bool {
        !matches!(self.kind, OperationKind::Release | OperationKind::Recall { .. })
    }

    /// Cached tokens after the operation.
    #[must_use]
    pub fn length_afterwards(&self) -> u32 {
        self.at + self.tokens.len() as u32 + self.kind.drafted_tokens().saturating_sub(1)
    }

    /// What travels back, for metrics.
    #[must_use]
    pub fn view_name(&self) -> &'static str {
        match (&self.kind, self.kind.logits().first()) {
            (_, Some(request)) => request.view.name(),
            (OperationKind::Draft { .. }, None) => "draft",
            (OperationKind::Recall { .. }, None) => "tokens",
            (OperationKind::Extend { .. } | OperationKind::Release, None) => "none",
        }
    }

    /// The message; `deadline_ms` counts from its receipt.
    #[must_use]
    pub fn encode(&self, op: u64, deadline_ms: u32) -> wire::StepRequest {
        let (session, tokens, adapter) = (self.session.to_wire(), self.tokens.clone(), self.adapter.clone());
        let (at, tenant) = (self.at, self.tenant);
        let operation = match &self.kind {
            OperationKind::Extend { logits } => {
                let rows = encode_requests(logits);
                WireOperation::Extend(wire::Extend { session, at, tokens, rows, adapter, tenant })
            }
            OperationKind::Draft { k, sampling, seed, logits } => WireOperation::Draft(wire::Draft {
                session,
                at,
                tokens,
                k: *k,
                warp: Some((*sampling).into()),
                randomness: Some((*seed).into()),
                rows: encode_requests(logits),
                adapter,
                tenant,
            }),
            OperationKind::Release => WireOperation::Release(wire::Release { session }),
            OperationKind::Recall { count } => {
                let sequence = self.session.sequence().to_wire();
                WireOperation::Recall(wire::Recall { sequence, at, count: *count })
            }
        };
        wire::StepRequest { op, deadline_ms, operation: Some(operation) }
    }

    /// Checks a message against the worker's `limits`.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the field, its value and what is allowed.
    pub fn decode(message: WireOperation, limits: &WorkerLimits) -> Result<(Self, ReplyLayout), OperationError> {
        let (operation, runs) = match message {
            WireOperation::Extend(extend) => decode_extend(extend, limits)?,
            WireOperation::Draft(draft) => decode_draft(draft, limits)?,
            WireOperation::Release(release) => {
                (Self::release(decode_session("release.session", &release.session)?), Vec::new())
            }
            WireOperation::Recall(recall) => (decode_recall(&recall, limits)?, Vec::new()),
            WireOperation::Cancel(_) => {
                return Err(OperationError::invalid("cancel is no operation of a session"));
            }
        };
        let logits = operation.kind.logits().iter().map(|request| request.view.max_result_bytes(limits.vocabulary));
        let tokens = match operation.kind {
            OperationKind::Recall { count } => 5 * count as usize,
            OperationKind::Extend { .. } | OperationKind::Draft { .. } | OperationKind::Release => 0,
        };
        let drafts = 16 * operation.kind.drafted_tokens() as usize;
        let max_bytes = RESPONSE_OVERHEAD + drafts + tokens + logits.sum::<usize>();
        if max_bytes > MAX_MESSAGE_BYTES {
            return Err(OperationError::invalid(format!(
                "rows asks for up to {max_bytes} bytes; a response takes at most {MAX_MESSAGE_BYTES}"
            )));
        }
        let length = operation.length_afterwards();
        Ok((operation, ReplyLayout { runs, length, max_bytes }))
    }
}

fn decode_extend(extend: wire::Extend, limits: &WorkerLimits) -> Result<(Operation, Vec<LogitsRun>), OperationError> {
    let wire::Extend { session, at, tokens, rows, tenant, adapter } = extend;
    let session = decode_session("extend.session", &session)?;
    check_span("extend", at, &tokens, 0, limits)?;
    let (logits, runs) = decode_requests("extend.rows", rows, tokens.len() + 1, limits)?;
    if let Some(index) = logits.iter().position(|request| at == 0 && request.offset == 0) {
        return Err(OperationError::invalid(format!(
            "extend.rows[{index}].offset is 0 at position 0; no row stands before the first token"
        )));
    }
    let kind = OperationKind::Extend { logits };
    Ok((Operation { session, adapter, tenant, at, tokens, kind }, runs))
}

fn decode_draft(draft: wire::Draft, limits: &WorkerLimits) -> Result<(Operation, Vec<LogitsRun>), OperationError> {
    let wire::Draft { session, at, tokens, k, warp, randomness, rows, tenant, adapter } = draft;
    let session = decode_session("draft.session", &session)?;
    if !(1..=MAX_DRAFT_TOKENS).contains(&k) {
        return Err(OperationError::invalid(format!("draft.k is {k}; it must be 1 to {MAX_DRAFT_TOKENS}")));
    }
    check_span("draft", at, &tokens, k - 1, limits)?;
    if at == 0 && tokens.is_empty() {
        let message = "draft.tokens is empty at position 0; there is nothing to draft from";
        return Err(OperationError::invalid(message));
    }
    let sampling = decode_sampling("draft.warp", warp)?;
    let missing = || OperationError::invalid("draft.randomness is missing; it is required");
    let seed = randomness.ok_or_else(missing)?.into();
    let (logits, runs) = decode_requests("draft.rows", rows, k as usize, limits)?;
    let kind = OperationKind::Draft { k, sampling, seed, logits };
    Ok((Operation { session, adapter, tenant, at, tokens, kind }, runs))
}

fn decode_recall(recall: &wire::Recall, limits: &WorkerLimits) -> Result<Operation, OperationError> {
    let &wire::Recall { ref sequence, at, count } = recall;
    let sequence = SequenceName::from_wire(sequence)
        .map_err(|error| OperationError::invalid(format!("recall.sequence: {error}")))?;
    let context = limits.context_tokens;
    if u64::from(at) + u64::from(count) > u64::from(context) {
        return Err(OperationError::invalid(format!(
            "recall.at is {at} and recall.count {count}; the context has {context} tokens"
        )));
    }
    Ok(Operation::recall(sequence, at, count))
}

fn decode_session(field: &str, bytes: &[u8]) -> Result<SessionId, OperationError> {
    SessionId::from_wire(bytes).map_err(|error| OperationError::invalid(format!("{field}: {error}")))
}

/// Checks `tokens` after `at`, with `more` tokens to come after them.
fn check_span(
    operation: &str,
    at: u32,
    tokens: &[u32],
    more: u32,
    limits: &WorkerLimits,
) -> Result<(), OperationError> {
    let WorkerLimits { vocabulary, context_tokens, operation_tokens } = *limits;
    if tokens.len() > operation_tokens as usize {
        let count = tokens.len();
        return Err(OperationError::invalid(format!(
            "{operation}.tokens has {count} ids; at most {operation_tokens} are allowed in one operation"
        )));
    }
    let end = u64::from(at) + tokens.len() as u64 + u64::from(more);
    if end > u64::from(context_tokens) {
        return Err(OperationError::invalid(format!(
            "{operation}.at is {at} and its tokens end at {end}; the context has {context_tokens} tokens"
        )));
    }
    check_ids(&format!("{operation}.tokens"), tokens, vocabulary)
}
