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
}

impl ModelText {
    /// Reads tokenizer and chat template from a Hugging Face directory.
    ///
    /// # Errors
    /// [`ModelTextError`] names the file.
    pub fn load(directory: &Path) -> Result<Self, ModelTextError> {
        let encoder = PromptEncoder::load(directory)?;
        let decoder = Arc::new(TokenDecoder::of(encoder.tokenizer().clone())?);
        Ok(Self { encoder, decoder })
    }

    /// Of tokenizer.json.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        self.encoder.fingerprint()
    }
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
