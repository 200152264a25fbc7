//! Reads one PyTorch checkpoint (the zip archive of `torch.save` since 1.6) without executing its pickle.
//!
//! Candle parses the pickle into plain objects: classes and calls are only names there. A hostile pickle could still
//! nest or copy objects until the process dies, so each instruction's result is weighed before the next one runs.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use candle_core::DType;
use candle_core::pickle::{Object, Stack};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::stored_tensor::{StoredTensor, TensorEncoding};

/// Longest pickle, in bytes. A tensor takes about 200 of them.
const MAX_PICKLE: usize = 4 << 20;
/// Deepest nesting of its objects; a state dict has 6. Objects are dropped recursively.
const MAX_DEPTH: usize = 32;
/// Most objects to weigh, a string counting once more for every [`TEXT_UNIT`] bytes. Copies cost as much as weighing.
const MAX_WEIGHT: usize = 1 << 22;
const TEXT_UNIT: usize = 64;

/// Finds the tensors in the file `bytes`. Ignores other objects in the pickle.
///
/// # Errors
/// [`PickleError`].
pub fn tensors(bytes: &[u8]) -> Result<HashMap<String, StoredTensor>, PickleError> {
    let entries = ArchiveEntries::read(bytes)?;
    let pickle = entries.pickle()?;
    if pickle.len() > MAX_PICKLE {
        return Err(PickleError::TooLong { length: pickle.len() });
    }
    let Object::Dict(pairs) = parse(&bytes[pickle])? else { return Err(PickleError::NoStateDict) };
    let mut tensors = HashMap::new();
    for (name, value) in &pairs {
        if let (Object::Unicode(name), Some(rebuilt)) = (name, RebuiltTensor::from_object(value)) {
            tensors.insert(name.clone(), rebuilt.locate(name, &entries)?);
        }
    }
    Ok(tensors)
}

/// Where the files of the archive lie in it.
struct ArchiveEntries(HashMap<String, Range<usize>>);

impl ArchiveEntries {
    /// Each lies within `bytes`.
    fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(PickleError::Zip)?;
        let mut entries = HashMap::new();
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(PickleError::Zip)?;
            let name = entry.name().map_err(PickleError::Zip)?.into_owned();
            let end = entry.data_start().and_then(|start| Some((start, start.checked_add(entry.size())?)));
            match end {
                Some((start, end))
                    if end <= bytes.len() as u64
                        && entry.compression() == CompressionMethod::Stored
                        && !entry.encrypted() =>
                {
                    entries.insert(name, start as usize..end as usize);
                }
                _ => return Err(PickleError::Entry { name }),
            }
        }
        Ok(Self(entries))
    }

    fn pickle(&self) -> Result<Range<usize>, PickleError> {
        let pickle = self.0.iter().find(|(name, _)| folder(name).is_some());
        pickle.map(|(_, range)| range.clone()).ok_or(PickleError::NoPickle)
    }

    /// Storage `key`, in `data/` next to the pickle.
    fn storage(&self, key: &str) -> Option<Range<usize>> {
        let folder = self.0.keys().find_map(|name| folder(name))?;
        self.0.get(&format!("{folder}data/{key}")).cloned()
    }
}

/// The folder of the pickle, with a slash at its end; `None` for other files.
fn folder(name: &str) -> Option<&str> {
    name.strip_suffix("data.pkl").filter(|folder| folder.ends_with('/') && folder.matches('/').count() == 1)
}

/// Runs the instructions of a pickle, which only build objects.
fn parse(pickle: &[u8]) -> Result<Object, PickleError> {
    let mut stack = Stack::empty();
    let mut rest = pickle;
    let mut weight = 0;
    loop {
        // Candle allocates a string before it reads it, and shifts a long integer by its length.
        match *rest {
            [b'X', a, b, c, d, ref text @ ..] if u32::from_le_bytes([a, b, c, d]) as usize > text.len() => {
                return Err(PickleError::Hostile("a string that is longer than the file"));
            }
            [0x8a, (9..), ..] => return Err(PickleError::Hostile("an integer of more than 64 bits")),
            _ => {}
        }
        let done = stack.read(&mut rest).map_err(|error| PickleError::Instruction(shortened(&error)))?;
        if let Some(top) = stack.stack().last() {
            weigh(top, 0, &mut weight)?;
        }
        if done {
            return stack.finalize().map_err(|error| PickleError::Instruction(shortened(&error)));
        }
    }
}

/// Adds the objects within `object` to `weight`.
fn weigh(object: &Object, depth: usize, weight: &mut usize) -> Result<(), PickleError> {
    let text = match object {
        Object::Unicode(text) => text.len(),
        Object::Class { module_name, class_name } => module_name.len() + class_name.len(),
        _ => 0,
    };
    *weight += 1 + text / TEXT_UNIT;
    if depth > MAX_DEPTH {
        return Err(PickleError::Hostile("objects nested too deeply"));
    }
    if *weight > MAX_WEIGHT {
        return Err(PickleError::Hostile("too many copies of objects"));
    }
    let mut inner = |object| weigh(object, depth + 1, weight);
    match object {
        Object::Tuple(items) | Object::List(items) => items.iter().try_for_each(inner),
        Object::Dict(pairs) => pairs.iter().try_for_each(|(key, value)| inner(key).and_then(|()| inner(value))),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            inner(callable).and_then(|()| inner(args))
        }
        Object::PersistentLoad(id) => inner(id),
        _ => Ok(()),
    }
}

