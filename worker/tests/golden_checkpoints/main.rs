//! Tiny checkpoints of every family, and what must hold for all of them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption in a test is a failed test")]

mod agreement;
mod batches;
mod gguf;
mod lora;
mod malformed;
mod oracles;
mod pickles;

use std::path::{Path, PathBuf};

use cosec_worker::model_runner::{DtypeChoice, KvDtype, LoadOptions};

/// One of every family, and every way of storing queries, keys and values.
pub(crate) const ALL: [&str; 10] = [
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
];

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

pub(crate) fn options(blocks: usize, block_tokens: usize) -> LoadOptions {
    LoadOptions {
        adapter: None,
        lora: Vec::new(),
        dtype: DtypeChoice::Auto,
        tokenizer: None,
        quantize: None,
        kv_dtype: KvDtype::Auto,
        blocks,
        block_tokens,
        threads: 2,
    }
}
