//! Whose tokens are taken.

use std::net::IpAddr;
use std::path::PathBuf;

use jsonwebtoken::Algorithm;
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

/// `[api.oidc]` in the configuration: an issuer of OpenID Connect whose tokens (JWTs) name tenants.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OidcConfig {
    /// URL of the issuer, exactly as its tokens say it in `iss`.
    pub issuer: String,
    /// Whom tokens must be for: `aud` names one of these.
    pub audiences: Vec<String>,
    /// Claim that names the tenant.
    pub tenant_claim: String,
    /// URL of the issuer's keys. Default: as `ISSUER/.well-known/openid-configuration` says.
    pub jwks_uri: Option<String>,
    /// Algorithms that tokens may be signed with, of `RS256`, `RS384`, `RS512`, `PS256`, `PS384`, `PS512`, `ES256`, `ES384`
    /// and `EdDSA`. Default: all of them.
    pub algorithms: Vec<String>,
    /// How far the clocks of issuer and coordinator may differ.
    pub leeway_seconds: u64,
    /// Pause between two fetches of the issuer's keys.
    pub refresh_seconds: u64,
    /// Least pause between two fetches, one of which a token with an unknown key causes.
    pub min_refresh_seconds: u64,
    /// How long fetched keys may be used while the issuer does not answer.
    pub stale_seconds: u64,
    /// Time for a fetch.
    pub timeout_seconds: u64,
    /// PEM file of the authorities that sign the issuer's certificate. Default: those that Mozilla trusts.
    pub ca_file: Option<PathBuf>,
}

impl Default for OidcConfig {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audiences: Vec::new(),
            tenant_claim: "sub".to_owned(),
            jwks_uri: None,
            algorithms: Vec::new(),
            leeway_seconds: 60,
            refresh_seconds: 300,
            min_refresh_seconds: 10,
            stale_seconds: 24 * 3600,
            timeout_seconds: 5,
            ca_file: None,
        }
    }
}

/// What a public key can verify. A secret shared with the issuer is nothing for a program that only checks.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

impl OidcConfig {
    /// What is wrong with it, by key.
    pub(crate) fn validate(&self) -> Result<(), String> {
        check_url("issuer", &self.issuer)?;
        self.jwks_uri.iter().try_for_each(|uri| check_url("jwks_uri", uri))?;
        if self.audiences.iter().all(String::is_empty) {
            return Err("api.oidc.audiences is empty; name whom tokens must be for".to_owned());
        }
        if self.tenant_claim.is_empty() {
            return Err("api.oidc.tenant_claim is empty; name the claim with the tenant, such as sub".to_owned());
        }
        if let Some(unknown) = self.algorithms.iter().find(|name| ALGORITHMS.iter().all(|(known, _)| known != name)) {
            let known = ALGORITHMS.map(|(name, _)| name).join(", ");
            return Err(format!("api.oidc.algorithms has {unknown:?}; it may have {known}"));
        }
        let positive = [
            ("refresh_seconds", self.refresh_seconds),
            ("min_refresh_seconds", self.min_refresh_seconds),
            ("stale_seconds", self.stale_seconds),
            ("timeout_seconds", self.timeout_seconds),
        ];
        match positive.iter().find(|(_, seconds)| *seconds == 0) {
            Some((key, _)) => Err(format!("api.oidc.{key} is 0; it must be at least 1")),
            None => Ok(()),
        }
    }

    /// The algorithms that tokens may be signed with.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let allowed =
            |name: &str| self.algorithms.is_empty() || self.algorithms.iter().any(|allowed| allowed == name);
        ALGORITHMS.iter().filter(|(name, _)| allowed(name)).map(|(_, algorithm)| *algorithm).collect()
    }
}

fn check_url(key: &str, value: &str) -> Result<(), String> {
    match value.parse::<Url>() {
        Ok(url) if may_fetch(&url) => Ok(()),
        Ok(_) | Err(_) => {
            Err(format!("api.oidc.{key} is {value:?}; it must be an https:// URL (http:// on loopback)"))
        }
    }
}

/// Whether what comes from `url` comes from whom it names.
pub(super) fn may_fetch(url: &Url) -> bool {
    let host = url.host_str().map(|host| host.trim_matches(['[', ']']));
    let is_loopback = |host: &str| host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme() {
        "https" => host.is_some(),
        "http" => host.is_some_and(is_loopback),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let valid = OidcConfig {
            issuer: "https://issuer.example".to_owned(),
            audiences: vec!["cosec".to_owned()],
            ..OidcConfig::default()
        };
        assert_eq!(valid.validate(), Ok(()));
        let check = |change: &dyn Fn(&mut OidcConfig), named: &str| {
            let mut config = valid.clone();
            change(&mut config);
            let problem = config.validate().unwrap_err();
            assert!(problem.contains(named), "{problem}");
        };
        check(&|config| config.issuer.clear(), "api.oidc.issuer is \"\"");
        check(&|config| config.issuer = "http://issuer.example".to_owned(), "api.oidc.issuer is");
        check(&|config| config.jwks_uri = Some("file:///etc/keys".to_owned()), "api.oidc.jwks_uri is");
        check(&|config| config.audiences.clear(), "api.oidc.audiences");
        check(&|config| config.tenant_claim.clear(), "api.oidc.tenant_claim");
        check(&|config| config.algorithms = vec!["HS256".to_owned()], "api.oidc.algorithms has \"HS256\"");
        check(&|config| config.timeout_seconds = 0, "api.oidc.timeout_seconds");
        let mut local = valid.clone();
        local.issuer = "http://[::1]:8080/realm".to_owned();
        assert_eq!(local.validate(), Ok(()));
    }
}
