//! From a path to a decoder: config, tensors, adapters, fingerprints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cosec_proto::tokenizer_fingerprint;

use super::checkpoint::{Checkpoint, CheckpointError};
use super::device::DeviceChoice;
use super::memory_plan::{self, CacheSize, MemoryPlan, MemoryPlanError};
use crate::checkpoint::config_section::ConfigFileError;
use crate::checkpoint::hub::{self, HubError, RepoContent};
use crate::checkpoint::tensor_files::TensorError;
use crate::cpu_set::CpuSet;
use crate::decoder::DecoderModel;
use crate::kernels::{CacheFormat, CacheShape, KernelError, Kernels};
use crate::weights::lora::{AdapterError, LoraAdapter, NamedAdapter};
use crate::weights::{DtypeChoice, ModelWeights, QuantizedFormat, WeightsError, digest};

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// That of the activations, which is f32; on a GPU that of the weights, bfloat16 where they are quantised.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl KvDtype {
    /// The format of the cache; `None` lets the device choose.
    #[must_use]
    pub fn format(self) -> Option<CacheFormat> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(CacheFormat::F32),
            Self::F16 => Some(CacheFormat::F16),
            Self::Bf16 => Some(CacheFormat::Bf16),
        }
    }
}

/// How a model is brought into memory.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Directory of a PEFT LoRA adapter, merged into the weights.
    pub adapter: Option<PathBuf>,
    /// Unmerged adapters that batch items can choose from.
    pub lora: Vec<NamedAdapter>,
    /// Folder of tokenizer.json; `None` for the model's own.
    pub tokenizer: Option<PathBuf>,
    /// Element type of the weights.
    pub dtype: DtypeChoice,
    /// How they are quantised.
    pub quantize: Option<QuantizedFormat>,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Size of the KV cache.
    pub cache: CacheSize,
    /// Tokens of one block.
    pub block_tokens: usize,
    /// Threads of the forward pass, and of reading its logits; 0 takes one per core.
    pub threads: usize,
    /// CPUs that they are pinned to, one each; `None` pins nothing.
    pub cpus: Option<CpuSet>,
}

/// What a loaded model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDescription {
    /// `model_type` of config.json.
    pub family: String,
    /// Elements of all weights.
    pub parameters: u64,
    /// Length of a logits row.
    pub vocabulary: usize,
    /// Longest sequence, in tokens.
    pub context_tokens: usize,
    /// Ids that end a generation (generation_config.json, else config.json).
    pub end_token_ids: Vec<u32>,
    /// SHA-256 over weights, config, tokenizer, merged adapter, compute type and kind of device, in hex.
    pub fingerprint: String,
    /// SHA-256 over the content of the vocabulary, in hex: equal for models that may co-decode.
    pub tokenizer_fingerprint: String,
    /// Bytes that one cached token takes over all layers.
    pub kv_bytes_per_token: usize,
    /// Names of the unmerged adapters that a batch item may choose, by index.
    pub adapters: Vec<String>,
    /// SHA-256 over `fingerprint` and an adapter's content, in hex, in the order of `adapters`: equal where the same
    /// adapter applies to the same model, whatever its name.
    pub adapter_fingerprints: Vec<String>,
    /// Content of tokenizer.json; `None` when the model came without one.
    pub tokenizer: Option<Arc<[u8]>>,
}

