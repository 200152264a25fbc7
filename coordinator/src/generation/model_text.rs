//! A model's text, both ways.

use std::path::Path;
use std::sync::Arc;

use crate::postprocess::detokenizer::{TokenDecoder, UnsupportedDecoder};
use crate::preprocess::error::LoadError;
use crate::preprocess::tokenizer::PromptEncoder;

/// A model's text, both ways.
pub struct ModelText {
    pub(crate) encoder: PromptEncoder,
    pub(crate) decoder: Arc<TokenDecoder>,
    /// The most bytes of text that become one token.
    longest_token: usize,
}

impl ModelText {
    /// Reads tokenizer and chat template from a Hugging Face directory.
    ///
    /// # Errors
    /// [`ModelTextError`] names the file.
    pub fn load(directory: &Path) -> Result<Self, ModelTextError> {
        let encoder = PromptEncoder::load(directory)?;
        let decoder = Arc::new(TokenDecoder::of(encoder.tokenizer().clone())?);
        let longest_token = longest_token(&encoder, &decoder);
        Ok(Self { encoder, decoder, longest_token })
    }

    /// Longer text than this has more than `tokens` tokens.
    #[must_use]
    pub fn most_bytes(&self, tokens: u32) -> usize {
        self.longest_token.saturating_mul(tokens as usize)
    }

    /// Of tokenizer.json.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        self.encoder.fingerprint()
    }
}

/// Text is the same bytes before and after a byte-level tokenizer. A normalizer may make less of it: composed
/// characters have at most a third of the bytes of decomposed ones.
const MOST_NORMALIZED: usize = 3;

fn longest_token(encoder: &PromptEncoder, decoder: &TokenDecoder) -> usize {
    let tokenizer = encoder.tokenizer();
    let ids = tokenizer.get_vocab(true).into_values();
    let longest = ids.map(|id| decoder.bytes(id).len()).max().unwrap_or(1).max(1);
    if tokenizer.get_normalizer().is_some() { longest * MOST_NORMALIZED } else { longest }
}

/// A directory that does not give a model's text.
#[derive(Debug, thiserror::Error)]
pub enum ModelTextError {
    /// A file is missing or wrong.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer is of a kind that cannot be streamed.
    #[error("tokenizer.json: {0}")]
    Decoder(#[from] UnsupportedDecoder),
}
