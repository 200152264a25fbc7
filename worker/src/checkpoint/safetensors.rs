//! The header of a safetensors file.

use std::collections::HashMap;

use candle_core::DType;
use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};

use super::stored_tensor::{StoredTensor, TensorEncoding};

/// Finds the tensors in the file `bytes`.
///
/// # Errors
/// When the header is broken or tells of other bytes than there are.
pub fn tensors(bytes: &[u8]) -> Result<HashMap<String, StoredTensor>, SafetensorsError> {
    // Also checks that header and tensors lie within the file.
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|source| match expected_bytes(bytes) {
        Some(expected) if expected != bytes.len() => SafetensorsError::Length { expected, found: bytes.len() },
        _ => SafetensorsError::Header(source),
    })?;
    let begin = header + size_of::<u64>();
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let encoding = match DType::try_from(info.dtype) {
            Ok(dtype @ (DType::F32 | DType::BF16 | DType::F16 | DType::F64)) => TensorEncoding::Floats(dtype),
            _ => TensorEncoding::Other(format!("{:?}", info.dtype)),
        };
        let (start, end) = info.data_offsets;
        (name, StoredTensor { shape: info.shape.clone(), encoding, extent: Ok(begin + start..begin + end) })
    });
    Ok(tensors.collect())
}

/// Length of the file that the header tells of; `None` when it cannot be read.
fn expected_bytes(bytes: &[u8]) -> Option<usize> {
    let (length, rest) = bytes.split_first_chunk()?;
    let header = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let begin = header.checked_add(size_of::<u64>())?;
    let Some(text) = rest.get(..header) else { return Some(begin) };
    serde_json::from_slice::<Metadata>(text).ok()?.data_len().checked_add(begin)
}

/// Why a file is not read as safetensors.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum SafetensorsError {
    #[error("the file has {found} bytes; its header tells of {expected}")]
    Length { expected: usize, found: usize },
    #[error(transparent)]
    Header(SafeTensorError),
}
