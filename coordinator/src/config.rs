//! The coordinator's configuration: defaults, then the file, then the environment, then flags.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use cosec_proto::kubernetes;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::api::ApiConfig;
use crate::api::settings::Defaults;
use crate::core::CoreConfig;
use crate::session::speculation::Speculation;
use crate::telemetry::TelemetryConfig;

/// Begins the names of environment variables; `__` leads into a section: `COSEC_COORDINATOR_DEFAULTS__TAU`.
const PREFIX: &str = "COSEC_COORDINATOR_";

/// Everything that an operator can set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where HTTP is served. Default 127.0.0.1:8000; port 0 takes any.
    pub http_listen: String,
    /// Where gRPC is served. Default 127.0.0.1:8001; port 0 takes any.
    pub grpc_listen: String,
    /// Default text.
    pub log_format: LogFormat,
    /// How long requests in flight may go on after a signal to stop. Default 30.
    pub grace_seconds: u64,
    /// Bounds on requests.
    pub api: ApiConfig,
    /// What clients leave out.
    pub defaults: Defaults,
    /// Models, sessions and workers.
    pub core: CoreConfig,
    /// Where spans go.
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http_listen: "127.0.0.1:8000".to_owned(),
            grpc_listen: "127.0.0.1:8001".to_owned(),
            log_format: LogFormat::Text,
            grace_seconds: 30,
            api: ApiConfig::default(),
            defaults: Defaults::default(),
            core: CoreConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// The flags; each wins over the file and the environment.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// TOML file with the configuration.
    #[arg(long, value_name = "FILE", env = "COSEC_COORDINATOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address to serve HTTP on, host:port; port 0 takes any.
    #[arg(long, value_name = "ADDR")]
    pub http_listen: Option<String>,
    /// Address to serve gRPC on, host:port; port 0 takes any.
    #[arg(long, value_name = "ADDR")]
    pub grpc_listen: Option<String>,
    /// How log lines look on standard error.
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
    /// Seconds that requests in flight may go on after SIGTERM or SIGINT.
    #[arg(long, value_name = "SECONDS")]
    pub grace_seconds: Option<u64>,
    /// Whether the expert drafts several tokens that the base verifies at once: off, fixed:K or adaptive.
    #[arg(long, value_name = "MODE")]
    pub speculation: Option<Speculation>,
    /// Rules that clients may name, separated by commas; without base_only no unhardened code leaves.
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    pub allowed_rules: Vec<String>,
    /// Name of the one model to serve, in place of those in the file.
    #[arg(long, value_name = "NAME", requires = "tokenizer")]
    pub model: Option<String>,
    /// The model's directory with tokenizer.json.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub tokenizer: Option<PathBuf>,
    /// Addresses of the workers with the base.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', requires = "model")]
    pub base: Vec<String>,
    /// Addresses of the workers with the expert.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', requires = "model")]
    pub expert: Vec<String>,
    /// Addresses of the workers with the anti-expert.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', requires = "model")]
    pub anti_expert: Vec<String>,
    /// URLs of the etcd members in which workers register, in place of their addresses; for a user or TLS see the file.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub etcd: Vec<String>,
}

