//! The command line: the settings that are needed most.

use std::path::PathBuf;

use clap::Parser;
use serde_json::{Map, Value, json};

use crate::speculation::settings::SpeculationMode;
use crate::telemetry::LogFormat;

/// Serves code models that a security expert hardens while they decode.
///
/// Settings come from defaults, --config, environment variables COSEC_COORDINATOR_… and flags; the later win.
#[derive(Clone, Debug, Default, Parser)]
#[command(version)]
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
    /// Address of /health/live and /health/ready for probes, in the clear, host:port; port 0 takes any.
    #[arg(long, value_name = "ADDR")]
    pub health_listen: Option<String>,
    /// Address of /metrics, host:port; port 0 takes any.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<String>,
    /// PEM file of the certificate that clients of HTTP and gRPC are shown.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of that certificate's private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Lets ports that other machines reach, and connections to workers there, be in the clear.
    #[arg(long)]
    pub insecure: bool,
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
        let Self { tokenizer, base, expert, anti_expert, allowed_rules, etcd, .. } = self;
        let model = |name: &String| {
            json!([{
                "name": name, "tokenizer": tokenizer, "base": base, "expert": expert, "anti_expert": anti_expert,
            }])
        };
        let tls = |certificate| json!({"certificate_file": certificate, "private_key_file": self.tls_key});
        let values = [
            ("http_listen", self.http_listen.as_ref().map(|address| json!(address))),
            ("grpc_listen", self.grpc_listen.as_ref().map(|address| json!(address))),
            ("health_listen", self.health_listen.as_ref().map(|address| json!(address))),
            ("metrics_listen", self.metrics_listen.as_ref().map(|address| json!(address))),
            ("insecure", self.insecure.then_some(json!(true))),
            ("tls", self.tls_cert.as_ref().map(tls)),
            ("log_format", self.log_format.map(|format| json!(format))),
            ("grace_seconds", self.grace_seconds.map(|seconds| json!(seconds))),
            ("policy", (!allowed_rules.is_empty()).then(|| json!({"allowed_rules": allowed_rules}))),
            ("sessions", self.speculation.map(|mode| json!({"speculation": mode.to_string()}))),
            ("models", self.model.as_ref().map(model)),
            ("discovery", (!etcd.is_empty()).then(|| json!({"kind": "etcd", "endpoints": etcd}))),
        ];
        values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}
