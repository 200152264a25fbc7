//! Speed of a forward pass over random weights: `cargo bench -p cosec-worker -- [SHAPE] [DTYPE]`.
//!
//! Prints tokens per second of decoding (one row, eight rows) and of prefill (256 rows). Weights are written to a
//! temporary directory first, so that they are loaded like a checkpoint.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use cosec_worker::model::{BatchItem, CacheSize, DeviceChoice, DtypeChoice, KvDtype, LoadOptions, ModelRunner};

struct Shape {
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    inner: usize,
    vocabulary: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "llama-10m", hidden: 256, layers: 8, heads: 4, inner: 704, vocabulary: 8192 },
    Shape { name: "llama-350m", hidden: 1024, layers: 20, heads: 16, inner: 2816, vocabulary: 32_256 },
];

const BLOCK_TOKENS: usize = 16;
const PREFILL: usize = 256;

fn main() -> anyhow::Result<()> {
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| filter == name);
    let dtypes = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];
    for shape in SHAPES.iter().filter(|shape| wanted(shape.name) || !filters.iter().any(|f| f.starts_with("llama"))) {
        for (name, dtype) in dtypes {
            if wanted(name) || !filters.iter().any(|filter| dtypes.iter().any(|(known, _)| known == filter)) {
                measure(shape, name, dtype)?;
            }
        }
    }
    Ok(())
}

fn measure(shape: &Shape, dtype_name: &str, dtype: DType) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    write_checkpoint(directory.path(), shape, dtype)?;
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        adapter: None,
        lora: Vec::new(),
        dtype: DtypeChoice::Auto,
        tokenizer: None,
        quantize: None,
        kv_dtype: KvDtype::Auto,
        cache: CacheSize::Blocks(256),
        block_tokens: BLOCK_TOKENS,
        threads: 0,
        cpus: None,
    };
    let mut model = ModelRunner::load(directory.path(), &options)?;
    let vocabulary = shape.vocabulary as u32;
    let prompt: Vec<u32> = (0..PREFILL as u32).map(|i| i * 7919 % vocabulary).collect();
    let tables: Vec<Vec<u32>> = (0..8).map(|sequence| (sequence * 32..sequence * 32 + 32).collect()).collect();
    let item = |sequence: usize, tokens, start| BatchItem {
        tokens,
        start,
        blocks: &tables[sequence],
        rows: 0..1,
        adapter: None,
    };
    let prefill = seconds(2, || model.forward(&[item(0, &prompt, 0)]).map(drop))?;
    for sequence in 1..8 {
        model.forward(&[item(sequence, &prompt, 0)])?;
    }
    let token = [17];
    let one = seconds(10, || model.forward(&[item(0, &token, PREFILL)]).map(drop))?;
    let eight = seconds(5, || {
        let batch: Vec<BatchItem<'_>> = (0..8).map(|sequence| item(sequence, &token, PREFILL)).collect();
        model.forward(&batch).map(drop)
    })?;
    let parameters = model.description().parameters / 1_000_000;
    println!(
        "{} ({parameters} M) {dtype_name}: decode {:.1} tokens/s, 8 rows {:.1} tokens/s, prefill {:.1} tokens/s",
        shape.name,
        1.0 / one,
        8.0 / eight,
        PREFILL as f64 / prefill,
    );
    Ok(())
}

/// The fastest of `runs` runs after one to warm up.
fn seconds<E>(runs: usize, mut work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    work()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn write_checkpoint(directory: &Path, shape: &Shape, dtype: DType) -> anyhow::Result<()> {
    let config = serde_json::json!({
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": 2048,
    });
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let random = |dims: &[usize]| Tensor::randn(0f32, 0.02, dims, &Device::Cpu)?.to_dtype(dtype);
    let mut tensors = HashMap::new();
    let (hidden, inner) = (shape.hidden, shape.inner);
    for name in ["model.embed_tokens", "lm_head"] {
        tensors.insert(format!("{name}.weight"), random(&[shape.vocabulary, hidden])?);
    }
    tensors.insert("model.norm.weight".to_owned(), random(&[hidden])?);
    for layer in 0..shape.layers {
        let mut insert = |name: &str, dims: &[usize]| -> candle_core::Result<()> {
            tensors.insert(format!("model.layers.{layer}.{name}.weight"), random(dims)?);
            Ok(())
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            insert(&format!("self_attn.{name}"), &[hidden, hidden])?;
        }
        insert("mlp.gate_proj", &[inner, hidden])?;
        insert("mlp.up_proj", &[inner, hidden])?;
        insert("mlp.down_proj", &[hidden, inner])?;
        insert("input_layernorm", &[hidden])?;
        insert("post_attention_layernorm", &[hidden])?;
    }
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors"))?;
    Ok(())
}
