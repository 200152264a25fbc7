//! Reads named tensors from the files of a checkpoint, whichever format they have.
//!
//! A format only says which tensors a file has and where their bytes are. Files are mapped; pages that were read are
//! released at once, so that only a piece of them is in memory besides the weights.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

pub use self::error::TensorError;
use super::config_section::{ConfigFileError, JsonFile};
use super::mapped_file::MappedFile;
use super::pickle;
use super::progress::ByteProgress;
use super::safetensors;
use super::stored_tensor::{StoredRows, StoredTensor, TensorEncoding};

mod error;

/// Weights of a model, the preferred ones first.
pub const MODEL: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Weights of an adapter, the preferred ones first.
pub const ADAPTER: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Bytes of a piece of a tensor, as far as whole rows allow.
const PIECE_BYTES: usize = 4 << 20;

/// The files of one directory that hold its tensors.
pub struct TensorFiles {
    files: Vec<TensorFile>,
    /// Index into `files` for every tensor; all are in the first when this is empty.
    shards: HashMap<String, usize>,
    /// Over names, types, shapes and bytes of the tensors read so far.
    digest: Sha256,
    elements: u64,
    progress: Option<ByteProgress>,
}

struct TensorFile {
    map: MappedFile,
    tensors: HashMap<String, StoredTensor>,
}

