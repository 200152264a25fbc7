//! Reads named tensors from the files of a checkpoint, whichever format they have.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::model_config::{ConfigError, JsonFile};
use super::pickle::{PickleError, PickledTensors};

/// Weights of a model, the preferred ones first.
pub const MODEL: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Weights of an adapter, the preferred ones first.
pub const ADAPTER: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The files of one directory that hold its tensors.
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
    source: Source,
}

enum Source {
    Safetensors(MmapedSafetensors),
    Pickle(PickledTensors),
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
        let file = TensorFile::open(directory.join(name))?;
        Ok(Self { files: vec![file], shards: HashMap::new(), digest: Sha256::new(), elements: 0 })
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
                    files.push(TensorFile::open(path)?);
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

    /// The file, or the first of several.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.files[0].path
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.files.iter().flat_map(|file| file.names())
    }

    /// Names, shapes and types of all tensors of floats.
    pub fn floats(&self) -> impl Iterator<Item = (String, Vec<usize>, DType)> {
        let of_file = |file: &TensorFile| {
            let tensors = file.names().into_iter().map(|name| (file.get(&name), name));
            tensors
                .filter_map(|(stored, name)| {
                    stored.ok().and_then(|stored| Some((name, stored.shape, stored.dtype.ok()?)))
                })
                .collect::<Vec<_>>()
        };
        self.files.iter().flat_map(of_file)
    }

    /// First dimension of tensor `name`; 0 when it has none.
    ///
    /// # Errors
    /// [`TensorError::Missing`].
    pub fn rows(&self, name: &str) -> Result<usize, TensorError> {
        let stored = self.files[self.locate(name)?].get(name)?;
        Ok(stored.shape.first().copied().unwrap_or(0))
    }

    /// Reads tensor `name`, which must have the shape `expected`, in its stored type.
    ///
    /// # Errors
    /// [`TensorError`] names file, tensor, what was found and what is expected.
    pub fn read(&mut self, name: &str, expected: &[usize]) -> Result<Tensor, TensorError> {
        let file = &self.files[self.locate(name)?];
        let StoredTensor { shape: found, dtype } = file.get(name)?;
        let path = || file.path.clone();
        if found != expected {
            let expected = expected.to_vec();
            return Err(TensorError::Shape { file: path(), tensor: name.to_owned(), found, expected });
        }
        let dtype =
            dtype.map_err(|found| TensorError::ElementType { file: path(), tensor: name.to_owned(), found })?;
        let data = file.bytes(name, dtype)?;
        let tensor = Tensor::from_raw_buffer(&data, dtype, expected, &Device::Cpu);
        let tensor = tensor.map_err(|source| TensorError::Safetensors { file: path(), source })?;
        self.digest.update(format!("{name}\0{dtype:?}\0{expected:?}\0"));
        self.digest.update(&data);
        self.elements += tensor.elem_count() as u64;
        Ok(tensor)
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

/// What a file says about a tensor.
struct StoredTensor {
    shape: Vec<usize>,
    /// What the file calls it when it is no type of floats.
    dtype: Result<DType, String>,
}

impl TensorFile {
    /// `.bin` is PyTorch's format; everything else should be safetensors.
    fn open(path: PathBuf) -> Result<Self, TensorError> {
        let source = if path.extension().is_some_and(|extension| extension == "bin") {
            let tensors = PickledTensors::open(&path);
            Source::Pickle(tensors.map_err(|source| TensorError::Pickle { file: path.clone(), source })?)
        } else {
            #[expect(unsafe_code, reason = "the only way to map a file")]
            // SAFETY: nothing in this process writes the file. Another process that truncates a checkpoint while it is
            // read can end this one; copying every file first would double the memory of loading.
            let tensors = unsafe { MmapedSafetensors::new(&path) };
            Source::Safetensors(tensors.map_err(|source| TensorError::Safetensors { file: path.clone(), source })?)
        };
        Ok(Self { path, source })
    }

    fn names(&self) -> Vec<String> {
        match &self.source {
            Source::Safetensors(tensors) => tensors.tensors().into_iter().map(|(name, _)| name).collect(),
            Source::Pickle(tensors) => tensors.names().cloned().collect(),
        }
    }

    fn get(&self, name: &str) -> Result<StoredTensor, TensorError> {
        let (shape, dtype, type_name) = match &self.source {
            Source::Safetensors(tensors) => {
                let view = tensors.get(name).map_err(|_| self.missing(name))?;
                (view.shape().to_vec(), DType::try_from(view.dtype()).ok(), format!("{:?}", view.dtype()))
            }
            Source::Pickle(tensors) => {
                let tensor = tensors.get(name).ok_or_else(|| self.missing(name))?;
                (tensor.shape.clone(), tensor.dtype(), tensor.class.clone())
            }
        };
        let is_float = |dtype: &DType| matches!(dtype, DType::F32 | DType::BF16 | DType::F16 | DType::F64);
        Ok(StoredTensor { shape, dtype: dtype.filter(is_float).ok_or(type_name) })
    }

    fn bytes(&self, name: &str, dtype: DType) -> Result<Cow<'_, [u8]>, TensorError> {
        match &self.source {
            Source::Safetensors(tensors) => {
                Ok(Cow::Borrowed(tensors.get(name).map_err(|_| self.missing(name))?.data()))
            }
            Source::Pickle(tensors) => {
                let tensor = tensors.get(name).ok_or_else(|| self.missing(name))?;
                let data = tensors.bytes(tensor, dtype);
                data.map(Cow::Owned).map_err(|source| TensorError::Data {
                    file: self.path.clone(),
                    tensor: name.to_owned(),
                    source,
                })
            }
        }
    }

    fn missing(&self, name: &str) -> TensorError {
        TensorError::Missing { file: self.path.clone(), tensor: name.to_owned() }
    }
}

/// What is wrong with the tensors of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// There are none.
    #[error("{}: holds no weights; expected one of {expected}", directory.display())]
    NoWeights {
        /// Which directory.
        directory: PathBuf,
        /// Names of files that would do.
        expected: String,
    },
    /// The index of the shards.
    #[error(transparent)]
    Index(#[from] ConfigError),
    /// No such file, or no safetensors.
    #[error("{}: cannot be read as safetensors: {source}", file.display())]
    Safetensors {
        /// Which.
        file: PathBuf,
        /// Why.
        source: candle_core::Error,
    },
    /// No such file, or no PyTorch checkpoint.
    #[error("{}: cannot be read as a PyTorch checkpoint: {source}", file.display())]
    Pickle {
        /// Which.
        file: PathBuf,
        /// Why.
        source: PickleError,
    },
    /// The file has no such tensor.
    #[error("{}: tensor {tensor} is missing", file.display())]
    Missing {
        /// Which file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// The elements of a tensor are not where the file says.
    #[error("{}: tensor {tensor} cannot be read: {source}", file.display())]
    Data {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What is wrong with them.
        source: PickleError,
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
