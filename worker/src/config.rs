//! Settings of `serve`: defaults, then a TOML file, then the environment, then flags.
//!
//! A setting is one field of [`WorkerConfig`]. Its name is the key in the file, its comment the help of its flag, and
//! clap's default the default. [`WorkerConfig::validate`] says which values are allowed.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use cosec_proto::serving::{ConnectionLimits, InvalidLimit};
use cosec_proto::tls::MutualTls;
use cosec_proto::{WorkerRole, kubernetes};
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};
use serde::{Deserialize, Serialize};

use crate::cpu_set::CpuSet;
use crate::model::{CacheSize, DeviceChoice, DtypeChoice, KvDtype, LoadOptions, NamedAdapter, QuantizedFormat};
use crate::registration::{InvalidRegistration, RegistrationConfig};
use crate::server::ListenConfig;

/// Prefix of the environment variables: `COSEC_WORKER_STEP_TOKENS` sets `step_tokens`.
const ENVIRONMENT: &str = "COSEC_WORKER_";

/// Settings of `serve`.
#[derive(Clone, Debug, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// TOML file with the settings below, named with underscores (`step_tokens = 256`).
    #[arg(long, env = "COSEC_WORKER_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of a Hugging Face checkpoint (config.json, tokenizer.json, safetensors or pytorch_model.bin), its hub
    /// id OWNER/NAME, or a GGUF file. Required.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a hub id [default: main].
    #[arg(long)]
    pub revision: Option<String>,
    /// What the model is for: base, expert or anti_expert. Required.
    #[arg(long)]
    pub role: Option<WorkerRole>,
    /// Address of the gRPC service; port 0 takes any.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9001")]
    pub listen: String,
    /// Address of `/metrics` over HTTP; port 0 takes any [default: none].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
    /// Address of `/health/live` and `/health/ready` over HTTP for probes, in the clear; port 0 takes any [default: none].
    #[arg(long, value_name = "HOST:PORT")]
    pub health_listen: Option<String>,
    /// Lets ports that other machines reach be in the clear: whoever reaches them can use the model.
    #[arg(long)]
    pub insecure: bool,
    /// Name that the worker gives its model [default: last part of the path or hub id].
    #[arg(long)]
    pub name: Option<String>,
    /// Where the worker stands (a zone, a rack), for coordinators that prefer near workers [default: unknown].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub zone: String,
    /// Directory of a PEFT LoRA adapter, or its hub id OWNER/NAME[@REVISION]; merged into the weights.
    #[arg(long, value_name = "ADAPTER")]
    pub adapter: Option<PathBuf>,
    /// A PEFT LoRA adapter that sessions choose by its name, not merged into the weights; may be given several times.
    #[arg(long, value_name = "NAME=ADAPTER")]
    pub lora: Vec<NamedAdapter>,
    /// Where the model runs: cpu, cuda or cuda:N.
    #[arg(long, default_value_t)]
    pub device: DeviceChoice,
    /// Element type of the weights in memory.
    #[arg(long, default_value_t, value_enum)]
    pub dtype: DtypeChoice,
    /// Folder of tokenizer.json [default: the model's].
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// How weights are quantised as they are loaded [default: not].
    #[arg(long)]
    pub quantize: Option<QuantizedFormat>,
    /// Element type of the KV cache.
    #[arg(long, default_value_t, value_enum)]
    pub kv_dtype: KvDtype,
    /// Memory of the KV cache in MiB [default: half of the memory that the weights leave free, for at most 32 sequences
    /// of full length].
    #[arg(long, value_name = "MIB", conflicts_with = "blocks")]
    pub kv_memory_mib: Option<u64>,
    /// Blocks of the KV cache, in place of its memory.
    #[arg(long)]
    pub blocks: Option<usize>,
    /// Tokens of a block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub block_tokens: usize,
    /// Most tokens of one forward pass [default: 512, on a GPU 2048].
    #[arg(long, value_name = "TOKENS")]
    pub step_tokens: Option<usize>,
    /// Threads of the forward pass and of reading its logits, 0 for one per core, or per CPU of --cpus.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// CPUs that the worker keeps to, such as 0-3,8, each of --threads pinned to one; on Linux [default: all, and no
    /// thread is pinned].
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuSet>,
    /// How long a session lives without an operation.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub lease_seconds: u64,
    /// Most sessions at a time.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_sessions: usize,
    /// Most operations that wait or run at a time.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_operations: usize,
    /// Time that sessions get to end when the worker shuts down.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub grace_seconds: u64,
    /// Who the worker is to coordinators and to those who read metrics, and whose word it takes for who they are.
    #[command(flatten)]
    pub tls: MutualTls,
    /// How much of the process its clients may hold.
    #[command(flatten)]
    pub connections: ConnectionLimits,
    /// Where coordinators find the worker.
    #[command(flatten)]
    pub registration: RegistrationConfig,
}

