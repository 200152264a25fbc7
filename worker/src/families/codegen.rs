//! CodeGen (Nijkamp et al., 2022): GPT-J's block with queries, values and keys fused in four groups.

use super::{
    DecoderSpec, LinearBiases, PositionEmbedding, QkvNames, ResidualLayout, RopeScaling, RotaryEmbedding,
    TensorNames, gpt_bigcode,
};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::RotaryPairs;

/// Accelerator cores that the models were trained on; the order of the fused rows keeps their trace.
const GROUPS: usize = 4;

pub(super) fn describe(config: &ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError> {
    let gpt2 = gpt_bigcode::spec(config, "gelu_new")?;
    let heads = gpt2.heads;
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
        positions: PositionEmbedding::Rotary(rotary),
        residual: ResidualLayout::ParallelSharedNorm,
        biases: LinearBiases { qkv: false, attention_output: false, mlp: true, head: true },
        tied: config.flag_or("tie_word_embeddings", false)?,
        ..gpt2
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