impl Flags {
    /// The flags that are set, in the file's shape.
    fn values(&self) -> Map<String, Value> {
        let mut values = Map::new();
        let scalars = [
            ("http_listen", self.http_listen.as_ref().map(|address| json!(address))),
            ("grpc_listen", self.grpc_listen.as_ref().map(|address| json!(address))),
            ("log_format", self.log_format.map(|format| json!(format))),
            ("grace_seconds", self.grace_seconds.map(|seconds| json!(seconds))),
        ];
        values.extend(scalars.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if !self.allowed_rules.is_empty() {
            values.insert("api".to_owned(), json!({"allowed_rules": self.allowed_rules}));
        }
        let mut core = Map::new();
        if let Some(speculation) = self.speculation {
            core.insert("speculation".to_owned(), json!(speculation.to_string()));
        }
        if let Some(name) = &self.model {
            let model = json!({
                "name": name,
                "tokenizer": self.tokenizer,
                "base": self.base,
                "expert": self.expert,
                "anti_expert": self.anti_expert,
            });
            core.insert("models".to_owned(), json!([model]));
        }
        if !self.etcd.is_empty() {
            core.insert("discovery".to_owned(), json!({"kind": "etcd", "endpoints": self.etcd}));
        }
        if !core.is_empty() {
            values.insert("core".to_owned(), core.into());
        }
        values
    }
}

/// The settings in the environment, less the variable that names the file and those that Kubernetes sets by itself.
fn environment() -> Env {
    Env::prefixed(PREFIX).filter(|key| key != "config" && !kubernetes::injects(key.as_str())).split("__")
}

impl Config {
    /// Reads everything and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] names the key that is unknown or whose value is not allowed.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        if let Some(file) = &flags.config {
            if !file.is_file() {
                return Err(ConfigError::NoFile { file: file.clone() });
            }
            figment = figment.merge(Toml::file_exact(file));
        }
        let config: Self = figment
            .merge(environment())
            .merge(Serialized::globals(flags.values()))
            .extract()
            .map_err(|cause| ConfigError::Invalid { cause: cause.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |cause: String| Err(ConfigError::Invalid { cause });
        if let Err(error) = self.defaults.validate(&self.api.allowed_rules) {
            // The same checks as for clients, who know these settings as the `cosec` object's.
            return invalid(error.message.replace("cosec.", "defaults."));
        }
        let ApiConfig {
            max_body_bytes,
            max_prompt_bytes,
            max_choices,
            body_timeout_seconds,
            request_timeout_seconds,
            resume_key_file: _,
            ref keys_file,
            require_key,
            allowed_rules: _,
        } = self.api;
        if require_key && keys_file.is_none() {
            return invalid("api.require_key is true, but api.keys_file names no keys".to_owned());
        }
        let positive = [
            ("api.max_body_bytes", max_body_bytes as u64),
            ("api.max_prompt_bytes", max_prompt_bytes as u64),
            ("api.max_choices", max_choices as u64),
            ("api.body_timeout_seconds", body_timeout_seconds),
            ("api.request_timeout_seconds", request_timeout_seconds),
        ];
        if let Some((name, _)) = positive.into_iter().find(|&(_, value)| value == 0) {
            return invalid(format!("{name} is 0; it must be at least 1"));
        }
        if request_timeout_seconds > MAX_TIMEOUT_SECONDS {
            return invalid(format!(
                "api.request_timeout_seconds is {request_timeout_seconds}; it must be at most {MAX_TIMEOUT_SECONDS}"
            ));
        }
        self.telemetry.validate().map_err(|cause| ConfigError::Invalid { cause })?;
        if self.core.models.is_empty() {
            return invalid(
                "core.models is empty; set --model, --tokenizer and --base (or --etcd), or [[core.models]]"
                    .to_owned(),
            );
        }
        let mut names = BTreeSet::new();
        match self.core.models.iter().find(|model| model.name.is_empty() || !names.insert(model.name.as_str())) {
            None => Ok(()),
            Some(model) => {
                invalid(format!("core.models has the name {:?}; names must be set and differ", model.name))
            }
        }
    }
}

/// A week; longer deadlines would only hide a stuck request.
const MAX_TIMEOUT_SECONDS: u64 = 7 * 24 * 3600;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `--config` names a file that is not there.
    #[error("--config: there is no file {}", file.display())]
    NoFile {
        /// The file.
        file: PathBuf,
    },
    /// A key is unknown or its value not allowed.
    #[error("configuration: {cause}")]
    Invalid {
        /// Names the key, what is allowed and where it was set.
        cause: String,
    },
}

#[cfg(test)]
#[expect(clippy::result_large_err, reason = "figment's Jail asks for its own error")]
mod tests {
    use figment::Jail;

    use super::*;

    const MODEL: &str = "[[core.models]]\nname = 'a'\ntokenizer = 'dir'\nbase = ['h:1']\n";

