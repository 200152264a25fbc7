//! Memory of a forward pass.

use super::growing::GrowingBuffer;
use super::lora::LoraScratch;
use crate::families::{DecoderSpec, MlpSpec, PositionEmbedding};
use crate::kernels::{KernelError, Kernels};

/// Buffers of a forward pass, kept from one to the next.
pub(super) struct DecoderWorkspace<K: Kernels> {
    rows: usize,
    /// The residual stream `[rows][hidden]`.
    pub(super) stream: K::Buffer,
    /// Input of a branch.
    pub(super) normed: K::Buffer,
    /// Attention's addition to the stream.
    pub(super) attended: K::Buffer,
    /// The MLP's addition to the stream.
    pub(super) branch: K::Buffer,
    pub(super) qkv: K::Buffer,
    /// Output of the attention heads, before the output projection.
    pub(super) found: K::Buffer,
    /// First layer of the MLP, with its gate.
    pub(super) projected: K::Buffer,
    /// Activated and gated.
    pub(super) inner: K::Buffer,
    pub(super) angles: K::Buffer,
    pub(super) host_angles: Vec<f32>,
    pub(super) host_positions: Vec<u32>,
    /// Radians per token of every rotated pair.
    pub(super) frequencies: Vec<f64>,
    pub(super) logits: GrowingBuffer<K>,
    pub(super) scratch: LoraScratch<K>,
}

impl<K: Kernels> DecoderWorkspace<K> {
    pub(super) fn new(kernels: &K, spec: &DecoderSpec, rows: usize) -> Result<Self, KernelError> {
        let (rotated, frequencies) = match &spec.positions {
            PositionEmbedding::Rotary(rotary) => (rotary.width, super::rotary::frequencies(rotary)),
            PositionEmbedding::Learned => (0, Vec::new()),
        };
        let buffer = |width: usize| kernels.buffer(rows * width);
        let MlpSpec { inner, gated, .. } = spec.mlp;
        Ok(Self {
            rows,
            stream: buffer(spec.hidden)?,
            normed: buffer(spec.hidden)?,
            attended: buffer(spec.hidden)?,
            branch: buffer(spec.hidden)?,
            qkv: buffer(spec.heads.qkv_width())?,
            found: buffer(spec.heads.query_width())?,
            projected: buffer(if gated { 2 * inner } else { inner })?,
            inner: buffer(if gated { inner } else { 0 })?,
            angles: buffer(rotated)?,
            host_angles: Vec::new(),
            host_positions: Vec::new(),
            frequencies,
            logits: GrowingBuffer::new(kernels)?,
            scratch: LoraScratch::new(kernels)?,
        })
    }

    /// Grows to the largest batch seen; the scheduler bounds batches.
    pub(super) fn reserve(&mut self, kernels: &K, spec: &DecoderSpec, rows: usize) -> Result<(), KernelError> {
        if rows > self.rows {
            *self = Self::new(kernels, spec, rows)?;
        }
        Ok(())
    }
}
