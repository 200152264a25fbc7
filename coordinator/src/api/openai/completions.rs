//! `/v1/completions`.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::answer::{Delivery, Shape, json_log_probability, token_string};
use super::parameters;
use crate::api::ModelText;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, shown, typed};
use crate::api::generation::{RawRequest, finish_reason};
use crate::postprocess::{Delta, PlacedToken};
use crate::request::{FinishReason, Prompt};

/// How an answer to this request looks.
#[derive(Debug)]
pub(super) struct Completion {
    logprobs: bool,
}

/// Reads the body; every field is taken or refused.
///
/// # Errors
/// Names the first field that is wrong.
pub(super) fn read(mut fields: Fields<'_>) -> Result<(RawRequest, Completion, Delivery), ApiError> {
    let model = parameters::model(&mut fields)?;
    let prompts = prompts(fields.raw("prompt").ok_or_else(|| parameters::missing("prompt"))?)?;
    let suffix = fields.take("suffix", "a string")?;
    let mut settings = parameters::settings(&mut fields)?;
    settings.logprobs = parameters::count(&mut fields, "logprobs")?;
    settings.echo = parameters::flag(&mut fields, "echo")?;
    let n = settings.n.unwrap_or(1);
    if let Some(best_of) = parameters::count(&mut fields, "best_of")?.filter(|&best_of| best_of != n) {
        return Err(ApiError::value("best_of", best_of, format_args!("equal to n, {n}; choices are not ranked")));
    }
    let delivery = parameters::delivery(&mut fields)?;
    fields.finish(&[])?;
    let shape = Completion { logprobs: settings.logprobs.is_some() };
    Ok((RawRequest { model, prompts, suffix, settings }, shape, delivery))
}

/// A string, a list of strings, token ids, or a list of lists of token ids; the first element tells which.
fn prompts(raw: &RawValue) -> Result<Vec<Prompt>, ApiError> {
    const EXPECTED: &str = "a string, a list of strings, a list of token ids or a list of such lists";
    let path = || "prompt".to_owned();
    let top_level = |error: ApiError| error.of("prompt");
    let inside = raw.get().strip_prefix('[').map(|list| list.trim_start().chars().next());
    match (raw.get().chars().next(), inside) {
        (Some('"'), _) => Ok(vec![Prompt::Text(typed(path(), raw, EXPECTED)?)]),
        (_, Some(Some('"'))) => {
            let texts: Vec<String> = typed(path(), raw, EXPECTED).map_err(top_level)?;
            Ok(texts.into_iter().map(Prompt::Text).collect())
        }
        (_, Some(Some('['))) => {
            let lists: Vec<Vec<u32>> = typed(path(), raw, EXPECTED).map_err(top_level)?;
            Ok(lists.into_iter().map(Prompt::Tokens).collect())
        }
        (_, Some(Some(']'))) => Ok(Vec::new()),
        (_, Some(_)) => Ok(vec![Prompt::Tokens(typed(path(), raw, EXPECTED).map_err(top_level)?)]),
        (_, None) => Err(ApiError::value("prompt", shown(raw), EXPECTED)),
    }
}

impl Shape for Completion {
    const ID_PREFIX: &'static str = "cmpl-";
    const OBJECT: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";

    fn opening(&self) -> Option<Value> {
        None
    }

    fn part(&self, delta: &Delta, reason: Option<FinishReason>, text: &ModelText) -> Value {
        json!({
            "text": delta.text,
            "logprobs": if self.logprobs && reason.is_none() { log_probabilities(delta, text) } else { Value::Null },
            "finish_reason": reason.map(finish_reason),
        })
    }

    fn whole(&self, delta: &Delta, reason: FinishReason, text: &ModelText) -> Value {
        json!({
            "text": delta.text,
            "logprobs": if self.logprobs { log_probabilities(delta, text) } else { Value::Null },
            "finish_reason": finish_reason(reason),
        })
    }
}

/// Four lists, one entry per token. Offsets count characters of the choice's text; the prompt's first token has no
/// probability.
fn log_probabilities(delta: &Delta, text: &ModelText) -> Value {
    let each = |of: &dyn Fn(&PlacedToken) -> Value| delta.tokens.iter().map(of).collect::<Vec<Value>>();
    json!({
        "tokens": each(&|token| token_string(&text.decoder.bytes(token.id)).into()),
        "token_logprobs": each(&|token| {
            token.score.as_ref().map(|score| json_log_probability(score.log_probability)).into()
        }),
        "top_logprobs": each(&|token| alternatives(token, text)),
        "text_offset": each(&|token| token.offset.into()),
    })
}

/// The most probable tokens and, always, the one that was drawn.
fn alternatives(token: &PlacedToken, text: &ModelText) -> Value {
    let Some(score) = &token.score else { return Value::Null };
    let own = (token.id, score.log_probability);
    let mut map = Map::new();
    for &(id, log_probability) in score.alternatives.iter().chain([&own]) {
        // Two ids may spell the same; the more probable one comes first and stays.
        map.entry(token_string(&text.decoder.bytes(id)))
            .or_insert_with(|| json_log_probability(log_probability).into());
    }
    Value::Object(map)
}
