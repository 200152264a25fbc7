//! StarCoder2 (Lozhkov et al., 2024): grouped queries and rotary positions with GPT-2's norms, biases and MLP.

use super::{
    ACTIVATIONS, DecoderSpec, LinearBiases, MlpSpec, PositionEmbedding, ResidualLayout, TensorNames, heads, llama,
    rotary,
};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::NormKind;

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let layers = config.size("num_hidden_layers")?;
    let hidden = config.size("hidden_size")?;
    let heads = heads(config, hidden, "num_attention_heads", Some("num_key_value_heads"))?;
    let bias = config.flag_or("use_bias", true)?;
    config.one_of_or("norm_type", "layer_norm", &[("layer_norm", ())])?;
    config.one_of_or("mlp_type", "default", &[("default", ())])?;
    let spec = DecoderSpec {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers,
        context_tokens: config.size("max_position_embeddings")?,
        heads,
        windows: vec![config.optional_size("sliding_window")?; layers],
        norm: NormKind::Layer,
        norm_epsilon: config.number_or("norm_epsilon", 1e-5)?,
        positions: PositionEmbedding::Rotary(rotary(config, heads.width, 1.0)?),
        residual: ResidualLayout::Sequential,
        mlp: MlpSpec {
            inner: config.size("intermediate_size")?,
            activation: config.one_of_or("hidden_act", "gelu_pytorch_tanh", &ACTIVATIONS)?,
            gated: false,
        },
        biases: LinearBiases { qkv: bias, attention_output: bias, mlp: bias, head: false },
        tied: config.flag_or("tie_word_embeddings", true)?,
    };
    Ok((spec, TensorNames { mlp_gate: None, mlp_up: "mlp.c_fc", mlp_down: "mlp.c_proj", ..llama::NAMES }))
}
