//! Views of the logits of one position: what may be asked for, and what comes back.
//!
//! All that the wire knows of a view is in this file.

use crate::OperationError;
use crate::limits::NUCLEUS_CAP;
use crate::sampling::{Distribution, SamplingParams, TokenProbability};
use crate::wire::worker as wire;
use crate::wire::worker::row::Content;
use crate::wire::worker::row_request::View;

/// How far the mass of a complete nucleus may be from 1.
const MASS_TOLERANCE: f64 = 1e-6;

/// Which part of a distribution travels.
#[derive(Clone, Debug, PartialEq)]
pub enum LogitsView {
    /// Probabilities of given ids.
    Gather {
        /// Logits to distribution.
        sampling: SamplingParams,
        /// Below the vocabulary.
        ids: Vec<u32>,
    },
    /// The most probable tokens of the distribution.
    Nucleus {
        /// Logits to distribution.
        sampling: SamplingParams,
        /// Most tokens to return; at least 1.
        cap: u32,
    },
    /// One draw.
    Sample {
        /// Logits to distribution.
        sampling: SamplingParams,
        /// In [0, 1).
        u: f64,
    },
    /// All raw logits.
    Full,
}

/// One view of the logits of one position.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitsRequest {
    /// Of an Extend: the distribution of the token at position `at + offset`, at most the number of tokens fed; 0
    /// stands for the logits kept from before. Of a Draft: the distribution that the token of this number is drawn
    /// from.
    pub offset: u32,
    /// Which part.
    pub view: LogitsView,
}

/// The answer to a [`LogitsView`].
#[derive(Clone, Debug, PartialEq)]
pub enum LogitsResult {
    /// In the order of the ids asked for.
    Gathered(Vec<TokenProbability>),
    /// See [`LogitsView::Nucleus`].
    Nucleus {
        /// With their exact probabilities.
        survivors: Distribution,
        /// Whether none is missing.
        complete: bool,
    },
    /// The token drawn.
    Sampled(TokenProbability),
    /// Raw logits, one per token of the vocabulary.
    Full(Vec<f32>),
}