/// An error of the parser may show a whole object.
fn shortened(error: &candle_core::Error) -> String {
    error.to_string().chars().take(200).collect()
}

/// Arguments of `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)`.
struct RebuiltTensor<'a> {
    class: &'a str,
    key: &'a str,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> RebuiltTensor<'a> {
    /// `None` when `object` is no tensor.
    fn from_object(object: &'a Object) -> Option<Self> {
        let Object::Reduce { callable, args } = object else { return None };
        let (Object::Class { module_name, class_name }, Object::Tuple(args)) = (&**callable, &**args) else {
            return None;
        };
        match (module_name.as_str(), class_name.as_str(), args.as_slice()) {
            ("torch._utils", "_rebuild_parameter", [data, ..]) => Self::from_object(data),
            ("torch._utils", "_rebuild_tensor_v2", [Object::PersistentLoad(id), offset, size, stride, ..]) => {
                let Object::Tuple(id) = &**id else { return None };
                // ("storage", class, key, device, elements)
                let [_, Object::Class { class_name: class, .. }, Object::Unicode(key), ..] = id.as_slice() else {
                    return None;
                };
                Some(Self { class, key, offset: number(offset)?, shape: numbers(size)?, strides: numbers(stride)? })
            }
            _ => None,
        }
    }

    fn locate(self, name: &str, entries: &ArchiveEntries) -> Result<StoredTensor, PickleError> {
        let missing = || PickleError::Storage { tensor: name.to_owned(), key: self.key.to_owned() };
        let storage = entries.storage(self.key).ok_or_else(missing)?;
        let dtype = match self.class {
            "FloatStorage" => Some(DType::F32),
            "DoubleStorage" => Some(DType::F64),
            "HalfStorage" => Some(DType::F16),
            "BFloat16Storage" => Some(DType::BF16),
            _ => None,
        };
        let encoding = dtype.map_or_else(|| TensorEncoding::Other(self.class.to_owned()), TensorEncoding::Floats);
        let extent = self.extent(storage, dtype.map_or(1, |dtype| dtype.size_in_bytes()));
        Ok(StoredTensor { shape: self.shape, encoding, extent })
    }

    /// Where the elements are in the file, or why they cannot be read from there.
    fn extent(&self, storage: Range<usize>, element_bytes: usize) -> Result<Range<usize>, String> {
        let Self { offset, shape, strides, .. } = self;
        if !is_contiguous(shape, strides) {
            return Err(format!("it has strides {strides:?} of shape {shape:?}; expected whole rows in order"));
        }
        let bytes = |elements: usize| elements.checked_mul(element_bytes);
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let end = elements.and_then(|elements| bytes(elements.checked_add(*offset)?));
        match (bytes(*offset), end) {
            (Some(start), Some(end)) if end <= storage.len() => Ok(storage.start + start..storage.start + end),
            _ => Err(format!(
                "it has shape {shape:?} from element {offset} on; its storage has {} bytes",
                storage.len()
            )),
        }
    }
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(&size, &stride)| {
            let fits = size <= 1 || stride == expected;
            expected = expected.saturating_mul(size);
            fits
        })
}

fn numbers(object: &Object) -> Option<Vec<usize>> {
    let Object::Tuple(items) = object else { return None };
    items.iter().map(number).collect()
}

fn number(object: &Object) -> Option<usize> {
    match *object {
        Object::Int(value) => usize::try_from(value).ok(),
        Object::Long(value) => usize::try_from(value).ok(),
        _ => None,
    }
}

/// Why a file is not read as a PyTorch checkpoint.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum PickleError {
    /// No zip archive, or a broken one. Checkpoints of PyTorch before 1.6 are none.
    #[error("no whole zip archive, as PyTorch writes it since 1.6: {0}")]
    Zip(ZipError),
    #[error("{name:?} is compressed, encrypted or ends outside the file")]
    Entry { name: String },
    #[error("the archive has no FOLDER/data.pkl")]
    NoPickle,
    #[error("data.pkl has {length} bytes; at most {MAX_PICKLE} are allowed")]
    TooLong { length: usize },
    /// The pickle has an instruction that the format does not need, or none where one should be.
    #[error("data.pkl: {0}")]
    Instruction(String),
    #[error("data.pkl has {0}")]
    Hostile(&'static str),
    #[error("data.pkl holds no dictionary of tensors")]
    NoStateDict,
    #[error("{tensor} lies in the storage {key:?}, which is missing")]
    Storage { tensor: String, key: String },
}
