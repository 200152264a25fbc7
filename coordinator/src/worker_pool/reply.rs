//! A worker's answer, checked against what was asked. Nothing that a worker says is believed before it is here.

use std::time::Duration;

use cosec_proto::sampling::{Distribution, TokenProbability};
use cosec_proto::wire::worker;
use cosec_proto::{ErrorCode, row_runs};

use super::operation::{Ask, Operation, RowAsk, View};

/// How far the sum of a complete nucleus may be from 1.
const MASS_TOLERANCE: f64 = 1e-6;

/// A worker's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What it says.
    pub reply: Reply,
    /// What it took there.
    pub effort: Effort,
}

/// What an operation took at its worker, as the worker says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Before the first forward pass that served it.
    pub queue: Duration,
    /// In forward passes that served it.
    pub compute: Duration,
    /// How many they were.
    pub passes: u32,
    /// Tokens that they fed, for all operations in them.
    pub tokens: u32,
    /// Rows of logits that they computed, for all operations in them.
    pub rows: u32,
}

impl Effort {
    pub(super) fn of(response: &worker::StepResponse) -> Self {
        let duration = |micros: u32| Duration::from_micros(micros.into());
        let (queue, compute) = (duration(response.queue_us), duration(response.compute_us));
        let (passes, tokens, rows) = (response.passes, response.pass_tokens, response.pass_rows);
        Self { queue, compute, passes, tokens, rows }
    }
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// In the order of the views asked for.
    Rows(Vec<RowView>),
    /// What the model drew.
    Drafted {
        /// As many as were asked for, each with its probability under the law that it was drawn from.
        tokens: Vec<TokenProbability>,
        /// In the order of the views asked for.
        rows: Vec<RowView>,
    },
    /// The cache holds only so many of the tokens that the operation assumed; nothing was changed.
    NeedPrefix {
        /// Cached tokens.
        have: u32,
    },
    /// The cache is given back.
    Released,
}

/// One view of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowView {
    /// In the order of the ids asked for.
    Gathered(Vec<TokenProbability>),
    /// The survivors, all of them if `complete`, else the most probable.
    Nucleus {
        /// With their exact probabilities in either case.
        survivors: Distribution,
        /// Whether none is missing.
        complete: bool,
    },
    /// The worker's draw.
    Sampled(TokenProbability),
    /// Raw logits.
    Full(Vec<f32>),
}

/// Why an operation failed; `message` goes to the log and, where the client can do something about it, to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OperationError {
    /// Says whether another worker may succeed.
    pub code: ErrorCode,
    /// A plain sentence.
    pub message: String,
}

impl OperationError {
    /// With this code and sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn fault(what: impl Into<String>) -> Self {
        Self::new(ErrorCode::WorkerFault, format!("the worker's answer cannot be true: {}", what.into()))
    }
}

/// Reads the answer to `operation` from a worker whose rows have `vocabulary` logits.
///
/// # Errors
/// The worker's own failure, or `WorkerFault` when the answer cannot be true.
pub fn check(
    operation: &Operation,
    vocabulary: u32,
    response: worker::StepResponse,
) -> Result<Reply, OperationError> {
    use worker::step_response::Outcome;
    match (response.outcome, &operation.ask) {
        (Some(Outcome::Failure(failure)), _) => Err(match failure.code.parse() {
            Ok(code) => OperationError::new(code, failure.message),
            Err(unknown) => OperationError::fault(format!("{unknown}")),
        }),
        (Some(Outcome::Rows(rows)), Ask::Rows(asked)) => {
            check_length(rows.length, 0, operation)?;
            Ok(Reply::Rows(check_rows(operation, asked, vocabulary, rows.rows)?))
        }
        (Some(Outcome::Drafted(drafted)), Ask::Draft { k, rows, .. }) => {
            check_draft(operation, *k, rows, vocabulary, drafted)
        }
        (Some(Outcome::NeedPrefix(prefix)), Ask::Rows(_) | Ask::Draft { .. }) => {
            let have = prefix.have;
            if have < operation.at {
                Ok(Reply::NeedPrefix { have })
            } else {
                Err(OperationError::fault(format!("it needs a prefix of {} and has {have}", operation.at)))
            }
        }
        (Some(Outcome::Released(_)), Ask::Release) => Ok(Reply::Released),
        (None, _) => Err(OperationError::fault("it has no outcome")),
        (Some(_), _) => Err(OperationError::fault("its outcome is not of the kind that was asked for")),
    }
}

fn check_length(said: u32, fed: u32, operation: &Operation) -> Result<(), OperationError> {
    let expected = operation.at + operation.tokens.len() as u32 + fed;
    if said == expected {
        Ok(())
    } else {
        Err(OperationError::fault(format!("the cache has {said} tokens, not {expected}")))
    }
}