impl Default for WorkerConfig {
    /// What clap makes of no flags.
    fn default() -> Self {
        let no_flags = Self::command().get_matches_from(["serve"]);
        Self::from_arg_matches(&no_flags).unwrap_or_else(|defect| defect.exit())
    }
}

impl WorkerConfig {
    /// Every setting as clap knows it: name, value, default, help.
    #[must_use]
    pub fn command() -> Command {
        Self::augment_args(Command::new("serve"))
    }

    /// Reads all layers; `flags`, which [`Self::command`] matched, win.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, its value and what is allowed.
    pub fn load(flags: &ArgMatches) -> Result<Self, ConfigError> {
        let layer = |error: String| ConfigError::Layer(error);
        let of_flags = Self::from_arg_matches(flags).map_err(|error| layer(error.to_string()))?;
        let mut layers = Figment::new();
        if let Some(file) = &of_flags.config {
            if !file.is_file() {
                return Err(ConfigError::NoFile(file.clone()));
            }
            layers = layers.merge(Toml::file_exact(file));
        }
        let of_flags = Serialized::defaults(of_flags).data().map_err(|error| layer(error.to_string()))?;
        let mut settings = of_flags.get(&Profile::Default).cloned().unwrap_or_default();
        keep_given(&mut settings, flags);
        let layers = layers.merge(environment()).merge(Serialized::defaults(settings));
        layers.extract::<Self>().map_err(|error| layer(error.to_string()))?.validate()
    }

