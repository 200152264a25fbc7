//! Reads named tensors from a checkpoint's safetensors files, by memory mapping.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::model_config::{ConfigError, JsonFile};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The safetensors files of one directory.
pub struct TensorFiles {
    files: Vec<TensorFile>,
    /// Index into `files` for every tensor; all are in the first when this is empty.
    shards: HashMap<String, usize>,
    /// Over names, types, shapes and bytes of the tensors read so far.
    digest: Sha256,
    elements: u64,
}

struct TensorFile {
    path: PathBuf,
    tensors: MmapedSafetensors,
}

impl TensorFiles {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn open_checkpoint(directory: &Path) -> Result<Self, TensorError> {
        match JsonFile::open_optional(directory, INDEX)? {
            Some(index) => Self::open_shards(directory, &index),
            None => Self::open(&directory.join(SINGLE)),
        }
    }

    /// Opens one file.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        Ok(Self { files: vec![map(path)?], shards: HashMap::new(), digest: Sha256::new(), elements: 0 })
    }

    fn open_shards(directory: &Path, index: &JsonFile) -> Result<Self, TensorError> {
        let root = index.root();
        let names = root.section("weight_map")?;
        let names = names.ok_or_else(|| root.invalid("weight_map", "an object of tensor names and files".into()))?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut shards = HashMap::new();
        for (tensor, file) in names.iter() {
            // A file elsewhere is no part of this checkpoint.
            let plain = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
            let name = plain.ok_or_else(|| names.invalid(tensor, "the name of a file beside the index".into()))?;
            let path = directory.join(name);
            let known = files.iter().position(|open| open.path == path);
            let at = match known {
                Some(at) => at,
                None => {
                    files.push(map(&path)?);
                    files.len() - 1
                }
            };
            shards.insert(tensor.to_owned(), at);
        }
        if files.is_empty() {
            return Err(root.invalid("weight_map", "at least one tensor".into()).into());
        }
        Ok(Self { files, shards, digest: Sha256::new(), elements: 0 })
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.files.iter().flat_map(|file| file.tensors.tensors()).map(|(name, _)| name)
    }

    /// First dimension of tensor `name`; 0 when it has none.
    ///
    /// # Errors
    /// [`TensorError::Missing`].
    pub fn rows(&self, name: &str) -> Result<usize, TensorError> {
        let at = self.locate(name)?;
        let view = self.files[at].tensors.get(name).map_err(|_| self.missing(at, name))?;
        Ok(view.shape().first().copied().unwrap_or(0))
    }

    /// Reads tensor `name`, which must have the shape `expected`, in its stored type.
    ///
    /// # Errors
    /// [`TensorError`] names file, tensor, what was found and what is expected.
    pub fn read(&mut self, name: &str, expected: &[usize]) -> Result<Tensor, TensorError> {
        let at = self.locate(name)?;
        let view = self.files[at].tensors.get(name).map_err(|_| self.missing(at, name))?;
        let file = || self.files[at].path.clone();
        if view.shape() != expected {
            let (found, expected) = (view.shape().to_vec(), expected.to_vec());
            return Err(TensorError::Shape { file: file(), tensor: name.to_owned(), found, expected });
        }
        let stored = DType::try_from(view.dtype()).ok();
        if !matches!(stored, Some(DType::F32 | DType::BF16 | DType::F16 | DType::F64)) {
            let found = format!("{:?}", view.dtype());
            return Err(TensorError::ElementType { file: file(), tensor: name.to_owned(), found });
        }
        self.digest.update(format!("{name}\0{:?}\0{expected:?}\0", view.dtype()));
        self.digest.update(view.data());
        self.elements += view.shape().iter().product::<usize>() as u64;
        view.load(&Device::Cpu).map_err(|source| TensorError::Read { file: file(), source })
    }

    /// Elements of all tensors read so far.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// SHA-256 over the tensors read so far, in the order of reading.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }

    fn locate(&self, name: &str) -> Result<usize, TensorError> {
        match self.shards.get(name) {
            Some(&at) => Ok(at),
            None if self.shards.is_empty() => Ok(0),
            None => Err(self.missing(0, name)),
        }
    }

    fn missing(&self, at: usize, name: &str) -> TensorError {
        TensorError::Missing { file: self.files[at].path.clone(), tensor: name.to_owned() }
    }
}

fn map(path: &Path) -> Result<TensorFile, TensorError> {
    #[expect(unsafe_code, reason = "the only way to map a file")]
    // SAFETY: nothing in this process writes the file. Another process that truncates a checkpoint while it is read can
    // end this one; copying every file first would double the memory of loading.
    let tensors = unsafe { MmapedSafetensors::new(path) };
    match tensors {
        Ok(tensors) => Ok(TensorFile { path: path.to_owned(), tensors }),
        Err(source) => Err(TensorError::Read { file: path.to_owned(), source }),
    }
}

/// What is wrong with the tensors of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The index of the shards.
    #[error(transparent)]
    Index(#[from] ConfigError),
    /// No such file, or no safetensors.
    #[error("{}: cannot be read as safetensors: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: candle_core::Error,
    },
    /// The file has no such tensor.
    #[error("{}: tensor {tensor} is missing", file.display())]
    Missing {
        /// Which file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// The tensor has another shape than the config says.
    #[error("{}: tensor {tensor} has shape {found:?}; the config makes it {expected:?}", file.display())]
    Shape {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What is stored.
        found: Vec<usize>,
        /// What follows from the config.
        expected: Vec<usize>,
    },
    /// Not a type of floats that is supported.
    #[error("{}: tensor {tensor} has type {found}; expected F32, BF16, F16 or F64", file.display())]
    ElementType {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What is stored.
        found: String,
    },
}
