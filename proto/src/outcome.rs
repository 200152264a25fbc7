//! What comes of an operation. Nothing that a worker says is believed before it is decoded here.

use std::time::Duration;

use crate::logits_runs::{decode_results, encode_results};
use crate::logits_view::check_pairs;
use crate::operation::ReplyLayout;
use crate::sampling::TokenProbability;
use crate::wire::worker as wire;
use crate::wire::worker::step_response::Outcome as WireOutcome;
use crate::{ErrorCode, LogitsResult, Operation, OperationError, OperationKind};

/// What comes of an operation that does not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum OperationOutcome {
    /// In the order of the views asked for.
    Extended(Vec<LogitsResult>),
    /// What the model drew.
    Drafted {
        /// Each with its probability under the distribution that it was drawn from.
        tokens: Vec<TokenProbability>,
        /// In the order of the views asked for.
        logits: Vec<LogitsResult>,
    },
    /// The cache holds only so many of the tokens that the operation assumed; nothing was changed.
    NeedPrefix {
        /// Tokens that the caller can rely on.
        have: u32,
    },
    /// The cache is given back.
    Released,
    /// The tokens asked for, as far as the worker knows them.
    Recalled(Vec<u32>),
}

/// What an operation took at its worker, as the worker says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCost {
    /// From receipt to the first forward pass that served it; to the answer when none did.
    pub queue: Duration,
    /// Spent in forward passes that served it.
    pub compute: Duration,
    /// How many they were.
    pub passes: u32,
    /// Tokens that they fed, for all operations in them.
    pub tokens: u32,
    /// Positions whose logits they computed, for all operations in them.
    pub rows: u32,
}

/// A worker's answer, checked against the operation.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationReply {
    /// What came of it.
    pub outcome: OperationOutcome,
    /// What it took.
    pub cost: StepCost,
}

impl OperationOutcome {
    fn encode(self, layout: &ReplyLayout) -> WireOutcome {
        let ReplyLayout { runs, length, .. } = layout;
        match self {
            Self::Extended(logits) => {
                WireOutcome::Rows(wire::Rows { length: *length, rows: encode_results(logits, runs) })
            }
            Self::Drafted { tokens, logits } => WireOutcome::Drafted(wire::Drafted {
                length: *length,
                ids: tokens.iter().map(|token| token.id).collect(),
                probabilities: tokens.iter().map(|token| token.probability).collect(),
                rows: encode_results(logits, runs),
            }),
            Self::NeedPrefix { have } => WireOutcome::NeedPrefix(wire::NeedPrefix { have }),
            Self::Released => WireOutcome::Released(wire::Released {}),
            Self::Recalled(tokens) => WireOutcome::Recalled(wire::Recalled { tokens }),
        }
    }
}

/// The message that answers the operation `op`.
#[must_use]
pub fn encode_response(
    op: u64,
    result: Result<OperationOutcome, OperationError>,
    cost: StepCost,
    layout: &ReplyLayout,
) -> wire::StepResponse {
    let outcome = Some(match result {
        Ok(outcome) => outcome.encode(layout),
        Err(OperationError { code, message }) => {
            WireOutcome::Failure(wire::Failure { code: code.name().to_owned(), message })
        }
    });
    let micros = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    let StepCost { queue, compute, passes, tokens, rows } = cost;
    let (queue_us, compute_us) = (micros(queue), micros(compute));
    wire::StepResponse { op, outcome, queue_us, compute_us, passes, pass_tokens: tokens, pass_rows: rows }
}

impl From<&wire::StepResponse> for StepCost {
    fn from(response: &wire::StepResponse) -> Self {
        let duration = |micros: u32| Duration::from_micros(micros.into());
        let (queue, compute) = (duration(response.queue_us), duration(response.compute_us));
        let (passes, tokens, rows) = (response.passes, response.pass_tokens, response.pass_rows);
        Self { queue, compute, passes, tokens, rows }
    }
}

