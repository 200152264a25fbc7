//! The weights of a checkpoint on their way to a device, and the LoRA adapters of a model. Knows no decoder.

mod error;
mod host_matrix;
pub mod lora;
mod model_weights;

pub use error::WeightsError;
pub use host_matrix::HostMatrix;
pub(crate) use model_weights::digest;
pub use model_weights::{DtypeChoice, ModelWeights, QuantizedFormat};
