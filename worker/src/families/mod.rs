//! Model families as data: the meaning of a checkpoint's config and the names of its tensors.
//!
//! A family is a function from config.json to a [`ModelFamily`]. All of them go through the one decoder; if a family
//! needs a branch there, the branch is a named field of [`DecoderSpec`].

use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};
use crate::kernels::{Activation, AttentionHeads, CacheFormat, NormKind, RotaryPairs};

mod codegen;
pub mod gguf;
mod gpt_bigcode;
mod gpt_neox;
mod llama;
mod mistral;
mod qwen2;
mod rope;
mod starcoder2;

/// The structure of a model's forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Rows of the embedding; length of a logits row.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Longest sequence, in tokens.
    pub context_tokens: usize,
    /// Heads of attention.
    pub heads: AttentionHeads,
    /// Keys that a query sees in each layer, itself included; `None` sees all.
    pub windows: Vec<Option<usize>>,
    /// Which normalisation.
    pub norm: NormKind,
    /// Its epsilon.
    pub norm_epsilon: f64,
    /// How tokens know their order.
    pub positions: PositionEmbedding,
    /// How attention and MLP join the residual stream.
    pub residual: ResidualLayout,
    /// The MLP.
    pub mlp: MlpSpec,
    /// Which linear layers have a bias.
    pub biases: LinearBiases,
    /// Whether the embedding serves as head.
    pub tied: bool,
}

impl DecoderSpec {
    /// Bytes that the keys and values of one token take over all layers.
    #[must_use]
    pub fn kv_bytes_per_token(&self, format: CacheFormat) -> usize {
        2 * self.layers * self.heads.kv_width() * format.bytes()
    }
}

/// How tokens know their order.
#[derive(Clone, Debug, PartialEq)]
pub enum PositionEmbedding {
    /// Queries and keys are rotated.
    Rotary(RotaryEmbedding),
    /// A learned vector per position is added to the embedding.
    Learned,
}

/// Rotary position embedding (Su et al., 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryEmbedding {
    /// Elements of a head that are rotated; even.
    pub width: usize,
    /// How they pair up.
    pub pairs: RotaryPairs,
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for longer contexts.
    pub scaling: RopeScaling,
    /// Factor of queries and keys; 1 in most models.
    pub attention_factor: f64,
}

/// How frequencies are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by `factor` (Chen et al., 2023).
    Linear {
        /// At least 1 in practice.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_frequency_factor` are low frequencies.
        low_frequency_factor: f64,
        /// Wavelengths below `original_context / high_frequency_factor` are high frequencies.
        high_frequency_factor: f64,
        /// Context of the model before it was extended, in tokens.
        original_context: f64,
    },
    /// Pairs that turn less often in the original context are divided by `factor`, those that turn more often kept, a
    /// ramp over the pairs between (Peng et al., 2023).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Index of the last pair that is kept.
        kept: f64,
        /// Index of the first pair that is divided; more than `kept`.
        divided: f64,
    },
}

/// How attention and MLP join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidualLayout {
    /// `x += attention(norm₁(x))`, then `x += mlp(norm₂(x))`.
    Sequential,
    /// `x += attention(norm₁(x)) + mlp(norm₂(x))`.
    Parallel,
    /// `x += attention(norm(x)) + mlp(norm(x))`.
    ParallelSharedNorm,
}

/// The MLP of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpSpec {
    /// Width between its two layers.
    pub inner: usize,
    /// Nonlinearity.
    pub activation: Activation,
    /// Whether a second projection multiplies the activated one.
    pub gated: bool,
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearBiases {
    /// Query, key and value projections.
    pub qkv: bool,
    /// Output projection of attention.
    pub attention_output: bool,
    /// All layers of the MLP.
    pub mlp: bool,
    /// The head.
    pub head: bool,
}

/// The names of the tensors, without `.weight` and `.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorNames {
    /// Token embedding.
    pub embedding: &'static str,
    /// Learned positions; none where [`PositionEmbedding::Rotary`].
    pub positions: Option<&'static str>,
    /// Prefix of a block's number; the names of its tensors follow the number.
    pub block: &'static str,
    /// First normalisation of a block.
    pub attention_norm: &'static str,
    /// Query, key and value projections.
    pub qkv: QkvNames,
    /// Output projection of attention.
    pub attention_output: &'static str,
    /// Second normalisation of a block; none where the MLP shares the first.
    pub mlp_norm: Option<&'static str>,
    /// Gate of the MLP, if it is gated.
    pub mlp_gate: Option<&'static str>,
    /// First layer of the MLP.
    pub mlp_up: &'static str,
    /// Last layer of the MLP.
    pub mlp_down: &'static str,
    /// Normalisation before the head.
    pub final_norm: &'static str,
    /// Head; read unless it is tied to the embedding.
    pub head: &'static str,
}

