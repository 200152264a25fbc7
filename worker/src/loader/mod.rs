//! From a directory to a decoder: config, tensors, adapter, fingerprints.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use cosec_proto::tokenizer_fingerprint;
use sha2::{Digest, Sha256};

use self::hub::{Content, HubError};
use self::lora::{Adapter, AdapterError, Factors};
use self::model_config::{ConfigError, JsonFile};
use self::plan::{Plan, PlanError};
use self::tensor_files::{TensorError, TensorFiles};
use crate::decoder::Decoder;
use crate::families::{self, Family};
use crate::kernels::{CacheFormat, CacheShape, KernelError, Kernels};
use crate::model_runner::{DtypeChoice, LoadOptions, ModelDescription};

pub mod hub;
pub mod lora;
pub mod model_config;
pub mod pickle;
pub mod plan;
pub mod progress;
pub mod tensor_files;

/// Loads the checkpoint in `directory` for the device of `kernels`.
///
/// # Errors
/// [`LoadError`] names file, field or tensor, what was found and what is expected.
pub fn load<K: Kernels>(
    directory: &Path,
    options: &LoadOptions,
    kernels: K,
) -> Result<(Decoder<K>, ModelDescription), LoadError> {
    let config = JsonFile::open(directory, "config.json")?;
    let generation = JsonFile::open_optional(directory, "generation_config.json")?;
    let family = families::describe(&config.root())?;
    let spec = &family.spec;
    let Tokenizer { content, fingerprint: tokenizer_fingerprint } = tokenizer(directory, spec.vocabulary)?;
    let mut weights = Weights {
        tensors: TensorFiles::open(directory, &tensor_files::MODEL)?,
        adapter: options.adapter.as_deref().map(adapter).transpose()?,
        beside: options.lora.iter().map(|named| adapter(&named.directory)).collect::<Result<_, _>>()?,
        dtype: options.dtype,
    };
    let plan = Plan {
        weight_bytes: weights.memory_bytes(&family),
        kv_bytes_per_token: spec.kv_bytes_per_token() as u64,
        blocks: options.blocks as u64,
        block_tokens: options.block_tokens as u64,
        context_tokens: spec.context_tokens as u64,
        available_bytes: plan::available_bytes(),
    };
    plan.log();
    plan.check()?;
    let cache = CacheShape {
        layers: spec.layers,
        blocks: options.blocks,
        block_tokens: options.block_tokens,
        kv_width: spec.heads.kv_width(),
        format: CacheFormat::F32,
    };
    let decoder = Decoder::load(kernels, &family, &mut weights, cache)?;
    weights.adapter.iter().chain(&weights.beside).try_for_each(Adapter::finish)?;
    let end_token_ids = match &generation {
        Some(file) if file.root().has("eos_token_id") => file.root().token_ids("eos_token_id")?,
        _ => config.root().token_ids("eos_token_id")?,
    };
    let fingerprint = weights.fingerprint(&config, &tokenizer_fingerprint);
    let description = ModelDescription {
        family: family.name.to_owned(),
        parameters: weights.tensors.elements(),
        vocabulary: spec.vocabulary,
        context_tokens: spec.context_tokens,
        end_token_ids: end_token_ids.unwrap_or_default(),
        adapter_fingerprints: weights.beside.iter().map(|adapter| adapted(&fingerprint, adapter)).collect(),
        fingerprint,
        tokenizer_fingerprint,
        tokenizer: content,
        kv_bytes_per_token: spec.kv_bytes_per_token(),
        adapters: options.lora.iter().map(|adapter| adapter.name.clone()).collect(),
    };
    Ok((decoder, description))
}

/// Opens the adapter that a path or hub id stands for.
fn adapter(reference: &Path) -> Result<Adapter, LoadError> {
    Ok(Adapter::open(&hub::locate(reference, None, Content::Adapter)?)?)
}

struct Tokenizer {
    content: Option<Arc<[u8]>>,
    fingerprint: String,
}

fn tokenizer(directory: &Path, vocabulary: usize) -> Result<Tokenizer, LoadError> {
    let path = directory.join("tokenizer.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let invalid = |error| LoadError::Tokenizer { file: path.clone(), problem: format!("{error}") };
            let fingerprint = tokenizer_fingerprint::fingerprint(&bytes).map_err(invalid)?;
            Ok(Tokenizer { content: Some(bytes.into()), fingerprint })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(Tokenizer { content: None, fingerprint: tokenizer_fingerprint::without_tokenizer(vocabulary) })
        }
        Err(error) => Err(LoadError::Tokenizer { file: path, problem: error.to_string() }),
    }
}

/// The fingerprint of a model under an adapter that is applied beside it.
fn adapted(model: &str, adapter: &Adapter) -> String {
    digest([model.as_bytes(), adapter.config(), &adapter.tensors_digest()])
}

/// SHA-256, in hex, over some contents with their lengths.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut digest = Sha256::new();
    for bytes in parts {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    }
    format!("{:x}", digest.finalize())
}

