//! What is told of logits, and why not.

use cosec_proto::ErrorCode;
use cosec_proto::sampling::{Distribution, SamplingParams};
use cosec_proto::wire::worker::{self, step_response};

pub(super) fn failure(code: ErrorCode, message: &str) -> step_response::Outcome {
    step_response::Outcome::Failure(worker::Failure { code: code.name().to_owned(), message: message.to_owned() })
}

pub(super) fn warp(wire: Option<worker::SamplingParams>) -> Result<SamplingParams, step_response::Outcome> {
    let wire = wire.ok_or_else(|| failure(ErrorCode::InvalidArgument, "no warp"))?;
    SamplingParams::try_from(wire).map_err(|error| failure(ErrorCode::InvalidArgument, &error.to_string()))
}

pub(super) fn law(logits: &[f32], warp: &SamplingParams) -> Result<Distribution, step_response::Outcome> {
    Distribution::from_logits(logits, warp).map_err(|error| failure(ErrorCode::Internal, &error.to_string()))
}

pub(super) fn view(ask: &worker::RowRequest, logits: &[f32]) -> Result<worker::row::Content, step_response::Outcome> {
    use worker::row::Content;
    use worker::row_request::View;
    Ok(match &ask.view {
        Some(View::Gather(gather)) => {
            let law = law(logits, &warp(gather.warp)?)?;
            let probabilities = gather.ids.iter().map(|&id| law.probability(id)).collect();
            Content::Gathered(worker::Gathered { probabilities })
        }
        Some(View::Sample(sample)) => {
            let law = law(logits, &warp(sample.warp)?)?;
            let id = law.sample(sample.u);
            Content::Sampled(worker::Sampled { id, probability: law.probability(id) })
        }
        Some(View::Nucleus(nucleus)) => {
            let law = law(logits, &warp(nucleus.warp)?)?;
            let mut survivors: Vec<(u32, f64)> = law.iter().collect();
            let complete = survivors.len() <= nucleus.cap as usize;
            survivors.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            survivors.truncate(nucleus.cap as usize);
            survivors.sort_by_key(|&(id, _)| id);
            let (ids, probabilities) = survivors.into_iter().unzip();
            let log_normaliser = law.log_normaliser();
            Content::Nucleus(worker::NucleusRow { ids, probabilities, complete, log_normaliser })
        }
        Some(View::Full(_)) => Content::Full(worker::FullRow {
            precision: worker::Precision::F32.into(),
            logits: logits.iter().flat_map(|logit| logit.to_le_bytes()).collect(),
        }),
        None => return Err(failure(ErrorCode::InvalidArgument, "no view")),
    })
}
