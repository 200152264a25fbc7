//! What it says of logits.

use cosec_proto::sampling::{Distribution, SamplingParams, TokenProbability};
use cosec_proto::{ErrorCode, LogitsResult, LogitsView, OperationError};

pub(super) fn distribution(logits: &[f32], sampling: &SamplingParams) -> Result<Distribution, OperationError> {
    Distribution::from_logits(logits, sampling)
        .map_err(|error| OperationError::new(ErrorCode::Internal, error.to_string()))
}

pub(super) fn view(view: &LogitsView, logits: &[f32]) -> Result<LogitsResult, OperationError> {
    Ok(match view {
        LogitsView::Gather { sampling, ids } => {
            let distribution = distribution(logits, sampling)?;
            let token = |&id: &u32| TokenProbability { id, probability: distribution.probability(id) };
            LogitsResult::Gathered(ids.iter().map(token).collect())
        }
        LogitsView::Sample { sampling, u } => LogitsResult::Sampled(distribution(logits, sampling)?.sample_token(*u)),
        LogitsView::Nucleus { sampling, cap } => {
            let (survivors, complete) = distribution(logits, sampling)?.most_probable(*cap as usize);
            LogitsResult::Nucleus { survivors, complete }
        }
        LogitsView::Full => LogitsResult::Full(logits.to_vec()),
    })
}
