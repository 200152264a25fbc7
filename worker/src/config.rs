//! Settings of `serve`: defaults, then a TOML file, then the environment, then flags.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use cosec_proto::{WorkerRole, kubernetes};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::cpu_set::CpuSet;
use crate::model::{CacheSize, DeviceChoice, DtypeChoice, KvDtype, NamedAdapter, Quantize};
use crate::registration::{self, InvalidRegistration};

/// Prefix of the environment variables: `COSEC_WORKER_STEP_TOKENS` sets `step_tokens`.
const ENVIRONMENT: &str = "COSEC_WORKER_";

/// Flags of `serve`. What is not given here comes from the environment, the file or the defaults.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct Flags {
    /// TOML file with the settings below, named with underscores (`step_tokens = 256`).
    #[arg(long, env = "COSEC_WORKER_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of a Hugging Face checkpoint (config.json, tokenizer.json, safetensors or pytorch_model.bin), its hub id
    /// OWNER/NAME, or a GGUF file. Required.
    #[arg(long, value_name = "MODEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a hub id [default: main].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What the model is for: base, expert or anti_expert. Required.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<WorkerRole>,
    /// Address of the gRPC service; port 0 takes any [default: 127.0.0.1:9001].
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Address of `/metrics` over HTTP; port 0 takes any [default: none].
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<String>,
    /// Name that the worker gives its model [default: last part of the path or hub id].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the worker stands (a zone, a rack), for coordinators that prefer what is near [default: nowhere said].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Directory of a PEFT LoRA adapter, or its hub id OWNER/NAME[@REVISION]; merged into the weights.
    #[arg(long, value_name = "ADAPTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// A PEFT LoRA adapter that sessions choose by its name, beside the weights; may be given several times.
    #[arg(long, value_name = "NAME=ADAPTER")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<NamedAdapter>,
    /// Where the model runs: cpu, cuda or cuda:N [default: cpu].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceChoice>,
    /// Element type of the weights in memory [default: auto].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DtypeChoice>,
    /// Folder of tokenizer.json [default: the model's].
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// How weights are quantised as they are loaded [default: not].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// Element type of the KV cache [default: auto, which is f32].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<KvDtype>,
    /// Memory of the KV cache in MiB [default: half of what the weights leave of the memory that is free, for at most 32
    /// sequences of full length].
    #[arg(long, value_name = "MIB", conflicts_with = "blocks")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_memory_mib: Option<u64>,
    /// Blocks of the KV cache, in place of its memory.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// Tokens of a block [default: 16].
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_tokens: Option<usize>,
    /// Most tokens of one forward pass [default: 512, on a GPU 2048].
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_tokens: Option<usize>,
    /// Threads of the forward pass and of reading its logits, 0 for one per core, or per CPU of --cpus [default: 0].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// CPUs that the worker keeps to, such as 0-3,8, each of --threads pinned to one; on Linux [default: all, and no
    /// thread is pinned].
    #[arg(long, value_name = "LIST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuSet>,
    /// A session that is not heard of for so long is released [default: 60].
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
    /// Most sessions at a time [default: 1024].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<usize>,
    /// Most operations that wait or run at a time [default: 4096].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_operations: Option<usize>,
    /// Time that sessions get to end when the worker shuts down [default: 10].
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u64>,
    #[command(flatten)]
    pub(crate) registration: registration::Flags,
}

