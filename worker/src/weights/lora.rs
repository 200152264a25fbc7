//! LoRA adapters (Hu et al., 2021) in PEFT's format.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use candle_core::{DType, Tensor};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::config_section::{ConfigFileError, ConfigSection, JsonFile};
use crate::checkpoint::tensor_files::{self, TensorError, TensorFiles};

const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";

/// Most characters of an adapter's name.
const MAX_NAME: usize = 64;

/// Initialisations of the factors that leave the model's own weights unchanged.
const INITIAL: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Unsupported settings, which must be absent, false or empty.
const UNSUPPORTED: [&str; 13] = [
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
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

/// A LoRA adapter that sessions choose by name, written `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamedAdapter {
    /// 1 to 64 letters, digits, `.`, `_` or `-`.
    pub name: String,
    /// Directory of the adapter.
    pub directory: PathBuf,
}

impl FromStr for NamedAdapter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected NAME=DIR";
        let (name, directory) = text.split_once('=').ok_or_else(|| format!("it is {text:?}; {expected}"))?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
            return Err(format!("the name is {name:?}; it must be 1 to {MAX_NAME} letters, digits, '.', '_' or '-'"));
        }
        if directory.is_empty() {
            return Err(format!("the directory of {name} is empty; {expected}"));
        }
        Ok(Self { name: name.to_owned(), directory: directory.into() })
    }
}

impl TryFrom<String> for NamedAdapter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NamedAdapter> for String {
    fn from(adapter: NamedAdapter) -> Self {
        adapter.to_string()
    }
}

impl fmt::Display for NamedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.directory.display())
    }
}

/// The update of a weight `[outputs, inputs]`: `up · down`, in f32, with the adapter's scale in `up`.
#[derive(Clone, Debug)]
pub struct LoraFactors {
    /// `[rank, inputs]`.
    pub down: Tensor,
    /// `[outputs, rank]`.
    pub up: Tensor,
}

/// An adapter, and its modules that have not been read yet.
///
/// `fan_in_fan_out` has no effect, as in PEFT: it is about layers that store their weights `[inputs, outputs]`, and no
/// family here has one.
pub struct LoraAdapter {
    config: JsonFile,
    tensors: TensorFiles,
    alpha: f64,
    /// `alpha` of the modules whose names match.
    alpha_patterns: Vec<(Regex, f64)>,
    rank_stabilised: bool,
    pending: BTreeSet<String>,
}

impl LoraAdapter {
    /// Opens the adapter in `directory`.
    ///
    /// # Errors
    /// [`AdapterError`] when it is no LoRA adapter, or uses an unsupported setting.
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
        let initial = root.get("init_lora_weights");
        if !initial.is_none_or(|initial| {
            initial.is_boolean() || initial.as_str().is_some_and(|name| INITIAL.contains(&name))
        }) {
            let expected =
                format!("true, false or one of {}: others change the model's own weights", INITIAL.join(", "));
            return Err(root.invalid("init_lora_weights", expected).into());
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

    /// Whether the adapter changes `module`, not read so far.
    #[must_use]
    pub fn changes(&self, module: &str) -> bool {
        self.pending.contains(module)
    }

    /// The update of `module`'s weight `[outputs, inputs]`; `None` if there is none.
    ///
    /// # Errors
    /// [`AdapterError`] when its tensors do not fit.
    pub fn factors(
        &mut self,
        module: &str,
        [outputs, inputs]: [usize; 2],
    ) -> Result<Option<LoraFactors>, AdapterError> {
        if !self.pending.remove(module) {
            return Ok(None);
        }
        let rank = self.rank(module)?;
        let scale = self.alpha_of(module)? / if self.rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        let mut factor = |name: &str, shape: [usize; 2]| {
            let tensor = self.tensors.read(&format!("{PREFIX}{module}.{name}.weight"), &shape)?;
            tensor.to_dtype(DType::F32).map_err(AdapterError::Compute)
        };
        let (down, up) = (factor("lora_A", [rank, inputs])?, factor("lora_B", [outputs, rank])?);
        let up = up.affine(scale, 0.0).map_err(AdapterError::Compute)?;
        Ok(Some(LoraFactors { down, up }))
    }

    /// Checks that every module of the adapter was read.
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

    /// Bytes of adapter_config.json, for a fingerprint.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        self.config.bytes()
    }

    /// SHA-256 over the tensors that were read, for a fingerprint.
    #[must_use]
    pub fn tensors_digest(&self) -> [u8; 32] {
        self.tensors.digest()
    }

    /// Bytes of all factors in f32.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let elements =
            |shape: &[usize]| shape.iter().fold(1, |product: u64, &size| product.saturating_mul(size as u64));
        let bytes =
            self.tensors.stored().map(|(_, stored)| elements(&stored.shape).saturating_mul(size_of::<f32>() as u64));
        bytes.fold(0, u64::saturating_add)
    }

    /// The rank of the tensors, which overrides `r` and `rank_pattern`.
    fn rank(&self, module: &str) -> Result<usize, AdapterError> {
        let tensor = format!("{PREFIX}{module}.lora_A.weight");
        match self.tensors.rows(&tensor)? {
            0 => Err(AdapterError::Tensor { file: self.tensors.path().to_owned(), tensor }),
            rank => Ok(rank),
        }
    }

    /// The alpha of the pattern that matches, else the adapter's. PEFT takes the first of several patterns in the
    /// file's order, which JSON does not keep, so several must agree.
    fn alpha_of(&self, module: &str) -> Result<f64, AdapterError> {
        let mut fitting = self.alpha_patterns.iter().filter(|(pattern, _)| pattern.is_match(module));
        let Some(&(_, alpha)) = fitting.next() else { return Ok(self.alpha) };
        match fitting.all(|&(_, other)| other == alpha) {
            true => Ok(alpha),
            false => {
                let expected = format!("patterns of which only one alpha fits {module}");
                Err(self.config.root().invalid("alpha_pattern", expected).into())
            }
        }
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
fn patterns(root: &ConfigSection<'_>, field: &str) -> Result<Vec<(Regex, f64)>, ConfigFileError> {
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

/// Why an adapter is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum AdapterError {
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    #[error(transparent)]
    Tensors(#[from] TensorError),
    #[error("{}: tensor {tensor} is not supported; expected {PREFIX}MODULE.lora_A.weight or lora_B", file.display())]
    Tensor { file: PathBuf, tensor: String },
    #[error("{}: the model has no linear layer {module}", file.display())]
    Unmatched { file: PathBuf, module: String },
    #[error("computing with the adapter: {0}")]
    Compute(candle_core::Error),
}
