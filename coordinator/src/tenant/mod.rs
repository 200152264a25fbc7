//! Whose requests are whose: by API key, by an issuer's token, or by the address that they come from.

pub mod client_address;

pub mod known;

pub mod oidc;

pub mod metrics;

use std::net::IpAddr;
use std::sync::Arc;

use hmac::{Hmac, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::time::Instant;

use self::client_address::ClientNetwork;
use crate::policy::TenantPolicy;
use crate::shared_key::SharedKey;

/// Who a session belongs to.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// As a key or a token names it; empty for clients without one.
    pub name: String,
    /// Whom it shares turns with.
    pub share: ShareKey,
    /// Its number on the wire: workers share passes fairly among tenants, and no cached prefix.
    pub id: u64,
    /// Share of the turns among all tenants.
    pub weight: f64,
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// What it may ask for.
    pub policy: TenantPolicy,
    pub(crate) budget: Option<Arc<TokenBudget>>,
}

/// Requests with the same key share turns, those with another get their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShareKey {
    /// All clients of a tenant with a name.
    Tenant(String),
    /// Clients without one, by where they are.
    Network(ClientNetwork),
}

/// Tokens that may be used: refilled steadily, never above those of a minute. What is under way may overdraw it.
#[derive(Debug)]
pub(crate) struct TokenBudget {
    per_minute: f64,
    left: Mutex<(f64, Instant)>,
}

impl Default for Tenant {
    /// Nobody in particular, without limits of its own.
    fn default() -> Self {
        Self {
            name: String::new(),
            share: ShareKey::Tenant(String::new()),
            id: 0,
            weight: 1.0,
            max_sessions: usize::MAX,
            policy: TenantPolicy::default(),
            budget: None,
        }
    }
}

impl Tenant {
    /// Takes tokens from the budget.
    pub fn spend(&self, tokens: u64) {
        if let Some(budget) = &self.budget {
            budget.change(Instant::now(), -(tokens as f64));
        }
    }

    /// Whether it may begin another session; else after how many seconds it may.
    ///
    /// # Errors
    /// The seconds, at least 1.
    pub fn may_begin(&self, now: Instant) -> Result<(), u64> {
        let Some(budget) = &self.budget else { return Ok(()) };
        let left = budget.change(now, 0.0);
        if left > 0.0 { Ok(()) } else { Err((-left / budget.per_minute * 60.0).ceil().max(1.0) as u64) }
    }
}

impl TokenBudget {
    /// A full one.
    fn new(per_minute: u64) -> Self {
        let per_minute = per_minute as f64;
        Self { per_minute, left: Mutex::new((per_minute, Instant::now())) }
    }

    /// Refills, adds `tokens` and returns what is left.
    fn change(&self, now: Instant, tokens: f64) -> f64 {
        // Two numbers are valid whatever a panicking holder left.
        let mut left = self.left.lock();
        let minutes = now.saturating_duration_since(left.1).as_secs_f64() / 60.0;
        *left = ((left.0 + minutes * self.per_minute).min(self.per_minute) + tokens, now.max(left.1));
        left.0
    }
}

/// Makes tenants, with numbers that only those can tell who have the coordinators' secret: else whoever knows a
/// tenant's name could ask a worker which prompts that tenant has cached.
#[derive(Clone)]
pub struct TenantFactory(Hmac<Sha256>);

impl TenantFactory {
    /// Coordinators with the same secret give the same numbers, and so share cached prefixes.
    #[must_use]
    pub fn new(secret: &SharedKey) -> Self {
        Self(secret.derive("tenant numbers"))
    }

    /// The tenant of this name, without limits.
    #[must_use]
    pub fn named(&self, name: &str) -> Tenant {
        let id = self.number("tenant", name);
        Tenant { name: name.to_owned(), share: ShareKey::Tenant(name.to_owned()), id, ..Tenant::default() }
    }

    /// The clients without a name that are where `address` is: they share turns and cached prefixes with nobody else.
    #[must_use]
    pub fn anonymous(&self, address: IpAddr) -> Tenant {
        let network = ClientNetwork::of(address);
        let id = self.number("network", &network.to_string());
        Tenant { share: ShareKey::Network(network), id, ..Tenant::default() }
    }

    fn number(&self, kind: &str, name: &str) -> u64 {
        let mut mac = self.0.clone();
        mac.update(kind.as_bytes());
        mac.update(b"\n");
        mac.update(name.as_bytes());
        mac.finalize().into_bytes().iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_need_the_secret() {
        let (secret, other) = (SharedKey::random(), SharedKey::random());
        let id = |secret: &SharedKey, name: &str| TenantFactory::new(secret).named(name).id;
        assert_eq!(id(&secret, "a"), id(&secret, "a"));
        assert_ne!(id(&secret, "a"), id(&secret, "b"));
        assert_ne!(id(&secret, "a"), id(&other, "a"));
    }

    #[test]
    fn clients_without_a_name_are_told_apart_by_their_network() {
        let factory = TenantFactory::new(&SharedKey::random());
        let of = |address: &str| factory.anonymous(address.parse().unwrap());
        let check = |one: &str, other: &str, same: bool| {
            let (one, other) = (of(one), of(other));
            assert_eq!((one.share == other.share, one.id == other.id), (same, same), "{one:?} {other:?}");
        };
        check("192.0.2.1", "192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
        check("192.0.2.1", "::ffff:192.0.2.1", true);
        check("2001:db8::1", "2001:db8::2:3", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
        let named = factory.named(&ClientNetwork::of("192.0.2.1".parse().unwrap()).to_string());
        assert_ne!(named.id, of("192.0.2.1").id);
    }
}
