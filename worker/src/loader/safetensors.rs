//! The header of a safetensors file.

use std::collections::HashMap;

use candle_core::DType;
use safetensors::{SafeTensorError, SafeTensors};

use super::tensor_files::{Encoding, StoredTensor};

/// Reads which tensors are in the file that `bytes` are, and where.
///
/// # Errors
/// When the header is broken or tells of other bytes than there are.
pub fn tensors(bytes: &[u8]) -> Result<HashMap<String, StoredTensor>, SafeTensorError> {
    // The length of the header, which is then checked to lie within the file with all tensors behind it.
    let (header, metadata) = SafeTensors::read_metadata(bytes)?;
    let begin = header + size_of::<u64>();
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let encoding = match DType::try_from(info.dtype) {
            Ok(dtype @ (DType::F32 | DType::BF16 | DType::F16 | DType::F64)) => Encoding::Floats(dtype),
            _ => Encoding::Other(format!("{:?}", info.dtype)),
        };
        let (start, end) = info.data_offsets;
        (name, StoredTensor { shape: info.shape.clone(), encoding, extent: Ok(begin + start..begin + end) })
    });
    Ok(tensors.collect())
}
