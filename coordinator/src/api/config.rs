//! Bounds on what a client may send.

use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::tenant::client_address::ForwardedHeader;
use crate::tenant::oidc::config::OidcConfig;

/// Bounds on what a client may send.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Longest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// Longest text of one prompt, in bytes; tokenizing takes time in proportion.
    pub max_prompt_bytes: usize,
    /// Most choices of one request (prompts times n).
    pub max_choices: usize,
    /// How long a body may take to arrive.
    pub body_timeout_seconds: u64,
    /// How long a request may take in all.
    pub request_timeout_seconds: u64,
    /// File with the secret that coordinators share, at least 32 bytes: with it each continues the streams of the others,
    /// and their tenants share cached prefixes. Default: a secret of its own.
    pub resume_key_file: Option<PathBuf>,
    /// File with the API keys and their limits; changes take effect within seconds. Default: none are known.
    pub keys_file: Option<PathBuf>,
    /// Whether a request without a known key is refused.
    pub require_key: bool,
    /// Issuer whose tokens name tenants, as keys do. Default: no tokens are taken.
    pub oidc: Option<OidcConfig>,
    /// Networks of the proxies that are believed about the address of a client, such as `10.0.0.0/8`. Clients without a
    /// key share turns by their address. Default: none, so the peer of the connection is the client.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which those proxies name the client: `x-forwarded-for` or `forwarded`.
    pub forwarded_header: ForwardedHeader,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            max_body_bytes: 8 << 20,
            max_prompt_bytes: 1 << 20,
            max_choices: 256,
            body_timeout_seconds: 30,
            request_timeout_seconds: 600,
            resume_key_file: None,
            keys_file: None,
            require_key: false,
            oidc: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
        }
    }
}
