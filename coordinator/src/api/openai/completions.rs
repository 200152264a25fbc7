//! `/v1/completions`.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::response::{ResponseDelivery, ResponseShape, json_log_probability, token_string};
use crate::api::error::ApiError;
use crate::api::json_fields::{BoundedList, JsonFields, shown, typed};
use crate::api::parameter_kinds::JsonEndpoint;
use crate::api::parameters::RequestedSettings;
use crate::generation::GenerateRequest;
use crate::generation::model_text::ModelText;
use crate::postprocess::{PlacedToken, TextDelta};
use crate::request::{FinishReason, Prompt};

/// Prompts that are read; the operator allows fewer.
const MAX_PROMPTS: usize = 4096;

/// How the response to this request looks.
#[derive(Debug)]
pub(super) struct CompletionShape {
    logprobs: bool,
}

/// Reads the body; every field is taken or refused.
///
/// # Errors
/// Names the first field that is wrong.
pub(super) fn read(
    mut fields: JsonFields<'_>,
) -> Result<(GenerateRequest, CompletionShape, ResponseDelivery), ApiError> {
    let model = fields.require("model", "a string")?;
    let prompts = prompts(fields.require_raw("prompt")?)?;
    let suffix = fields.take("suffix", "a string")?;
    let settings = RequestedSettings::read(&mut fields, JsonEndpoint::Completions)?;
    let n = settings.general.n.unwrap_or(1);
    let best_of: Option<u32> = fields.take("best_of", "a whole number of at least 0")?;
    if let Some(best_of) = best_of.filter(|&best_of| best_of != n) {
        return Err(ApiError::value("best_of", best_of, format_args!("equal to n, {n}; choices are not ranked")));
    }
    let delivery = ResponseDelivery::read(&mut fields)?;
    fields.finish(&[])?;
    let shape = CompletionShape { logprobs: settings.general.logprobs.is_some() };
    let in_one_piece = !delivery.stream;
    Ok((GenerateRequest { model, prompts, suffix, settings, in_one_piece }, shape, delivery))
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
            let texts: BoundedList<String, MAX_PROMPTS> = typed(path(), raw, EXPECTED).map_err(top_level)?;
            Ok(texts.0.into_iter().map(Prompt::Text).collect())
        }
        (_, Some(Some('['))) => {
            let lists: BoundedList<Vec<u32>, MAX_PROMPTS> = typed(path(), raw, EXPECTED).map_err(top_level)?;
            Ok(lists.0.into_iter().map(Prompt::Tokens).collect())
        }
        (_, Some(Some(']'))) => Ok(Vec::new()),
        (_, Some(_)) => Ok(vec![Prompt::Tokens(typed(path(), raw, EXPECTED).map_err(top_level)?)]),
        (_, None) => Err(ApiError::value("prompt", shown(raw), EXPECTED)),
    }
}

impl ResponseShape for CompletionShape {
    const ID_PREFIX: &'static str = "cmpl-";
    const OBJECT: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";

    fn opening(&self) -> Option<Value> {
        None
    }

    fn part(&self, delta: &TextDelta, reason: Option<FinishReason>, text: &ModelText) -> Value {
        json!({
            "text": delta.text,
            "logprobs": if self.logprobs && reason.is_none() { log_probabilities(delta, text) } else { Value::Null },
            "finish_reason": reason.map(FinishReason::name),
        })
    }

    fn whole(&self, delta: &TextDelta, reason: FinishReason, text: &ModelText) -> Value {
        json!({
            "text": delta.text,
            "logprobs": if self.logprobs { log_probabilities(delta, text) } else { Value::Null },
            "finish_reason": reason.name(),
        })
    }
}

/// Four lists, one entry per token. Offsets count characters of the choice's text; the prompt's first token has no
/// probability.
fn log_probabilities(delta: &TextDelta, text: &ModelText) -> Value {
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