/// Settings of `serve`, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Path or hub id of the model.
    pub model: PathBuf,
    /// Branch, tag or commit of a hub id.
    pub revision: Option<String>,
    /// What the model is for.
    pub role: WorkerRole,
    /// Name that the worker gives its model.
    pub name: String,
    /// Where the worker stands; empty when that was not said.
    pub zone: String,
    /// Host and port of the gRPC service.
    pub listen: String,
    /// Host and port of `/metrics`.
    pub metrics_listen: Option<String>,
    /// Path or hub id of a LoRA adapter, merged into the weights.
    pub adapter: Option<PathBuf>,
    /// Adapters that sessions choose by name.
    pub lora: Vec<NamedAdapter>,
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Element type of the weights in memory.
    pub dtype: DtypeChoice,
    /// Folder of tokenizer.json.
    pub tokenizer: Option<PathBuf>,
    /// How they are quantised.
    pub quantize: Option<Quantize>,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Size of the KV cache.
    pub cache: CacheSize,
    /// Tokens of a block of it.
    pub block_tokens: usize,
    /// Most tokens of one forward pass.
    pub step_tokens: usize,
    /// Threads of the forward pass; 0 for one per core, which stands only without `cpus`.
    pub threads: usize,
    /// CPUs that the worker keeps to, no fewer than there are threads.
    pub cpus: Option<CpuSet>,
    /// A session that is not heard of for so long is released.
    pub lease_seconds: u64,
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// Most unanswered operations.
    pub max_operations: usize,
    /// Time that sessions get to end when the worker shuts down.
    pub grace_seconds: u64,
    /// Where the worker registers, if anywhere.
    pub registration: registration::Config,
}

/// Settings as the layers name them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    model: Option<PathBuf>,
    revision: Option<String>,
    role: Option<WorkerRole>,
    name: Option<String>,
    zone: String,
    listen: String,
    metrics_listen: Option<String>,
    adapter: Option<PathBuf>,
    lora: Vec<NamedAdapter>,
    device: DeviceChoice,
    dtype: DtypeChoice,
    tokenizer: Option<PathBuf>,
    quantize: Option<Quantize>,
    kv_dtype: KvDtype,
    kv_memory_mib: Option<u64>,
    blocks: Option<usize>,
    block_tokens: usize,
    step_tokens: Option<usize>,
    threads: usize,
    cpus: Option<CpuSet>,
    lease_seconds: u64,
    max_sessions: usize,
    max_operations: usize,
    grace_seconds: u64,
    registration: registration::Config,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: None,
            revision: None,
            role: None,
            name: None,
            zone: String::new(),
            listen: "127.0.0.1:9001".to_owned(),
            metrics_listen: None,
            adapter: None,
            lora: Vec::new(),
            device: DeviceChoice::Cpu,
            dtype: DtypeChoice::Auto,
            tokenizer: None,
            quantize: None,
            kv_dtype: KvDtype::Auto,
            kv_memory_mib: None,
            blocks: None,
            block_tokens: 16,
            step_tokens: None,
            threads: 0,
            cpus: None,
            lease_seconds: 60,
            max_sessions: 1024,
            max_operations: 4096,
            grace_seconds: 10,
            registration: registration::Config::default(),
        }
    }
}

/// The settings in the environment, less the variable that names the file and those that Kubernetes sets by itself.
fn environment() -> Env {
    Env::prefixed(ENVIRONMENT).filter(|key| key != "config" && !kubernetes::injects(key.as_str())).split("__")
}

impl Config {
    /// Reads all layers; `flags` stand above all.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, its value and what is allowed.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let mut layers = Figment::new();
        if let Some(file) = &flags.config {
            if !file.is_file() {
                return Err(ConfigError::NoFile(file.clone()));
            }
            layers = layers.merge(Toml::file_exact(file));
        }
        layers = layers.merge(environment());
        layers = layers.merge(Serialized::defaults(flags));
        let settings: Settings = layers.extract().map_err(|error| ConfigError::Layer(error.to_string()))?;
        settings.checked()
    }
}

