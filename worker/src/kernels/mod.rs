//! The arithmetic of a forward pass, one trait for every device.
//!
//! The decoder works on buffers of the trait's own type and does not know where they are. All matrices are
//! row-major. A buffer may be longer than an operation needs; operations start at its beginning. Elements after the
//! ones that the last operation wrote are undefined.
//!
//! All implementations promise that a row of a result has the same bits, whatever the other rows and however the
//! cache blocks of its sequence are placed.

use std::ops::Range;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use crate::logits_view::{BufferPool, KeptLogits, LogitsTask};

mod attention_shape;
mod blocks;
pub mod cpu;
pub mod cuda;
mod error;
mod layer_kinds;
pub mod reference;
mod weight_format;

pub use attention_shape::{AttentionHeads, CacheFormat, CacheShape, RotaryLayout, RotaryPairs, TokenPlace};
pub(crate) use blocks::{encode, ggml};
pub use error::KernelError;
pub use layer_kinds::{Activation, NormKind, NormWeights};
pub use weight_format::WeightFormat;

/// Device operations of a decoder.
pub trait Kernels {
    /// Activations, or a vector of weights.
    type Buffer;
    /// Weights `[outputs, inputs]` in their storage type.
    type Matrix;
    /// Keys and values of all layers, `[layers][blocks][block_tokens][kv_heads][head_dim]` each.
    type Cache;

