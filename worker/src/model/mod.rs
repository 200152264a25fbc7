//! A model from its path to its logits: the one place that knows checkpoint, family, weights, decoder and device.

pub mod allocator;
mod checkpoint;
mod device;
mod load;
pub mod memory_plan;
mod placed_decoder;
mod runner;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use device::DeviceChoice;
pub use load::{KvDtype, LoadOptions, ModelDescription, ModelLoadError, load};
pub use memory_plan::CacheSize;
pub use runner::{BatchItem, BatchLogits, ForwardError, ModelRunner};

pub use crate::weights::lora::NamedAdapter;
pub use crate::weights::{DtypeChoice, QuantizedFormat};