impl Settings {
    fn checked(self) -> Result<Config, ConfigError> {
        let model = self.model.ok_or(ConfigError::Missing { key: "model", flag: "--model" })?;
        let role =
            self.role.ok_or(ConfigError::Missing { key: "role", flag: "--role base, expert or anti_expert" })?;
        let name = self.name.unwrap_or_else(|| model_name(&model));
        let cache = match (self.kv_memory_mib, self.blocks) {
            (Some(_), Some(_)) => return Err(ConfigError::TwoCacheSizes),
            (None, Some(blocks)) => CacheSize::Blocks(within("blocks", blocks, 1, u32::MAX as usize)?),
            (Some(mib), None) => CacheSize::MemoryMib(within("kv_memory_mib", mib, 1, 1 << 24)?),
            (None, None) => CacheSize::Auto,
        };
        Ok(Config {
            registration: self.registration.completed(&name, &self.listen)?,
            model,
            revision: self.revision,
            role,
            name,
            zone: self.zone,
            listen: host_port("listen", self.listen)?,
            metrics_listen: self.metrics_listen.map(|address| host_port("metrics_listen", address)).transpose()?,
            adapter: self.adapter,
            lora: distinct(self.lora)?,
            device: self.device,
            dtype: self.dtype,
            tokenizer: self.tokenizer,
            quantize: self.quantize,
            kv_dtype: self.kv_dtype,
            cache,
            block_tokens: within("block_tokens", self.block_tokens, 1, 1024)?,
            step_tokens: within("step_tokens", self.step_tokens.unwrap_or(self.device.step_tokens()), 4, 1 << 16)?,
            threads: match &self.cpus {
                None => within("threads", self.threads, 0, 1024)?,
                Some(cpus) => threads_on(cpus, self.threads)?,
            },
            cpus: self.cpus,
            lease_seconds: within("lease_seconds", self.lease_seconds, 1, 86_400)?,
            max_sessions: within("max_sessions", self.max_sessions, 1, 1 << 20)?,
            max_operations: within("max_operations", self.max_operations, 1, 1 << 20)?,
            grace_seconds: within("grace_seconds", self.grace_seconds, 0, 86_400)?,
        })
    }
}

fn model_name(model: &Path) -> String {
    // `.` has no last part before it is resolved; a hub id stays as it is.
    let resolved = model.canonicalize().unwrap_or_else(|_| model.to_path_buf());
    let name = resolved.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let name = name.split_once('@').map_or(name.as_ref(), |(name, _)| name);
    name.strip_suffix(".gguf").unwrap_or(name).to_owned()
}

/// Checks that no two adapters have one name.
fn distinct(adapters: Vec<NamedAdapter>) -> Result<Vec<NamedAdapter>, ConfigError> {
    let mut names = HashSet::new();
    match adapters.iter().find(|adapter| !names.insert(&adapter.name)) {
        Some(twice) => Err(ConfigError::TwoAdapters(twice.name.clone())),
        None => Ok(adapters),
    }
}

/// How many of `threads` there are where each has a CPU of its own; 0 takes all CPUs.
fn threads_on(cpus: &CpuSet, threads: usize) -> Result<usize, ConfigError> {
    let refused = |problem| ConfigError::Cpus { cpus: cpus.to_string(), problem };
    let available = CpuSet::available().map_err(|error| refused(error.to_string()))?;
    if !cpus.is_within(&available) {
        return Err(refused(format!("the process may use {available}")));
    }
    match threads {
        0 => Ok(cpus.count()),
        threads if threads <= cpus.count() => Ok(threads),
        threads => Err(ConfigError::Threads { threads, cpus: cpus.to_string(), most: cpus.count() }),
    }
}

fn host_port(key: &'static str, address: String) -> Result<String, ConfigError> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(address),
        _ => Err(ConfigError::Address { key, address }),
    }
}

