//! What a session is told, what it asks for, and where it stands.

use tokio::time::Instant;

use super::config::ExpertAbsent;
use super::plan::DecodePlan;
use crate::merge::{MissingEvidence, ModelEvidence, TokenScore};
use crate::request::{SessionError, SessionEvent, TokenEvent};
use crate::speculation::controller::DraftPlan;
use crate::worker_pool::operation::Ask;
use crate::worker_pool::reply::{OperationError, Reply};
use cosec_proto::WorkerRole;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The session may begin.
    Started,
    /// A worker was found for a role. It has nothing of the session yet.
    Located {
        /// Which.
        role: WorkerRole,
        /// Largest operation of the worker, in tokens.
        max_operation_tokens: u32,
        /// Length of its rows.
        vocabulary: u32,
    },
    /// No worker was found for a role in the time that the driver allows.
    Absent {
        /// Which.
        role: WorkerRole,
        /// Why.
        error: OperationError,
    },
    /// A worker answered.
    Answered {
        /// Which.
        role: WorkerRole,
        /// Of the action.
        ticket: u64,
        /// What.
        reply: Result<Reply, OperationError>,
    },
    /// The rule decided.
    Decided(TokenEvent),
    /// The rule needs to know more.
    Missing {
        /// What.
        missing: MissingEvidence,
        /// Of the action, given back.
        evidence: Box<[ModelEvidence; 3]>,
    },
    /// The rows make no distribution.
    MergeFailed(SessionError),
    /// The event was taken from our hands.
    Emitted,
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Find a worker; answered by `Located` or `Absent`.
    Locate {
        /// As what.
        role: WorkerRole,
        /// Failures in a row of the worker before it; 0 at the beginning.
        failures: u32,
    },
    /// Have a worker perform an operation; answered by `Answered`.
    Send {
        /// Whom.
        role: WorkerRole,
        /// To be named in the answer.
        ticket: u64,
        /// Cached tokens that the operation assumes.
        at: u32,
        /// To feed.
        tokens: Vec<u32>,
        /// To answer.
        ask: Ask,
        /// Whether it builds on drafts that may yet be rejected.
        is_ahead: bool,
    },
    /// Take an operation back; its answer is of no interest any more.
    Withdraw {
        /// Whose.
        role: WorkerRole,
        /// Of the action that sent it.
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

/// Where the session stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Looks for workers.
    Placing,
    /// Has the base score the prompt.
    Scoring {
        /// By position; the first token has none.
        scores: Vec<Option<TokenScore>>,
    },
    /// As `Drafting`, with a prompt to feed first.
    Prefilling,
    /// Waits for drafts, or for all workers where they compute side by side.
    Drafting,
    /// Waits for the rows of the drafts, or for what the rule lacked.
    Verifying,
    /// Lets the rule decide.
    Merging,
    /// Waits for the client to take an event.
    Emitting {
        /// What follows.
        then: Then,
    },
    /// Nothing follows.
    Finished,
}

impl Phase {
    pub(super) fn activity(&self) -> &'static str {
        match self {
            Self::Placing => "looking for workers",
            Self::Scoring { .. } => "scoring the prompt",
            Self::Prefilling => "feeding the prompt",
            Self::Drafting | Self::Verifying => "waiting for workers",
            Self::Merging => "merging",
            Self::Emitting { .. } => "waiting for the client",
            Self::Finished => "finishing",
        }
    }
}

/// What follows an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The beginning, with workers in place.
    Begin,
    /// The next token, if there is to be one.
    Round,
    /// The end.
    End,
}

/// What a session is to do.
#[derive(Clone, Debug)]
pub struct Task {
    /// What.
    pub plan: DecodePlan,
    /// To begin with.
    pub draft_plan: DraftPlan,
    /// Not empty.
    pub prompt: Vec<u32>,
    /// Most new tokens.
    pub max_new_tokens: u32,
    /// Ids that end the generation.
    pub end_tokens: Vec<u32>,
    /// Alternatives per score when the prompt is to be scored.
    pub prompt_scores: Option<u32>,
    /// What to do when no expert can be found.
    pub expert_absent: ExpertAbsent,
    /// When to give up.
    pub deadline: Instant,
}
