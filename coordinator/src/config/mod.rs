//! The coordinator's configuration: defaults, then the file, then the environment, then flags.

mod checks;
mod flags;

use std::path::PathBuf;

use cosec_proto::kubernetes;
use cosec_proto::serving::ConnectionLimits;
use cosec_proto::tls::ServerTls;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::admission::AdmissionLimits;
use crate::api::config::ApiConfig;
use crate::discovery::DiscoveryConfig;
use crate::models::ModelConfig;
use crate::policy::{DefaultSettings, OperatorPolicy, PolicyConfig, PolicyViolation};
use crate::session::config::SessionConfig;
use crate::telemetry::{LogFormat, TelemetryConfig};
use crate::worker_pool::PoolConfig;

pub use flags::Flags;

/// Begins the names of environment variables; `__` leads into a section: `COSEC_COORDINATOR_DEFAULTS__TAU`.
const PREFIX: &str = "COSEC_COORDINATOR_";

/// Everything that an operator can set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where HTTP is served; port 0 takes any.
    pub http_listen: String,
    /// Where gRPC is served; port 0 takes any.
    pub grpc_listen: String,
    /// Where probes read `/health/live` and `/health/ready`, in the clear; port 0 takes any.
    pub health_listen: Option<String>,
    /// Where Prometheus reads `/metrics`, over TLS where `workers.tls` is set; port 0 takes any.
    pub metrics_listen: Option<String>,
    /// Whether ports that other machines reach, and connections to workers there, may be in the clear.
    pub insecure: bool,
    /// How log lines look on standard error.
    pub log_format: LogFormat,
    /// How long requests in flight may go on after a signal to stop.
    pub grace_seconds: u64,
    /// What clients of HTTP and gRPC are shown, and whether they need a certificate.
    pub tls: ServerTls,
    /// How much of the process its clients may hold.
    pub connections: ConnectionLimits,
    /// Bounds on requests.
    pub api: ApiConfig,
    /// What clients leave out; also the bound of those settings that weaken hardening.
    pub defaults: DefaultSettings,
    /// What clients may ask for.
    pub policy: PolicyConfig,
    /// Models to serve.
    pub models: Vec<ModelConfig>,
    /// Where workers are looked up. Default: the addresses under the models.
    pub discovery: DiscoveryConfig,
    /// Bounds of what is taken in.
    pub admission: AdmissionLimits,
    /// How workers are reached.
    pub workers: PoolConfig,
    /// How sessions decode.
    pub sessions: SessionConfig,
    /// Where spans go.
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http_listen: "127.0.0.1:8000".to_owned(),
            grpc_listen: "127.0.0.1:8001".to_owned(),
            health_listen: None,
            metrics_listen: None,
            insecure: false,
            log_format: LogFormat::Text,
            grace_seconds: 30,
            tls: ServerTls::default(),
            connections: ConnectionLimits::default(),
            api: ApiConfig::default(),
            defaults: DefaultSettings::default(),
            policy: PolicyConfig::default(),
            models: Vec::new(),
            discovery: DiscoveryConfig::default(),
            admission: AdmissionLimits::default(),
            workers: PoolConfig::default(),
            sessions: SessionConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
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
        let figment = figment.merge(environment()).merge(Serialized::globals(flags.values()));
        if let Some((old, new)) = RENAMED_KEYS.iter().find(|(old, _)| figment.find_value(old).is_ok()) {
            return Err(ConfigError::Invalid { cause: format!("{old} is now {new}") });
        }
        let config: Self = figment.extract().map_err(|cause| ConfigError::Invalid { cause: cause.to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types allow and the coordinator does not.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        let policy = self.operator_policy().map(|_| ()).map_err(|violation| violation.message);
        policy
            .and_then(|()| checks::check_api(&self.api))
            .and_then(|()| self.connections.check().map_err(|cause| format!("connections.{cause}")))
            .and_then(|()| self.telemetry.validate())
            .and_then(|()| checks::check_rooms(&self.admission, &self.workers, &self.sessions))
            .and_then(|()| checks::check_models(&self.models, &self.discovery, self.sessions.expert_absent))
            .map_err(|cause| ConfigError::Invalid { cause })
    }

    /// What the operator allows, of `[defaults]`, `[policy]` and `[models.policy]`.
    ///
    /// # Errors
    /// Names the key whose value is not allowed.
    pub fn operator_policy(&self) -> Result<OperatorPolicy, PolicyViolation> {
        let models = self.models.iter().map(|model| (model.name.clone(), model.policy.clone()));
        OperatorPolicy::new(self.defaults.clone(), self.policy.clone(), models)
    }
}

