//! Mistral (Jiang et al., 2023): Llama with a sliding window.

use super::{DecoderSpec, LinearBiases, TensorNames, llama};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let spec = llama::spec(config, LinearBiases::default())?;
    let windows = vec![config.optional_size("sliding_window")?; spec.layers];
    Ok((DecoderSpec { windows, ..spec }, llama::NAMES))
}
