//! The kernels on a device of candle: CUDA, or its CPU, on which what runs on CUDA can be tested.
//!
//! A buffer is the tensor that was last written to it; what an operation finds behind that is an error. Activations are
//! f32. Weights in f32 multiply exactly. Weights in 16 bits multiply activations that are rounded to their type; products
//! are summed in f32 and the sums rounded to the type, as tensor cores do it. Quantised weights go through candle's own
//! kernels, which round activations to 8 bits. Attention is in f32 whatever the cache stores.
//!
//! Operations are queued; the first failure is kept until [`Kernels::read`] asks.
//!
//! **Not promised here**, unlike by [`super::cpu`]: that a row's bits do not depend on its batch. Matrix libraries choose
//! the order of a sum by the shape of the whole product.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{ops, rotary_emb};

use self::attention::Prepared;
use super::{
    Activation, CacheFormat, CacheShape, Heads, KernelError, Kernels, NormKind, NormWeights, Pairs, Place,
    RotaryLayout, WeightFormat, blocks,
};

mod attention;

/// Most elements of one tensor of attention: 512 MiB of f32.
const ATTENTION_ELEMENTS: usize = 1 << 27;

/// A device, and what went wrong on it.
#[derive(Debug)]
pub struct Candle {
    device: Device,
    /// The first failure since the last time that somebody waited.
    failure: Mutex<Option<KernelError>>,
    /// The places of the batch under way: every layer asks for the same ones.
    prepared: Mutex<Option<Prepared>>,
    attention_elements: usize,
}

/// Weights `[outputs, inputs]`.
#[derive(Debug)]
pub struct Matrix {
    inputs: usize,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    /// f32, or a type of 16 bits.
    Floats(Tensor),
    /// Rows are filled up to whole blocks.
    Blocks { matrix: QMatMul, padded: usize },
}

/// Keys and values.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    /// By layer: `[blocks · block_tokens][2 · kv_width]`, a token's keys, then its values.
    layers: Vec<Tensor>,
}

