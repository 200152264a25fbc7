//! From a directory to a decoder: config, tensors, adapter, fingerprints.

use std::path::Path;
use std::sync::Arc;

use cosec_proto::tokenizer_fingerprint;
use sha2::{Digest, Sha256};

pub use self::checkpoint::Checkpoint;
use self::hub::{Content, HubError};
use self::lora::{Adapter, AdapterError, NamedAdapter};
use self::model_config::ConfigError;
use self::plan::{Plan, PlanError};
use self::tensor_files::TensorError;
pub use self::weights::{Quantize, Weights};
use crate::decoder::Decoder;
use crate::kernels::{CacheShape, KernelError, Kernels};
use crate::model_runner::{DeviceChoice, LoadOptions, ModelDescription};

pub mod allocator;
mod checkpoint;
pub mod gguf;
pub mod gguf_config;
pub mod host_matrix;
pub mod hub;
pub mod lora;
mod mapped_file;
pub mod model_config;
pub mod pickle;
pub mod plan;
pub mod progress;
pub mod safetensors;
pub mod tensor_files;
mod weights;

/// Loads the checkpoint at `path` for the device of `kernels`.
///
/// # Errors
/// [`LoadError`] names file, field or tensor, what was found and what is expected.
pub fn load<K: Kernels>(
    path: &Path,
    options: &LoadOptions,
    kernels: K,
) -> Result<(Decoder<K>, ModelDescription), LoadError> {
    let mut checkpoint = Checkpoint::open(path)?;
    if checkpoint.gguf.is_some() && options.adapter.is_some() {
        return Err(LoadError::GgufAdapter { file: path.to_owned() });
    }
    let Tokenizer { content, fingerprint: tokenizer_fingerprint } = tokenizer(&checkpoint, options)?;
    let tensors = checkpoint.take_tensors()?;
    let Checkpoint { family, config, generation, origin, .. } = checkpoint;
    let spec = &family.spec;
    let mut weights = Weights {
        tensors,
        adapter: options.adapter.as_deref().map(|merged| adapter("--adapter".to_owned(), merged)).transpose()?,
        beside: options.lora.iter().map(beside).collect::<Result<_, _>>()?,
        names: family.names.clone(),
        origin,
        dtype: options.dtype,
        quantize: options.quantize,
    };
    let cache_format = options.kv_dtype.format().unwrap_or_else(|| kernels.cache_format(weights.main_format()));
    let kv_bytes_per_token = spec.kv_bytes_per_token(cache_format);
    let plan = Plan {
        weight_bytes: weights.memory_bytes(&family),
        kv_bytes_per_token: kv_bytes_per_token as u64,
        cache: options.cache,
        block_tokens: options.block_tokens as u64,
        context_tokens: spec.context_tokens as u64,
        available_bytes: kernels.free_bytes()?.or_else(plan::available_bytes),
    };
    plan.log();
    plan.check()?;
    weights.log_conversions();
    weights.show_progress();
    let cache = CacheShape {
        layers: spec.layers,
        blocks: plan.blocks() as usize,
        block_tokens: options.block_tokens,
        kv_width: spec.heads.kv_width(),
        format: cache_format,
    };
    let decoder = Decoder::load(kernels, &family, &mut weights, cache)?;
    weights.adapter.iter().chain(&weights.beside).try_for_each(Adapter::finish)?;
    let end_token_ids = match &generation {
        Some(file) if file.root().has("eos_token_id") => file.root().token_ids("eos_token_id")?,
        _ => config.root().token_ids("eos_token_id")?,
    };
    let fingerprint = weights.fingerprint(&config, &tokenizer_fingerprint, cache_format, options.device);
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
        kv_bytes_per_token,
        adapters: options.lora.iter().map(|adapter| adapter.name.clone()).collect(),
    };
    Ok((decoder, description))
}

/// Opens the adapter that a path or hub id stands for, which `flag` asked for.
fn adapter(flag: String, reference: &Path) -> Result<Adapter, LoadError> {
    let open =
        || -> Result<Adapter, LoadError> { Ok(Adapter::open(&hub::locate(reference, None, Content::Adapter)?)?) };
    open().map_err(|source| LoadError::NoAdapter { flag, source: Box::new(source) })
}

fn beside(NamedAdapter { name, directory }: &NamedAdapter) -> Result<Adapter, LoadError> {
    adapter(format!("--lora {name}"), directory)
}

struct Tokenizer {
    content: Option<Arc<[u8]>>,
    fingerprint: String,
}

/// Reads the tokenizer from where the options say, else from beside the weights. A directory may do without one; a GGUF
/// file has one that is not read, so that another must be there.
fn tokenizer(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Tokenizer, LoadError> {
    let path = options.tokenizer.as_ref().unwrap_or(&checkpoint.directory).join("tokenizer.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let invalid = |error| LoadError::Tokenizer { file: path.clone(), problem: format!("{error}") };
            let fingerprint = tokenizer_fingerprint::fingerprint(&bytes).map_err(invalid)?;
            Ok(Tokenizer { content: Some(bytes.into()), fingerprint })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if options.tokenizer.is_some() || checkpoint.gguf.is_some() {
                let problem = "is missing; name the folder of the model's tokenizer.json with --tokenizer".to_owned();
                return Err(LoadError::Tokenizer { file: path, problem });
            }
            let fingerprint = tokenizer_fingerprint::without_tokenizer(checkpoint.family.spec.vocabulary);
            Ok(Tokenizer { content: None, fingerprint })
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
    /// An adapter that cannot be opened.
    #[error("{flag}: {source}")]
    NoAdapter {
        /// What asked for it.
        flag: String,
        /// Why.
        source: Box<LoadError>,
    },
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter that would have to be merged into blocks of rounded weights.
    #[error("{}: --adapter cannot be merged into a GGUF file; --lora NAME=DIR applies it beside the weights", file.display())]
    GgufAdapter {
        /// The model.
        file: std::path::PathBuf,
    },
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
    /// A device that is not there.
    #[error("device is {device}; it cannot be used: {cause}")]
    Device {
        /// Which.
        device: DeviceChoice,
        /// The driver's word.
        cause: String,
    },
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
    Threads(std::io::Error),
}