impl TensorFiles {
    /// Opens the first of the files `names` that is in `directory`, and the shards that it lists if it is an index.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn open(directory: &Path, names: &[&str]) -> Result<Self, TensorError> {
        let none = || TensorError::NoWeights { directory: directory.to_owned(), expected: names.join(", ") };
        let name = names.iter().find(|name| directory.join(name).exists()).ok_or_else(none)?;
        if name.ends_with(".index.json") {
            return Self::open_shards(directory, &JsonFile::open(directory, name)?);
        }
        Ok(Self::new(vec![TensorFile::open(&directory.join(name))?], HashMap::new()))
    }

    /// The tensors of one file whose format is known.
    #[must_use]
    pub fn of_file(map: MappedFile, tensors: HashMap<String, StoredTensor>) -> Self {
        Self::new(vec![TensorFile { map, tensors }], HashMap::new())
    }

    fn new(files: Vec<TensorFile>, shards: HashMap<String, usize>) -> Self {
        Self { files, shards, digest: Sha256::new(), elements: 0, progress: None }
    }

    fn open_shards(directory: &Path, index: &JsonFile) -> Result<Self, TensorError> {
        let mut names: Vec<&str> = Vec::new();
        let mut shards = HashMap::new();
        for (tensor, name) in shard_names(index)? {
            let known = names.iter().position(|known| *known == name);
            let at = known.unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            shards.insert(tensor.to_owned(), at);
        }
        let files = names.into_iter().map(|name| TensorFile::open(&directory.join(name)));
        Ok(Self::new(files.collect::<Result<_, _>>()?, shards))
    }

    /// Shows from now on how much has been read of `total_bytes`.
    pub fn show_progress(&mut self, total_bytes: u64) {
        let name = self.path().file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        self.progress = Some(ByteProgress::new(&format!("loading {name}"), total_bytes));
    }

    /// The file, or the first of several.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.files[0].map.path()
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.stored().map(|(name, _)| name.to_owned())
    }

    /// All tensors, whatever they are.
    pub fn stored(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.files.iter().flat_map(|file| &file.tensors).map(|(name, stored)| (name.as_str(), stored))
    }

    /// Tensor `name`.
    ///
    /// # Errors
    /// [`TensorError::Missing`].
    pub fn get(&self, name: &str) -> Result<&StoredTensor, TensorError> {
        self.files[self.locate(name)?].get(name)
    }

    /// First dimension of tensor `name`; 0 when it has none.
    ///
    /// # Errors
    /// [`TensorError::Missing`].
    pub fn rows(&self, name: &str) -> Result<usize, TensorError> {
        Ok(self.get(name)?.shape.first().copied().unwrap_or(0))
    }

    /// Reads tensor `name`, which must have the shape `expected`, as the floats it is stored as.
    ///
    /// # Errors
    /// [`TensorError`] names file, tensor, found and expected value.
    pub fn read(&mut self, name: &str, expected: &[usize]) -> Result<Tensor, TensorError> {
        let at = self.locate(name)?;
        let TensorEncoding::Floats(dtype) = self.files[at].get(name)?.encoding else {
            return Err(self.files[at].no_floats(name));
        };
        let mut whole = Vec::new();
        self.read_pieces(name, expected, |rows| {
            whole.extend_from_slice(rows.bytes);
            Ok::<_, TensorError>(())
        })?;
        let tensor = Tensor::from_raw_buffer(&whole, dtype, expected, &Device::Cpu);
        tensor.map_err(|source| TensorError::Convert {
            file: self.files[at].path(),
            tensor: name.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads matrix `name`, which must have the shape `[outputs, inputs]`, some rows at a time.
    ///
    /// # Errors
    /// As [`Self::read`], and those of `each`.
    pub fn read_rows<E: From<TensorError>>(
        &mut self,
        name: &str,
        expected: [usize; 2],
        each: impl FnMut(StoredRows<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.read_pieces(name, &expected, each)
    }

    /// The first dimension of a tensor counts as its rows.
    fn read_pieces<E: From<TensorError>>(
        &mut self,
        name: &str,
        expected: &[usize],
        mut each: impl FnMut(StoredRows<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = &self.files[self.locate(name)?];
        let stored = file.get(name)?;
        let extent = file.extent(name, stored, expected)?;
        let StoredTensor { encoding, shape, .. } = stored;
        self.digest.update(format!("{name}\0{encoding:?}\0{expected:?}\0"));
        let width = shape.iter().skip(1).product();
        let row_bytes = encoding.bytes(width).ok_or_else(|| file.no_floats(name))?;
        let count = shape.first().copied().unwrap_or(1);
        let step = (PIECE_BYTES / row_bytes.max(1)).max(1);
        for first in (0..count).step_by(step) {
            let range = first..count.min(first + step);
            let place = extent.start + range.start * row_bytes..extent.start + range.end * row_bytes;
            let bytes = &file.map.bytes()[place.clone()];
            self.digest.update(bytes);
            self.elements += (range.len() * width) as u64;
            each(StoredRows { range, width, encoding, bytes })?;
            if let Some(progress) = &self.progress {
                progress.advance(bytes.len() as u64);
            }
            file.map.release(place);
        }
        Ok(())
    }

    /// Elements of all tensors read so far.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// SHA-256 over the tensors read so far, in the order of reading. It says nothing about the format of the files.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }

    /// Index of the file that should hold tensor `name`.
    fn locate(&self, name: &str) -> Result<usize, TensorError> {
        match self.shards.get(name) {
            Some(&at) => Ok(at),
            None if self.shards.is_empty() => Ok(0),
            None => Err(self.files[0].missing(name)),
        }
    }
}

/// The tensors that an index lists, each with its file in the same directory.
///
/// # Errors
/// [`ConfigFileError`] when there are none, or a file is elsewhere.
pub fn shard_names(index: &JsonFile) -> Result<Vec<(&str, &str)>, ConfigFileError> {
    let root = index.root();
    let names = root.section("weight_map")?;
    let names = names.ok_or_else(|| root.invalid("weight_map", "an object of tensor names and files".into()))?;
    let mut shards = Vec::new();
    for (tensor, file) in names.iter() {
        // A file elsewhere is no part of this checkpoint.
        let plain = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let name = plain.ok_or_else(|| names.invalid(tensor, "the name of a file in the index's folder".into()))?;
        shards.push((tensor, name));
    }
    match shards.is_empty() {
        true => Err(root.invalid("weight_map", "at least one tensor".into())),
        false => Ok(shards),
    }
}

impl TensorFile {
    /// `.bin` is PyTorch's format; everything else should be safetensors.
    fn open(path: &Path) -> Result<Self, TensorError> {
        let file = path.to_owned();
        let map = MappedFile::open(path).map_err(|source| TensorError::Unreadable { file: file.clone(), source })?;
        let tensors = match path.extension().is_some_and(|extension| extension == "bin") {
            true => pickle::tensors(map.bytes()).map_err(|source| TensorError::Pickle { file, source })?,
            false => safetensors::tensors(map.bytes()).map_err(|source| TensorError::Safetensors { file, source })?,
        };
        Ok(Self { map, tensors })
    }

    fn get(&self, name: &str) -> Result<&StoredTensor, TensorError> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    /// Where the elements of tensor `name` are, which must have the shape `expected`.
    fn extent(&self, name: &str, stored: &StoredTensor, expected: &[usize]) -> Result<Range<usize>, TensorError> {
        let (file, tensor) = (self.path(), name.to_owned());
        if stored.shape != expected {
            let (found, expected) = (stored.shape.clone(), expected.to_vec());
            return Err(TensorError::Shape { file, tensor, found, expected });
        }
        if let TensorEncoding::Other(_) = stored.encoding {
            return Err(self.no_floats(name));
        }
        let extent = stored.extent.clone().map_err(|problem| TensorError::Data {
            file: file.clone(),
            tensor: tensor.clone(),
            problem,
        })?;
        let elements = expected.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = elements.and_then(|elements| stored.encoding.bytes(elements));
        if bytes == Some(extent.len()) && extent.end <= self.map.bytes().len() {
            return Ok(extent);
        }
        let problem = format!("{} bytes cannot be {:?} of shape {expected:?}", extent.len(), stored.encoding);
        Err(TensorError::Data { file, tensor, problem })
    }

    fn path(&self) -> PathBuf {
        self.map.path().to_owned()
    }

    fn missing(&self, name: &str) -> TensorError {
        TensorError::Missing { file: self.path(), tensor: name.to_owned() }
    }

    fn no_floats(&self, name: &str) -> TensorError {
        let found = self.tensors.get(name).map(|stored| match &stored.encoding {
            TensorEncoding::Other(found) => found.clone(),
            known => format!("{known:?}"),
        });
        TensorError::ElementType { file: self.path(), tensor: name.to_owned(), found: found.unwrap_or_default() }
    }
}
