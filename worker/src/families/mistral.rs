//! Mistral (Jiang et al., 2023): Llama with a sliding window.

use super::{Biases, DecoderSpec, TensorNames, llama};
use crate::checkpoint::config_section::{ConfigError, Section};

pub(super) fn describe(config: &Section<'_>) -> Result<(DecoderSpec, TensorNames), ConfigError> {
    let spec = llama::spec(config, Biases::default())?;
    let windows = vec![config.optional_size("sliding_window")?; spec.layers];
    Ok((DecoderSpec { windows, ..spec }, llama::NAMES))
}
