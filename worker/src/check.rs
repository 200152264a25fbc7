//! Compares a checkpoint with logits that another implementation computed.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::checkpoint::hub::{self, HubError, RepoContent};
use crate::model::{
    BatchItem, CacheSize, Checkpoint, DeviceChoice, DtypeChoice, ForwardError, KvDtype, LoadOptions, ModelLoadError,
    ModelRunner, NamedAdapter, QuantizedFormat,
};

/// Tokens of a cache block; small, so that the check crosses blocks.
const BLOCK_TOKENS: usize = 4;

/// Which checkpoint to compare with which logits.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// Directory of a checkpoint, its hub id OWNER/NAME, or a GGUF file.
    #[arg(long)]
    pub model: PathBuf,
    /// Branch, tag or commit of a hub id [default: main].
    #[arg(long)]
    pub revision: Option<String>,
    /// Directory of a PEFT LoRA adapter, or its hub id OWNER/NAME[@REVISION]; merged into the weights.
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// An unmerged PEFT LoRA adapter, which all prompts choose.
    #[arg(long, value_name = "NAME=ADAPTER")]
    pub lora: Option<NamedAdapter>,
    /// Where the model runs: cpu, cuda or cuda:N.
    #[arg(long, default_value_t)]
    pub device: DeviceChoice,
    /// Element type of the weights.
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeChoice,
    /// Folder of tokenizer.json [default: the model's].
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// How the weights are quantised [default: not].
    #[arg(long, value_enum)]
    pub quantize: Option<QuantizedFormat>,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value_t)]
    pub kv_dtype: KvDtype,
    /// File of prompts and their expected logits.
    #[arg(long)]
    pub expected: PathBuf,
    /// Largest difference that passes: absolute, or with weights or a cache that were rounded, of the norm of the
    /// difference to the norm of the logits. Defaults to 1e-4; 2e-2 with 16 bits, 5e-2 with q8_0 or a quantised file,
    /// 3e-1 with q4_k.
    #[arg(long)]
    pub tolerance: Option<f64>,
    /// Threads of the forward pass; 0 takes one per core.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// How a difference is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorMeasure {
    /// Largest absolute difference of a logit.
    Absolute,
    /// Norm of the difference by norm of the expected logits, over a row.
    Relative,
}

/// The result of a comparison.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// How differences were measured.
    pub measure: ErrorMeasure,
    /// Largest that passes.
    pub tolerance: f64,
    /// One entry for each prompt.
    pub prompts: Vec<PromptReport>,
}

/// The differences for one prompt.
#[derive(Clone, Debug)]
pub struct PromptReport {
    /// Length of the prompt.
    pub tokens: usize,
    /// Largest difference at the last position.
    pub last: f64,
    /// Largest difference over all positions, where the file has them.
    pub all: Option<f64>,
    /// Tokens of the greedy continuation that agree, from the first on.
    pub greedy_agreeing: usize,
    /// Tokens of the expected continuation.
    pub greedy_expected: usize,
}

#[derive(Deserialize)]
struct ExpectedLogits {
    prompts: Vec<ExpectedPrompt>,
}

#[derive(Deserialize)]
struct ExpectedPrompt {
    input_ids: Vec<u32>,
    last_logits: Vec<f32>,
    all_logits: Option<Vec<Vec<f32>>>,
    greedy: Vec<u32>,
}

/// Loads the checkpoint and compares.
///
/// # Errors
/// [`CheckError`] when the comparison cannot be made; a difference is no error but part of the report.
pub fn run(args: &CheckArgs) -> Result<CheckReport, CheckError> {
    let unreadable = |problem: String| CheckError::Expected { file: args.expected.clone(), problem };
    let bytes = std::fs::read(&args.expected).map_err(|error| unreadable(error.to_string()))?;
    let expected: ExpectedLogits = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    let longest = expected.prompts.iter().map(|prompt| prompt.input_ids.len() + prompt.greedy.len()).max();
    let directory = hub::locate(&args.model, args.revision.as_deref(), RepoContent::Model)?;
    let options = LoadOptions {
        adapter: args.adapter.clone(),
        lora: args.lora.iter().cloned().collect(),
        device: args.device,
        dtype: args.dtype,
        tokenizer: args.tokenizer.clone(),
        quantize: args.quantize,
        kv_dtype: args.kv_dtype,
        cache: CacheSize::Blocks(longest.unwrap_or(0).div_ceil(BLOCK_TOKENS).max(1)),
        block_tokens: BLOCK_TOKENS,
        threads: args.threads,
        cpus: None,
    };
    // Activations between quantised weights are rounded, by others to 8 bits.
    let quantised = Checkpoint::open(&directory).map_err(ModelLoadError::from)?.is_quantised();
    let mut model = ModelRunner::load(&directory, &options)?;
    // The expected logits were computed in f32 from the checkpoint's own weights. GPUs round the factors of products
    // with weights in 16 bits.
    let own_dtype =
        args.dtype == DtypeChoice::F32 || args.dtype == DtypeChoice::Auto && args.device == DeviceChoice::Cpu;
    let own_weights = own_dtype && args.quantize.is_none();
    let own_cache = matches!(args.kv_dtype, KvDtype::Auto | KvDtype::F32);
    let (measure, default) = match args.quantize {
        None if quantised => (ErrorMeasure::Relative, 5e-2),
        None if own_weights && own_cache => (ErrorMeasure::Absolute, 1e-4),
        None => (ErrorMeasure::Relative, 2e-2),
        Some(QuantizedFormat::Q8_0) => (ErrorMeasure::Relative, 5e-2),
        Some(QuantizedFormat::Q4K) => (ErrorMeasure::Relative, 3e-1),
    };
    let check =
        |prompt: &ExpectedPrompt| check_prompt(&mut model, prompt, measure).map_err(|error| error.or(unreadable));
    let prompts = expected.prompts.iter().map(check).collect::<Result<_, _>>()?;
    Ok(CheckReport { measure, tolerance: args.tolerance.unwrap_or(default), prompts })
}

