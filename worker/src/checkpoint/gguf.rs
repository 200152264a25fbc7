//! Reads the header of a GGUF file (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), versions 2 and 3.
//!
//! Every length is checked against the bytes that are left before anything is read or kept, and arrays are skipped: of
//! those only their lengths matter here.

use std::collections::HashMap;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use serde_json::Value;

use super::stored_tensor::{StoredTensor, TensorEncoding};

const MAGIC: &[u8] = b"GGUF";
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;
/// Where tensors begin unless the file says otherwise, as a multiple of bytes.
const ALIGNMENT: usize = 32;

/// The header of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufHeader {
    /// Metadata that is a number, a truth value or a text.
    pub metadata: HashMap<String, Value>,
    /// The tensors, rows first.
    pub tensors: HashMap<String, StoredTensor>,
}

/// Reads the header of the file `bytes`.
///
/// # Errors
/// [`GgufError`].
pub fn header(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
    let mut reader = HeaderReader { bytes, at: 0 };
    if reader.take(MAGIC.len())? != MAGIC {
        return Err(GgufError::Magic);
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version { version });
    }
    let (tensor_count, metadata_count) = (reader.u64()?, reader.u64()?);
    let mut header = GgufHeader::default();
    for _ in 0..metadata_count {
        let key = reader.text()?;
        let kind = reader.u32()?;
        if let Some(value) = reader.value(kind)? {
            header.metadata.insert(key.to_owned(), value);
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(reader.tensor()?);
    }
    let alignment = match header.metadata.get("general.alignment") {
        None => ALIGNMENT,
        // Blocks are read in place; none needs more than 8.
        Some(value) => value
            .as_u64()
            .and_then(|alignment| usize::try_from(alignment).ok())
            .filter(|alignment| alignment.is_power_of_two() && *alignment >= 8)
            .ok_or_else(|| GgufError::Alignment { found: value.to_string() })?,
    };
    let data = reader.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    for (name, info) in infos {
        header.tensors.insert(name.to_owned(), info.located(data, alignment, bytes.len()));
    }
    Ok(header)
}

/// A tensor as the header describes it.
struct TensorInfo {
    shape: Vec<usize>,
    encoding: TensorEncoding,
    offset: u64,
}

impl TensorInfo {
    fn located(self, data: usize, alignment: usize, file_bytes: usize) -> StoredTensor {
        let Self { shape, encoding, offset } = self;
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = elements.and_then(|elements| encoding.bytes(elements));
        let start = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(alignment));
        let start = start.and_then(|offset| data.checked_add(offset));
        let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
        let extent = match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => Ok(start..end),
            _ => Err(format!(
                "shape {shape:?} at offset {offset} is not within the {file_bytes} bytes of the file, in whole blocks"
            )),
        };
        StoredTensor { shape, encoding, extent }
    }
}

/// The rest of the header.
struct HeaderReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> HeaderReader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(GgufError::Truncated { at: self.at, wanted: count, bytes: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, GgufError> {
        // A length that does not fit is beyond the file.
        Ok(usize::try_from(self.u64()?).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&'a str, GgufError> {
        let (at, length) = (self.at, self.length()?);
        std::str::from_utf8(self.take(length)?).map_err(|_| GgufError::Text { at })
    }

    /// A value of the type `kind`; `None` for an array, which is skipped.
    fn value(&mut self, kind: u32) -> Result<Option<Value>, GgufError> {
        Ok(Some(match kind {
            0 => self.array().map(u8::from_le_bytes)?.into(),
            1 => self.array().map(i8::from_le_bytes)?.into(),
            2 => self.array().map(u16::from_le_bytes)?.into(),
            3 => self.array().map(i16::from_le_bytes)?.into(),
            4 => self.u32()?.into(),
            5 => self.array().map(i32::from_le_bytes)?.into(),
            // Through the shortest decimal: 1e-5 should not become 9.99999974e-6.
            6 => float(&self.array().map(f32::from_le_bytes)?.to_string()),
            7 => (self.array::<1>()? != [0]).into(),
            8 => self.text()?.into(),
            9 => {
                self.skip_array()?;
                return Ok(None);
            }
            10 => self.u64()?.into(),
            11 => self.array().map(i64::from_le_bytes)?.into(),
            12 => float(&self.array().map(f64::from_le_bytes)?.to_string()),
            _ => return Err(GgufError::Kind { at: self.at, kind }),
        }))
    }

    fn skip_array(&mut self) -> Result<(), GgufError> {
        let (at, kind, count) = (self.at, self.u32()?, self.length()?);
        let element_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..count {
                    self.text()?;
                }
                return Ok(());
            }
            _ => return Err(GgufError::Kind { at, kind }),
        };
        self.take(count.saturating_mul(element_bytes)).map(drop)
    }

    fn tensor(&mut self) -> Result<(&'a str, TensorInfo), GgufError> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(GgufError::Dimensions { tensor: name.chars().take(80).collect(), dimensions });
        }
        // The fastest dimension comes first in the file.
        let mut shape = (0..dimensions).map(|_| self.length()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let encoding = match self.u32()? {
            0 => TensorEncoding::Floats(DType::F32),
            1 => TensorEncoding::Floats(DType::F16),
            30 => TensorEncoding::Floats(DType::BF16),
            2 => TensorEncoding::Blocks(GgmlDType::Q4_0),
            3 => TensorEncoding::Blocks(GgmlDType::Q4_1),
            6 => TensorEncoding::Blocks(GgmlDType::Q5_0),
            7 => TensorEncoding::Blocks(GgmlDType::Q5_1),
            8 => TensorEncoding::Blocks(GgmlDType::Q8_0),
            10 => TensorEncoding::Blocks(GgmlDType::Q2K),
            11 => TensorEncoding::Blocks(GgmlDType::Q3K),
            12 => TensorEncoding::Blocks(GgmlDType::Q4K),
            13 => TensorEncoding::Blocks(GgmlDType::Q5K),
            14 => TensorEncoding::Blocks(GgmlDType::Q6K),
            other => TensorEncoding::Other(format!("GGML's number {other}")),
        };
        Ok((name, TensorInfo { shape, encoding, offset: self.u64()? }))
    }
}

/// The number that `text` is; null, as JSON has it, when it is none.
fn float(text: &str) -> Value {
    text.parse::<f64>().map_or(Value::Null, Value::from)
}

/// Why a file is not read as GGUF.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum GgufError {
    #[error("it does not begin with \"GGUF\"")]
    Magic,
    #[error("it has version {version}; expected 2 or 3, in little-endian order")]
    Version { version: u32 },
    #[error("its header wants {wanted} bytes at {at}; the file has {bytes}")]
    Truncated { at: usize, wanted: usize, bytes: usize },
    #[error("the text at {at} is no UTF-8")]
    Text { at: usize },
    #[error("the value at {at} has the type {kind}; expected 0 to 12, in arrays no arrays")]
    Kind { at: usize, kind: u32 },
    #[error("tensor {tensor} has {dimensions} dimensions; at most {MAX_DIMENSIONS} are allowed")]
    Dimensions { tensor: String, dimensions: u32 },
    #[error("general.alignment is {found}; expected a power of two from 8 on")]
    Alignment { found: String },
}
