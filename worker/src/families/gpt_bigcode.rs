//! GPTBigCode (Allal et al., 2023), StarCoder: GPT-2 with one key and value head for all queries.

use super::{
    ACTIVATIONS, DecoderSpec, LinearBiases, MlpSpec, PositionEmbedding, QkvNames, ResidualLayout, TensorNames, heads,
};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::{AttentionHeads, NormKind};

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let all = spec(config, "gelu_pytorch_tanh")?;
    let (heads, groups) = match config.flag_or("multi_query", true)? {
        true => (AttentionHeads { kv: 1, ..all.heads }, 1),
        false => (all.heads, all.heads.query),
    };
    let spec = DecoderSpec { heads, ..all };
    let names = TensorNames {
        embedding: "transformer.wte",
        positions: Some("transformer.wpe"),
        block: "transformer.h.",
        attention_norm: "ln_1",
        qkv: QkvNames::Fused { name: "attn.c_attn", groups, order: [0, 1, 2] },
        attention_output: "attn.c_proj",
        mlp_norm: Some("ln_2"),
        mlp_gate: None,
        mlp_up: "mlp.c_fc",
        mlp_down: "mlp.c_proj",
        final_norm: "transformer.ln_f",
        head: "lm_head",
    };
    Ok((spec, names))
}

/// The spec of GPT-2, whose config keys later families kept; `activation` is the default.
pub(super) fn spec(config: &ConfigSection<'_>, activation: &str) -> Result<DecoderSpec, ConfigFileError> {
    let layers = config.size("n_layer")?;
    let hidden = config.size("n_embd")?;
    Ok(DecoderSpec {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers,
        context_tokens: config.size("n_positions")?,
        heads: heads(config, hidden, "n_head", None)?,
        windows: vec![None; layers],
        norm: NormKind::Layer,
        norm_epsilon: config.number_or("layer_norm_epsilon", 1e-5)?,
        positions: PositionEmbedding::Learned,
        residual: ResidualLayout::Sequential,
        mlp: MlpSpec {
            inner: config.size_or("n_inner", 4 * hidden)?,
            activation: config.one_of_or("activation_function", activation, &ACTIVATIONS)?,
            gated: false,
        },
        biases: LinearBiases { qkv: true, attention_output: true, mlp: true, head: false },
        tied: config.flag_or("tie_word_embeddings", true)?,
    })
}
