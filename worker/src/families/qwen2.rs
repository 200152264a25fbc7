//! Qwen2 (Yang et al., 2024), Qwen2.5-Coder: Llama with biases on queries, keys and values.

use super::{Biases, DecoderSpec, TensorNames, llama};
use crate::loader::model_config::{ConfigError, Section};

pub(super) fn describe(config: &Section<'_>) -> Result<(DecoderSpec, TensorNames), ConfigError> {
    if config.flag_or("use_sliding_window", false)? {
        return Err(
            config.invalid("use_sliding_window", "false: windows in some layers only are not supported".into())
        );
    }
    let biases = Biases { qkv: true, ..Biases::default() };
    Ok((llama::spec(config, biases)?, llama::NAMES))
}
