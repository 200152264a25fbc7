//! CodeGen (Nijkamp et al., 2022): GPT-J's block with queries, values and keys fused in four groups.

use super::{
    ACTIVATIONS, DecoderSpec, LinearBiases, MlpSpec, PositionEmbedding, QkvNames, ResidualLayout, RopeScaling,
    RotaryEmbedding, TensorNames, heads,
};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::{NormKind, RotaryPairs};

/// Accelerator cores that the models were trained on; the order of the fused rows keeps their trace.
const GROUPS: usize = 4;

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let layers = config.size("n_layer")?;
    let hidden = config.size("n_embd")?;
    let heads = heads(config, hidden, "n_head", None)?;
    if !heads.query.is_multiple_of(GROUPS) {
        return Err(config.invalid("n_head", format!("a multiple of {GROUPS}")));
    }
    let width = config.size_or("rotary_dim", heads.width)?;
    if width > heads.width || !width.is_multiple_of(2) {
        return Err(config.invalid("rotary_dim", format!("an even number up to {}", heads.width)));
    }
    let rotary = RotaryEmbedding {
        width,
        pairs: RotaryPairs::Neighbours,
        theta: 10_000.0,
        scaling: RopeScaling::Default,
        attention_factor: 1.0,
    };
    let spec = DecoderSpec {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers,
        context_tokens: config.size("n_positions")?,
        heads,
        windows: vec![None; layers],
        norm: NormKind::Layer,
        norm_epsilon: config.number_or("layer_norm_epsilon", 1e-5)?,
        positions: PositionEmbedding::Rotary(rotary),
        residual: ResidualLayout::ParallelSharedNorm,
        mlp: MlpSpec {
            inner: config.size_or("n_inner", 4 * hidden)?,
            activation: config.one_of_or("activation_function", "gelu_new", &ACTIVATIONS)?,
            gated: false,
        },
        biases: LinearBiases { qkv: false, attention_output: false, mlp: true, head: true },
        tied: config.flag_or("tie_word_embeddings", false)?,
    };
    let names = TensorNames {
        embedding: "transformer.wte",
        positions: None,
        block: "transformer.h.",
        attention_norm: "ln_1",
        qkv: QkvNames::Fused { name: "attn.qkv_proj", groups: GROUPS, order: [0, 2, 1] },
        attention_output: "attn.out_proj",
        mlp_norm: None,
        mlp_gate: None,
        mlp_up: "mlp.fc_in",
        mlp_down: "mlp.fc_out",
        final_norm: "transformer.ln_f",
        head: "lm_head",
    };
    Ok((spec, names))
}
