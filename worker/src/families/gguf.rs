//! The model in a GGUF file, as a Hugging Face config and tensor names.
//!
//! llama.cpp's converter keeps weights as they are, except the queries and keys of `llama`: it makes the rotated pairs
//! neighbours.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{ModelFamily, PositionEmbedding, QkvNames, TensorNames};
use crate::checkpoint::config_section::{ConfigFileError, JsonFile};
use crate::checkpoint::gguf::GgufHeader;
use crate::kernels::RotaryPairs;

/// The architectures that are read, which are families by the same names, and how llama.cpp's converter leaves the
/// rotated pairs of their queries and keys.
const ARCHITECTURES: [(&str, RotaryPairs); 3] =
    [("llama", RotaryPairs::Neighbours), ("qwen2", RotaryPairs::Halves), ("starcoder2", RotaryPairs::Halves)];

const NAMES: TensorNames = TensorNames {
    embedding: "token_embd",
    positions: None,
    block: "blk.",
    attention_norm: "attn_norm",
    qkv: QkvNames::Separate { names: ["attn_q", "attn_k", "attn_v"] },
    attention_output: "attn_output",
    mlp_norm: Some("ffn_norm"),
    mlp_gate: Some("ffn_gate"),
    mlp_up: "ffn_up",
    mlp_down: "ffn_down",
    final_norm: "output_norm",
    head: "output",
};

/// Required sizes: their keys after the architecture's name, and their names in a config.
const SIZES: [(&str, &str); 5] = [
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
];

/// Optional numbers.
const OPTIONAL: [(&str, &str); 6] = [
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "norm_epsilon"),
    ("attention.sliding_window", "sliding_window"),
    ("rope.freq_base", "rope_theta"),
];

/// The Hugging Face checkpoint that a GGUF file was made from. Adapters are made for that one.
pub struct OriginalLayout {
    /// Tensor names in the file.
    stored: TensorNames,
    names: TensorNames,
    /// Width of heads whose rotated pairs the file made neighbours.
    paired: Option<usize>,
}

impl OriginalLayout {
    /// The original name of the file's linear layer `module`.
    #[must_use]
    pub fn module(&self, module: &str) -> String {
        let block = module.strip_prefix(NAMES.block).and_then(|rest| rest.split_once('.'));
        let name = block.map_or(module, |(_, name)| name);
        let pairs = self.stored.linear_layers().into_iter().zip(self.names.linear_layers());
        let known = pairs.into_iter().find(|(here, _)| *here == name).map_or(name, |(_, there)| there);
        block.map_or_else(|| known.to_owned(), |(index, _)| format!("{}{index}.{known}", self.names.block))
    }

    /// The original index of each output of `module`; `None` if they kept their order.
    #[must_use]
    pub fn order(&self, module: &str, outputs: usize) -> Option<Vec<u32>> {
        let QkvNames::Separate { names: [query, key, _] } = NAMES.qkv else { return None };
        let name = module.rsplit('.').next();
        let width = self.paired.filter(|_| [query, key].into_iter().any(|paired| name == Some(paired)))?;
        let from = |output: usize| {
            let (head, element) = (output / width, output % width);
            head * width + element % 2 * (width / 2) + element / 2
        };
        // A matrix in memory has fewer rows than 32 bits count.
        Some((0..outputs).map(|output| from(output) as u32).collect())
    }
}

/// The config, the family and the original checkpoint of the file at `path`.
///
/// # Errors
/// [`ConfigFileError`] names the metadata key or the config field.
pub fn describe(
    path: &Path,
    header: &GgufHeader,
) -> Result<(JsonFile, ModelFamily, OriginalLayout), ConfigFileError> {
    let metadata = GgufMetadata { path, header };
    let architecture = metadata.get("general.architecture").and_then(Value::as_str);
    let Some(&(name, pairs)) = ARCHITECTURES.iter().find(|(known, _)| Some(*known) == architecture) else {
        let known = ARCHITECTURES.map(|(name, _)| name).join(", ");
        return Err(metadata.invalid("general.architecture", &format!("one of {known}")));
    };
    let config = JsonFile::of_fields(path, metadata.config(name)?);
    let mut family = super::describe(&config.root())?;
    let stored = TensorNames { mlp_gate: family.names.mlp_gate.and(NAMES.mlp_gate), ..NAMES };
    let names = std::mem::replace(&mut family.names, stored);
    let paired = (pairs == RotaryPairs::Neighbours).then_some(family.spec.heads.width);
    if let PositionEmbedding::Rotary(rotary) = &mut family.spec.positions {
        rotary.pairs = pairs;
    }
    let origin = OriginalLayout { stored: family.names.clone(), names, paired };
    metadata.require(&format!("{name}.rope.dimension_count"), family.spec.heads.width)?;
    metadata.require(&format!("{name}.attention.value_length"), family.spec.heads.width)?;
    Ok((config, family, origin))
}

