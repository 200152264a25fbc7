//! What may be wrong with the tensors of a checkpoint.

use std::path::PathBuf;

use crate::checkpoint::config_section::ConfigFileError;
use crate::checkpoint::gguf::GgufError;
use crate::checkpoint::pickle::PickleError;
use crate::checkpoint::safetensors::SafetensorsError;

/// What is wrong with the tensors of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// There are none.
    #[error("{}: holds no weights; expected one of {expected}", directory.display())]
    NoWeights {
        /// Which directory.
        directory: PathBuf,
        /// Names of files that would do.
        expected: String,
    },
    /// The index of the shards.
    #[error(transparent)]
    Index(#[from] ConfigFileError),
    /// No such file, or no permission.
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No safetensors.
    #[error("{}: cannot be read as safetensors: {source}", file.display())]
    Safetensors {
        /// Which.
        file: PathBuf,
        /// Why.
        source: SafetensorsError,
    },
    /// No GGUF.
    #[error("{}: cannot be read as GGUF: {source}", file.display())]
    Gguf {
        /// Which.
        file: PathBuf,
        /// Why.
        source: GgufError,
    },
    /// No PyTorch checkpoint.
    #[error("{}: cannot be read as a PyTorch checkpoint: {source}", file.display())]
    Pickle {
        /// Which.
        file: PathBuf,
        /// Why.
        source: PickleError,
    },
    /// The file has no such tensor.
    #[error("{}: tensor {tensor} is missing", file.display())]
    Missing {
        /// Which file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// The elements of a tensor are not where the file says.
    #[error("{}: tensor {tensor} cannot be read: {problem}", file.display())]
    Data {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What is wrong with them.
        problem: String,
    },
    /// A tensor could not be brought into its new type.
    #[error("{}: converting tensor {tensor}: {source}", file.display())]
    Convert {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Why.
        source: Box<candle_core::Error>,
    },
    /// The tensor has another shape than the config says.
    #[error("{}: tensor {tensor} has shape {found:?}; the config makes it {expected:?}", file.display())]
    Shape {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What is stored.
        found: Vec<usize>,
        /// What follows from the config.
        expected: Vec<usize>,
    },
    /// Not a type of floats that is supported.
    #[error("{}: tensor {tensor} has type {found}; expected F32, BF16, F16 or F64", file.display())]
    ElementType {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What is stored.
        found: String,
    },
}
