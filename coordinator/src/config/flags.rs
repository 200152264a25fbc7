//! The command line: the settings that are needed most.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::speculation::settings::SpeculationMode;
use crate::telemetry::LogFormat;

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
    pub speculation: Option<SpeculationMode>,
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
    pub(super) fn values(&self) -> Map<String, Value> {
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
        if let Some(speculation) = self.speculation {
            values.insert("sessions".to_owned(), json!({"speculation": speculation.to_string()}));
        }
        if let Some(name) = &self.model {
            let model = json!({
                "name": name,
                "tokenizer": self.tokenizer,
                "base": self.base,
                "expert": self.expert,
                "anti_expert": self.anti_expert,
            });
            values.insert("models".to_owned(), json!([model]));
        }
        if !self.etcd.is_empty() {
            values.insert("discovery".to_owned(), json!({"kind": "etcd", "endpoints": self.etcd}));
        }
        values
    }
}
