//! How a file stores a tensor, and the numbers that its bytes stand for.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, ggml_file};
use candle_core::{DType, Device, Tensor};

/// Where a file keeps a tensor, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Rows first.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub encoding: TensorEncoding,
    /// Where the elements are, row by row; or why they cannot be read.
    pub extent: Result<Range<usize>, String>,
}

/// How the elements of a tensor are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorEncoding {
    /// F32, BF16, F16 or F64.
    Floats(DType),
    /// Quantised, in GGML's blocks.
    Blocks(GgmlDType),
    /// The type's name in the file.
    Other(String),
}

impl TensorEncoding {
    /// Bytes of `elements` that begin with a block; `None` when they end within one, or are not known to take any.
    #[must_use]
    pub fn bytes(&self, elements: usize) -> Option<usize> {
        match self {
            Self::Floats(dtype) => elements.checked_mul(dtype.size_in_bytes()),
            Self::Blocks(dtype) if elements.is_multiple_of(dtype.block_size()) => {
                (elements / dtype.block_size()).checked_mul(dtype.type_size())
            }
            Self::Blocks(_) | Self::Other(_) => None,
        }
    }
}

/// Some rows of a matrix, as they are stored.
#[derive(Clone, Debug)]
pub struct StoredRows<'a> {
    /// Index of the first one, and how many there are.
    pub range: Range<usize>,
    /// Elements of one.
    pub width: usize,
    /// How they are stored.
    pub encoding: &'a TensorEncoding,
    /// Their bytes.
    pub bytes: &'a [u8],
}

impl StoredRows<'_> {
    /// The rows as floats `[rows, width]`.
    ///
    /// # Errors
    /// When they are none.
    pub fn floats(&self) -> candle_core::Result<Tensor> {
        let shape = [self.range.len(), self.width];
        match self.encoding {
            TensorEncoding::Floats(dtype) => Tensor::from_raw_buffer(self.bytes, *dtype, &shape, &Device::Cpu),
            TensorEncoding::Blocks(dtype) => dequantise(*dtype, shape, self.bytes),
            TensorEncoding::Other(name) => candle_core::bail!("{name} are no floats"),
        }
    }
}

/// The numbers of `[rows, width]` in the blocks of a GGML file, in f32.
///
/// # Errors
/// When `blocks` are not of this shape, or the type is not supported.
pub fn dequantise(dtype: GgmlDType, [rows, width]: [usize; 2], blocks: &[u8]) -> candle_core::Result<Tensor> {
    let expected = TensorEncoding::Blocks(dtype).bytes(width).and_then(|row| row.checked_mul(rows));
    if expected != Some(blocks.len()) {
        candle_core::bail!("{} bytes are no {dtype:?} matrix [{rows}, {width}]", blocks.len());
    }
    ggml_file::qtensor_from_ggml(dtype, blocks, vec![rows, width], &Device::Cpu)?.dequantize(&Device::Cpu)
}
