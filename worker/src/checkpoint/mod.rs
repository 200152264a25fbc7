//! The files of a checkpoint, from the hub or the disk: formats, tensors, configs. Knows no decoder.

pub mod config_section;
pub mod gguf;
pub mod hub;
pub mod mapped_file;
pub mod pickle;
pub mod progress;
pub mod safetensors;
pub mod stored_tensor;
pub mod tensor_files;
