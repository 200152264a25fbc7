//! Checks a request against the operator's bounds and the model's.

use std::time::Duration;

use cosec_proto::ErrorCode;

use super::GenerateRequest;
use crate::api::config::ApiConfig;
use crate::api::error::ApiError;
use crate::api::parameters::SettingsBounds;
use crate::models::ModelFacts;
use crate::policy::Policy;
use crate::request::{ChatMessage, CheckedRequest, GenerationSettings, Prompt};

/// New tokens of a completion whose client gives no limit, as OpenAI has it.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Who may speak in a conversation.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Checks all that can be known before the prompt is tokenized.
///
/// # Errors
/// Names the first field whose value is not allowed.
pub(super) fn check(
    request: GenerateRequest,
    facts: &ModelFacts,
    limits: &ApiConfig,
    policy: Policy<'_>,
) -> Result<CheckedRequest, ApiError> {
    let GenerateRequest { prompts, suffix, settings, .. } = request;
    let is_chat = prompts.iter().any(|prompt| matches!(prompt, Prompt::Chat(_)));
    if settings.general.echo == Some(true) && (is_chat || suffix.is_some()) {
        return Err(ApiError::field("echo", "echo cannot be used with messages or with suffix"));
    }
    let settings = settings.checked(SettingsBounds {
        policy,
        vocabulary: facts.vocabulary,
        max_tokens: if is_chat { None } else { Some(DEFAULT_COMPLETION_TOKENS) },
        timeout: Duration::from_secs(limits.request_timeout_seconds),
    })?;
    if prompts.is_empty() {
        return Err(ApiError::field("prompt", "prompt is an empty list; it must have at least one prompt"));
    }
    let choices = prompts.len().saturating_mul(settings.n as usize);
    if choices > limits.max_choices {
        let (prompts, n, most) = (prompts.len(), settings.n, limits.max_choices);
        let message = format!("{prompts} prompts with n {n} ask for {choices} choices; a request may have {most}");
        return Err(ApiError::field("n", message));
    }
    for prompt in &prompts {
        check_prompt(prompt, suffix.as_deref(), facts.vocabulary, limits.max_prompt_bytes)?;
    }
    Ok(CheckedRequest { prompts, suffix, settings })
}

fn check_prompt(prompt: &Prompt, suffix: Option<&str>, vocabulary: u32, most: usize) -> Result<(), ApiError> {
    let name = match prompt {
        Prompt::Text(_) => "prompt",
        Prompt::Chat(messages) => {
            check_roles(messages)?;
            "messages"
        }
        Prompt::Tokens(ids) => {
            return match ids.iter().position(|&id| id >= vocabulary) {
                None => Ok(()),
                Some(at) => Err(ApiError::field(
                    "prompt",
                    format!("prompt has the id {} at {at}; the model's ids are below {vocabulary}", ids[at]),
                )),
            };
        }
    };
    let bytes = prompt.size() + suffix.map_or(0, str::len);
    if bytes > most {
        let message = format!("{name} has {bytes} bytes of text; at most {most} are taken");
        return Err(ApiError::new(ErrorCode::PayloadTooLarge, message).of(name));
    }
    Ok(())
}

fn check_roles(messages: &[ChatMessage]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages is an empty list; it must have at least one message"));
    }
    match messages.iter().enumerate().find(|(_, message)| !ROLES.contains(&message.role.as_str())) {
        None => Ok(()),
        Some((at, ChatMessage { role, .. })) => {
            let path = format!("messages[{at}].role");
            Err(ApiError::value(path, format_args!("{role:.60?}"), format_args!("one of {}", ROLES.join(", "))))
        }
    }
}

/// New tokens that a prompt of `tokens` may get.
///
/// # Errors
/// When the model's context does not hold both.
pub(super) fn new_tokens(tokens: usize, settings: &GenerationSettings, context: u32) -> Result<u32, ApiError> {
    let exceeded = |parameter: &str, message: String| {
        Err(ApiError::new(ErrorCode::ContextLengthExceeded, message).of(parameter))
    };
    let left = u32::try_from(tokens).ok().and_then(|tokens| context.checked_sub(tokens));
    let needed = settings.max_tokens.unwrap_or(1);
    match left {
        Some(left) if left >= needed => {
            let granted = settings.max_tokens.unwrap_or(left);
            if settings.min_tokens > granted {
                let message =
                    format!("min_tokens is {}, but the prompt of {tokens} leaves {granted}", settings.min_tokens);
                return exceeded("min_tokens", message);
            }
            Ok(granted)
        }
        Some(left) if left > 0 => exceeded(
            "max_tokens",
            format!(
                "the prompt's {tokens} tokens and max_tokens {needed} are {} together; the model's context has {context}",
                tokens as u64 + u64::from(needed)
            ),
        ),
        _ => exceeded("prompt", format!("the prompt has {tokens} tokens; the model's context has {context}")),
    }
}
