//! Llama (Touvron et al., 2023): DeepSeek-Coder, CodeLlama, Llama 3.

use super::{
    ACTIVATIONS, DecoderSpec, LinearBiases, MlpSpec, PositionEmbedding, QkvNames, ResidualLayout, TensorNames, heads,
    rotary,
};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::NormKind;

/// Names of Llama's tensors, which several later families kept.
pub(super) const NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens",
    positions: None,
    block: "model.layers.",
    attention_norm: "input_layernorm",
    qkv: QkvNames::Separate { names: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] },
    attention_output: "self_attn.o_proj",
    mlp_norm: Some("post_attention_layernorm"),
    mlp_gate: Some("mlp.gate_proj"),
    mlp_up: "mlp.up_proj",
    mlp_down: "mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
};

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let attention_bias = config.flag_or("attention_bias", false)?;
    let biases = LinearBiases {
        qkv: attention_bias,
        attention_output: attention_bias,
        mlp: config.flag_or("mlp_bias", false)?,
        head: false,
    };
    Ok((spec(config, biases)?, NAMES))
}

/// The spec of Llama and of the families that only differ in `biases`.
pub(super) fn spec(config: &ConfigSection<'_>, biases: LinearBiases) -> Result<DecoderSpec, ConfigFileError> {
    let layers = config.size("num_hidden_layers")?;
    let hidden = config.size("hidden_size")?;
    let heads = heads(config, hidden, "num_attention_heads", Some("num_key_value_heads"))?;
    Ok(DecoderSpec {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers,
        context_tokens: config.size("max_position_embeddings")?,
        heads,
        windows: vec![None; layers],
        norm: NormKind::RootMeanSquare,
        norm_epsilon: config.number_or("rms_norm_eps", 1e-6)?,
        positions: PositionEmbedding::Rotary(rotary(config, heads.width, 1.0)?),
        residual: ResidualLayout::Sequential,
        mlp: MlpSpec {
            inner: config.size("intermediate_size")?,
            activation: config.one_of_or("hidden_act", "silu", &ACTIVATIONS)?,
            gated: true,
        },
        biases,
        tied: config.flag_or("tie_word_embeddings", false)?,
    })
}