    fn with_file() -> Flags {
        Flags { config: Some("c.toml".into()), ..Flags::default() }
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        Jail::expect_with(|jail| {
            let file = format!(
                "http_listen = 'file:1'\ngrpc_listen = 'file:2'\n[defaults]\ntau = 0.5\nlambda = 0.1\n{MODEL}"
            );
            jail.create_file("c.toml", &file)?;
            jail.set_env("COSEC_COORDINATOR_GRPC_LISTEN", "env:2");
            jail.set_env("COSEC_COORDINATOR_DEFAULTS__TAU", "0.6");
            jail.set_env("COSEC_COORDINATOR_CONFIG", "c.toml");
            let config = Config::load(&with_file()).unwrap();
            assert_eq!((config.http_listen.as_str(), config.grpc_listen.as_str()), ("file:1", "env:2"));
            assert_eq!((config.defaults.tau, config.defaults.lambda, config.defaults.alpha), (0.6, 0.1, 1.0));
            assert_eq!(config.core.models[0].name, "a");
            let flags = Flags {
                grpc_listen: Some("flag:2".to_owned()),
                model: Some("b".to_owned()),
                tokenizer: Some("other".into()),
                base: vec!["h:2".to_owned(), "h:3".to_owned()],
                ..with_file()
            };
            let config = Config::load(&flags).unwrap();
            assert_eq!(config.grpc_listen, "flag:2");
            assert_eq!(config.core.models.len(), 1);
            assert_eq!((config.core.models[0].name.as_str(), config.core.models[0].base.len()), ("b", 2));
            Ok(())
        });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |file: &str, named: &str| {
            Jail::expect_with(|jail| {
                jail.create_file("c.toml", file)?;
                let message = Config::load(&with_file()).unwrap_err().to_string();
                assert!(message.contains(named), "{message:?} does not name {named}");
                Ok(())
            });
        };
        check(&format!("colour = 1\n{MODEL}"), "colour");
        check(&format!("grace_seconds = 'long'\n{MODEL}"), "grace_seconds");
        check(&format!("[defaults]\ntau = -1.0\n{MODEL}"), "defaults.tau");
        check(&format!("[defaults]\nlambda = 1.5\n{MODEL}"), "defaults.lambda");
        check(&format!("[defaults]\nexpert_temperature = nan\n{MODEL}"), "defaults.expert_temperature");
        check(&format!("[defaults]\nrule = 'magic'\n{MODEL}"), "magic");
        check(&format!("[api]\nmax_choices = 0\n{MODEL}"), "api.max_choices");
        check(&format!("[api]\nallowed_rules = ['magic']\n{MODEL}"), "magic");
        check(&format!("[api]\nallowed_rules = ['linear']\n{MODEL}"), "defaults.rule");
        check(&format!("[api]\nallowed_rules = []\n{MODEL}"), "defaults.rule");
        check(&format!("[defaults]\nrule = 'base_only'\n{MODEL}"), "defaults.rule");
        check(&format!("[defaults]\ntau = 1.0\n{MODEL}"), "defaults.tau");
        check(&format!("[core]\nspeculation = 'fixed:0'\n{MODEL}"), "fixed:K");
        check(&format!("[telemetry]\ntrace_ratio = 2.0\n{MODEL}"), "telemetry.trace_ratio");
        check("", "core.models");
        check(&format!("{MODEL}{MODEL}"), "\"a\"");
        check("[[core.models]]\nname = 'a'\n", "tokenizer");
        Jail::expect_with(|jail| {
            jail.create_file("c.toml", MODEL)?;
            jail.set_env("COSEC_COORDINATOR_COLOUR", "1");
            let message = Config::load(&with_file()).unwrap_err().to_string();
            assert!(message.contains("colour"), "{message}");
            Ok(())
        });
        Jail::expect_with(|jail| {
            jail.create_file("c.toml", MODEL)?;
            // Of a Service called cosec-coordinator.
            jail.set_env("COSEC_COORDINATOR_SERVICE_HOST", "10.0.0.1");
            jail.set_env("COSEC_COORDINATOR_PORT_8000_TCP_ADDR", "10.0.0.1");
            assert!(Config::load(&with_file()).is_ok());
            Ok(())
        });
        assert!(Config::load(&with_file()).unwrap_err().to_string().contains("c.toml"));
    }
}
