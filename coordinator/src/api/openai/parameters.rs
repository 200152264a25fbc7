//! The parameters that completions and chat completions share.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::answer::Delivery;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, typed};
use crate::api::settings::{RawCosec, RawSettings, rule_parameters};
use crate::merge::RuleParameters;

const NUMBER: &str = "a number";
const COUNT: &str = "a whole number of at least 0";
const FLAG: &str = "true or false";
const TEXT: &str = "a string";

/// Takes the model's name.
pub(super) fn model(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    fields.take("model", TEXT)?.ok_or_else(|| missing("model"))
}

/// A field without which there is no request.
pub(super) fn missing(name: &str) -> ApiError {
    ApiError::field(name, format!("{name} is missing"))
}

/// Takes everything but what the two kinds of request spell differently: `logprobs`, `max_tokens`, `echo`.
pub(super) fn settings(fields: &mut Fields<'_>) -> Result<RawSettings, ApiError> {
    // An end user's name changes nothing here; OpenAI's clients may send it.
    fields.take::<String>("user", TEXT)?;
    Ok(RawSettings {
        n: fields.take("n", COUNT)?,
        seed: seed(fields)?,
        max_tokens: count(fields, "max_tokens")?,
        min_tokens: count(fields, "min_tokens")?,
        temperature: fields.take("temperature", NUMBER)?,
        top_p: fields.take("top_p", NUMBER)?,
        top_k: fields.take("top_k", "a whole number of at least 0 (0 keeps every token)")?,
        frequency_penalty: fields.take("frequency_penalty", NUMBER)?,
        presence_penalty: fields.take("presence_penalty", NUMBER)?,
        logit_bias: logit_bias(fields)?,
        stop: stop(fields)?,
        logprobs: None,
        echo: false,
        cosec: match fields.object("cosec")? {
            Some(object) => cosec(object)?,
            None => RawCosec::default(),
        },
    })
}

/// Takes how the answer is to be sent.
pub(super) fn delivery(fields: &mut Fields<'_>) -> Result<Delivery, ApiError> {
    let stream = flag(fields, "stream")?;
    let mut include_usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        if !stream {
            return Err(ApiError::field("stream_options", "stream_options needs stream to be true"));
        }
        include_usage = flag(&mut options, "include_usage")?;
        options.finish(&[])?;
    }
    Ok(Delivery { stream, include_usage })
}

/// Takes a flag that is off by default.
pub(super) fn flag(fields: &mut Fields<'_>, name: &str) -> Result<bool, ApiError> {
    Ok(fields.take(name, FLAG)?.unwrap_or(false))
}

/// Takes a whole number.
pub(super) fn count(fields: &mut Fields<'_>, name: &str) -> Result<Option<u32>, ApiError> {
    fields.take(name, COUNT)
}

/// Negative seeds are the 64-bit numbers with the same bits.
fn seed(fields: &mut Fields<'_>) -> Result<Option<u64>, ApiError> {
    const EXPECTED: &str = "a whole number of 64 bits";
    let Some(raw) = fields.raw("seed") else { return Ok(None) };
    let seed: i128 = typed("seed".to_owned(), raw, EXPECTED)?;
    let unsigned = u64::try_from(seed).or_else(|_| i64::try_from(seed).map(i64::cast_unsigned));
    unsigned.map(Some).map_err(|_| ApiError::value("seed", seed, EXPECTED))
}

fn stop(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match fields.take("stop", "a string or a list of strings")? {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop],
        Some(OneOrMany::Many(stops)) => stops,
    })
}

fn logit_bias(fields: &mut Fields<'_>) -> Result<BTreeMap<u32, f64>, ApiError> {
    let Some(object) = fields.object("logit_bias")? else { return Ok(BTreeMap::new()) };
    object
        .rest()
        .map(|(path, name, raw)| {
            // One spelling per id, so that none can be named twice.
            let id = name.parse::<u32>().ok().filter(|id| id.to_string() == name).ok_or_else(|| {
                let message = format!("logit_bias has the key {name:.60?}; it must be a token id, such as \"50256\"");
                ApiError::field("logit_bias", message)
            })?;
            Ok((id, typed(path, raw, "a number from -100 to 100").map_err(|error| error.of("logit_bias"))?))
        })
        .collect()
}

fn cosec(mut fields: Fields<'_>) -> Result<RawCosec, ApiError> {
    let cosec = RawCosec {
        rule: fields.take("rule", TEXT)?,
        expert_temperature: fields.take("expert_temperature", NUMBER)?,
        expert_top_p: fields.take("expert_top_p", NUMBER)?,
        reference_code: fields.take("reference_code", FLAG)?,
        rule_parameters: rule_parameters_of(&mut fields)?,
        transport: fields.take("transport", TEXT)?,
        report: fields.take("report", FLAG)?,
    };
    fields.finish(&[])?;
    Ok(cosec)
}

fn rule_parameters_of(fields: &mut Fields<'_>) -> Result<RuleParameters, ApiError> {
    let mut values = RuleParameters::default();
    for parameter in rule_parameters() {
        if let Some(value) = fields.take(parameter.name, NUMBER)? {
            values.0.insert(parameter.name.to_owned(), value);
        }
    }
    Ok(values)
}