    /// Free bytes of the device's own memory; `None` where it uses the host's.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    fn free_bytes(&self) -> Result<Option<u64>, KernelError> {
        Ok(None)
    }

    /// Default format of the KV cache for `weights`.
    fn cache_format(&self, _weights: WeightFormat) -> CacheFormat {
        CacheFormat::F32
    }

    /// A buffer of `elements` zeros.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    fn buffer(&self, elements: usize) -> Result<Self::Buffer, KernelError>;

    /// Uploads a matrix of weights, converted or quantised to `format`.
    ///
    /// # Errors
    /// [`KernelError`] when `weights` is no matrix of floats, or out of memory.
    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> Result<Self::Matrix, KernelError>;

    /// Uploads a matrix `[outputs, inputs]` stored in the blocks of a GGML file.
    ///
    /// # Errors
    /// [`KernelError`] when `format` has no blocks, or `blocks` has the wrong length.
    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        blocks: &[u8],
    ) -> Result<Self::Matrix, KernelError>;

    /// Uploads a matrix `[outputs, inputs]` whose `bytes` are floats of `format`, row by row.
    ///
    /// # Errors
    /// [`KernelError`] when `format` has blocks, or `bytes` has the wrong length.
    fn matrix_from_floats(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        bytes: Vec<u8>,
    ) -> Result<Self::Matrix, KernelError> {
        let floats = Tensor::from_raw_buffer(&bytes, format.dtype()?, &shape, &Device::Cpu);
        let floats = floats.map_err(|error| KernelError::Device(error.to_string()))?;
        drop(bytes);
        self.matrix(&floats, format)
    }

    /// An empty cache.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, KernelError>;

    /// Copies `values` from the host to the beginning of `buffer`.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    fn write(&self, values: &[f32], buffer: &mut Self::Buffer) -> Result<(), KernelError>;

    /// Waits for `buffer` and copies its beginning to the host.
    ///
    /// # Errors
    /// [`KernelError::Device`] for any failure since the last call.
    fn read(&self, buffer: &Self::Buffer, values: &mut [f32]) -> Result<(), KernelError>;

    /// `out[i] = table[ids[i]]`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buffer);

    /// `out[i] = x[rows[i]]` for rows of `width`.
    fn select(&self, x: &Self::Buffer, width: usize, rows: &[usize], out: &mut Self::Buffer);

    /// Normalises `rows` rows of the width of `weight`; see [`NormKind`].
    fn norm(&self, x: &Self::Buffer, rows: usize, norm: NormWeights<'_, Self::Buffer>, out: &mut Self::Buffer);

    /// `out = x · weightᵀ + bias` for `rows` rows.
    fn linear(
        &self,
        x: &Self::Buffer,
        rows: usize,
        weight: &Self::Matrix,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
    );

    /// `sum += x · weightᵀ + bias` for `rows` rows of a sum of `width`; `product` is memory for the product.
    fn linear_add(
        &self,
        x: &Self::Buffer,
        rows: usize,
        weight: &Self::Matrix,
        bias: Option<&Self::Buffer>,
        (sum, width): (&mut Self::Buffer, usize),
        product: &mut Self::Buffer,
    ) {
        self.linear(x, rows, weight, bias, product);
        self.add(sum, product, rows * width);
    }

    /// Rotates the query and key heads of `qkv` in place.
    ///
    /// `angles` is `[rows][rotary.width]`: the cosines of a row's pairs, then their sines.
    fn rotate(
        &self,
        qkv: &mut Self::Buffer,
        rows: usize,
        heads: AttentionHeads,
        rotary: RotaryLayout,
        angles: &Self::Buffer,
    );

    /// Stores the keys and values of the rows of `qkv` at their places in the cache.
    fn append(
        &self,
        qkv: &Self::Buffer,
        heads: AttentionHeads,
        places: &[TokenPlace<'_>],
        cache: &mut Self::Cache,
        layer: usize,
    );

    /// [`Self::rotate`] for the rows of `places`, then [`Self::append`].
    fn rotate_and_append(
        &self,
        qkv: &mut Self::Buffer,
        heads: AttentionHeads,
        (rotary, angles): (RotaryLayout, &Self::Buffer),
        places: &[TokenPlace<'_>],
        cache: &mut Self::Cache,
        layer: usize,
    ) {
        self.rotate(qkv, places.len(), heads, rotary, angles);
        self.append(qkv, heads, places, cache, layer);
    }

    /// Causal attention of each row's queries over the cache up to the row's own position.
    ///
    /// Writes `[rows][heads][head_dim]`.
    fn attend(
        &self,
        qkv: &Self::Buffer,
        heads: AttentionHeads,
        window: Option<usize>,
        places: &[TokenPlace<'_>],
        cache: (&Self::Cache, usize),
        out: &mut Self::Buffer,
    );

    /// Applies `activation` to the first `elements` in place.
    fn activate(&self, activation: Activation, x: &mut Self::Buffer, elements: usize);

    /// `out[r][i] = activation(x[r][i]) · x[r][inner + i]` for rows of `2 · inner`.
    fn activate_gated(
        &self,
        activation: Activation,
        x: &Self::Buffer,
        rows: usize,
        inner: usize,
        out: &mut Self::Buffer,
    );

    /// `x += y` for the first `elements`.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer, elements: usize);

    /// `x[rows[i]][columns] += y[i]` for rows of `x` of `width`, each named once.
    fn add_rows(&self, x: &mut Self::Buffer, width: usize, rows: &[usize], columns: Range<usize>, y: &Self::Buffer);

    /// Waits for `logits`, `[tasks][vocabulary]`, and runs `tasks[i]` on row i, with the bits that
    /// [`LogitsTask::read`] gives. Returns how long that took after the forward pass.
    ///
    /// # Errors
    /// [`KernelError::Device`] for any failure since the last call.
    fn read_rows(
        &self,
        logits: &Self::Buffer,
        vocabulary: usize,
        tasks: &mut [LogitsTask<'_>],
    ) -> Result<Duration, KernelError> {
        let mut values = vec![0.0; tasks.len() * vocabulary];
        self.read(logits, &mut values)?;
        let (began, spare) = (Instant::now(), BufferPool::default());
        tasks.iter_mut().zip(values.chunks_exact(vocabulary)).for_each(|(task, row)| task.read(row, &spare));
        Ok(began.elapsed())
    }

    /// Runs `task` on a row that [`Self::read_rows`] kept.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    fn read_kept(&self, row: &KeptLogits, task: &mut LogitsTask<'_>) -> Result<(), KernelError> {
        let logits = row.logits().ok_or_else(|| KernelError::Device("the row was kept elsewhere".to_owned()))?;
        task.read(logits, &BufferPool::default());
        Ok(())
    }
}
