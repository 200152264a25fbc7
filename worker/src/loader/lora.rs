//! LoRA adapters (Hu et al., 2021) in PEFT's format, merged into the weights as they are loaded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use regex::Regex;
use serde_json::Value;

use super::model_config::{ConfigError, JsonFile, Section};
use super::tensor_files::{self, TensorError, TensorFiles};

const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";

/// Settings that change what an adapter computes and are not supported: they must be absent, false or empty.
const UNSUPPORTED: [&str; 10] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
];

/// An adapter and which of its modules have not been merged yet.
///
/// `fan_in_fan_out` has no effect, as in PEFT: it is about layers that store their weights `[inputs, outputs]`, and no
/// family here has one.
pub struct Adapter {
    config: JsonFile,
    tensors: TensorFiles,
    alpha: f64,
    /// `alpha` of the modules whose names match.
    alpha_patterns: Vec<(Regex, f64)>,
    rank_stabilised: bool,
    pending: BTreeSet<String>,
}

impl Adapter {
    /// Opens the adapter in `directory`.
    ///
    /// # Errors
    /// [`AdapterError`] when it is no LoRA adapter, or uses what is not supported.
    pub fn open(directory: &Path) -> Result<Self, AdapterError> {
        let config = JsonFile::open(directory, CONFIG)?;
        let root = config.root();
        root.one_of("peft_type", &[("LORA", ())])?;
        root.one_of_or("bias", "none", &[("none", ())])?;
        for field in UNSUPPORTED {
            if !root.get(field).is_none_or(is_off) {
                return Err(root.invalid(field, "null, false or empty: not supported".to_owned()).into());
            }
        }
        let alpha = root.positive("lora_alpha")?;
        let rank_stabilised = root.flag_or("use_rslora", false)?;
        let alpha_patterns = patterns(&root, "alpha_pattern")?;
        let tensors = TensorFiles::open(directory, &tensor_files::ADAPTER)?;
        let mut pending = BTreeSet::new();
        for name in tensors.names() {
            let Some(module) = module_of(&name) else {
                return Err(AdapterError::Tensor { file: tensors.path().to_owned(), tensor: name });
            };
            pending.insert(module);
        }
        Ok(Self { config, tensors, alpha, alpha_patterns, rank_stabilised, pending })
    }

    /// What the adapter adds to `module`'s weight `[outputs, inputs]`, in f32; `None` when it leaves it alone.
    ///
    /// # Errors
    /// [`AdapterError`] when its tensors do not fit.
    pub fn delta(&mut self, module: &str, [outputs, inputs]: [usize; 2]) -> Result<Option<Tensor>, AdapterError> {
        if !self.pending.remove(module) {
            return Ok(None);
        }
        let rank = self.rank(module)?;
        let mut factor = |name: &str, shape: [usize; 2]| {
            let tensor = self.tensors.read(&format!("{PREFIX}{module}.{name}.weight"), &shape)?;
            tensor.to_dtype(DType::F32).map_err(AdapterError::Compute)
        };
        let (down, up) = (factor("lora_A", [rank, inputs])?, factor("lora_B", [outputs, rank])?);
        let scale = self.alpha_of(module) / if self.rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        let delta = up.matmul(&down).and_then(|product| product.affine(scale, 0.0));
        delta.map(Some).map_err(AdapterError::Compute)
    }

    /// Checks that every module of the adapter was merged.
    ///
    /// # Errors
    /// [`AdapterError::Unmatched`].
    pub fn finish(&self) -> Result<(), AdapterError> {
        match self.pending.first() {
            None => Ok(()),
            Some(module) => {
                Err(AdapterError::Unmatched { file: self.tensors.path().to_owned(), module: module.clone() })
            }
        }
    }

    /// Config and tensors, for a fingerprint.
    #[must_use]
    pub fn digest(&self) -> (&[u8], [u8; 32]) {
        (self.config.bytes(), self.tensors.digest())
    }

    /// The tensors themselves say the rank, whatever `r` and `rank_pattern` say.
    fn rank(&self, module: &str) -> Result<usize, AdapterError> {
        let tensor = format!("{PREFIX}{module}.lora_A.weight");
        match self.tensors.rows(&tensor)? {
            0 => Err(AdapterError::Tensor { file: self.tensors.path().to_owned(), tensor }),
            rank => Ok(rank),
        }
    }

    fn alpha_of(&self, module: &str) -> f64 {
        let specific = self.alpha_patterns.iter().find(|(pattern, _)| pattern.is_match(module));
        specific.map_or(self.alpha, |&(_, alpha)| alpha)
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}

/// Keys are regular expressions for the end of a module's name, from the beginning of one of its parts on.
fn patterns(root: &Section<'_>, field: &str) -> Result<Vec<(Regex, f64)>, ConfigError> {
    let Some(section) = root.section(field)? else { return Ok(Vec::new()) };
    let compiled = section.iter().map(|(key, _)| {
        let pattern = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"));
        let pattern = pattern.map_err(|_| section.invalid(key, "a regular expression as its key".to_owned()))?;
        Ok((pattern, section.positive(key)?))
    });
    compiled.collect()
}

fn module_of(tensor: &str) -> Option<String> {
    let name = tensor.strip_prefix(PREFIX)?;
    let module = name.strip_suffix(".lora_A.weight").or_else(|| name.strip_suffix(".lora_B.weight"))?;
    Some(module.to_owned())
}

/// What is wrong with an adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// adapter_config.json.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// adapter_model.safetensors or adapter_model.bin.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// A tensor that is no factor of a linear layer.
    #[error("{}: tensor {tensor} is not supported; expected {PREFIX}MODULE.lora_A.weight or lora_B", file.display())]
    Tensor {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
    },
    /// The model has no such module.
    #[error("{}: the model has no module {module}", file.display())]
    Unmatched {
        /// Which file.
        file: PathBuf,
        /// Which module.
        module: String,
    },
    /// Merging failed.
    #[error("merging the adapter: {0}")]
    Compute(candle_core::Error),
}
