//! What a session is told, what it asks for, and which phase it is in.

use cosec_proto::sampling::SamplingSeed;
use cosec_proto::{LogitsView, OperationError, OperationKind, OperationOutcome, WorkerRole};
use tokio::time::Instant;
use tracing::Span;

use super::config::ExpertAbsent;
use super::plan::DecodePlan;
use crate::merge::{MissingEvidence, ModelEvidence, TokenScore};
use crate::request::{SessionError, SessionEvent, TokenEvent};
use crate::speculation::controller::DraftPlan;

/// What happened.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the field names say it")]
pub enum SessionInput {
    /// The session may begin.
    Started,
    /// A worker was found for a role. It has nothing of the session yet.
    Located { role: WorkerRole, max_operation_tokens: u32, vocabulary: u32 },
    /// No worker was found for a role in the time that the driver allows.
    Absent { role: WorkerRole, error: OperationError },
    /// A worker answered the operation with this ticket.
    Answered { role: WorkerRole, ticket: u64, reply: Result<OperationOutcome, OperationError> },
    /// The rule decided.
    Decided(TokenEvent),
    /// The rule needs to know more; the evidence of the action is given back.
    Missing { missing: MissingEvidence, evidence: Box<[ModelEvidence; 3]> },
    /// The logits make no distribution.
    MergeFailed(SessionError),
    /// The client took the event.
    Emitted,
    /// The client does not read: what was under way is withdrawn and no worker is placed any more. The session goes on
    /// with `Emitted`.
    Suspended,
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub enum SessionAction {
    /// Find a worker; answered by `Located` or `Absent`.
    Locate {
        /// As what.
        role: WorkerRole,
        /// Failures in a row of the workers before it; 0 at the beginning.
        failures: u32,
        /// Why.
        cause: LocateCause,
    },
    /// Have a worker perform an operation; answered by `Answered`.
    Send(RoleOperation),
    /// Take back an operation; its answer is no longer of interest.
    Withdraw {
        /// Of the worker.
        role: WorkerRole,
        /// Of the operation.
        ticket: u64,
    },
    /// Let the rule decide; answered by `Decided`, `Missing` or `MergeFailed`.
    Merge {
        /// Of the token to decide.
        position: u32,
        /// In the order of [`WorkerRole::ALL`].
        evidence: Box<[ModelEvidence; 3]>,
    },
    /// Hand an event to the client; answered by `Emitted`.
    Emit(SessionEvent),
}

/// Why a worker is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocateCause {
    /// The role has none.
    Unplaced,
    /// The last one failed.
    Failed,
    /// The last one had no room, and the session has not begun: it ends once all workers have refused it.
    NoRoom,
    /// The last one had no room, and the client has a part of the answer: the session waits until one has.
    NoRoomUnderWay,
}

/// An operation for the worker of a role.
#[derive(Clone, Debug)]
pub struct RoleOperation {
    /// Of the worker.
    pub role: WorkerRole,
    /// Named in the answer.
    pub ticket: u64,
    /// Cached tokens that the operation assumes.
    pub at: u32,
    /// To feed.
    pub tokens: Vec<u32>,
    /// What is asked for.
    pub kind: OperationKind,
    /// Whether it builds on drafts that may yet be rejected.
    pub is_ahead: bool,
}

impl RoleOperation {
    /// Part of the session's trace.
    pub(super) fn span(&self) -> Span {
        let Self { role, ticket, at, tokens, kind, is_ahead } = self;
        // Collectors know signed numbers only.
        let (start, feeds, drafts) = (i64::from(*at), tokens.len() as i64, i64::from(kind.drafted_tokens()));
        tracing::debug_span!(
            "operation",
            otel.name = format!("{} {}", role.name(), kind.activity()),
            role = role.name(),
            ticket,
            at = start,
            feeds,
            drafts,
            is_ahead
        )
    }
}

/// Where the session stands.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionPhase {
    /// Looks for workers.
    Placing,
    /// Has the base score the prompt.
    Scoring {
        /// By position; the first token has none.
        scores: Vec<Option<TokenScore>>,
    },
    /// As `Drafting`, with a prompt to feed first.
    Prefilling,
    /// Waits for drafts, or for all workers where they compute at the same time.
    Drafting,
    /// Waits for the logits of the drafts.
    Verifying {
        /// What the rule misses at the next position, and which model knows it.
        lookup: Option<(WorkerRole, LogitsView)>,
    },
    /// Lets the rule decide.
    Merging,
    /// Waits for the client to take an event.
    Emitting {
        /// What follows.
        next: AfterEvent,
    },
    /// Nothing follows.
    Finished,
}

impl SessionPhase {
    pub(super) fn activity(&self) -> &'static str {
        match self {
            Self::Placing => "looking for workers",
            Self::Scoring { .. } => "scoring the prompt",
            Self::Prefilling => "feeding the prompt",
            Self::Drafting | Self::Verifying { .. } => "waiting for workers",
            Self::Merging => "merging",
            Self::Emitting { .. } => "waiting for the client",
            Self::Finished => "finishing",
        }
    }
}

/// What follows an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterEvent {
    /// The beginning, with workers in place.
    Begin,
    /// The next token, if there is one.
    NextToken,
    /// The end.
    End,
}

/// What a session is given.
#[derive(Clone, Debug)]
pub struct SessionParams {
    /// How it decodes.
    pub plan: DecodePlan,
    /// How it drafts at first.
    pub draft_plan: DraftPlan,
    /// Not empty.
    pub prompt: Vec<u32>,
    /// Most new tokens.
    pub max_new_tokens: u32,
    /// Ids that end the generation.
    pub end_tokens: Vec<u32>,
    /// Alternatives per score when the prompt is scored.
    pub prompt_scores: Option<u32>,
    /// What to do when no expert can be found.
    pub expert_absent: ExpertAbsent,
    /// Names the random numbers.
    pub seed: SamplingSeed,
    /// When to give up.
    pub deadline: Instant,
}
