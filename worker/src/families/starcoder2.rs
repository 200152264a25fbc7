//! StarCoder2 (Lozhkov et al., 2024): grouped queries and rotary positions with GPT-2's norms, biases and MLP.

use super::{ACTIVATIONS, DecoderSpec, LinearBiases, MlpSpec, TensorNames, llama};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::NormKind;

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let bias = config.flag_or("use_bias", true)?;
    config.one_of_or("norm_type", "layer_norm", &[("layer_norm", ())])?;
    config.one_of_or("mlp_type", "default", &[("default", ())])?;
    let llama = llama::spec(config, LinearBiases { qkv: bias, attention_output: bias, mlp: bias, head: false })?;
    let activation = config.one_of_or("hidden_act", "gelu_pytorch_tanh", &ACTIVATIONS)?;
    let spec = DecoderSpec {
        windows: vec![config.optional_size("sliding_window")?; llama.layers],
        norm: NormKind::Layer,
        norm_epsilon: config.number_or("norm_epsilon", 1e-5)?,
        mlp: MlpSpec { activation, gated: false, ..llama.mlp },
        tied: config.flag_or("tie_word_embeddings", true)?,
        ..llama
    };
    Ok((spec, TensorNames { mlp_gate: None, mlp_up: "mlp.c_fc", mlp_down: "mlp.c_proj", ..llama::NAMES }))
}
