//! A matrix of weights in host memory, between file and device.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::WeightsError;
use super::lora::LoraFactors;
use crate::checkpoint::stored_tensor::{StoredRows, TensorEncoding};
use crate::kernels::{Kernels, WeightFormat, encode, ggml};

/// Rows that one thread quantises at a time.
const ROWS_AT_A_TIME: usize = 32;

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

    /// Appends the next rows, plus an adapter's update.
    pub(super) fn append(&mut self, rows: &StoredRows<'_>, update: Option<&LoraFactors>) -> Result<(), WeightsError> {
        if self.bytes.is_empty() {
            // The rows are in the file, so this is no more than the file holds.
            self.bytes.reserve_exact(self.shape[0].saturating_mul(row_bytes(self.format, self.shape[1])));
        }
        if update.is_none() && rows.encoding == &encoding(self.format) {
            self.bytes.extend_from_slice(rows.bytes);
            return Ok(());
        }
        let stored = rows.floats().map_err(WeightsError::Convert)?;
        let floats = match update {
            None => stored,
            Some(update) => update.added_to(&stored, rows.range.start)?,
        };
        self.bytes.extend(encoded(&floats, self.format)?);
        Ok(())
    }

    /// Stacks the outputs of matrices over the same inputs.
    ///
    /// # Errors
    /// [`WeightsError`] when they have to be converted to one format and cannot be.
    pub fn stacked(parts: Vec<Self>) -> Result<Self, WeightsError> {
        let first = parts.first().map(|part| (part.format, part.shape[1]));
        let Some((format, inputs)) = first else { return Ok(Self::new(WeightFormat::F32, [0, 0])) };
        let same = parts.iter().all(|part| part.format == format);
        let quantised = parts.iter().any(|part| part.format.block().0 > 1);
        let format = match (same, quantised) {
            (true, _) => format,
            // The format that loses least.
            (false, true) => WeightFormat::Q8_0,
            (false, false) => WeightFormat::F32,
        };
        let mut stacked = Self::new(format, [parts.iter().map(|part| part.shape[0]).sum(), inputs]);
        stacked.bytes.reserve_exact(stacked.shape[0].saturating_mul(row_bytes(format, inputs)));
        for part in parts {
            let bytes = part.bytes.as_slice();
            let rows = StoredRows { range: 0..part.shape[0], width: inputs, encoding: &encoding(part.format), bytes };
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

    /// Uploads the matrix to the device.
    ///
    /// # Errors
    /// [`WeightsError::Kernel`].
    pub fn upload<K: Kernels>(self, kernels: &K) -> Result<K::Matrix, WeightsError> {
        let Self { format, shape, bytes } = self;
        Ok(match format.block().0 {
            1 => kernels.matrix_from_floats(format, shape, bytes)?,
            _ => kernels.matrix_from_blocks(format, shape, &bytes)?,
        })
    }
}

impl LoraFactors {
    /// The factors for a layer whose output `i` is this one's `order[i]`.
    ///
    /// # Errors
    /// [`WeightsError`] when an index is out of range.
    pub fn reordered(self, order: &[u32]) -> Result<Self, WeightsError> {
        let index = Tensor::from_slice(order, order.len(), &Device::Cpu);
        let up = index.and_then(|index| self.up.index_select(&index, 0)).map_err(WeightsError::Convert)?;
        Ok(Self { up, ..self })
    }

    /// `stored`, which are the rows of the weight from `first` on, with the rows of the product, in f32.
    fn added_to(&self, stored: &Tensor, first: usize) -> Result<Tensor, WeightsError> {
        let product = self.up.narrow(0, first, stored.dims()[0]).and_then(|up| up.matmul(&self.down));
        product.and_then(|product| stored.to_dtype(DType::F32)? + product).map_err(WeightsError::Convert)
    }
}

/// The bytes of rows of floats. All threads quantise: searching for the best scales takes longer than reading.
fn encoded(floats: &Tensor, format: WeightFormat) -> Result<Vec<u8>, WeightsError> {
    if format.dtype().is_ok() {
        return Ok(encode(floats, format)?);
    }
    let rows = floats.dims()[0];
    let firsts: Vec<usize> = (0..rows).step_by(ROWS_AT_A_TIME).collect();
    let some = |&first: &usize| {
        let piece = floats.narrow(0, first, ROWS_AT_A_TIME.min(rows - first));
        // A copy, because candle quantises from the beginning of a view's storage.
        let piece = piece.and_then(|piece| piece.force_contiguous()).map_err(WeightsError::Convert)?;
        Ok::<_, WeightsError>(encode(&piece, format)?)
    };
    Ok(firsts.par_iter().map(some).collect::<Result<Vec<_>, _>>()?.concat())
}

/// The encoding of a file that needs no conversion.
fn encoding(format: WeightFormat) -> TensorEncoding {
    match format.dtype() {
        Ok(dtype) => TensorEncoding::Floats(dtype),
        Err(_) => ggml(format).map_or_else(|error| TensorEncoding::Other(error.to_string()), TensorEncoding::Blocks),
    }
}

/// Bytes of a row of `inputs` weights, padded to whole blocks.
pub(super) fn row_bytes(format: WeightFormat, inputs: usize) -> usize {
    let (weights, bytes) = format.block();
    inputs.div_ceil(weights).saturating_mul(bytes)
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::checkpoint::stored_tensor::dequantise;

    const SHAPE: [usize; 2] = [3, 256];

    /// A matrix as a file stores it in `dtype`.
    fn stored(dtype: GgmlDType) -> Vec<u8> {
        let floats = Tensor::randn(0f32, 1.0, &SHAPE, &Device::Cpu).unwrap();
        QTensor::quantize(&floats, dtype).unwrap().data().unwrap().into_owned()
    }

    fn read(format: WeightFormat, dtype: GgmlDType, bytes: &[u8]) -> HostMatrix {
        let mut matrix = HostMatrix::new(format, SHAPE);
        let rows =
            StoredRows { range: 0..SHAPE[0], width: SHAPE[1], encoding: &TensorEncoding::Blocks(dtype), bytes };
        matrix.append(&rows, None).unwrap();
        matrix
    }

    /// Largest difference of the numbers in a matrix of Q8_0 from the first of those in `bytes`.
    fn difference(matrix: &HostMatrix, dtype: GgmlDType, bytes: &[u8]) -> f32 {
        let found = dequantise(GgmlDType::Q8_0, matrix.shape, &matrix.bytes).unwrap().narrow(0, 0, SHAPE[0]).unwrap();
        let expected = dequantise(dtype, SHAPE, bytes).unwrap();
        (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn blocks_are_kept_or_become_q8_0() {
        let bytes = stored(GgmlDType::Q4K);
        assert_eq!(read(WeightFormat::Q4K, GgmlDType::Q4K, &bytes).bytes, bytes);
        for dtype in [GgmlDType::Q6K, GgmlDType::Q5K, GgmlDType::Q3K, GgmlDType::Q2K, GgmlDType::Q5_0] {
            let bytes = stored(dtype);
            let matrix = read(WeightFormat::Q8_0, dtype, &bytes);
            // Half a step of 127 to the largest number there can be.
            assert!(difference(&matrix, dtype, &bytes) < 6.0 / 127.0 / 2.0, "{dtype:?}");
        }
    }

    #[test]
    fn matrices_of_two_formats_are_stacked_as_q8_0() {
        let (four, eight) = (stored(GgmlDType::Q4K), stored(GgmlDType::Q8_0));
        let parts = [(WeightFormat::Q4K, GgmlDType::Q4K, &four), (WeightFormat::Q8_0, GgmlDType::Q8_0, &eight)];
        let stacked =
            HostMatrix::stacked(parts.map(|(format, dtype, bytes)| read(format, dtype, bytes)).into()).unwrap();
        assert_eq!((stacked.format, stacked.shape), (WeightFormat::Q8_0, [6, 256]));
        assert!(stacked.bytes.ends_with(&eight));
        assert!(
            difference(&HostMatrix { shape: SHAPE, ..stacked.reordered(&[0, 1, 2]) }, GgmlDType::Q4K, &four) < 0.03
        );
        assert_eq!(stacked.reordered(&[5, 3]).bytes[..8 * 34], eight[2 * 8 * 34..]);
    }
}
