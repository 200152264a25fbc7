//! Why the tensors of a checkpoint cannot be read.

use std::path::PathBuf;

use crate::checkpoint::config_section::ConfigFileError;
use crate::checkpoint::gguf::GgufError;
use crate::checkpoint::pickle::PickleError;
use crate::checkpoint::safetensors::SafetensorsError;

/// Why the tensors of a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum TensorError {
    #[error("{}: holds no weights; expected one of {expected}", directory.display())]
    NoWeights { directory: PathBuf, expected: String },
    #[error(transparent)]
    Index(#[from] ConfigFileError),
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{}: cannot be read as safetensors: {source}", file.display())]
    Safetensors { file: PathBuf, source: SafetensorsError },
    #[error("{}: cannot be read as GGUF: {source}", file.display())]
    Gguf { file: PathBuf, source: GgufError },
    #[error("{}: cannot be read as a PyTorch checkpoint: {source}", file.display())]
    Pickle { file: PathBuf, source: PickleError },
    #[error("{}: tensor {tensor} is missing", file.display())]
    Missing { file: PathBuf, tensor: String },
    #[error("{}: tensor {tensor} cannot be read: {problem}", file.display())]
    Data { file: PathBuf, tensor: String, problem: String },
    #[error("{}: converting tensor {tensor}: {source}", file.display())]
    Convert { file: PathBuf, tensor: String, source: Box<candle_core::Error> },
    #[error("{}: tensor {tensor} has shape {found:?}; the config makes it {expected:?}", file.display())]
    Shape { file: PathBuf, tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{}: tensor {tensor} has type {found}; expected F32, BF16, F16 or F64", file.display())]
    ElementType { file: PathBuf, tensor: String, found: String },
}