/// Loads the checkpoint at `path` for the device of `kernels`.
///
/// # Errors
/// [`ModelLoadError`] names file, field or tensor, what was found and what is expected.
pub fn load<K: Kernels>(
    path: &Path,
    options: &LoadOptions,
    kernels: K,
) -> Result<(DecoderModel<K>, ModelDescription), ModelLoadError> {
    let mut checkpoint = Checkpoint::open(path)?;
    if checkpoint.gguf.is_some() && options.adapter.is_some() {
        return Err(ModelLoadError::GgufAdapter { file: path.to_owned() });
    }
    let TokenizerFile { content, fingerprint: tokenizer_fingerprint } = tokenizer(&checkpoint, options)?;
    let tensors = checkpoint.take_tensors()?;
    let Checkpoint { family, config, generation, origin, .. } = checkpoint;
    let spec = &family.spec;
    let mut weights = ModelWeights {
        tensors,
        merged: options.adapter.as_deref().map(|path| adapter("--adapter".to_owned(), path)).transpose()?,
        unmerged: options.lora.iter().map(unmerged).collect::<Result<_, _>>()?,
        names: family.names.clone(),
        origin,
        dtype: options.dtype,
        quantize: options.quantize,
    };
    let cache_format = options.kv_dtype.format().unwrap_or_else(|| kernels.cache_format(weights.main_format()));
    let kv_bytes_per_token = spec.kv_bytes_per_token(cache_format);
    let plan = MemoryPlan {
        weight_bytes: weights.memory_bytes(&family),
        kv_bytes_per_token: kv_bytes_per_token as u64,
        cache: options.cache,
        block_tokens: options.block_tokens as u64,
        context_tokens: spec.context_tokens as u64,
        available_bytes: kernels.free_bytes()?.or_else(memory_plan::available_bytes),
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
    let decoder = DecoderModel::load(kernels, &family, &mut weights, cache)?;
    weights.merged.iter().chain(&weights.unmerged).try_for_each(LoraAdapter::finish)?;
    let end_token_ids = match &generation {
        Some(file) if file.root().has("eos_token_id") => file.root().token_ids("eos_token_id")?,
        _ => config.root().token_ids("eos_token_id")?,
    };
    let device_kind = (options.device != DeviceChoice::Cpu).then(|| options.device.kind());
    let fingerprint = weights.fingerprint(&config, &tokenizer_fingerprint, cache_format, device_kind);
    let description = ModelDescription {
        family: family.name.to_owned(),
        parameters: weights.tensors.elements(),
        vocabulary: spec.vocabulary,
        context_tokens: spec.context_tokens,
        end_token_ids: end_token_ids.unwrap_or_default(),
        adapter_fingerprints: weights.unmerged.iter().map(|adapter| adapted(&fingerprint, adapter)).collect(),
        fingerprint,
        tokenizer_fingerprint,
        tokenizer: content,
        kv_bytes_per_token,
        adapters: options.lora.iter().map(|adapter| adapter.name.clone()).collect(),
    };
    Ok((decoder, description))
}

/// Opens the adapter at a path or hub id, given by `flag`.
fn adapter(flag: String, reference: &Path) -> Result<LoraAdapter, ModelLoadError> {
    let open = || -> Result<LoraAdapter, ModelLoadError> {
        Ok(LoraAdapter::open(&hub::locate(reference, None, RepoContent::Adapter)?)?)
    };
    open().map_err(|source| ModelLoadError::NoAdapter { flag, source: Box::new(source) })
}

fn unmerged(NamedAdapter { name, directory }: &NamedAdapter) -> Result<LoraAdapter, ModelLoadError> {
    adapter(format!("--lora {name}"), directory)
}

struct TokenizerFile {
    content: Option<Arc<[u8]>>,
    fingerprint: String,
}

/// Reads the tokenizer from the folder in `options`, else from the model's. A model directory may lack one; a GGUF
/// file's own is not read, so it needs a tokenizer.json.
fn tokenizer(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<TokenizerFile, ModelLoadError> {
    let path = options.tokenizer.as_ref().unwrap_or(&checkpoint.directory).join("tokenizer.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let invalid = |error| ModelLoadError::Tokenizer { file: path.clone(), problem: format!("{error}") };
            let fingerprint = tokenizer_fingerprint::fingerprint(&bytes).map_err(invalid)?;
            Ok(TokenizerFile { content: Some(bytes.into()), fingerprint })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if options.tokenizer.is_some() || checkpoint.gguf.is_some() {
                let problem = "is missing; name the folder of the model's tokenizer.json with --tokenizer".to_owned();
                return Err(ModelLoadError::Tokenizer { file: path, problem });
            }
            let fingerprint = tokenizer_fingerprint::without_tokenizer(checkpoint.family.spec.vocabulary);
            Ok(TokenizerFile { content: None, fingerprint })
        }
        Err(error) => Err(ModelLoadError::Tokenizer { file: path, problem: error.to_string() }),
    }
}

/// The fingerprint of a model with an unmerged adapter.
fn adapted(model: &str, adapter: &LoraAdapter) -> String {
    digest([model.as_bytes(), adapter.config(), &adapter.tensors_digest()])
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum ModelLoadError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    #[error(transparent)]
    Tensors(#[from] TensorError),
    #[error("{flag}: {source}")]
    NoAdapter { flag: String, source: Box<ModelLoadError> },
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("{}: --adapter cannot be merged into a GGUF file; --lora NAME=DIR applies it without merging", file.display())]
    GgufAdapter { file: PathBuf },
    #[error("{}: {problem}", file.display())]
    Tokenizer { file: PathBuf, problem: String },
    #[error(transparent)]
    Memory(#[from] MemoryPlanError),
    #[error(transparent)]
    Weights(Box<WeightsError>),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("device is {device}; it cannot be used: {cause}")]
    Device { device: DeviceChoice, cause: String },
    #[error("{option} is {value}; expected {expected}")]
    Option { option: &'static str, value: usize, expected: &'static str },
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
}

impl From<WeightsError> for ModelLoadError {
    fn from(error: WeightsError) -> Self {
        Self::Weights(Box::new(error))
    }
}