impl OperationReply {
    /// Checks the answer to `operation` from a worker of this vocabulary.
    ///
    /// # Errors
    /// Where the worker could not do it now, or `WorkerFault` when it will not or its answer cannot be true; another
    /// worker may try in any case.
    pub fn decode(
        operation: &Operation,
        vocabulary: u32,
        response: wire::StepResponse,
    ) -> Result<Self, OperationError> {
        let cost = StepCost::from(&response);
        let outcome = match (response.outcome, &operation.kind) {
            (Some(WireOutcome::Failure(failure)), _) => Err(refusal(&failure)),
            (Some(WireOutcome::Rows(extended)), OperationKind::Extend { logits }) => {
                check_length(extended.length, operation)?;
                Ok(OperationOutcome::Extended(decode_results(logits, extended.rows, vocabulary)?))
            }
            (Some(WireOutcome::Drafted(drafted)), OperationKind::Draft { k, logits, .. }) => {
                check_length(drafted.length, operation)?;
                let tokens = check_draft(*k, &drafted, vocabulary)?;
                let logits = decode_results(logits, drafted.rows, vocabulary)?;
                Ok(OperationOutcome::Drafted { tokens, logits })
            }
            (Some(WireOutcome::NeedPrefix(prefix)), OperationKind::Extend { .. } | OperationKind::Draft { .. }) => {
                let have = prefix.have;
                if have < operation.at {
                    Ok(OperationOutcome::NeedPrefix { have })
                } else {
                    Err(OperationError::impossible(format!("it needs a prefix of {} and has {have}", operation.at)))
                }
            }
            (Some(WireOutcome::Released(_)), OperationKind::Release) => Ok(OperationOutcome::Released),
            (Some(WireOutcome::Recalled(recalled)), OperationKind::Recall { count }) => {
                check_recalled(*count, &recalled.tokens, vocabulary)?;
                Ok(OperationOutcome::Recalled(recalled.tokens))
            }
            (None, _) => Err(OperationError::impossible("it has no outcome")),
            (Some(_), _) => Err(OperationError::impossible("its outcome is not of the kind that was asked for")),
        };
        Ok(Self { outcome: outcome?, cost })
    }
}

/// What a worker's refusal means on this side. The operation was made here, so whatever the worker has against it is
/// no client's fault, and another worker may see it otherwise. Of the worker's own words none is repeated.
fn refusal(failure: &wire::Failure) -> OperationError {
    let (code, message) = match failure.code.parse() {
        Ok(code @ ErrorCode::Overloaded) => (code, "the worker is busy"),
        Ok(code @ ErrorCode::OutOfBlocks) => (code, "the worker's cache had no room in time"),
        Ok(code @ ErrorCode::DeadlineExceeded) => (code, "the worker did not perform the operation in time"),
        Ok(code @ ErrorCode::Unavailable) => (code, "the worker takes no more operations"),
        Ok(code @ ErrorCode::ModelMismatch) => (code, "the worker does not host the model any more"),
        Ok(code) => return OperationError::impossible(format!("it refuses an operation as {code}")),
        Err(_) => return OperationError::impossible("it refuses an operation with a code that is not known"),
    };
    OperationError::new(code, message)
}

fn check_length(said: u32, operation: &Operation) -> Result<(), OperationError> {
    let expected = operation.length_afterwards();
    if said == expected {
        Ok(())
    } else {
        Err(OperationError::impossible(format!("the cache has {said} tokens, not {expected}")))
    }
}

fn check_recalled(count: u32, tokens: &[u32], vocabulary: u32) -> Result<(), OperationError> {
    if tokens.len() > count as usize {
        return Err(OperationError::impossible(format!("{} tokens, not {count}", tokens.len())));
    }
    match tokens.iter().find(|&&id| id >= vocabulary) {
        None => Ok(()),
        Some(id) => Err(OperationError::impossible(format!("it recalls token {id}; the ids are below {vocabulary}"))),
    }
}

fn check_draft(k: u32, drafted: &wire::Drafted, vocabulary: u32) -> Result<Vec<TokenProbability>, OperationError> {
    if drafted.ids.len() != k as usize {
        return Err(OperationError::impossible(format!("{} drafted tokens, not {k}", drafted.ids.len())));
    }
    let tokens = check_pairs(&drafted.ids, &drafted.probabilities, vocabulary)?;
    if tokens.iter().any(|token| token.probability == 0.0) {
        return Err(OperationError::impossible("it drew a token of probability 0"));
    }
    Ok(tokens)
}