impl Candle {
    /// Kernels on `device`.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device, failure: Mutex::default(), prepared: Mutex::default(), attention_elements: ATTENTION_ELEMENTS }
    }

    /// The same with another limit than 512 MiB of f32 to a tensor of attention: many rows, or many tokens that they see,
    /// are computed piece by piece.
    #[must_use]
    pub fn with_attention_elements(self, attention_elements: usize) -> Self {
        Self { attention_elements, ..self }
    }

    /// Makes `computed` the content of `buffer`, or keeps its failure.
    fn store(&self, computed: Result<Tensor>, buffer: &mut Tensor) {
        match computed.and_then(|tensor| tensor.flatten_all()) {
            Ok(tensor) => *buffer = tensor,
            Err(error) => self.keep(device(error)),
        }
    }

    fn keep(&self, error: KernelError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Indices on the device.
    fn indices(&self, rows: impl IntoIterator<Item = usize>) -> Result<Tensor> {
        indices(rows, &self.device)
    }

    /// Calls `with` with what is prepared for `places` of a cache of `shape`.
    fn prepared<T>(
        &self,
        places: &[Place<'_>],
        shape: CacheShape,
        with: impl FnOnce(&mut Prepared) -> Result<T>,
    ) -> Result<T> {
        let mut held = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = match held.take() {
            Some(known) if known.is_for(places, shape) => known,
            _ => Prepared::new(places, shape, &self.device)?,
        };
        with(held.insert(prepared))
    }
}

impl Kernels for Candle {
    type Buffer = Tensor;
    type Matrix = Matrix;
    type Cache = Cache;

    #[cfg(feature = "cuda")]
    fn free_bytes(&self) -> std::result::Result<Option<u64>, KernelError> {
        let Device::Cuda(cuda) = &self.device else { return Ok(None) };
        let (free, _) =
            cuda.cuda_stream().context().mem_get_info().map_err(|error| KernelError::Device(error.to_string()))?;
        Ok(Some(free as u64))
    }

    fn buffer(&self, elements: usize) -> std::result::Result<Tensor, KernelError> {
        // No device allocates nothing.
        Tensor::zeros(elements.max(1), DType::F32, &self.device).map_err(device)
    }

    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> std::result::Result<Matrix, KernelError> {
        let (outputs, inputs) = weights.dims2().map_err(device)?;
        let stored = match format {
            WeightFormat::F32 => DType::F32,
            WeightFormat::Bf16 => DType::BF16,
            WeightFormat::F16 => DType::F16,
            WeightFormat::Q8_0 | WeightFormat::Q4K => {
                return self.matrix_from_blocks(format, [outputs, inputs], &blocks::quantise(weights, format)?);
            }
        };
        let weights = weights.to_dtype(stored).and_then(|weights| weights.to_device(&self.device)).map_err(device)?;
        Ok(Matrix { inputs, weights: Weights::Floats(weights) })
    }

    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        [outputs, inputs]: [usize; 2],
        blocks: &[u8],
    ) -> std::result::Result<Matrix, KernelError> {
        blocks::check(format, [outputs, inputs], blocks)?;
        let (dtype, padded) = (blocks::ggml(format)?, inputs.next_multiple_of(format.block().0));
        let stored = QStorage::from_data(blocks.into(), &self.device, dtype);
        let matrix = stored.and_then(|stored| QMatMul::from_qtensor(QTensor::new(stored, (outputs, padded))?));
        Ok(Matrix { inputs, weights: Weights::Blocks { matrix: matrix.map_err(device)?, padded } })
    }

    fn cache(&self, shape: CacheShape) -> std::result::Result<Cache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        let slots = shape.blocks * shape.block_tokens;
        // Indices on the device have 32 bits.
        if u32::try_from(slots).is_err() {
            return Err(KernelError::OutOfMemory { elements });
        }
        let layer = || Tensor::zeros((slots, 2 * shape.kv_width), dtype(shape.format), &self.device);
        let layers = (0..shape.layers).map(|_| layer()).collect::<Result<_>>().map_err(device)?;
        Ok(Cache { shape, layers })
    }

    fn write(&self, values: &[f32], buffer: &mut Tensor) -> std::result::Result<(), KernelError> {
        if !values.is_empty() {
            *buffer = Tensor::from_slice(values, values.len(), &self.device).map_err(device)?;
        }
        Ok(())
    }

    fn read(&self, buffer: &Tensor, values: &mut [f32]) -> std::result::Result<(), KernelError> {
        if let Some(error) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        if values.is_empty() {
            return self.device.synchronize().map_err(device);
        }
        let found = buffer.narrow(0, 0, values.len()).and_then(|found| found.to_vec1()).map_err(device)?;
        values.copy_from_slice(&found);
        Ok(())
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Tensor) {
        self.store(self.indices(ids.iter().map(|&id| id as usize)).and_then(|ids| table.embedded(&ids)), out);
    }

    fn select(&self, x: &Tensor, width: usize, rows: &[usize], out: &mut Tensor) {
        if !rows.is_empty() {
            let selected = || all_rows(x, width)?.index_select(&self.indices(rows.iter().copied())?, 0);
            self.store(selected(), out);
        }
    }

    fn norm(&self, x: &Tensor, rows: usize, norm: NormWeights<'_, Tensor>, out: &mut Tensor) {
        self.store(normalised(x, rows, norm), out);
    }

    fn linear(&self, x: &Tensor, rows: usize, weight: &Matrix, bias: Option<&Tensor>, out: &mut Tensor) {
        if rows > 0 {
            self.store(rows_of(x, rows, weight.inputs).and_then(|x| weight.product(&x, bias)), out);
        }
    }

    fn rotate(&self, qkv: &mut Tensor, rows: usize, heads: Heads, rotary: RotaryLayout, angles: &Tensor) {
        self.store(rotated(qkv, rows, heads, rotary, angles), qkv);
    }

    fn append(&self, qkv: &Tensor, heads: Heads, places: &[Place<'_>], cache: &mut Cache, layer: usize) {
        let append = || {
            let cached = rows_of(qkv, places.len(), heads.qkv_width())?;
            let cached = cached.narrow(1, heads.query_width(), 2 * heads.kv_width())?;
            let cached = cached.to_dtype(dtype(cache.shape.format))?.contiguous()?;
            let layer = &cache.layers[layer];
            self.prepared(places, cache.shape, |prepared| layer.scatter_set(prepared.slots(), &cached, 0))
        };
        if let Err(error) = append() {
            self.keep(device(error));
        }
    }

    fn attend(
        &self,
        qkv: &Tensor,
        heads: Heads,
        window: Option<usize>,
        places: &[Place<'_>],
        (cache, layer): (&Cache, usize),
        out: &mut Tensor,
    ) {
        let attended = || {
            let (qkv, layer) = (rows_of(qkv, places.len(), heads.qkv_width())?, &cache.layers[layer]);
            let elements = self.attention_elements;
            self.prepared(places, cache.shape, |prepared| prepared.attend(&qkv, heads, window, layer, elements))
        };
        self.store(attended(), out);
    }

    fn activate(&self, activation: Activation, x: &mut Tensor, elements: usize) {
        self.store(x.narrow(0, 0, elements).and_then(|x| activated(activation, &x)), x);
    }

    fn activate_gated(&self, activation: Activation, x: &Tensor, rows: usize, inner: usize, out: &mut Tensor) {
        let gated = || {
            let x = rows_of(x, rows, 2 * inner)?;
            activated(activation, &x.narrow(1, 0, inner)?)? * x.narrow(1, inner, inner)?
        };
        self.store(gated(), out);
    }

    fn add(&self, x: &mut Tensor, y: &Tensor, elements: usize) {
        let sum = x.narrow(0, 0, elements).and_then(|x| x + y.narrow(0, 0, elements)?);
        self.store(sum, x);
    }

    fn add_rows(&self, x: &mut Tensor, width: usize, rows: &[usize], columns: Range<usize>, y: &Tensor) {
        if rows.is_empty() {
            return;
        }
        let sum = || {
            let y = rows_of(y, rows.len(), columns.len())?.pad_with_zeros(1, columns.start, width - columns.end)?;
            all_rows(x, width)?.index_add(&self.indices(rows.iter().copied())?, &y, 0)
        };
        self.store(sum(), x);
    }
}

impl Matrix {
    /// The rows `ids`, in f32.
    fn embedded(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Weights::Floats(table) => table.index_select(ids, 0)?.to_dtype(DType::F32),
            Weights::Blocks { matrix, .. } => matrix.embedding(ids)?.narrow(1, 0, self.inputs),
        }
    }

    /// `x · weightᵀ + bias`, in f32, for `x` of `[rows][inputs]`.
    fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let product = match &self.weights {
            Weights::Floats(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32)?,
            Weights::Blocks { matrix, padded } => matrix.forward(&x.pad_with_zeros(1, 0, padded - self.inputs)?)?,
        };
        match bias {
            Some(bias) => product.broadcast_add(&bias.narrow(0, 0, product.dims2()?.1)?),
            None => Ok(product),
        }
    }
}

