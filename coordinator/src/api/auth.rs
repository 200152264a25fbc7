//! Whose a request is. HTTP and gRPC ask here before they read a message.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use cosec_proto::ErrorCode;

use super::error::ApiError;
use crate::tenant::Tenant;
use crate::tenant::client_address::TrustedProxies;
use crate::tenant::known::Tenants;

/// The header that holds a key and nothing else.
const API_KEY: &str = "x-api-key";

/// Finds the tenant of a request.
pub struct RequestAuth {
    tenants: Arc<Tenants>,
    proxies: TrustedProxies,
    require_key: bool,
}

impl RequestAuth {
    /// Knows the keys of `tenants`; refuses a request without one of them where `require_key` is set.
    #[must_use]
    pub fn new(tenants: Arc<Tenants>, proxies: TrustedProxies, require_key: bool) -> Self {
        Self { tenants, proxies, require_key }
    }

    /// The tenant of a request with these headers, whose connection comes from `peer`.
    ///
    /// # Errors
    /// `Unauthenticated` without a key where one is needed.
    pub async fn authorize(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Arc<Tenant>, ApiError> {
        if let Some(tenant) = credential(headers)?.and_then(|key| self.tenants.of_key(key)) {
            return Ok(tenant);
        }
        if self.require_key {
            let message = "a known API key is needed: send Authorization: Bearer KEY";
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
    // The scheme is spelled in any case (RFC 9110, 11.1).
    let bearer = |value: &'_ str| value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let authorization = one(header::AUTHORIZATION.as_str())?.and_then(bearer).map(|(_, key)| key.trim());
    Ok(authorization.or(one(API_KEY)?.map(str::trim)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_key::SharedKey;
    use crate::tenant::TenantFactory;

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

    #[tokio::test]
    async fn only_insiders_learn_what_goes_on() {
        let headers = HeaderMap::new();
        for (require_key, insider) in [(true, false), (false, true)] {
            let tenants = Tenants::unknown(TenantFactory::new(&SharedKey::random()));
            let auth = RequestAuth::new(Arc::new(tenants), TrustedProxies::default(), require_key);
            assert_eq!(auth.is_insider(&headers).await, insider);
        }
    }
}
