//! Membership in etcd: what a worker writes about itself, and how both sides connect.
//!
//! A worker's entry is JSON under [`PREFIX`] and its own id, bound to a lease that the worker keeps alive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{WorkerRole, secret_file};

/// Prefix of the keys of all workers; a worker's id follows.
pub const PREFIX: &str = "/cosec/v1/workers/";

/// The first key behind all of them.
pub const PREFIX_END: &str = "/cosec/v1/workers0";

/// Lifetime of an entry that its worker no longer renews.
pub const LEASE: Duration = Duration::from_secs(10);

/// Time for a connection, and for one call.
const PATIENCE: Duration = Duration::from_secs(3);

/// Interval of HTTP/2 pings, and time for an answer before the connection counts as dead.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));

/// What a worker says about itself to coordinators that look for workers. A coordinator asks the worker itself before
/// it relies on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// `host:port` of its gRPC service, as coordinators reach it.
    pub endpoint: String,
    /// Names of the models that it takes part in, as clients spell them.
    pub models: Vec<String>,
    /// What its model is for.
    pub role: WorkerRole,
    /// Hash of weights, config, tokenizer, adapter and dtype.
    pub fingerprint: String,
    /// Hash of the vocabulary.
    pub tokenizer_fingerprint: String,
    /// Tokens that its cache holds.
    pub capacity_tokens: u64,
    /// Version of the program.
    pub version: String,
    /// Zone of the worker; empty when unknown.
    pub zone: String,
    /// The worker shuts down: no new session should start there, and running ones should move.
    pub draining: bool,
}

/// How to reach etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdConfig {
    /// http:// or https:// URLs of the etcd members [default: none].
    #[arg(long = "etcd", value_name = "URL", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// User at etcd.
    #[arg(long = "etcd-user", value_name = "NAME")]
    pub user: Option<String>,
    /// File with the user's password.
    #[arg(long = "etcd-password-file", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities that sign etcd's certificates; https needs one.
    #[arg(long = "etcd-ca", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the own certificate, where etcd asks for one.
    #[arg(long = "etcd-cert", value_name = "FILE")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key.
    #[arg(long = "etcd-key", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

impl EtcdConfig {
    /// Checks what can be checked without etcd.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), InvalidEtcd> {
        let invalid = |setting, problem: &str| Err(InvalidEtcd { setting, problem: problem.to_owned() });
        let schemed = |url: &&String| !url.starts_with("http://") && !url.starts_with("https://");
        if self.endpoints.is_empty() {
            return invalid("endpoints", "is empty; name at least one member");
        }
        if let Some(url) = self.endpoints.iter().find(schemed) {
            return invalid("endpoints", &format!("has {url:?}; it must begin with http:// or https://"));
        }
        if self.user.is_some() != self.password_file.is_some() {
            return invalid("user", "and password_file go together; only one of them is set");
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return invalid("cert_file", "and key_file go together; only one of them is set");
        }
        let secure = self.endpoints.iter().all(|url| url.starts_with("https://"));
        if secure != self.ca_file.is_some() || !secure && self.cert_file.is_some() {
            return invalid("ca_file", "goes with https:// endpoints and is needed there");
        }
        Ok(())
    }

    /// Connects to one member, another one with every `attempt`. Files are read anew each time, since they may be
    /// renewed.
    ///
    /// # Errors
    /// Says what failed, with the member.
    pub async fn connect(&self, attempt: usize) -> Result<Client, String> {
        let endpoint = self.endpoints.get(attempt % self.endpoints.len().max(1)).ok_or("no etcd endpoint is set")?;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_timeout(PATIENCE)
            .with_keep_alive(KEEPALIVE.0, KEEPALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if attempt == 0 {
            let secrets = [("etcd password_file", &self.password_file), ("etcd key_file", &self.key_file)];
            for (setting, file) in secrets {
                file.iter().for_each(|file| secret_file::warn_if_loose(setting, file));
            }
        }
        if let (Some(user), Some(file)) = (&self.user, &self.password_file) {
            let password = read(file)?;
            options = options.with_user(user, password.trim_end_matches(['\r', '\n']));
        }
        if let Some(ca) = &self.ca_file {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        let failed = |cause: &dyn std::fmt::Display| format!("{endpoint}: {cause}");
        match tokio::time::timeout(2 * PATIENCE, Client::connect([endpoint], Some(options))).await {
            Ok(client) => client.map_err(|cause| failed(&cause)),
            Err(_) => Err(failed(&"no answer in time")),
        }
    }
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|cause| format!("{}: {cause}", file.display()))
}

/// Settings with which etcd cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {problem}")]
pub struct InvalidEtcd {
    /// A key of [`EtcdConfig`].
    pub setting: &'static str,
    /// What is wrong and what is allowed.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_lead_nowhere_are_named() {
        let check = |config: EtcdConfig, named: Option<&str>| {
            let problem = config.check().err().map(|error| error.to_string());
            assert_eq!(problem.is_some(), named.is_some(), "{config:?}: {problem:?}");
            assert!(problem.unwrap_or_default().starts_with(named.unwrap_or_default()));
        };
        let of = |url: &str| EtcdConfig { endpoints: vec![url.to_owned()], ..EtcdConfig::default() };
        let file = || Some(PathBuf::from("file"));
        check(of("http://a:1"), None);
        check(EtcdConfig::default(), Some("endpoints"));
        check(of("a:1"), Some("endpoints has \"a:1\""));
        check(EtcdConfig { user: Some("u".to_owned()), ..of("http://a:1") }, Some("user"));
        check(of("https://a:1"), Some("ca_file"));
        check(EtcdConfig { ca_file: file(), ..of("http://a:1") }, Some("ca_file"));
        check(EtcdConfig { ca_file: file(), ..of("https://a:1") }, None);
        check(EtcdConfig { ca_file: file(), cert_file: file(), ..of("https://a:1") }, Some("cert_file"));
    }
}
