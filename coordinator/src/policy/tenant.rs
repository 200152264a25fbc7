//! What the keys file says of one tenant's requests.

use std::sync::LazyLock;

use super::config::PolicyConfig;

/// A tenant's models and its own settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantPolicy {
    /// Models that it may use; `None` allows all. To it the others are unknown.
    pub models: Option<Vec<String>>,
    /// What differs from the model's policy.
    pub settings: PolicyConfig,
}

impl TenantPolicy {
    /// Of requests whose tenant has nothing of its own.
    pub(super) fn nobody() -> &'static Self {
        static NOBODY: LazyLock<TenantPolicy> = LazyLock::new(TenantPolicy::default);
        &NOBODY
    }

    /// Whether it may use `model`.
    #[must_use]
    pub fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|own| own == model))
    }
}
