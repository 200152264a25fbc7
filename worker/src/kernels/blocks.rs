//! Weights as bytes: little-endian floats, or GGML's blocks, and the numbers in a block.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use half::{bf16, f16};

use super::error::KernelError;
use super::weight_format::{BLOCK, SUPER_BLOCK, WeightFormat};

/// Parts of a super-block with one scale each.
pub(super) const PARTS: usize = SUPER_BLOCK / BLOCK;

/// Converts `[outputs, inputs]` to the bytes of `format`.
pub(crate) fn encode(weights: &Tensor, format: WeightFormat) -> Result<Vec<u8>, KernelError> {
    let Ok(dtype) = format.dtype() else { return quantise(weights, format) };
    let bytes = || -> candle_core::Result<Vec<u8>> {
        let all = weights.to_dtype(dtype)?.flatten_all()?;
        Ok(match dtype {
            DType::BF16 => all.to_vec1::<bf16>()?.into_iter().flat_map(bf16::to_le_bytes).collect(),
            DType::F16 => all.to_vec1::<f16>()?.into_iter().flat_map(f16::to_le_bytes).collect(),
            _ => all.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
        })
    };
    bytes().map_err(|error| KernelError::Device(error.to_string()))
}

/// Quantises `[outputs, inputs]` to the blocks of a GGML file; rows are padded with zeros to whole blocks.
pub(super) fn quantise(weights: &Tensor, format: WeightFormat) -> Result<Vec<u8>, KernelError> {
    let dtype = ggml(format)?;
    let whole = || -> candle_core::Result<Vec<u8>> {
        let (_, inputs) = weights.dims2()?;
        let missing = inputs.next_multiple_of(format.block().0) - inputs;
        let padded = weights.to_dtype(DType::F32)?.pad_with_zeros(1, 0, missing)?;
        Ok(QTensor::quantize(&padded, dtype)?.data()?.into_owned())
    };
    whole().map_err(|error| KernelError::Device(error.to_string()))
}

/// Candle's type of the blocks.
pub(crate) fn ggml(format: WeightFormat) -> Result<GgmlDType, KernelError> {
    match format {
        WeightFormat::Q8_0 => Ok(GgmlDType::Q8_0),
        WeightFormat::Q4K => Ok(GgmlDType::Q4K),
        other => Err(KernelError::Device(format!("{other:?} has no blocks; expected Q8_0 or Q4K"))),
    }
}

/// Checks that `blocks` are a matrix of `shape`, each row in whole blocks of which the last may be filled up.
pub(super) fn check(format: WeightFormat, shape: [usize; 2], blocks: &[u8]) -> Result<(), KernelError> {
    ggml(format)?;
    let ([outputs, inputs], (weights, bytes)) = (shape, format.block());
    let expected = inputs.div_ceil(weights).checked_mul(bytes).and_then(|row| row.checked_mul(outputs));
    if expected != Some(blocks.len()) {
        let found = blocks.len();
        return Err(KernelError::Device(format!("{found} bytes are no {format:?} matrix [{outputs}, {inputs}]")));
    }
    Ok(())
}

/// 32 weights `scale · quant`.
pub(super) struct Q8Block {
    pub(super) scale: f16,
    pub(super) quants: [i8; BLOCK],
}

/// 256 weights `scale · scales[i] · quant - minimum · minimums[i]`, part `i` of 32 at a time.
pub(super) struct Q4KBlock {
    pub(super) scale: f16,
    pub(super) minimum: f16,
    /// Below 64.
    pub(super) scales: [u8; PARTS],
    /// Below 64.
    pub(super) minimums: [u8; PARTS],
    /// Below 16.
    pub(super) quants: [u8; SUPER_BLOCK],
}

/// GGML's `block_q8_0`.
pub(super) fn q8_0(bytes: &[u8; 34]) -> Q8Block {
    let (scale, quants) = half(bytes);
    Q8Block { scale, quants: std::array::from_fn(|i| quants[i] as i8) }
}

/// GGML's `block_q4_K`: two halves, 12 bytes of 6-bit scales and minimums, 4-bit quants.
pub(super) fn q4_k(bytes: &[u8; 144]) -> Q4KBlock {
    let (scale, rest) = half(bytes);
    let (minimum, rest) = half(rest);
    let (packed, nibbles) = rest.split_at(12);
    // The first four of each have their six bits together; the upper two of the others sit above those.
    let split = |i: usize| match i < 4 {
        true => (packed[i] & 63, packed[i + 4] & 63),
        false => {
            let (low, scale, minimum) = (packed[i + 4], packed[i - 4] >> 6, packed[i] >> 6);
            ((low & 15) | (scale << 4), (low >> 4) | (minimum << 4))
        }
    };
    let quants = std::array::from_fn(|i| {
        let (pair, within) = (i / (2 * BLOCK), i % (2 * BLOCK));
        let byte = nibbles[pair * BLOCK + within % BLOCK];
        if within < BLOCK { byte & 15 } else { byte >> 4 }
    });
    let (scales, minimums) = (std::array::from_fn(|i| split(i).0), std::array::from_fn(|i| split(i).1));
    Q4KBlock { scale, minimum, scales, minimums, quants }
}

fn half(bytes: &[u8]) -> (f16, &[u8]) {
    (f16::from_le_bytes([bytes[0], bytes[1]]), &bytes[2..])
}
