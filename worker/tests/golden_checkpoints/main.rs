//! Properties of tiny checkpoints of every family.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption in a test is a failed test")]

mod agreement;
mod batches;
mod cuda;
mod gguf;
mod lora;
mod malformed;
mod oracles;
mod pickles;
mod reference;

use std::path::{Path, PathBuf};

use cosec_worker::model::{CacheSize, DeviceChoice, DtypeChoice, KvDtype, LoadOptions};

/// One of every family and every way of storing queries, keys and values; then scaled rotary embeddings and windows.
pub(crate) const ALL: [&str; 15] = [
    "llama-linear-rope",
    "llama-linear-rope-bf16",
    "llama-gqa-tied",
    "codegen",
    "qwen2",
    "mistral",
    "starcoder2",
    "gpt_neox",
    "gpt_bigcode-mqa",
    "gpt_bigcode-mha",
    "llama-yarn",
    "qwen2-yarn-mscale",
    "qwen2-window",
    "mistral-window",
    "starcoder2-window",
];

/// Number of entries of [`ALL`] before the small ones, for which rounding cannot be measured.
pub(crate) const FAMILIES: usize = 10;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

pub(crate) fn options(blocks: usize, block_tokens: usize) -> LoadOptions {
    LoadOptions {
        device: DeviceChoice::Cpu,
        adapter: None,
        lora: Vec::new(),
        dtype: DtypeChoice::Auto,
        tokenizer: None,
        quantize: None,
        kv_dtype: KvDtype::Auto,
        cache: CacheSize::Blocks(blocks),
        block_tokens,
        threads: 2,
        cpus: None,
    }
}
