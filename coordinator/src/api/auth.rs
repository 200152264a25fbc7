//! Whose a request is.

use std::sync::Arc;

use cosec_proto::ErrorCode;

use super::error::ApiError;
use crate::tenant::{Tenant, Tenants};

/// Finds the tenant by a request's key.
#[derive(Debug, Default)]
pub struct KeyAuth {
    tenants: Tenants,
    require_key: bool,
}

impl KeyAuth {
    /// Knows the keys of `tenants`; refuses a request without one of them where `require_key` is set.
    #[must_use]
    pub fn new(tenants: Tenants, require_key: bool) -> Self {
        Self { tenants, require_key }
    }

    /// The tenant of a request with this `Authorization`.
    pub(crate) fn tenant(&self, authorization: Option<&str>) -> Result<Arc<Tenant>, ApiError> {
        let key = authorization.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        match key.and_then(|key| self.tenants.of(key)) {
            Some(tenant) => Ok(tenant),
            None if self.require_key => {
                let message = "a known API key is needed: send Authorization: Bearer KEY";
                Err(ApiError::new(ErrorCode::Unauthenticated, message))
            }
            None => Ok(self.tenants.nobody()),
        }
    }
}
