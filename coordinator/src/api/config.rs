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
    /// Longest body of a request, in bytes. Default: 1 MiB, and 32 bytes for every token of the longest context, up to 8
    /// MiB.
    pub max_body_bytes: Option<usize>,
    /// Longest text of one prompt, in bytes; tokenizing takes time in proportion.
    pub max_prompt_bytes: usize,
    /// Most choices of one request (prompts times n).
    pub max_choices: usize,
    /// Most bytes that a response in one piece may come to by what is asked for: choices, tokens, log-probabilities,
    /// report. Streams are not bounded.
    pub max_response_bytes: u64,
    /// The same of all such responses under way together; one more is refused as overloaded.
    pub response_memory_bytes: u64,
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
            max_body_bytes: None,
            max_prompt_bytes: 1 << 20,
            max_choices: 256,
            max_response_bytes: 64 << 20,
            response_memory_bytes: 512 << 20,
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

/// Bounds of the default for `max_body_bytes`, and its part for every token of context: more than a token's text takes
/// with all of it escaped.
const BODY_BYTES: (usize, usize) = (1 << 20, 8 << 20);
const BODY_BYTES_PER_TOKEN: usize = 32;

impl ApiConfig {
    /// Longest body, where the longest context has so many tokens.
    #[must_use]
    pub fn body_bytes(&self, context_tokens: u32) -> usize {
        let (least, most) = BODY_BYTES;
        let by_context = || least.saturating_add(BODY_BYTES_PER_TOKEN.saturating_mul(context_tokens as usize));
        self.max_body_bytes.unwrap_or_else(|| by_context().min(most))
    }
}