impl LogitsView {
    /// Its name in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gather { .. } => "gather",
            Self::Nucleus { .. } => "nucleus",
            Self::Sample { .. } => "sample",
            Self::Full => "full",
        }
    }

    /// How logits become the distribution that it is a view of; `None` for raw logits.
    #[must_use]
    pub fn sampling(&self) -> Option<&SamplingParams> {
        match self {
            Self::Gather { sampling, .. } | Self::Nucleus { sampling, .. } | Self::Sample { sampling, .. } => {
                Some(sampling)
            }
            Self::Full => None,
        }
    }

    /// The most bytes that its answer takes, from a model of this vocabulary.
    pub(crate) fn max_result_bytes(&self, vocabulary: u32) -> usize {
        // Tags and lengths; a varint of an id has at most 5 bytes, next to the 8 of its probability.
        const OVERHEAD: usize = 48;
        OVERHEAD
            + match self {
                Self::Gather { ids, .. } => 8 * ids.len(),
                Self::Nucleus { cap, .. } => 13 * vocabulary.min(*cap) as usize,
                Self::Sample { .. } => 0,
                Self::Full => 4 * vocabulary as usize,
            }
    }

    pub(crate) fn encode(&self) -> View {
        match self {
            Self::Gather { sampling, ids } => {
                View::Gather(wire::Gather { warp: Some((*sampling).into()), ids: ids.clone(), each: false })
            }
            Self::Nucleus { sampling, cap } => {
                View::Nucleus(wire::Nucleus { warp: Some((*sampling).into()), cap: *cap })
            }
            Self::Sample { sampling, u } => View::Sample(wire::Sample { warp: Some((*sampling).into()), u: *u }),
            Self::Full => View::Full(wire::Full { precision: wire::Precision::F32.into() }),
        }
    }

    /// Checks the view in `field` of a message.
    pub(crate) fn decode(field: &str, view: Option<View>, vocabulary: u32) -> Result<Self, OperationError> {
        match view {
            Some(View::Gather(gather)) => {
                if gather.ids.len() > vocabulary as usize {
                    let count = gather.ids.len();
                    return Err(OperationError::invalid(format!(
                        "{field}.gather.ids has {count} ids; the vocabulary has {vocabulary}"
                    )));
                }
                check_ids(&format!("{field}.gather.ids"), &gather.ids, vocabulary)?;
                let sampling = decode_sampling(&format!("{field}.gather.warp"), gather.warp)?;
                Ok(Self::Gather { sampling, ids: gather.ids })
            }
            Some(View::Nucleus(nucleus)) => {
                let cap = if nucleus.cap == 0 { NUCLEUS_CAP } else { nucleus.cap };
                let sampling = decode_sampling(&format!("{field}.nucleus.warp"), nucleus.warp)?;
                Ok(Self::Nucleus { sampling, cap })
            }
            Some(View::Sample(sample)) => {
                if !(0.0..1.0).contains(&sample.u) {
                    let u = sample.u;
                    return Err(OperationError::invalid(format!(
                        "{field}.sample.u is {u}; it must be at least 0 and below 1"
                    )));
                }
                let sampling = decode_sampling(&format!("{field}.sample.warp"), sample.warp)?;
                Ok(Self::Sample { sampling, u: sample.u })
            }
            Some(View::Full(full)) if full.precision() == wire::Precision::F32 => Ok(Self::Full),
            Some(View::Full(full)) => {
                let precision = full.precision;
                Err(OperationError::invalid(format!(
                    "{field}.full.precision is {precision}; it must be PRECISION_F32"
                )))
            }
            None => Err(OperationError::invalid(format!(
                "{field}.view is missing; it must be gather, nucleus, sample or full"
            ))),
        }
    }

    /// Checks a worker's answer to this view.
    pub(crate) fn check(&self, content: Option<Content>, vocabulary: u32) -> Result<LogitsResult, OperationError> {
        match (content, self) {
            (Some(Content::Gathered(gathered)), Self::Gather { ids, .. }) => {
                Ok(LogitsResult::Gathered(check_pairs(ids, &gathered.probabilities, vocabulary)?))
            }
            (Some(Content::Sampled(sampled)), Self::Sample { .. }) => {
                Ok(LogitsResult::Sampled(check_pair(sampled.id, sampled.probability, vocabulary)?))
            }
            (Some(Content::Nucleus(nucleus)), Self::Nucleus { cap, .. }) => check_nucleus(nucleus, *cap, vocabulary),
            (Some(Content::Full(full)), Self::Full) => check_full(&full, vocabulary),
            (None, _) => Err(OperationError::impossible("a row has no content")),
            (Some(_), _) => Err(OperationError::impossible("a row is not of the kind that was asked for")),
        }
    }
}

impl LogitsResult {
    pub(crate) fn encode(self) -> Content {
        match self {
            Self::Gathered(tokens) => {
                let probabilities = tokens.into_iter().map(|token| token.probability).collect();
                Content::Gathered(wire::Gathered { probabilities })
            }
            Self::Nucleus { survivors, complete } => {
                let log_normaliser = survivors.log_normaliser();
                let (ids, probabilities) = survivors.into_support();
                Content::Nucleus(wire::NucleusRow { ids, probabilities, complete, log_normaliser })
            }
            Self::Sampled(TokenProbability { id, probability }) => {
                Content::Sampled(wire::Sampled { id, probability })
            }
            Self::Full(logits) => Content::Full(wire::FullRow {
                precision: wire::Precision::F32.into(),
                logits: logits.iter().flat_map(|logit| logit.to_le_bytes()).collect(),
            }),
        }
    }
}