fn check_rows(
    operation: &Operation,
    asked: &[RowAsk],
    vocabulary: u32,
    answered: Vec<worker::Row>,
) -> Result<Vec<RowView>, OperationError> {
    let (_, lengths) = row_runs::split_requests(operation.wire_rows(asked));
    let answered = row_runs::split_rows(answered, &lengths);
    if answered.len() != asked.len() {
        let counts = format!("{} rows, {} were asked for", answered.len(), asked.len());
        return Err(OperationError::fault(counts));
    }
    asked.iter().zip(answered).map(|(ask, row)| check_row(ask, vocabulary, row)).collect()
}

fn check_row(ask: &RowAsk, vocabulary: u32, row: worker::Row) -> Result<RowView, OperationError> {
    use worker::row::Content;
    if row.offset != ask.offset {
        return Err(OperationError::fault(format!("row {} in place of {}", row.offset, ask.offset)));
    }
    match (row.content, &ask.view) {
        (Some(Content::Gathered(gathered)), View::Gather { ids, .. }) => {
            Ok(RowView::Gathered(pair(ids, &gathered.probabilities, vocabulary)?))
        }
        (Some(Content::Sampled(sampled)), View::Sample { .. }) => {
            Ok(RowView::Sampled(drawn(sampled.id, sampled.probability, vocabulary)?))
        }
        (Some(Content::Nucleus(nucleus)), View::Nucleus { cap, .. }) => check_nucleus(nucleus, *cap, vocabulary),
        (Some(Content::Full(full)), View::Full) => check_full(&full, vocabulary),
        (None, _) => Err(OperationError::fault("a row has no content")),
        (Some(_), _) => Err(OperationError::fault("a row is not of the kind that was asked for")),
    }
}

fn check_nucleus(nucleus: worker::NucleusRow, cap: u32, vocabulary: u32) -> Result<RowView, OperationError> {
    let complete = nucleus.complete;
    if nucleus.ids.len() > cap as usize || nucleus.ids.last().is_some_and(|&last| last >= vocabulary) {
        return Err(OperationError::fault("a nucleus over its cap or with ids out of range"));
    }
    let survivors = Distribution::from_support(nucleus.ids, nucleus.probabilities, nucleus.log_normaliser)
        .map_err(|error| OperationError::fault(format!("a nucleus that is none: {error}")))?;
    let mass: f64 = survivors.probabilities().iter().sum();
    let possible = if complete { (mass - 1.0).abs() <= MASS_TOLERANCE } else { mass <= 1.0 + MASS_TOLERANCE };
    if possible {
        Ok(RowView::Nucleus { survivors, complete })
    } else {
        Err(OperationError::fault(format!("a nucleus of mass {mass}")))
    }
}

fn check_full(full: &worker::FullRow, vocabulary: u32) -> Result<RowView, OperationError> {
    if full.precision() != worker::Precision::F32 {
        return Err(OperationError::fault("a full row that is not f32"));
    }
    let (values, rest) = full.logits.as_chunks::<4>();
    if values.len() != vocabulary as usize || !rest.is_empty() {
        let length = full.logits.len();
        return Err(OperationError::fault(format!("a full row of {length} bytes for {vocabulary} tokens")));
    }
    let logits: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let broken = logits.iter().any(|&logit| logit.is_nan() || logit == f32::INFINITY);
    if broken || logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        return Err(OperationError::fault("a full row with NaN or +inf, or without a finite logit"));
    }
    Ok(RowView::Full(logits))
}

fn check_draft(
    operation: &Operation,
    k: u32,
    asked: &[RowAsk],
    vocabulary: u32,
    drafted: worker::Drafted,
) -> Result<Reply, OperationError> {
    check_length(drafted.length, k.saturating_sub(1), operation)?;
    if drafted.ids.len() != k as usize {
        return Err(OperationError::fault(format!("{} drafted tokens, not {k}", drafted.ids.len())));
    }
    let tokens = pair(&drafted.ids, &drafted.probabilities, vocabulary)?;
    if tokens.iter().any(|token| token.probability == 0.0) {
        return Err(OperationError::fault("it drew a token of probability 0"));
    }
    Ok(Reply::Drafted { tokens, rows: check_rows(operation, asked, vocabulary, drafted.rows)? })
}

fn pair(ids: &[u32], probabilities: &[f64], vocabulary: u32) -> Result<Vec<TokenProbability>, OperationError> {
    if ids.len() != probabilities.len() {
        let counts = format!("{} probabilities for {} ids", probabilities.len(), ids.len());
        return Err(OperationError::fault(counts));
    }
    ids.iter().zip(probabilities).map(|(&id, &probability)| drawn(id, probability, vocabulary)).collect()
}

fn drawn(id: u32, probability: f64, vocabulary: u32) -> Result<TokenProbability, OperationError> {
    if id >= vocabulary {
        return Err(OperationError::fault(format!("token {id} of a vocabulary of {vocabulary}")));
    }
    if !(0.0..=1.0).contains(&probability) {
        return Err(OperationError::fault(format!("a probability of {probability}")));
    }
    Ok(TokenProbability { id, probability })
}
