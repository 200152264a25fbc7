//! How a device stores weights.

use candle_core::DType;

use super::error::KernelError;

/// Weights of a [`WeightFormat::Q8_0`] block, and of the part of a Q4_K block that shares a scale.
pub(super) const BLOCK: usize = 32;

/// Weights of a block of [`WeightFormat::Q4K`].
pub(super) const SUPER_BLOCK: usize = 256;

/// How a device stores weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// GGML's Q8_0: blocks of 32 weights of 8 bits with one scale.
    Q8_0,
    /// GGML's Q4_K: blocks of 256 weights of 4 bits in eight parts, each with a scale and a minimum of 6 bits.
    Q4K,
}

impl WeightFormat {
    /// The format that stores `dtype` exactly; f32 for other types.
    #[must_use]
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            DType::F16 => Self::F16,
            _ => Self::F32,
        }
    }

    /// The type of its floats.
    ///
    /// # Errors
    /// [`KernelError::Device`] for a format that has blocks.
    pub fn dtype(self) -> Result<DType, KernelError> {
        match self {
            Self::F32 => Ok(DType::F32),
            Self::Bf16 => Ok(DType::BF16),
            Self::F16 => Ok(DType::F16),
            Self::Q8_0 | Self::Q4K => Err(KernelError::Device(format!("{self:?} has blocks; expected floats"))),
        }
    }

    /// Weights of a block, and its bytes in a file.
    #[must_use]
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::Bf16 | Self::F16 => (1, 2),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4K => (SUPER_BLOCK, 144),
        }
    }
}