    /// Path or hub id of the model.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn model(&self) -> Result<&Path, ConfigError> {
        self.model.as_deref().ok_or(ConfigError::Missing { key: "model", flag: "--model" })
    }

    /// What the model is for.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn role(&self) -> Result<WorkerRole, ConfigError> {
        self.role.ok_or(ConfigError::Missing { key: "role", flag: "--role base, expert or anti_expert" })
    }

    /// Name that the worker gives its model.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] without a model.
    pub fn name(&self) -> Result<String, ConfigError> {
        Ok(self.name.clone().unwrap_or(model_name(self.model()?)))
    }

    /// Most tokens of one forward pass.
    #[must_use]
    pub fn step_tokens(&self) -> usize {
        self.step_tokens.unwrap_or(self.device.step_tokens())
    }

    /// Where the worker listens.
    #[must_use]
    pub fn listen_config(&self) -> ListenConfig {
        ListenConfig {
            listen: self.listen.clone(),
            metrics_listen: self.metrics_listen.clone(),
            health_listen: self.health_listen.clone(),
            tls: self.tls.clone(),
            insecure: self.insecure,
            connections: self.connections.clone(),
        }
    }

    /// How the model is brought into memory.
    #[must_use]
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            adapter: self.adapter.clone(),
            lora: self.lora.clone(),
            device: self.device,
            dtype: self.dtype,
            tokenizer: self.tokenizer.clone(),
            quantize: self.quantize,
            kv_dtype: self.kv_dtype,
            cache: self.cache(),
            block_tokens: self.block_tokens,
            threads: self.threads,
            cpus: self.cpus.clone(),
        }
    }

    fn cache(&self) -> CacheSize {
        match (self.kv_memory_mib, self.blocks) {
            (_, Some(blocks)) => CacheSize::Blocks(blocks),
            (Some(mib), None) => CacheSize::MemoryMib(mib),
            (None, None) => CacheSize::Auto,
        }
    }

    /// Checks every setting; gives `threads` their number and `registration` its name.
    fn validate(mut self) -> Result<Self, ConfigError> {
        self.model()?;
        self.role()?;
        if self.kv_memory_mib.is_some() && self.blocks.is_some() {
            return Err(ConfigError::TwoCacheSizes);
        }
        within("blocks", self.blocks, 1..=u32::MAX as usize)?;
        within("kv_memory_mib", self.kv_memory_mib, 1..=1 << 24)?;
        self.registration = self.registration.clone().completed(&self.name()?, &self.listen)?;
        host_port("listen", Some(&self.listen))?;
        host_port("metrics_listen", self.metrics_listen.as_deref())?;
        host_port("health_listen", self.health_listen.as_deref())?;
        self.connections.check()?;
        let mut names = HashSet::new();
        if let Some(twice) = self.lora.iter().find(|adapter| !names.insert(&adapter.name)) {
            return Err(ConfigError::TwoAdapters(twice.name.clone()));
        }
        within("block_tokens", self.block_tokens, 1..=1024)?;
        within("step_tokens", self.step_tokens(), 4..=1 << 16)?;
        match &self.cpus {
            None => within("threads", self.threads, 0..=1024)?,
            Some(cpus) => self.threads = threads_on(cpus, self.threads)?,
        }
        within("lease_seconds", self.lease_seconds, 1..=86_400)?;
        within("max_sessions", self.max_sessions, 1..=1 << 20)?;
        within("max_operations", self.max_operations, 1..=1 << 20)?;
        within("grace_seconds", self.grace_seconds, 0..=86_400)?;
        Ok(self)
    }
}

/// Keeps the settings that the command line itself gave.
fn keep_given(settings: &mut Dict, flags: &ArgMatches) {
    settings.retain(|key, value| match value {
        Value::Dict(_, inner) => {
            keep_given(inner, flags);
            true
        }
        _ => flags.value_source(key) == Some(ValueSource::CommandLine),
    });
}

/// The settings in the environment, less the variable that names the file and those that Kubernetes sets by itself.
fn environment() -> Env {
    Env::prefixed(ENVIRONMENT).filter(|key| key != "config" && !kubernetes::injects(key.as_str())).split("__")
}

fn model_name(model: &Path) -> String {
    // `.` has no last part before it is resolved; a hub id stays as it is.
    let resolved = model.canonicalize().unwrap_or_else(|_| model.to_path_buf());
    let name = resolved.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let name = name.split_once('@').map_or(name.as_ref(), |(name, _)| name);
    name.strip_suffix(".gguf").unwrap_or(name).to_owned()
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

fn host_port(key: &'static str, address: Option<&str>) -> Result<(), ConfigError> {
    let Some(address) = address else { return Ok(()) };
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(ConfigError::Address { key, address: address.to_owned() }),
    }
}

fn within<T: PartialOrd + Display>(
    key: &'static str,
    value: impl Into<Option<T>>,
    allowed: RangeInclusive<T>,
) -> Result<(), ConfigError> {
    match value.into() {
        Some(value) if !allowed.contains(&value) => Err(ConfigError::Range {
            key,
            value: value.to_string(),
            least: allowed.start().to_string(),
            most: allowed.end().to_string(),
        }),
        _ => Ok(()),
    }
}

