//! Shapes of public models, and the number formats that their weights are served in.

use clap::ValueEnum;
use serde_json::{Value, json};

/// Layers and widths of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// As the command line names it.
    pub name: &'static str,
    /// Which decoder it is.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; as many for keys and values.
    pub heads: usize,
    /// Width of the MLP.
    pub inner: usize,
    /// Length of a row of logits.
    pub vocabulary: usize,
}

/// Decoders that checkpoints can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Gated MLP, RMS norm, no biases.
    Llama,
    /// Parallel branches after one norm.
    Codegen,
    /// Parallel branches with a norm each: the nearest to CodeGen that llama.cpp has.
    GptNeox,
}

/// Every shape that a command can be asked for.
pub const SHAPES: [Shape; 9] = [
    Shape {
        name: "llama-7b",
        family: Family::Llama,
        hidden: 4096,
        layers: 32,
        heads: 32,
        inner: 11_008,
        vocabulary: 32_256,
    },
    Shape {
        name: "llama-0.5b",
        family: Family::Llama,
        hidden: 1024,
        layers: 24,
        heads: 16,
        inner: 4096,
        vocabulary: 32_256,
    },
    Shape {
        name: "llama-1.3b",
        family: Family::Llama,
        hidden: 2048,
        layers: 24,
        heads: 16,
        inner: 5504,
        vocabulary: 32_256,
    },
    Shape {
        name: "llama-125m",
        family: Family::Llama,
        hidden: 768,
        layers: 12,
        heads: 12,
        inner: 2048,
        vocabulary: 32_256,
    },
    Shape {
        name: "codegen-2b",
        family: Family::Codegen,
        hidden: 2560,
        layers: 32,
        heads: 32,
        inner: 10_240,
        vocabulary: 51_200,
    },
    Shape {
        name: "codegen-350m",
        family: Family::Codegen,
        hidden: 1024,
        layers: 20,
        heads: 16,
        inner: 4096,
        vocabulary: 51_200,
    },
    Shape {
        name: "neox-350m",
        family: Family::GptNeox,
        hidden: 1024,
        layers: 20,
        heads: 16,
        inner: 4096,
        vocabulary: 51_200,
    },
    Shape {
        name: "llama-30m",
        family: Family::Llama,
        hidden: 512,
        layers: 8,
        heads: 8,
        inner: 1408,
        vocabulary: 8192,
    },
    Shape { name: "llama-5m", family: Family::Llama, hidden: 256, layers: 2, heads: 4, inner: 704, vocabulary: 8192 },
];

impl Shape {
    /// The shape of that name.
    ///
    /// # Errors
    /// A sentence that lists the names.
    pub fn named(name: &str) -> Result<Self, String> {
        SHAPES.into_iter().find(|shape| shape.name == name).ok_or_else(|| {
            let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
            format!("there is no shape {name:?}; shapes are {}", names.join(", "))
        })
    }

    /// Weights that a decode step reads whatever the batch: all matrices but the embedding, of which it reads a row a
    /// token.
    #[must_use]
    pub fn streamed_weights(&self) -> usize {
        self.layer_weights() + self.head_weights()
    }

    /// Those of the layers.
    #[must_use]
    pub fn layer_weights(&self) -> usize {
        let mlp = match self.family {
            Family::Llama => 3,
            Family::Codegen | Family::GptNeox => 2,
        };
        self.layers * (4 * self.hidden + mlp * self.inner) * self.hidden
    }

    /// Those of the head.
    #[must_use]
    pub fn head_weights(&self) -> usize {
        self.vocabulary * self.hidden
    }

    /// The content of config.json.
    #[must_use]
    pub fn config(&self) -> Value {
        match self.family {
            Family::Llama => json!({
                "model_type": "llama",
                "vocab_size": self.vocabulary,
                "hidden_size": self.hidden,
                "intermediate_size": self.inner,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-6,
            }),
            Family::Codegen => json!({
                "model_type": "codegen",
                "vocab_size": self.vocabulary,
                "n_embd": self.hidden,
                "n_inner": self.inner,
                "n_layer": self.layers,
                "n_head": self.heads,
                "n_positions": 2048,
                "rotary_dim": self.hidden / self.heads / 2,
            }),
            Family::GptNeox => json!({
                "model_type": "gpt_neox",
                "vocab_size": self.vocabulary,
                "hidden_size": self.hidden,
                "intermediate_size": self.inner,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "max_position_embeddings": 2048,
                "rotary_pct": 0.5,
                "use_parallel_residual": true,
            }),
        }
    }
}

/// Number format of the weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Blocks of 32 signed bytes and a scale.
    #[value(name = "q8_0")]
    Q8,
    /// Blocks of 256 four-bit numbers and their scales.
    #[value(name = "q4_k")]
    Q4K,
}

impl WeightFormat {
    /// As flags and file names have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// Bytes of a weight.
    #[must_use]
    pub fn bytes(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::Bf16 | Self::F16 => 2.0,
            Self::Q8 => 34.0 / 32.0,
            Self::Q4K => 144.0 / 256.0,
        }
    }

    /// What a worker is told to serve in this format.
    #[must_use]
    pub fn worker_flags(self) -> [&'static str; 2] {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => ["--dtype", self.name()],
            Self::Q8 | Self::Q4K => ["--quantize", self.name()],
        }
    }
}