impl TensorNames {
    /// The linear layers of a block, as they follow its number, then the head.
    #[must_use]
    pub fn linear_layers(&self) -> Vec<&'static str> {
        let mut layers = match self.qkv {
            QkvNames::Separate { names } => names.to_vec(),
            QkvNames::Fused { name, .. } => vec![name],
        };
        layers.push(self.attention_output);
        layers.extend(self.mlp_gate);
        layers.extend([self.mlp_up, self.mlp_down, self.head]);
        layers
    }
}

/// How queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvNames {
    /// One matrix each.
    Separate {
        /// Queries, keys and values.
        names: [&'static str; 3],
    },
    /// One matrix of `groups` equal groups of rows, each holding its share of the heads.
    Fused {
        /// Of the matrix.
        name: &'static str,
        /// 1 if all queries are together; the number of heads if each head has its own three.
        groups: usize,
        /// In which order a group holds queries (0), keys (1) and values (2).
        order: [usize; 3],
    },
}

/// A model's structure and tensor names.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFamily {
    /// `model_type` of config.json.
    pub name: &'static str,
    /// The forward pass.
    pub spec: DecoderSpec,
    /// The checkpoint.
    pub names: TensorNames,
}

type DescribeFamily = fn(&ConfigSection<'_>) -> Result<(DecoderSpec, TensorNames), ConfigFileError>;

/// Every family by its `model_type`.
const FAMILIES: [(&str, DescribeFamily); 7] = [
    ("codegen", codegen::describe),
    ("gpt_bigcode", gpt_bigcode::describe),
    ("gpt_neox", gpt_neox::describe),
    ("llama", llama::describe),
    ("mistral", mistral::describe),
    ("qwen2", qwen2::describe),
    ("starcoder2", starcoder2::describe),
];

/// Finds the family of a config and reads its spec.
///
/// # Errors
/// [`ConfigFileError`] names the field, found and allowed value.
pub fn describe(config: &ConfigSection<'_>) -> Result<ModelFamily, ConfigFileError> {
    let (name, describe) = config.one_of("model_type", &FAMILIES.map(|family| (family.0, family)))?;
    let (spec, names) = describe(config)?;
    Ok(ModelFamily { name, spec, names })
}

/// Activations by the names that configs use.
const ACTIVATIONS: [(&str, Activation); 6] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::GeluErf),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
];

/// Reads the heads; their width is that of `hidden` shared out unless `head_dim` says otherwise.
fn heads(
    config: &ConfigSection<'_>,
    hidden: usize,
    query: &str,
    kv: Option<&str>,
) -> Result<AttentionHeads, ConfigFileError> {
    let heads = config.size(query)?;
    let kv_heads = kv.map_or(Ok(heads), |field| config.size_or(field, heads))?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.invalid(kv.unwrap_or(query), format!("a divisor of {query} ({heads})")));
    }
    let width = match config.optional_size("head_dim")? {
        Some(width) => width,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(config.invalid(query, format!("a divisor of the hidden width ({hidden})"))),
    };
    Ok(AttentionHeads { query: heads, kv: kv_heads, width })
}

/// Reads rotary positions over `fraction` of a head, as transformers 4 and 5 write them.
fn rotary(config: &ConfigSection<'_>, head_width: usize, fraction: f64) -> Result<RotaryEmbedding, ConfigFileError> {
    let parameters = config.section("rope_parameters")?;
    let source = parameters.as_ref().unwrap_or(config);
    // GPT-NeoX's older name.
    let base = config.number_or("rotary_emb_base", 10_000.0)?;
    let theta = match source.number_or("rope_theta", base)? {
        theta if theta > 0.0 => theta,
        _ => return Err(source.invalid("rope_theta", "a number above 0".to_owned())),
    };
    let fraction = match source.number_or("partial_rotary_factor", fraction)? {
        fraction if fraction > 0.0 && fraction <= 1.0 => fraction,
        _ => return Err(source.invalid("partial_rotary_factor", "a number above 0, at most 1".to_owned())),
    };
    let width = (head_width as f64 * fraction) as usize;
    if width == 0 || !width.is_multiple_of(2) {
        return Err(source.invalid("partial_rotary_factor", format!("an even share of {head_width} elements")));
    }
    let section = match parameters {
        Some(parameters) => Some(parameters),
        None => config.section("rope_scaling")?,
    };
    let unscaled = RotaryEmbedding {
        width,
        pairs: RotaryPairs::Halves,
        theta,
        scaling: RopeScaling::Default,
        attention_factor: 1.0,
    };
    section.map_or(Ok(unscaled.clone()), |section| rope::scaled(unscaled, config, &section))
}
