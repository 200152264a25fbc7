//! Whose a request is. HTTP and gRPC ask here before they read a message.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use cosec_proto::ErrorCode;
use futures::future::BoxFuture;

use super::config::ApiConfig;
use super::error::ApiError;
use crate::policy::OperatorPolicy;
use crate::shared_key::SharedKey;
use crate::tasks::TaskSpawner;
use crate::tenant::client_address::TrustedProxies;
use crate::tenant::known::{InvalidKeys, Tenants};
use crate::tenant::metrics::TenantMetrics;
use crate::tenant::oidc::{TokenError, TokenIssuer};
use crate::tenant::{Tenant, TenantFactory};

/// The header that holds a key and nothing else.
const API_KEY: &str = "x-api-key";

/// Finds the tenant of a request.
pub struct RequestAuth {
    tenants: Arc<Tenants>,
    tokens: Option<TokenIssuer>,
    proxies: TrustedProxies,
    require_key: bool,
}

/// Settings that say who may ask and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAuth {
    /// The file with the API keys.
    #[error(transparent)]
    Keys(#[from] InvalidKeys),
    /// What the issuer's keys are fetched with.
    #[error("{0}")]
    Oidc(String),
}

impl RequestAuth {
    /// Reads who may ask, and begins to follow the file with the keys and the keys of the issuer.
    ///
    /// # Errors
    /// [`InvalidAuth`] names the file that cannot be used.
    pub fn start(
        config: &ApiConfig,
        secret: &SharedKey,
        policy: Arc<OperatorPolicy>,
        metrics: &TenantMetrics,
        tasks: &TaskSpawner,
    ) -> Result<Self, InvalidAuth> {
        let factory = TenantFactory::new(secret);
        let tenants = Arc::new(match &config.keys_file {
            Some(file) => Tenants::read(file, factory, policy)?,
            None => Tenants::unknown(factory, policy),
        });
        let until_shutdown = |task: BoxFuture<'static, ()>| {
            let shutdown = tasks.shutdown.clone();
            tasks.spawn(async move {
                let _ = shutdown.run_until_cancelled(task).await;
            });
        };
        if let Some(file) = &config.keys_file {
            until_shutdown(Box::pin(Arc::clone(&tenants).follow(file.clone(), metrics.clone())));
        }
        let mut tokens = None;
        if let Some(oidc) = &config.oidc {
            let (issuer, fetching) = TokenIssuer::new(oidc, metrics.clone()).map_err(InvalidAuth::Oidc)?;
            until_shutdown(Box::pin(fetching));
            tokens = Some(issuer);
        }
        let proxies = TrustedProxies::new(config.trusted_proxies.clone(), config.forwarded_header);
        Ok(Self { tenants, tokens, proxies, require_key: config.require_key })
    }

    /// The tenant of a request with these headers, whose connection comes from `peer`.
    ///
    /// # Errors
    /// `Unauthenticated` without a key where one is needed, and with a token that is not valid; `Unavailable` while
    /// tokens cannot be checked.
    pub async fn authorize(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Arc<Tenant>, ApiError> {
        let credential = credential(headers)?;
        if let Some(tenant) = credential.and_then(|key| self.tenants.of_key(key)) {
            return Ok(tenant);
        }
        if let (Some(issuer), Some(token)) = (&self.tokens, credential.filter(|text| TokenIssuer::is_token(text))) {
            // Somebody who means to be known is not served as nobody.
            return Ok(self.tenants.named(&issuer.tenant_of(token).await?));
        }
        if self.require_key {
            let or_token = self.tokens.as_ref().map(|issuer| format!(" or a token of {}", issuer.name()));
            let known = format!("a known API key{} is needed", or_token.unwrap_or_default());
            let message = format!("{known}: send Authorization: Bearer KEY");
            return Err(ApiError::new(ErrorCode::Unauthenticated, message));
        }
        // Connections of TCP have a peer.
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        Ok(self.tenants.anonymous(self.proxies.client(peer, headers)))
    }

    /// Whether a request with these headers may learn what goes on inside.
    pub(crate) async fn is_insider(&self, headers: &HeaderMap) -> bool {
        !self.require_key || self.authorize(headers, None).await.is_ok()
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let code = match &error {
            TokenError::Invalid(_) => ErrorCode::Unauthenticated,
            TokenError::IssuerSilent => ErrorCode::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

/// What a request proves itself with: `Authorization: Bearer KEY` or `X-Api-Key: KEY`.
fn credential(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let value = values.next().and_then(|value| value.to_str().ok());
        match values.next() {
            None => Ok(value),
            Some(_) => Err(ApiError::new(ErrorCode::Unauthenticated, format!("{name} is there twice; send one"))),
        }
    };
    let authorization = one(header::AUTHORIZATION.as_str())?.and_then(bearer);
    Ok(authorization.or(one(API_KEY)?.map(str::trim)))
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, key) = authorization.split_once(' ')?;
    // In any case (RFC 9110, 11.1).
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_either_header() {
        let check = |headers: &[(&'static str, &str)], expected: Option<&str>| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            assert_eq!(credential(&map).ok().flatten(), expected, "{headers:?}");
        };
        check(&[("authorization", "Bearer k")], Some("k"));
        check(&[("authorization", "bearer  k ")], Some("k"));
        check(&[("authorization", "BEARER k")], Some("k"));
        check(&[("authorization", "Basic k")], None);
        check(&[("authorization", "Bearerk")], None);
        check(&[("x-api-key", "k")], Some("k"));
        check(&[("authorization", "Bearer k"), ("x-api-key", "other")], Some("k"));
        check(&[("authorization", "Bearer k"), ("authorization", "Bearer k")], None);
        check(&[("x-api-key", "k"), ("x-api-key", "k")], None);
        check(&[], None);
    }
}
