//! Refuses text that cannot fit the model's context, before it costs anything.

use cosec_proto::ErrorCode;

use super::model_text::ModelText;
use crate::api::error::ApiError;
use crate::request::{CheckedRequest, Prompt};

/// Refuses prompts that have more tokens than the context of `context` tokens, whatever the tokenizer makes of them.
///
/// # Errors
/// `ContextLengthExceeded` names the field, what it has and what is allowed.
pub(super) fn check(request: &CheckedRequest, text: &ModelText, context: u32) -> Result<(), ApiError> {
    let most = text.most_bytes(context);
    let suffix = request.suffix.as_ref().map_or(0, String::len);
    let exceeded =
        |name: &str, message: String| Err(ApiError::new(ErrorCode::ContextLengthExceeded, message).of(name));
    for prompt in &request.prompts {
        let name = match prompt {
            Prompt::Text(_) => "prompt",
            Prompt::Tokens(ids) if ids.len() > context as usize => {
                let message = format!("the prompt has {} tokens; the model's context has {context}", ids.len());
                return exceeded("prompt", message);
            }
            Prompt::Tokens(_) => continue,
            Prompt::Chat(messages) if messages.len() > context as usize => {
                let count = messages.len();
                let message = format!("messages has {count} messages; the model's context has {context} tokens");
                return exceeded("messages", message);
            }
            Prompt::Chat(_) => "messages",
        };
        let bytes = prompt.size() + suffix;
        if bytes > most {
            let message = format!(
                "{name} has {bytes} bytes of text; the model's context of {context} tokens holds at most {most}"
            );
            return exceeded(name, message);
        }
    }
    Ok(())
}