impl Content {
    /// The [`LogitsView::name`] of the view that it answers.
    #[must_use]
    pub fn view_name(&self) -> &'static str {
        match self {
            Self::Gathered(_) => "gather",
            Self::Nucleus(_) => "nucleus",
            Self::Sampled(_) => "sample",
            Self::Full(_) => "full",
        }
    }
}

/// Checks the sampling parameters in `field` of a message.
pub(crate) fn decode_sampling(
    field: &str,
    params: Option<wire::SamplingParams>,
) -> Result<SamplingParams, OperationError> {
    let params = params.ok_or_else(|| OperationError::invalid(format!("{field} is missing; it is required")))?;
    SamplingParams::try_from(params).map_err(|error| OperationError::invalid(format!("{field}.{error}")))
}

/// Checks the token ids in `field` of a message.
pub(crate) fn check_ids(field: &str, ids: &[u32], vocabulary: u32) -> Result<(), OperationError> {
    match ids.iter().enumerate().find(|&(_, &id)| id >= vocabulary) {
        Some((index, id)) => Err(OperationError::invalid(format!(
            "{field}[{index}] is {id}; it must be below the vocabulary of {vocabulary}"
        ))),
        None => Ok(()),
    }
}

fn check_nucleus(nucleus: wire::NucleusRow, cap: u32, vocabulary: u32) -> Result<LogitsResult, OperationError> {
    let complete = nucleus.complete;
    if nucleus.ids.len() > cap as usize || nucleus.ids.last().is_some_and(|&last| last >= vocabulary) {
        return Err(OperationError::impossible("a nucleus over its cap or with ids out of range"));
    }
    let survivors = Distribution::from_support(nucleus.ids, nucleus.probabilities, nucleus.log_normaliser)
        .map_err(|error| OperationError::impossible(format!("a nucleus that is none: {error}")))?;
    let mass: f64 = survivors.probabilities().iter().sum();
    let possible = if complete { (mass - 1.0).abs() <= MASS_TOLERANCE } else { mass <= 1.0 + MASS_TOLERANCE };
    if possible {
        Ok(LogitsResult::Nucleus { survivors, complete })
    } else {
        Err(OperationError::impossible(format!("a nucleus of mass {mass}")))
    }
}

fn check_full(full: &wire::FullRow, vocabulary: u32) -> Result<LogitsResult, OperationError> {
    if full.precision() != wire::Precision::F32 {
        return Err(OperationError::impossible("a full row that is not f32"));
    }
    let (values, rest) = full.logits.as_chunks::<4>();
    if values.len() != vocabulary as usize || !rest.is_empty() {
        let length = full.logits.len();
        return Err(OperationError::impossible(format!("a full row of {length} bytes for {vocabulary} tokens")));
    }
    let logits: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let broken = logits.iter().any(|&logit| logit.is_nan() || logit == f32::INFINITY);
    if broken || logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        return Err(OperationError::impossible("a full row with NaN or +inf, or without a finite logit"));
    }
    Ok(LogitsResult::Full(logits))
}

/// Checks that a worker gave a probability to each of `ids`.
pub(crate) fn check_pairs(
    ids: &[u32],
    probabilities: &[f64],
    vocabulary: u32,
) -> Result<Vec<TokenProbability>, OperationError> {
    if ids.len() != probabilities.len() {
        let counts = format!("{} probabilities for {} ids", probabilities.len(), ids.len());
        return Err(OperationError::impossible(counts));
    }
    ids.iter().zip(probabilities).map(|(&id, &probability)| check_pair(id, probability, vocabulary)).collect()
}

fn check_pair(id: u32, probability: f64, vocabulary: u32) -> Result<TokenProbability, OperationError> {
    if id >= vocabulary {
        return Err(OperationError::impossible(format!("token {id} of a vocabulary of {vocabulary}")));
    }
    if !(0.0..=1.0).contains(&probability) {
        return Err(OperationError::impossible(format!("a probability of {probability}")));
    }
    Ok(TokenProbability { id, probability })
}
