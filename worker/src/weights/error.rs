//! Why the weights of a model cannot be brought into memory.

use super::lora::AdapterError;
use crate::checkpoint::tensor_files::TensorError;
use crate::kernels::KernelError;

/// Why the weights of a model cannot be brought into memory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum WeightsError {
    #[error(transparent)]
    Tensors(#[from] TensorError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("converting weights: {0}")]
    Convert(candle_core::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
