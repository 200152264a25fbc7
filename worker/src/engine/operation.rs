//! What the engine is asked and what it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cosec_proto::sampling::{SamplingParams, SamplingSeed};
use cosec_proto::{ErrorCode, SessionId};
use tokio::sync::oneshot;

use crate::rows::{Content, View};

/// A request to one session. Its fields have been checked against the engine's [`Limits`](crate::engine::Limits).
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose cache it works on.
    pub session: SessionId,
    /// What to do.
    pub work: Work,
    /// The coordinator that asks.
    pub stream: u64,
    /// Whose session it is.
    pub tenant: u64,
    /// Index of the LoRA adapter to apply.
    pub adapter: Option<usize>,
    /// When the caller got it; queue time counts from here.
    pub received: Instant,
    /// When its result is of no use any more.
    pub deadline: Instant,
}

/// What to do with a session.
#[derive(Clone, Debug)]
pub enum Work {
    /// Feeds `tokens` behind the first `at` and reads rows.
    Extend {
        /// Cached tokens that it assumes.
        at: usize,
        /// Token ids below the vocabulary.
        tokens: Vec<u32>,
        /// Views to answer, in this order.
        rows: Vec<RowRequest>,
    },
    /// Feeds `tokens` behind the first `at` and samples `k` tokens, one behind the other.
    Draft {
        /// Cached tokens that it assumes.
        at: usize,
        /// Token ids below the vocabulary.
        tokens: Vec<u32>,
        /// At least 1.
        k: usize,
        /// Logits to distribution.
        warp: SamplingParams,
        /// Names the random numbers.
        randomness: SamplingSeed,
        /// Views of the rows that the tokens are drawn from, to answer in this order; offset i is the i-th token's.
        rows: Vec<RowRequest>,
    },
    /// Forgets the session.
    Release,
}

/// One view of a row.
#[derive(Clone, Debug)]
pub struct RowRequest {
    /// Of an Extend: the row is the distribution of the token at position `at + offset`, at most the number of tokens fed;
    /// 0 is the row kept from before. Of a Draft: the row that the token of this number is drawn from.
    pub offset: usize,
    /// Which part.
    pub view: View,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// What came of it.
    pub outcome: Outcome,
    /// What it took.
    pub effort: Effort,
}

/// What an operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// From receipt to the first forward pass that served it (to the answer when none did).
    pub queue: Duration,
    /// Spent in forward passes that served it.
    pub compute: Duration,
    /// How many they were.
    pub passes: u32,
    /// Tokens that they fed, for all operations in them.
    pub tokens: u32,
    /// Rows of logits that they computed, for all operations in them.
    pub rows: u32,
}

/// What came of a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of [`Work::Extend`].
    Rows {
        /// Cached tokens afterwards.
        length: usize,
        /// Offset and content, in the order of the requests.
        rows: Vec<(usize, Content)>,
    },
    /// Of [`Work::Draft`].
    Drafted {
        /// Cached tokens afterwards.
        length: usize,
        /// The tokens drawn.
        ids: Vec<u32>,
        /// Of each, under the distribution that it was drawn from.
        probabilities: Vec<f64>,
        /// Offset and content, in the order of the requests.
        rows: Vec<(usize, Content)>,
    },
    /// The cache holds only so many of the tokens that the operation assumed; nothing was changed.
    NeedPrefix {
        /// Tokens that the caller can rely on.
        have: usize,
    },
    /// Of [`Work::Release`].
    Released,
    /// No result.
    Failed(Failure),
}

/// Why an operation has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// Whose fault, and what to do about it.
    pub code: ErrorCode,
    /// A plain sentence.
    pub message: String,
}

impl Failure {
    /// Pairs a code with its explanation.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// A [`Request`] on its way through the engine. Dropping it unanswered tells the caller that the engine is gone.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) session: SessionId,
    pub(crate) work: Work,
    pub(crate) stream: u64,
    pub(crate) tenant: u64,
    pub(crate) adapter: Option<usize>,
    pub(crate) received: Instant,
    pub(crate) deadline: Instant,
    cancelled: Arc<AtomicBool>,
    reply: oneshot::Sender<Answer>,
    _place: Place,
}

impl Operation {
    pub(crate) fn new(request: Request, place: Place) -> (Self, Ticket) {
        let Request { session, work, stream, tenant, adapter, received, deadline } = request;
        let (reply, answer) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let operation =
            Self { session, work, stream, tenant, adapter, received, deadline, cancelled, reply, _place: place };
        (operation, Ticket { answer, flag })
    }

    /// Whether its caller asked to withdraw it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Whether nobody waits for its answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(crate) fn answer(self, answer: Answer) {
        // The place is free before the answer is seen, so that the next operation finds it.
        let Self { reply, _place: place, .. } = self;
        drop(place);
        // The caller may be gone; then nobody wants to know.
        let _ = reply.send(answer);
    }
}

/// The caller's end of an operation. Dropping it withdraws the operation.
#[derive(Debug)]
pub struct Ticket {
    pub(crate) answer: oneshot::Receiver<Answer>,
    pub(crate) flag: Arc<AtomicBool>,
}

/// One of a bounded number of operations; given back by drop.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    /// Takes a place among `limit`.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let next = |count| (count < limit).then_some(count + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
