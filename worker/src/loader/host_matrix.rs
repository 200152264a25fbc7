//! A matrix of weights on its way from a file to a device.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::LoadError;
use super::lora::Factors;
use super::tensor_files::{Encoding, Rows};
use crate::kernels::{Kernels, WeightFormat, quantise};

/// Weights `[outputs, inputs]` in the bytes of their format: row by row, each in whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMatrix {
    format: WeightFormat,
    shape: [usize; 2],
    bytes: Vec<u8>,
}

impl HostMatrix {
    /// A matrix of `shape` that has no rows yet.
    #[must_use]
    pub(super) fn new(format: WeightFormat, shape: [usize; 2]) -> Self {
        Self { format, shape, bytes: Vec::new() }
    }

    /// Outputs and inputs.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Adds the next rows, with what an adapter adds to them.
    pub(super) fn append(&mut self, rows: &Rows<'_>, update: Option<&Factors>) -> Result<(), LoadError> {
        if self.bytes.is_empty() {
            // The rows exist, so all of them are no more than a file holds.
            self.bytes.reserve_exact(self.shape[0].saturating_mul(row_bytes(self.format, self.shape[1])));
        }
        if update.is_none() && rows.encoding == &encoding(self.format) {
            self.bytes.extend_from_slice(rows.bytes);
            return Ok(());
        }
        let stored = rows.floats().map_err(LoadError::Convert)?;
        let floats = match update {
            None => stored,
            Some(update) => update.added_to(&stored, rows.range.start)?,
        };
        self.encode(&floats)
    }

    /// Adds rows of floats in this format.
    fn encode(&mut self, floats: &Tensor) -> Result<(), LoadError> {
        let all = |dtype| floats.to_dtype(dtype)?.flatten_all();
        let bytes = &mut self.bytes;
        let done: candle_core::Result<()> = match self.format {
            WeightFormat::F32 => all(DType::F32)
                .and_then(|all| all.to_vec1::<f32>())
                .map(|all| bytes.extend(all.into_iter().flat_map(f32::to_le_bytes))),
            WeightFormat::Bf16 => all(DType::BF16)
                .and_then(|all| all.to_vec1::<bf16>())
                .map(|all| bytes.extend(all.into_iter().flat_map(bf16::to_le_bytes))),
            WeightFormat::F16 => all(DType::F16)
                .and_then(|all| all.to_vec1::<f16>())
                .map(|all| bytes.extend(all.into_iter().flat_map(f16::to_le_bytes))),
            WeightFormat::Q8_0 | WeightFormat::Q4K => {
                bytes.extend(quantise(floats, self.format)?);
                Ok(())
            }
        };
        done.map_err(LoadError::Convert)
    }

    /// Matrices over the same inputs as one, whose outputs are theirs one behind the other.
    ///
    /// # Errors
    /// [`LoadError`] when they have to be converted to one format and cannot be.
    pub fn stacked(parts: Vec<Self>) -> Result<Self, LoadError> {
        let first = parts.first().map(|part| (part.format, part.shape[1]));
        let Some((format, inputs)) = first else { return Ok(Self::new(WeightFormat::F32, [0, 0])) };
        let same = parts.iter().all(|part| part.format == format);
        let quantised = parts.iter().any(|part| part.format.block().0 > 1);
        let format = match (same, quantised) {
            (true, _) => format,
            // The one that loses least beside the other.
            (false, true) => WeightFormat::Q8_0,
            (false, false) => WeightFormat::F32,
        };
        let mut stacked = Self::new(format, [parts.iter().map(|part| part.shape[0]).sum(), inputs]);
        stacked.bytes.reserve_exact(stacked.shape[0].saturating_mul(row_bytes(format, inputs)));
        for part in parts {
            let bytes = part.bytes.as_slice();
            let rows = Rows { range: 0..part.shape[0], width: inputs, encoding: &encoding(part.format), bytes };
            stacked.append(&rows, None)?;
        }
        Ok(stacked)
    }

    /// The matrix whose output `i` is this one's `order[i]`.
    #[must_use]
    pub fn reordered(&self, order: &[u32]) -> Self {
        let width = row_bytes(self.format, self.shape[1]);
        let rows = order.iter().map(|&row| &self.bytes[row as usize * width..][..width]);
        Self { format: self.format, shape: [order.len(), self.shape[1]], bytes: rows.collect::<Vec<_>>().concat() }
    }

    /// Brings the matrix to the device.
    ///
    /// # Errors
    /// [`LoadError::Kernel`].
    pub fn upload<K: Kernels>(self, kernels: &K) -> Result<K::Matrix, LoadError> {
        let Self { format, shape, bytes } = self;
        let Encoding::Floats(dtype) = encoding(format) else {
            return Ok(kernels.matrix_from_blocks(format, shape, &bytes)?);
        };
        let floats = Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu).map_err(LoadError::Convert)?;
        drop(bytes);
        Ok(kernels.matrix(&floats, format)?)
    }
}

impl Factors {
    /// `stored`, which are the rows of the weight from `first` on, with the rows of the product, in f32.
    fn added_to(&self, stored: &Tensor, first: usize) -> Result<Tensor, LoadError> {
        let product = self.up.narrow(0, first, stored.dims()[0]).and_then(|up| up.matmul(&self.down));
        product.and_then(|product| stored.to_dtype(DType::F32)? + product).map_err(LoadError::Convert)
    }
}

/// How a file stores rows that need no conversion.
fn encoding(format: WeightFormat) -> Encoding {
    match format {
        WeightFormat::F32 => Encoding::Floats(DType::F32),
        WeightFormat::Bf16 => Encoding::Floats(DType::BF16),
        WeightFormat::F16 => Encoding::Floats(DType::F16),
        WeightFormat::Q8_0 => Encoding::Blocks(GgmlDType::Q8_0),
        WeightFormat::Q4K => Encoding::Blocks(GgmlDType::Q4K),
    }
}

/// Bytes of a row of `inputs` weights; a last block is filled up.
pub(super) fn row_bytes(format: WeightFormat, inputs: usize) -> usize {
    let (weights, bytes) = format.block();
    inputs.div_ceil(weights).saturating_mul(bytes)
}
