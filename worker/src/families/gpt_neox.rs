//! GPT-NeoX (Black et al., 2022): parallel branches with a norm each, heads partly rotated.

use super::{
    ACTIVATIONS, DecoderSpec, LinearBiases, MlpSpec, PositionEmbedding, QkvNames, ResidualLayout, TensorNames, heads,
    rotary,
};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::NormKind;

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let layers = config.size("num_hidden_layers")?;
    let hidden = config.size("hidden_size")?;
    let heads = heads(config, hidden, "num_attention_heads", None)?;
    let attention_bias = config.flag_or("attention_bias", true)?;
    let spec = DecoderSpec {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers,
        context_tokens: config.size("max_position_embeddings")?,
        heads,
        windows: vec![None; layers],
        norm: NormKind::Layer,
        norm_epsilon: config.number_or("layer_norm_eps", 1e-5)?,
        positions: PositionEmbedding::Rotary(rotary(config, heads.width, config.number_or("rotary_pct", 0.25)?)?),
        residual: match config.flag_or("use_parallel_residual", true)? {
            true => ResidualLayout::Parallel,
            false => ResidualLayout::Sequential,
        },
        mlp: MlpSpec {
            inner: config.size("intermediate_size")?,
            activation: config.one_of_or("hidden_act", "gelu", &ACTIVATIONS)?,
            gated: false,
        },
        biases: LinearBiases { qkv: attention_bias, attention_output: attention_bias, mlp: true, head: false },
        tied: config.flag_or("tie_word_embeddings", false)?,
    };
    let names = TensorNames {
        embedding: "gpt_neox.embed_in",
        positions: None,
        block: "gpt_neox.layers.",
        attention_norm: "input_layernorm",
        qkv: QkvNames::Fused { name: "attention.query_key_value", groups: heads.query, order: [0, 1, 2] },
        attention_output: "attention.dense",
        mlp_norm: Some("post_attention_layernorm"),
        mlp_gate: None,
        mlp_up: "mlp.dense_h_to_4h",
        mlp_down: "mlp.dense_4h_to_h",
        final_norm: "gpt_neox.final_layer_norm",
        head: "embed_out",
    };
    Ok((spec, names))
}
