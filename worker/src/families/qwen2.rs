//! Qwen2 (Yang et al., 2024), Qwen2.5-Coder: Llama with biases on queries, keys and values, and a window in some
//! layers.

use super::{DecoderSpec, LinearBiases, TensorNames, llama};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let biases = LinearBiases { qkv: true, ..LinearBiases::default() };
    let spec = llama::spec(config, biases)?;
    let windows = windows(config, spec.layers)?;
    Ok((DecoderSpec { windows, ..spec }, llama::NAMES))
}

/// By `layer_types`, else in all layers from `max_window_layers` on.
fn windows(config: &ConfigSection<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigFileError> {
    let window = match config.flag_or("use_sliding_window", false)? {
        true => config.optional_size("sliding_window")?,
        false => None,
    };
    let Some(types) = config.get("layer_types") else {
        let full = config.whole_or("max_window_layers", layers)?;
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= full)).collect());
    };
    let kind = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Some(None),
        Some("sliding_attention") => window.map(Some),
        _ => None,
    };
    let windows: Option<Vec<Option<usize>>> = types.as_array().and_then(|types| types.iter().map(kind).collect());
    windows.filter(|windows| windows.len() == layers).ok_or_else(|| {
        let expected =
            format!("full_attention, or sliding_attention with a sliding_window, for each of {layers} layers");
        config.invalid("layer_types", expected)
    })
}
