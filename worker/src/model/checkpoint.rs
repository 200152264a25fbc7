//! A checkpoint before its weights are read, in any format.

use std::path::{Path, PathBuf};

use crate::checkpoint::config_section::{ConfigFileError, JsonFile};
use crate::checkpoint::gguf::{self, GgufHeader};
use crate::checkpoint::mapped_file::MappedFile;
use crate::checkpoint::stored_tensor::TensorEncoding;
use crate::checkpoint::tensor_files::{self, TensorError, TensorFiles};
use crate::families::gguf::OriginalLayout;
use crate::families::{self, ModelFamily};

/// A model on disk.
pub struct Checkpoint {
    /// What it computes.
    pub family: ModelFamily,
    /// Its config, or one made from GGUF metadata.
    pub(super) config: JsonFile,
    /// Its end-of-generation ids override the config's.
    pub(super) generation: Option<JsonFile>,
    /// Where its files are.
    pub(super) directory: PathBuf,
    /// A GGUF file and its header.
    pub(super) gguf: Option<(MappedFile, GgufHeader)>,
    /// The checkpoint that a GGUF file was made from.
    pub(super) origin: Option<OriginalLayout>,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`: a directory in Hugging Face's layout, a GGUF file, or a directory with one.
    ///
    /// # Errors
    /// [`CheckpointError`] names file and field.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        if path.is_file() {
            return Self::open_gguf(path);
        }
        if !path.join("config.json").exists()
            && let [file] = &*gguf_files(path)
        {
            return Self::open_gguf(file);
        }
        let config = JsonFile::open(path, "config.json")?;
        let generation = JsonFile::open_optional(path, "generation_config.json")?;
        let family = families::describe(&config.root())?;
        Ok(Self { family, config, generation, directory: path.to_owned(), gguf: None, origin: None })
    }

    fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        let file = path.to_owned();
        let map = MappedFile::open(path).map_err(|source| TensorError::Unreadable { file: file.clone(), source })?;
        let header = gguf::header(map.bytes()).map_err(|source| TensorError::Gguf { file, source })?;
        let (config, family, origin) = families::gguf::describe(path, &header)?;
        let directory = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        let (gguf, origin) = (Some((map, header)), Some(origin));
        Ok(Self { family, config, generation: None, directory, gguf, origin })
    }

    /// Whether its weights are quantised.
    #[must_use]
    pub fn is_quantised(&self) -> bool {
        let tensors = self.gguf.iter().flat_map(|(_, header)| header.tensors.values());
        tensors.into_iter().any(|tensor| matches!(tensor.encoding, TensorEncoding::Blocks(_)))
    }

    /// Its tensors.
    ///
    /// # Errors
    /// [`TensorError`].
    pub(super) fn take_tensors(&mut self) -> Result<TensorFiles, TensorError> {
        match self.gguf.take() {
            Some((map, header)) => Ok(TensorFiles::of_file(map, header.tensors)),
            None => TensorFiles::open(&self.directory, &tensor_files::MODEL),
        }
    }
}

fn gguf_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")).collect()
}

/// Why a checkpoint is not understood.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum CheckpointError {
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    #[error(transparent)]
    Tensors(#[from] TensorError),
}
