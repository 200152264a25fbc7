//! One decoder-only transformer for all families, over ragged batches and a paged cache.
//!
//! The decoder never sees a session, and knows no device: it drives [`crate::kernels::Kernels`].

mod attention;
mod batch;
#[expect(clippy::module_inception, reason = "the file that reads like the paper's diagram")]
mod decoder;
mod growing;
mod linear;
mod lora;
mod mlp;
mod norm;
mod rotary;
mod workspace;

pub use batch::{AdaptedRows, DecoderBatch};
pub use decoder::DecoderModel;
