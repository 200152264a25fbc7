//! Why the weights of a model cannot be brought into memory.

use super::lora::AdapterError;
use crate::checkpoint::tensor_files::TensorError;
use crate::kernels::KernelError;

/// Why the weights of a model cannot be brought into memory.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The tensors of the checkpoint.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// The tensors of an adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Weights could not be converted.
    #[error("converting weights: {0}")]
    Convert(candle_core::Error),
    /// The device, or its memory.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
