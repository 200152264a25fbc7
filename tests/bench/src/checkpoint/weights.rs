//! Which weights a checkpoint has, by family, and what they say.

use super::tensors::{Content, Weight};
use super::{Head, RIVAL_GAP};
use crate::shape::{Family, Shape};

/// By how much the logits of the planted token and its rivals stand out.
const PLANTED_LOGIT: f32 = 60.0;

/// By how much the planted logit exceeds its rivals in the base, whose draws never are rivals.
const BASE_GAP: f32 = 30.0;

const EMBEDDING_SEED: u64 = 1;

/// Deviation of random matrices, and of those that lead back into the residual stream where the logits are planted.
const DEVIATION: f32 = 0.02;
const QUIET: f32 = 0.0001;

pub(super) fn weights(shape: &Shape, head: Head) -> Vec<Weight> {
    let mut list = List { weights: Vec::new(), into_stream: if head == Head::Random { DEVIATION } else { QUIET } };
    let Shape { hidden, layers, vocabulary, .. } = *shape;
    let (embedding, block, output) = match shape.family {
        Family::Llama => ("model.embed_tokens", "model.layers", "lm_head"),
        Family::Codegen => ("transformer.wte", "transformer.h", "lm_head"),
        Family::GptNeox => ("gpt_neox.embed_in", "gpt_neox.layers", "embed_out"),
    };
    let marked = |shift, scale, mark| Content::Marked { seed: EMBEDDING_SEED, shift, scale, mark };
    let read = match head {
        Head::Random => Content::Random { seed: EMBEDDING_SEED, deviation: 1.0 },
        Head::Planted | Head::PlantedWithRivals => marked(1, 1.0, 1.0),
    };
    list.add(format!("{embedding}.weight"), &[vocabulary, hidden], read);
    for layer in 0..layers {
        list.block(shape, &format!("{block}.{layer}"));
    }
    match shape.family {
        Family::Llama => list.norm("model.norm", hidden, false),
        Family::Codegen => list.norm("transformer.ln_f", hidden, true),
        Family::GptNeox => list.norm("gpt_neox.final_layer_norm", hidden, true),
    }
    let planted = PLANTED_LOGIT / hidden as f32;
    let written = match head {
        Head::Random => Content::Random { seed: list.next_seed(), deviation: DEVIATION },
        Head::Planted => marked(0, planted, BASE_GAP),
        Head::PlantedWithRivals => marked(0, planted, RIVAL_GAP as f32),
    };
    list.add(format!("{output}.weight"), &[vocabulary, hidden], written);
    if shape.family == Family::Codegen {
        list.add(format!("{output}.bias"), &[vocabulary], Content::Constant(0.0));
    }
    list.weights
}

struct List {
    weights: Vec<Weight>,
    /// Deviation of the matrices whose output is added to the residual stream.
    into_stream: f32,
}

impl List {
    fn add(&mut self, name: String, dims: &[usize], content: Content) {
        self.weights.push(Weight { name, dims: dims.to_vec(), content });
    }

    fn next_seed(&self) -> u64 {
        EMBEDDING_SEED + 1 + self.weights.len() as u64
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, deviation: f32, biased: bool) {
        let content = Content::Random { seed: self.next_seed(), deviation };
        self.add(format!("{name}.weight"), &[outputs, inputs], content);
        if biased {
            self.add(format!("{name}.bias"), &[outputs], Content::Constant(0.0));
        }
    }

    fn norm(&mut self, name: &str, hidden: usize, biased: bool) {
        self.add(format!("{name}.weight"), &[hidden], Content::Constant(1.0));
        if biased {
            self.add(format!("{name}.bias"), &[hidden], Content::Constant(0.0));
        }
    }

    fn block(&mut self, shape: &Shape, block: &str) {
        let Shape { hidden, inner, .. } = *shape;
        let into_stream = self.into_stream;
        match shape.family {
            Family::Llama => {
                for name in ["q_proj", "k_proj", "v_proj"] {
                    self.linear(&format!("{block}.self_attn.{name}"), hidden, hidden, DEVIATION, false);
                }
                self.linear(&format!("{block}.self_attn.o_proj"), hidden, hidden, into_stream, false);
                self.linear(&format!("{block}.mlp.gate_proj"), inner, hidden, DEVIATION, false);
                self.linear(&format!("{block}.mlp.up_proj"), inner, hidden, DEVIATION, false);
                self.linear(&format!("{block}.mlp.down_proj"), hidden, inner, into_stream, false);
                self.norm(&format!("{block}.input_layernorm"), hidden, false);
                self.norm(&format!("{block}.post_attention_layernorm"), hidden, false);
            }
            Family::Codegen => {
                self.linear(&format!("{block}.attn.qkv_proj"), 3 * hidden, hidden, DEVIATION, false);
                self.linear(&format!("{block}.attn.out_proj"), hidden, hidden, into_stream, false);
                self.linear(&format!("{block}.mlp.fc_in"), inner, hidden, DEVIATION, true);
                self.linear(&format!("{block}.mlp.fc_out"), hidden, inner, into_stream, true);
                self.norm(&format!("{block}.ln_1"), hidden, true);
            }
            Family::GptNeox => {
                self.linear(&format!("{block}.attention.query_key_value"), 3 * hidden, hidden, DEVIATION, true);
                self.linear(&format!("{block}.attention.dense"), hidden, hidden, into_stream, true);
                self.linear(&format!("{block}.mlp.dense_h_to_4h"), inner, hidden, DEVIATION, true);
                self.linear(&format!("{block}.mlp.dense_4h_to_h"), hidden, inner, into_stream, true);
                self.norm(&format!("{block}.input_layernorm"), hidden, true);
                self.norm(&format!("{block}.post_attention_layernorm"), hidden, true);
            }
        }
    }
}
