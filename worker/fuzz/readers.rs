//! The fuzzed readers: all that read files from outside. The tests replay past findings with them.

use std::path::Path;
use std::sync::LazyLock;

use cosec_worker::checkpoint::config_section::JsonFile;
use cosec_worker::checkpoint::{gguf, pickle, safetensors, stored_tensor, tensor_files};
use cosec_worker::families;
use cosec_worker::weights::lora::LoraAdapter;
use tempfile::TempDir;

/// One folder for all adapters: making it takes longer than reading them.
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder for adapters"));

/// config.json.
pub(crate) fn config(data: &[u8]) {
    if let Ok(file) = JsonFile::parse(Path::new("config.json"), data.to_vec()) {
        drop(families::describe(&file.root()));
    }
}

/// model.safetensors.index.json.
pub(crate) fn index(data: &[u8]) {
    if let Ok(file) = JsonFile::parse(Path::new("model.safetensors.index.json"), data.to_vec()) {
        drop(tensor_files::shard_names(&file));
    }
}

/// The header of model.safetensors.
pub(crate) fn safetensors(data: &[u8]) {
    within(data, safetensors::tensors(data).ok());
}

/// pytorch_model.bin.
pub(crate) fn pickle(data: &[u8]) {
    within(data, pickle::tensors(data).ok());
}

/// The header of a GGUF file.
pub(crate) fn gguf(data: &[u8]) {
    if let Ok(header) = gguf::header(data) {
        drop(families::gguf::describe(Path::new("model.gguf"), &header));
        within(data, Some(header.tensors));
    }
}

/// adapter_config.json, a zero byte, adapter_model.safetensors.
pub(crate) fn adapter(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let directory = DIRECTORY.path();
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).expect("a file of the adapter");
    write("adapter_config.json", &data[..end]);
    write("adapter_model.safetensors", data.get(end + 1..).unwrap_or_default());
    if let Ok(mut adapter) = LoraAdapter::open(directory) {
        drop(adapter.factors("model.layers.0.self_attn.q_proj", [4, 4]));
        drop(adapter.finish());
    }
}

/// The extent of every tensor must be within the file.
fn within(data: &[u8], tensors: Option<std::collections::HashMap<String, stored_tensor::StoredTensor>>) {
    for extent in tensors.into_iter().flatten().filter_map(|(_, stored)| stored.extent.ok()) {
        assert!(extent.start <= extent.end && extent.end <= data.len(), "{extent:?} of {} bytes", data.len());
    }
}