/// Keys of earlier versions, each with the one that took its place: refused with a hint, never ignored.
const RENAMED_KEYS: [(&str, &str); 12] = [
    ("api.allowed_rules", "policy.allowed_rules"),
    ("core.models", "models"),
    ("core.discovery", "discovery"),
    ("core.max_sessions", "admission.max_sessions"),
    ("core.max_queued_sessions", "admission.max_queued_sessions"),
    ("core.max_queued_tokens", "admission.max_queued_tokens"),
    ("core.zone", "workers.zone"),
    ("core.step_deadline_ms", "workers.step_deadline_ms"),
    ("core.describe_interval_ms", "workers.describe_interval_ms"),
    ("core.expert_absent", "sessions.expert_absent"),
    ("core.speculation", "sessions.speculation"),
    ("core.max_draft", "sessions.max_draft"),
];

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `--config` names a file that is not there.
    #[error("--config: there is no file {}", file.display())]
    #[expect(missing_docs, reason = "the field names say it")]
    NoFile { file: PathBuf },
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

    const MODEL: &str = "[[models]]\nname = 'a'\ntokenizer = 'dir'\nbase = ['h:1']\nexpert = ['h:2']\n";

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
            let parameters = config.defaults.rule_parameters.0;
            assert_eq!(parameters, [("tau".to_owned(), 0.6), ("lambda".to_owned(), 0.1)].into());
            assert_eq!(config.models[0].name, "a");
            let flags = Flags {
                grpc_listen: Some("flag:2".to_owned()),
                model: Some("b".to_owned()),
                tokenizer: Some("other".into()),
                base: vec!["h:2".to_owned(), "h:3".to_owned()],
                expert: vec!["h:4".to_owned()],
                ..with_file()
            };
            let config = Config::load(&flags).unwrap();
            assert_eq!(config.grpc_listen, "flag:2");
            assert_eq!(config.models.len(), 1);
            assert_eq!((config.models[0].name.as_str(), config.models[0].base.len()), ("b", 2));
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
        check(&format!("[api]\nallowed_rules = ['cosec']\n{MODEL}"), "api.allowed_rules is now policy.allowed_rules");
        check(&format!("[policy]\nallowed_rules = ['magic']\n{MODEL}"), "policy.allowed_rules is \"magic\"");
        check(&format!("[policy]\nallowed_rules = ['linear']\n{MODEL}"), "defaults.rule");
        check(&format!("[policy]\nallowed_rules = []\n{MODEL}"), "defaults.rule");
        check(&format!("[policy]\ncolour = 1\n{MODEL}"), "colour");
        check(&format!("[policy]\njudge = 'lenient'\n{MODEL}"), "policy.judge");
        check(&format!("[policy.bounds]\ncolour = 1.0\n{MODEL}"), "policy.bounds.colour");
        check(&format!("[policy.bounds]\nlambda = 2.0\n{MODEL}"), "policy.bounds.lambda");
        check(&format!("[policy.bounds]\nexpert_top_p = [0.5, 0.2]\n{MODEL}"), "policy.bounds.expert_top_p");
        check(&format!("{MODEL}[models.policy]\nallowed_rules = ['linear']"), "models[0]: defaults.rule");
        check(&format!("{MODEL}[models.policy.bounds]\ntau = -1.0"), "models[0].policy.bounds.tau");
        check(&format!("[defaults]\nrule = 'base_only'\n{MODEL}"), "defaults.rule");
        check(&format!("[defaults]\ntau = 1.0\n{MODEL}"), "defaults.tau");
        check(&format!("[sessions]\nspeculation = 'fixed:0'\n{MODEL}"), "fixed:K");
        check(&format!("[sessions]\nmax_draft = 65\n{MODEL}"), "sessions.max_draft");
        check(&format!("[admission]\nmax_sessions = 0\n{MODEL}"), "admission.max_sessions");
        check(&format!("[core]\nmax_sessions = 3\n{MODEL}"), "core.max_sessions is now admission.max_sessions");
        check(&format!("[telemetry]\ntrace_ratio = 2.0\n{MODEL}"), "telemetry.trace_ratio");
        check(&format!("{MODEL}base_fingerprint = 'ab'"), "models[0].base_fingerprint is \"ab\"");
        let same = "a".repeat(64);
        let both = format!("{MODEL}base_fingerprint = '{same}'\nexpert_fingerprint = '{same}'");
        check(&both, "models[0].expert_fingerprint is that of the base");
        check("", "models");
        check(&format!("{MODEL}{MODEL}"), "\"a\"");
        check("[[models]]\nname = 'a'\n", "tokenizer");
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
