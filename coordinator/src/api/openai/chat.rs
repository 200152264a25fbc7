//! `/v1/chat/completions`.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::response::{ResponseDelivery, ResponseShape, json_log_probability, token_string};
use crate::api::error::ApiError;
use crate::api::json_fields::{BoundedList, JsonFields, MAX_FIELDS, shown, typed};
use crate::api::parameter_kinds::JsonEndpoint;
use crate::api::parameters::RequestedSettings;
use crate::generation::GenerateRequest;
use crate::generation::model_text::ModelText;
use crate::postprocess::{PlacedToken, TextDelta};
use crate::request::{ChatMessage, FinishReason, MAX_MESSAGES, Prompt};

/// What OpenAI's API knows and this one does not.
const NOT_SUPPORTED: [&str; 19] = [
    "audio",
    "function_call",
    "functions",
    "metadata",
    "modalities",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "suffix",
    "tool_choice",
    "tools",
    "verbosity",
    "web_search_options",
];

/// The same for a message.
const NOT_SUPPORTED_IN_MESSAGES: [&str; 7] =
    ["annotations", "audio", "function_call", "name", "refusal", "tool_call_id", "tool_calls"];

/// Most parts of a message's content.
const MAX_PARTS: usize = 1024;

/// How the response to this request looks.
#[derive(Debug)]
pub(super) struct ChatShape {
    logprobs: bool,
}

/// Reads the body; every field is taken or refused.
///
/// # Errors
/// Names the first field that is wrong.
pub(super) fn read(mut fields: JsonFields<'_>) -> Result<(GenerateRequest, ChatShape, ResponseDelivery), ApiError> {
    let model = fields.require("model", "a string")?;
    let messages = messages(fields.require_raw("messages")?)?;
    let settings = RequestedSettings::read(&mut fields, JsonEndpoint::Chat)?;
    response_format(&mut fields)?;
    let delivery = ResponseDelivery::read(&mut fields)?;
    fields.finish(&NOT_SUPPORTED)?;
    let shape = ChatShape { logprobs: settings.general.logprobs.is_some() };
    let (prompts, in_one_piece) = (vec![Prompt::Chat(messages)], !delivery.stream);
    Ok((GenerateRequest { model, prompts, suffix: None, settings, in_one_piece }, shape, delivery))
}

/// Plain text is the only one.
fn response_format(fields: &mut JsonFields<'_>) -> Result<(), ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(()) };
    let kind: Option<String> = format.take("type", "a string")?;
    if kind.as_deref() != Some("text") {
        let kind = kind.unwrap_or_else(|| "missing".to_owned());
        return Err(ApiError::value(
            "response_format.type",
            format_args!("{kind:.60}"),
            "text; no other is supported",
        ));
    }
    format.finish(&[])
}

fn messages(raw: &RawValue) -> Result<Vec<ChatMessage>, ApiError> {
    let expected = format!("a list of messages, at most {MAX_MESSAGES}");
    let list: BoundedList<&RawValue, MAX_MESSAGES> = typed("messages".to_owned(), raw, &expected)?;
    list.0
        .into_iter()
        .enumerate()
        .map(|(at, raw)| {
            let mut fields = JsonFields::of(format!("messages[{at}]"), raw, MAX_FIELDS)?;
            let role = fields.require("role", "a string")?;
            let content = content(fields.path_of("content"), fields.require_raw("content")?)?;
            fields.finish(&NOT_SUPPORTED_IN_MESSAGES)?;
            Ok(ChatMessage { role, content })
        })
        .collect()
}

/// A string, or parts of type text, which follow each other without a separator.
fn content(path: String, raw: &RawValue) -> Result<String, ApiError> {
    const EXPECTED: &str = "a string or a list of parts of type text, at most 1024";
    if raw.get().starts_with('"') {
        return typed(path, raw, EXPECTED);
    }
    if !raw.get().starts_with('[') {
        return Err(ApiError::value(path, shown(raw), EXPECTED));
    }
    let parts: BoundedList<&RawValue, MAX_PARTS> = typed(path.clone(), raw, EXPECTED)?;
    let mut text = String::new();
    for (at, part) in parts.0.into_iter().enumerate() {
        let mut fields = JsonFields::of(format!("{path}[{at}]"), part, MAX_FIELDS)?;
        let kind_path = fields.path_of("type");
        let kind: String = fields.require("type", "a string")?;
        if kind != "text" {
            return Err(ApiError::value(kind_path, format_args!("{kind:.60?}"), "text; no other is supported"));
        }
        text += &fields.require::<String>("text", "a string")?;
        fields.finish(&[])?;
    }
    Ok(text)
}

impl ResponseShape for ChatShape {
    const ID_PREFIX: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn opening(&self) -> Option<Value> {
        Some(json!({
            "delta": {"role": "assistant", "content": ""},
            "logprobs": null,
            "finish_reason": null,
        }))
    }

    fn part(&self, delta: &TextDelta, reason: Option<FinishReason>, text: &ModelText) -> Value {
        json!({
            "delta": if reason.is_none() { json!({"content": delta.text}) } else { json!({}) },
            "logprobs": if self.logprobs && reason.is_none() { log_probabilities(delta, text) } else { Value::Null },
            "finish_reason": reason.map(FinishReason::name),
        })
    }

    fn whole(&self, delta: &TextDelta, reason: FinishReason, text: &ModelText) -> Value {
        json!({
            "message": {"role": "assistant", "content": delta.text, "refusal": null},
            "logprobs": if self.logprobs { log_probabilities(delta, text) } else { Value::Null },
            "finish_reason": reason.name(),
        })
    }
}

fn log_probabilities(delta: &TextDelta, text: &ModelText) -> Value {
    let scored = |id: u32, log_probability: f64| {
        let bytes = text.decoder.bytes(id);
        json!({
            "token": token_string(&bytes),
            "logprob": json_log_probability(log_probability),
            "bytes": bytes,
        })
    };
    let entry = |token: &PlacedToken| {
        let score = token.score.as_ref()?;
        let alternatives = score.alternatives.iter().map(|&(id, log_probability)| scored(id, log_probability));
        let mut entry = scored(token.id, score.log_probability);
        entry["top_logprobs"] = alternatives.collect();
        Some(entry)
    };
    json!({"content": delta.tokens.iter().filter_map(entry).collect::<Vec<_>>(), "refusal": null})
}