fn normalised(x: &Tensor, rows: usize, norm: NormWeights<'_, Tensor>) -> Result<Tensor> {
    let NormWeights { kind, epsilon, width, weight, bias } = norm;
    let (x, weight) = (rows_of(x, rows, width)?, weight.narrow(0, 0, width)?);
    let bias = bias.map(|bias| bias.narrow(0, 0, width)).transpose()?;
    match (kind, bias) {
        (NormKind::RootMeanSquare, None) => ops::rms_norm(&x, &weight, epsilon as f32),
        (NormKind::RootMeanSquare, Some(bias)) => ops::rms_norm(&x, &weight, epsilon as f32)?.broadcast_add(&bias),
        (NormKind::Layer, None) => ops::layer_norm(&x, &weight, &weight.zeros_like()?, epsilon as f32),
        (NormKind::Layer, Some(bias)) => ops::layer_norm(&x, &weight, &bias, epsilon as f32),
    }
}

fn rotated(qkv: &Tensor, rows: usize, heads: Heads, rotary: RotaryLayout, angles: &Tensor) -> Result<Tensor> {
    let count = heads.query + heads.kv;
    let qkv = rows_of(qkv, rows, heads.qkv_width())?;
    let turning = qkv.narrow(1, 0, count * heads.width)?.reshape((rows, count, heads.width))?;
    let angles = rows_of(angles, rows, rotary.width)?;
    let half = rotary.width / 2;
    // A row is a sequence of one token for candle, which takes angles by sequence.
    let of_pairs = |first| angles.narrow(1, first, half)?.unsqueeze(1)?.contiguous();
    let (cos, sin) = (of_pairs(0)?, of_pairs(half)?);
    let part = turning.narrow(2, 0, rotary.width)?.unsqueeze(2)?.contiguous()?;
    let turned = match rotary.pairs {
        Pairs::Halves => rotary_emb::rope(&part, &cos, &sin)?,
        Pairs::Neighbours => rotary_emb::rope_i(&part, &cos, &sin)?,
    };
    let turned = match heads.width - rotary.width {
        0 => turned.squeeze(2)?,
        rest => {
            let rest = turning.narrow(2, rotary.width, rest)?.contiguous()?;
            Tensor::cat(&[turned.squeeze(2)?, rest], 2)?
        }
    };
    let values = qkv.narrow(1, count * heads.width, heads.kv_width())?.contiguous()?;
    Tensor::cat(&[turned.reshape((rows, count * heads.width))?, values], 1)
}

fn activated(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::GeluErf => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
    }
}

/// The first `rows` rows of a buffer.
fn rows_of(buffer: &Tensor, rows: usize, width: usize) -> Result<Tensor> {
    buffer.narrow(0, 0, rows * width)?.reshape((rows, width))
}

/// The rows of a buffer.
fn all_rows(buffer: &Tensor, width: usize) -> Result<Tensor> {
    rows_of(buffer, buffer.elem_count() / width, width)
}

/// Indices on a device: of tokens, rows, positions or slots, all of which 32 bits count.
fn indices(rows: impl IntoIterator<Item = usize>, device: &Device) -> Result<Tensor> {
    let rows: Vec<u32> = rows.into_iter().map(|row| row as u32).collect();
    Tensor::from_slice(&rows, rows.len(), device)
}

fn dtype(format: CacheFormat) -> DType {
    match format {
        CacheFormat::F32 => DType::F32,
        CacheFormat::F16 => DType::F16,
        CacheFormat::Bf16 => DType::BF16,
    }
}

fn device(error: candle_core::Error) -> KernelError {
    KernelError::Device(error.to_string())
}