/// The weights of a checkpoint with an adapter merged, in the type they are to have in memory, and the adapters beside
/// them.
pub struct Weights {
    tensors: TensorFiles,
    /// Merged.
    adapter: Option<Adapter>,
    /// In the order of their indices.
    beside: Vec<Adapter>,
    dtype: DtypeChoice,
}

impl Weights {
    /// The weight `[outputs, inputs]` of the linear layer `module`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn matrix(&mut self, module: &str, shape: [usize; 2]) -> Result<Tensor, LoadError> {
        self.merged(module, module, shape)
    }

    /// The matrix stored for `table`, which is no linear layer: adapters leave it alone.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn table(&mut self, table: &str, shape: [usize; 2]) -> Result<Tensor, LoadError> {
        let stored = self.tensors.read(&format!("{table}.weight"), &shape)?;
        stored.to_dtype(self.memory_dtype(stored.dtype())).map_err(LoadError::Convert)
    }

    /// The matrix stored for `table`, with what the merged adapter adds to the linear layer `module`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn merged(&mut self, table: &str, module: &str, shape: [usize; 2]) -> Result<Tensor, LoadError> {
        let stored = self.tensors.read(&format!("{table}.weight"), &shape)?;
        let dtype = self.memory_dtype(stored.dtype());
        let factors = self.adapter.as_mut().map(|adapter| adapter.factors(module, shape)).transpose()?.flatten();
        let merged = match factors {
            None => Ok(stored),
            Some(factors) => {
                let product = factors.product()?;
                stored.to_dtype(DType::F32).and_then(|weight| weight + product)
            }
        };
        merged.and_then(|weight| weight.to_dtype(dtype)).map_err(LoadError::Convert)
    }

    /// Whether the merged adapter changes the linear layer `module`, which was not read yet.
    #[must_use]
    pub fn is_merged_into(&self, module: &str) -> bool {
        self.adapter.as_ref().is_some_and(|adapter| adapter.changes(module))
    }

    /// What the adapters beside the weights add to the linear layer `module`, in the order of their indices.
    ///
    /// # Errors
    /// [`LoadError::Adapter`].
    pub fn factors(&mut self, module: &str, shape: [usize; 2]) -> Result<Vec<Option<Factors>>, LoadError> {
        self.beside.iter_mut().map(|adapter| Ok(adapter.factors(module, shape)?)).collect()
    }

    /// The vector called `name`, of `len` elements.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let stored = self.tensors.read(name, &[len])?;
        stored.to_dtype(DType::F32).and_then(|vector| vector.to_vec1()).map_err(LoadError::Convert)
    }

    /// Bytes that the tensors take once they are loaded, by what the heads of the files say.
    fn memory_bytes(&self, family: &Family) -> u64 {
        let tied = family.spec.tied.then(|| format!("{}.weight", family.names.head));
        let bytes =
            self.tensors.floats().filter(|(name, ..)| Some(name) != tied.as_ref()).map(|(_, shape, stored)| {
                let size = match *shape {
                    [_] => DType::F32.size_in_bytes(),
                    [_, _] => self.memory_dtype(stored).size_in_bytes(),
                    // Masks of attention that older checkpoints keep.
                    _ => 0,
                };
                shape.iter().fold(size as u64, |product, &size| product.saturating_mul(size as u64))
            });
        let beside = self.beside.iter().map(Adapter::memory_bytes);
        bytes.chain(beside).fold(0, u64::saturating_add)
    }

    /// Type in memory of a matrix that is stored as `stored`.
    fn memory_dtype(&self, stored: DType) -> DType {
        match (self.dtype, stored) {
            (DtypeChoice::Auto, DType::F64) | (DtypeChoice::F32, _) => DType::F32,
            (DtypeChoice::Auto, stored) => stored,
            (DtypeChoice::Bf16, _) => DType::BF16,
            (DtypeChoice::F16, _) => DType::F16,
        }
    }

    /// Over everything that decides a logit of a session without an adapter, and the ids that it stands for.
    fn fingerprint(&self, config: &JsonFile, tokenizer: &str) -> String {
        let (tensors, dtype) = (self.tensors.digest(), format!("{:?}", self.dtype));
        let merged = self.adapter.as_ref().map(|adapter| (adapter.config(), adapter.tensors_digest()));
        let mut parts = vec![config.bytes(), tokenizer.as_bytes(), &tensors, dtype.as_bytes()];
        parts.extend(merged.iter().flat_map(|(config, tensors)| [*config, tensors]));
        digest(parts)
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A hub id.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A config file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The tokenizer, whose content is part of the model's identity.
    #[error("{}: {problem}", file.display())]
    Tokenizer {
        /// Which file.
        file: std::path::PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Too little memory.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Weights could not be converted.
    #[error("converting weights: {0}")]
    Convert(candle_core::Error),
    /// The device, or its memory.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An option that makes no sense.
    #[error("{option} is {value}; expected {expected}")]
    Option {
        /// Which.
        option: &'static str,
        /// Its value.
        value: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// The threads of the forward pass could not be started.
    #[error("starting threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}