/// Settings that a worker cannot start with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the field names say it")]
pub enum ConfigError {
    #[error("config is {}; there is no such file", .0.display())]
    NoFile(PathBuf),
    #[error("configuration: {0}")]
    Layer(String),
    #[error("{key} is missing; set it with {flag}, {ENVIRONMENT}* or the file")]
    Missing { key: &'static str, flag: &'static str },
    #[error("kv_memory_mib and blocks are both set; only one of them is allowed")]
    TwoCacheSizes,
    #[error("lora names {0} twice; every adapter needs a name of its own")]
    TwoAdapters(String),
    #[error("cpus is {cpus}; {problem}")]
    Cpus { cpus: String, problem: String },
    #[error("threads is {threads}; with cpus {cpus} it must be 0 to {most}")]
    Threads { threads: usize, cpus: String, most: usize },
    #[error("{key} is {address:?}; it must be HOST:PORT")]
    Address { key: &'static str, address: String },
    #[error("connections.{0}")]
    Connections(#[from] InvalidLimit),
    #[error(transparent)]
    Registration(#[from] InvalidRegistration),
    #[error("{key} is {value}; it must be {least} to {most}")]
    Range { key: &'static str, value: String, least: String, most: String },
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const REQUIRED: [&str; 4] = ["--model", "models/a", "--role", "expert"];

    /// The required flags and `more`.
    fn with(more: &[&str]) -> Vec<String> {
        REQUIRED.iter().chain(more).map(|&flag| flag.to_owned()).collect()
    }

    fn matched(flags: &[String]) -> ArgMatches {
        let command = std::iter::once("serve").chain(flags.iter().map(String::as_str));
        WorkerConfig::command().get_matches_from(command)
    }

    /// Waits for tests that set variables.
    #[expect(clippy::result_large_err, reason = "figment's Jail asks for its own error")]
    fn load(flags: &[String]) -> Result<WorkerConfig, ConfigError> {
        let mut config = None;
        figment::Jail::expect_with(|_| {
            config = Some(WorkerConfig::load(&matched(flags)));
            Ok(())
        });
        config.unwrap()
    }

    /// Loads `file` under `flags`.
    fn load_file(file: &str, flags: &[String]) -> Result<WorkerConfig, ConfigError> {
        let mut toml = tempfile::NamedTempFile::new().unwrap();
        toml.write_all(file.as_bytes()).unwrap();
        let file = ["--config".to_owned(), toml.path().to_str().unwrap().to_owned()];
        load(&[&file, flags].concat())
    }

    fn check(file: &str, flags: &[String], expected: Result<(), &str>) {
        match (load_file(file, flags), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} does not name {part}"),
            (got, _) => panic!("{file:?}: {got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_named() {
        check("", &with(&[]), Ok(()));
        check("", &[], Err("model is missing"));
        check("", &with(&[])[..2], Err("role is missing"));
        check("step_token = 3", &with(&[]), Err("step_token"));
        check("step_tokens = \"many\"", &with(&[]), Err("step_tokens"));
        check("step_tokens = 0", &with(&[]), Err("step_tokens is 0"));
        check("role = \"judge\"", &with(&[])[..2], Err("judge"));
        check("role = \"anti-expert\"", &with(&[])[..2], Err("anti_expert"));
        check("lease_seconds = -1", &with(&[]), Err("lease_seconds"));
        check("blocks = 3\nkv_memory_mib = 4", &with(&[]), Err("both set"));
        check("lora = [\"a=x\", \"b-1.0=x\"]", &with(&[]), Ok(()));
        check("lora = [\"a=x\", \"a=y\"]", &with(&[]), Err("lora names a twice"));
        check("lora = [\"a\"]", &with(&[]), Err("expected NAME=DIR"));
        check("lora = [\"a b=x\"]", &with(&[]), Err("the name is \"a b\""));
        check("lora = [\"=x\"]", &with(&[]), Err("the name is \"\""));
        check("listen = \"localhost:0\"", &with(&[]), Ok(()));
        for address in ["nowhere", ":9001", "localhost:", "localhost:65536"] {
            check(&format!("listen = {address:?}"), &with(&[]), Err("it must be HOST:PORT"));
        }
        check("metrics_listen = \"nowhere\"", &with(&[]), Err("metrics_listen is"));
        check("health_listen = \"nowhere\"", &with(&[]), Err("health_listen is"));
        check("[connections]\nmax_streams = 0", &with(&[]), Err("connections.max_streams is 0"));
        for quantize in ["q8_0", "q4_k"] {
            check(&format!("quantize = {quantize:?}\nkv_dtype = \"f16\""), &with(&[]), Ok(()));
        }
        check("quantize = \"q2_k\"", &with(&[]), Err("q2_k"));
        check("device = \"cuda:1\"", &with(&[]), Ok(()));
        check("device = \"tpu\"", &with(&[]), Err("device is \"tpu\"; expected cpu"));
        check("kv_dtype = \"f64\"", &with(&[]), Err("f64"));
        let missing = with(&["--config", "no/such/file.toml"]);
        assert_eq!(load(&missing), Err(ConfigError::NoFile("no/such/file.toml".into())));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_have_a_cpu_each() {
        let available = CpuSet::available().unwrap();
        let (one, count) = (available.each().next().unwrap(), available.count());
        check(&format!("cpus = {:?}\nthreads = 2", one.to_string()), &with(&[]), Err("it must be 0 to 1"));
        check("cpus = \"0-1023\"", &with(&[]), Err(&format!("cpus is 0-1023; the process may use {available}")));
        check("cpus = \"\"", &with(&[]), Err("cpus is \"\"; expected numbers below 1024"));
        check("cpus = \"0-x\"", &with(&[]), Err("cpus is \"0-x\"; expected"));
        check("cpus = 1.5", &with(&[]), Err("expected cpus as a list"));
        let threads = |flags: &[&str]| load(&with(flags)).map(|config| config.threads);
        let available = available.to_string();
        assert_eq!(threads(&["--cpus", &available]), Ok(count));
        assert_eq!(threads(&["--cpus", &available, "--threads", "1"]), Ok(1));
        assert_eq!(threads(&[]), Ok(0));
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
                    assert_eq!(WorkerConfig::load(&matched(&with(&[]))).unwrap().cpus.as_ref(), Some(&cpus));
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
            assert_eq!(WorkerConfig::load(&matched(&with(&[]))).unwrap().step_tokens(), 77);
            jail.set_env("COSEC_WORKER_STEP_TOKEN", "77");
            assert!(WorkerConfig::load(&matched(&with(&[]))).unwrap_err().to_string().contains("step_token"));
            Ok(())
        });
    }

    #[test]
    fn flags_stand_above_the_file_and_the_file_above_the_defaults() {
        let file = "step_tokens = 64\nblock_tokens = 8\ndtype = \"bf16\"\nblocks = 7\nmax_sessions = 7";
        let config = load_file(file, &with(&["--step-tokens", "32", "--max-sessions", "1024"])).unwrap();
        assert_eq!((config.step_tokens(), config.block_tokens, config.max_sessions), (32, 8, 1024));
        assert_eq!((config.dtype, config.cache()), (DtypeChoice::Bf16, CacheSize::Blocks(7)));
        assert_eq!((config.name(), config.max_operations), (Ok("a".to_owned()), 4096));
    }

    #[test]
    fn registration_is_read_from_every_layer() {
        let file = "[registration]\nmodels = [\"m\"]\netcd.endpoints = [\"http://etcd:1\"]";
        let config = load_file(file, &with(&["--etcd", "http://etcd:2", "--advertise", "w:9001"])).unwrap();
        let RegistrationConfig { etcd, advertise, models } = config.registration;
        assert_eq!(
            (etcd.endpoints, advertise.as_deref(), models),
            (vec!["http://etcd:2".to_owned()], Some("w:9001"), vec!["m".to_owned()])
        );
    }
}