struct GgufMetadata<'a> {
    path: &'a Path,
    header: &'a GgufHeader,
}

impl GgufMetadata<'_> {
    fn config(&self, name: &str) -> Result<Map<String, Value>, ConfigFileError> {
        let mut config = Map::new();
        let mut set = |field: &str, value: Value| config.insert(field.to_owned(), value);
        set("model_type", name.into());
        for (key, field) in SIZES {
            let key = format!("{name}.{key}");
            let size = self.get(&key).filter(|value| value.as_u64().is_some_and(|size| size > 0));
            set(field, size.ok_or_else(|| self.invalid(&key, "a number above 0"))?.clone());
        }
        for (key, field) in OPTIONAL {
            // A window of 0 is none.
            if let Some(value) = self.get(&format!("{name}.{key}")).filter(|value| value.as_u64() != Some(0)) {
                set(field, value.clone());
            }
        }
        if let Some(scaling) = self.rope_scaling(name)? {
            set("rope_scaling", scaling);
        }
        let ends = ["eos", "eot"].map(|end| self.get(&format!("tokenizer.ggml.{end}_token_id")).cloned());
        set("eos_token_id", ends.into_iter().flatten().collect());
        let has = |tensor: &str| self.header.tensors.contains_key(tensor);
        let vocabulary = self.header.tensors.get("token_embd.weight").and_then(|table| table.shape.first());
        set("vocab_size", vocabulary.copied().into());
        set("tie_word_embeddings", (!has("output.weight")).into());
        let biased = has("blk.0.attn_q.bias");
        set("attention_bias", biased.into());
        set("use_bias", biased.into());
        if has("rope_freqs.weight") {
            return Err(self.invalid("rope_freqs.weight", "none: factors of single frequencies are not supported"));
        }
        if self.get(&format!("{name}.expert_count")).is_some_and(|count| count.as_u64() != Some(0)) {
            return Err(self.invalid(&format!("{name}.expert_count"), "none: mixtures of experts are not supported"));
        }
        Ok(config)
    }

    fn rope_scaling(&self, name: &str) -> Result<Option<Value>, ConfigFileError> {
        let get = |key: &str| self.get(&format!("{name}.rope.{key}"));
        let kind = match (get("scaling.type").map(|kind| kind.as_str()), get("scale_linear")) {
            (None, None) | (Some(Some("none")), _) => return Ok(None),
            (None, Some(factor)) => return Ok(Some(json!({ "type": "linear", "factor": factor }))),
            (Some(Some(kind)), _) => kind,
            (Some(None), _) => return Err(self.invalid(&format!("{name}.rope.scaling.type"), "a text")),
        };
        Ok(Some(json!({
            "type": kind,
            "factor": get("scaling.factor"),
            "original_max_position_embeddings": get("scaling.original_context_length"),
        })))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key).filter(|value| !value.is_null())
    }

    /// Checks that `key` is absent or `expected`.
    fn require(&self, key: &str, expected: usize) -> Result<(), ConfigFileError> {
        match self.get(key) {
            Some(value) if value.as_u64() != Some(expected as u64) => {
                Err(self.invalid(key, &format!("{expected}, the width of a head")))
            }
            _ => Ok(()),
        }
    }

    fn invalid(&self, key: &str, expected: &str) -> ConfigFileError {
        let found = self.get(key).map_or_else(
            || if self.header.tensors.contains_key(key) { "a tensor" } else { "absent" }.to_owned(),
            |value| value.to_string().chars().take(60).collect(),
        );
        ConfigFileError::Invalid {
            file: self.path.to_owned(),
            field: key.to_owned(),
            found,
            expected: expected.to_owned(),
        }
    }
}
