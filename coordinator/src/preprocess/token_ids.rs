//! From text to token ids.

use tokenizers::Tokenizer;

use super::error::EncodeError;

/// Token ids of a text.
///
/// # Errors
/// When the tokenizer fails on it.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, EncodeError> {
    let encoding = tokenizer.encode_fast(text, special).map_err(|cause| EncodeError::Tokenizer(cause.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}