fn within<T>(key: &'static str, value: T, least: T, most: T) -> Result<T, ConfigError>
where
    T: PartialOrd + std::fmt::Display,
{
    if value < least || value > most {
        return Err(ConfigError::Range {
            key,
            value: value.to_string(),
            least: least.to_string(),
            most: most.to_string(),
        });
    }
    Ok(value)
}

/// Settings that a worker cannot start with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist.
    #[error("config is {}; there is no such file", .0.display())]
    NoFile(PathBuf),
    /// A layer has an unknown key or a value of the wrong type.
    #[error("configuration: {0}")]
    Layer(String),
    /// A required setting is in no layer.
    #[error("{key} is missing; set it with {flag}, {ENVIRONMENT}* or the file")]
    Missing {
        /// The setting.
        key: &'static str,
        /// How to give it.
        flag: &'static str,
    },
    /// Memory and blocks are both set.
    #[error("kv_memory_mib and blocks are both set; only one of them is allowed")]
    TwoCacheSizes,
    /// Two adapters have one name.
    #[error("lora names {0} twice; every adapter needs a name of its own")]
    TwoAdapters(String),
    /// CPUs that are not there, or are not the worker's to choose.
    #[error("cpus is {cpus}; {problem}")]
    Cpus {
        /// What was given.
        cpus: String,
        /// What is allowed.
        problem: String,
    },
    /// More threads than CPUs that they could be pinned to.
    #[error("threads is {threads}; with cpus {cpus} it must be 0 to {most}")]
    Threads {
        /// What was given.
        threads: usize,
        /// The CPUs.
        cpus: String,
        /// How many they are.
        most: usize,
    },
    /// No address.
    #[error("{key} is {address:?}; it must be HOST:PORT")]
    Address {
        /// The setting.
        key: &'static str,
        /// What was given.
        address: String,
    },
    /// The worker could not be found.
    #[error(transparent)]
    Registration(#[from] InvalidRegistration),
    /// A number that makes no sense.
    #[error("{key} is {value}; it must be {least} to {most}")]
    Range {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: String,
        /// Least that is allowed.
        least: String,
        /// Most that is allowed.
        most: String,
    },
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn flags() -> Flags {
        Flags { model: Some("models/a".into()), role: Some(WorkerRole::Expert), ..Flags::default() }
    }

    /// Waits for tests that set variables.
    #[expect(clippy::result_large_err, reason = "figment's Jail asks for its own error")]
    fn load(flags: &Flags) -> Result<Config, ConfigError> {
        let mut config = None;
        figment::Jail::expect_with(|_| {
            config = Some(Config::load(flags));
            Ok(())
        });
        config.unwrap()
    }

    fn check(file: &str, flags: &Flags, expected: Result<(), &str>) {
        let mut toml = tempfile::NamedTempFile::new().unwrap();
        toml.write_all(file.as_bytes()).unwrap();
        let flags = Flags { config: Some(toml.path().to_owned()), ..flags.clone() };
        match (load(&flags), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} does not name {part}"),
            (got, _) => panic!("{file:?}: {got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_named() {
        check("", &flags(), Ok(()));
        check("", &Flags::default(), Err("model is missing"));
        check("", &Flags { role: None, ..flags() }, Err("role is missing"));
        check("step_token = 3", &flags(), Err("step_token"));
        check("step_tokens = \"many\"", &flags(), Err("step_tokens"));
        check("step_tokens = 0", &flags(), Err("step_tokens is 0"));
        check("role = \"judge\"", &Flags { role: None, ..flags() }, Err("judge"));
        check("role = \"anti-expert\"", &Flags { role: None, ..flags() }, Err("anti_expert"));
        check("lease_seconds = -1", &flags(), Err("lease_seconds"));
        check("blocks = 3\nkv_memory_mib = 4", &flags(), Err("both set"));
        check("lora = [\"a=x\", \"b-1.0=x\"]", &flags(), Ok(()));
        check("lora = [\"a=x\", \"a=y\"]", &flags(), Err("lora names a twice"));
        check("lora = [\"a\"]", &flags(), Err("expected NAME=DIR"));
        check("lora = [\"a b=x\"]", &flags(), Err("the name is \"a b\""));
        check("lora = [\"=x\"]", &flags(), Err("the name is \"\""));
        check("listen = \"localhost:0\"", &flags(), Ok(()));
        for address in ["nowhere", ":9001", "localhost:", "localhost:65536"] {
            check(&format!("listen = {address:?}"), &flags(), Err("it must be HOST:PORT"));
        }
        check("metrics_listen = \"nowhere\"", &flags(), Err("metrics_listen is"));
        for quantize in ["q8_0", "q4_k"] {
            check(&format!("quantize = {quantize:?}\nkv_dtype = \"f16\""), &flags(), Ok(()));
        }
        check("quantize = \"q2_k\"", &flags(), Err("q2_k"));
        check("device = \"cuda:1\"", &flags(), Ok(()));
        check("device = \"tpu\"", &flags(), Err("device is \"tpu\"; expected cpu"));
        check("kv_dtype = \"f64\"", &flags(), Err("f64"));
        let missing = Flags { config: Some("no/such/file.toml".into()), ..flags() };
        assert_eq!(load(&missing), Err(ConfigError::NoFile("no/such/file.toml".into())));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_have_a_cpu_each() {
        let available = CpuSet::available().unwrap();
        let (one, count) = (available.each().next().unwrap(), available.count());
        check(&format!("cpus = {:?}\nthreads = 2", one.to_string()), &flags(), Err("it must be 0 to 1"));
        check("cpus = \"0-1023\"", &flags(), Err(&format!("cpus is 0-1023; the process may use {available}")));
        check("cpus = \"\"", &flags(), Err("cpus is \"\"; expected numbers below 1024"));
        check("cpus = \"0-x\"", &flags(), Err("cpus is \"0-x\"; expected"));
        check("cpus = 1.5", &flags(), Err("expected cpus as a list"));
        let threads = |flags: &Flags| load(flags).map(|config| config.threads);
        assert_eq!(threads(&Flags { cpus: Some(available.clone()), ..flags() }), Ok(count));
        assert_eq!(threads(&Flags { cpus: Some(available), threads: Some(1), ..flags() }), Ok(1));
        assert_eq!(threads(&flags()), Ok(0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    #[expect(clippy::result_large_err, reason = "figment's own error type")]
    fn cpus_are_read_from_the_environment() {
        let available = CpuSet::available().unwrap();
        let one = available.each().next().unwrap();
        figment::Jail::expect_with(|jail| {
            for cpus in [available, one] {
                let listed: Vec<String> = cpus.each().map(String::from).collect();
                for written in [cpus.to_string(), listed.join(",")] {
                    jail.set_env("COSEC_WORKER_CPUS", written);
                    assert_eq!(Config::load(&flags()).unwrap().cpus.as_ref(), Some(&cpus));
                }
            }
            Ok(())
        });
    }

    #[test]
    #[expect(clippy::result_large_err, reason = "figment's own error type")]
    fn variables_that_kubernetes_sets_are_no_settings() {
        figment::Jail::expect_with(|jail| {
            // Of a Service called cosec-worker.
            jail.set_env("COSEC_WORKER_SERVICE_HOST", "10.0.0.1");
            jail.set_env("COSEC_WORKER_PORT_9001_TCP_ADDR", "10.0.0.1");
            jail.set_env("COSEC_WORKER_STEP_TOKENS", "77");
            assert_eq!(Config::load(&flags()).unwrap().step_tokens, 77);
            jail.set_env("COSEC_WORKER_STEP_TOKEN", "77");
            assert!(Config::load(&flags()).unwrap_err().to_string().contains("step_token"));
            Ok(())
        });
    }

    #[test]
    fn flags_stand_above_the_file_and_the_file_above_the_defaults() {
        let mut toml = tempfile::NamedTempFile::new().unwrap();
        toml.write_all(b"step_tokens = 64\nblock_tokens = 8\ndtype = \"bf16\"\nblocks = 7").unwrap();
        let flags = Flags { config: Some(toml.path().to_owned()), step_tokens: Some(32), ..flags() };
        let config = load(&flags).unwrap();
        assert_eq!((config.step_tokens, config.block_tokens, config.max_sessions), (32, 8, 1024));
        assert_eq!((config.dtype, config.cache), (DtypeChoice::Bf16, CacheSize::Blocks(7)));
        assert_eq!(config.name, "a");
    }
}