/// Which side of a comparison failed.
enum PromptError {
    Forward(ForwardError),
    Expected(String),
}

impl PromptError {
    fn or(self, expected: impl Fn(String) -> CheckError) -> CheckError {
        match self {
            Self::Forward(error) => error.into(),
            Self::Expected(problem) => expected(problem),
        }
    }
}

impl From<ForwardError> for PromptError {
    fn from(error: ForwardError) -> Self {
        Self::Forward(error)
    }
}

fn check_prompt(
    model: &mut ModelRunner,
    prompt: &ExpectedPrompt,
    measure: ErrorMeasure,
) -> Result<PromptReport, PromptError> {
    // In reverse, so that code that ignores the block table fails.
    let count = (prompt.input_ids.len() + prompt.greedy.len()).div_ceil(BLOCK_TOKENS) as u32;
    let blocks: Vec<u32> = (0..count).rev().collect();
    let tokens = prompt.input_ids.as_slice();
    // There is one at most.
    let adapter = (!model.description().adapters.is_empty()).then_some(0);
    let logits = model.forward(&[BatchItem { tokens, start: 0, blocks: &blocks, rows: 0..tokens.len(), adapter }])?;
    let last_row = logits.row(tokens.len() - 1);
    let last = difference(last_row, &prompt.last_logits, measure)?;
    let all = match &prompt.all_logits {
        None => None,
        Some(rows) if rows.len() == tokens.len() => {
            let rows = rows.iter().enumerate().map(|(i, row)| difference(logits.row(i), row, measure));
            Some(rows.collect::<Result<Vec<_>, _>>()?.into_iter().fold(0.0, f64::max))
        }
        Some(rows) => {
            let problem = format!("all_logits has {} rows for {} tokens", rows.len(), tokens.len());
            return Err(PromptError::Expected(problem));
        }
    };
    let mut next = arg_max(last_row);
    let mut agreeing = 0;
    for (step, &expected) in prompt.greedy.iter().enumerate() {
        if next != expected {
            break;
        }
        agreeing += 1;
        let item = BatchItem { tokens: &[next], start: tokens.len() + step, blocks: &blocks, rows: 0..1, adapter };
        if agreeing < prompt.greedy.len() {
            next = arg_max(model.forward(&[item])?.row(0));
        }
    }
    let (tokens, greedy_expected) = (tokens.len(), prompt.greedy.len());
    Ok(PromptReport { tokens, last, all, greedy_agreeing: agreeing, greedy_expected })
}

fn difference(found: &[f32], expected: &[f32], measure: ErrorMeasure) -> Result<f64, PromptError> {
    if found.len() != expected.len() {
        let problem = format!("a row has {} logits; the model's have {}", expected.len(), found.len());
        return Err(PromptError::Expected(problem));
    }
    let pairs = || found.iter().zip(expected).map(|(&found, &expected)| (f64::from(found), f64::from(expected)));
    // A NaN must not get lost in a maximum.
    if found.iter().any(|logit| logit.is_nan()) {
        return Ok(f64::INFINITY);
    }
    Ok(match measure {
        ErrorMeasure::Absolute => pairs().map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max),
        ErrorMeasure::Relative => {
            let error: f64 = pairs().map(|(found, expected)| (found - expected).powi(2)).sum();
            let norm: f64 = pairs().map(|(_, expected)| expected.powi(2)).sum();
            (error / norm).sqrt()
        }
    })
}

/// The lowest id among the largest logits.
fn arg_max(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

impl CheckReport {
    /// Whether every difference is within the tolerance and, unless weights were rounded, every continuation agrees.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.prompts.iter().all(|prompt| {
            let within = prompt.last.max(prompt.all.unwrap_or(0.0)) <= self.tolerance;
            let same = prompt.greedy_agreeing == prompt.greedy_expected || self.measure == ErrorMeasure::Relative;
            within && same
        })
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measure = match self.measure {
            ErrorMeasure::Absolute => "absolute",
            ErrorMeasure::Relative => "relative",
        };
        for prompt in &self.prompts {
            write!(f, "prompt of {} tokens: {measure} error {:.2e} in the last row", prompt.tokens, prompt.last)?;
            if let Some(all) = prompt.all {
                write!(f, ", {all:.2e} in all rows")?;
            }
            writeln!(f, "; greedy {} of {} tokens equal", prompt.greedy_agreeing, prompt.greedy_expected)?;
        }
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        write!(f, "{verdict}: tolerance {:.1e} {measure}", self.tolerance)
    }
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum CheckError {
    #[error("{}: {problem}", file.display())]
    Expected { file: PathBuf, problem: String },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Load(Box<ModelLoadError>),
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

impl From<ModelLoadError> for CheckError {
    fn from(error: ModelLoadError) -> Self {
        Self::Load(Box::new(error))
    }
}
