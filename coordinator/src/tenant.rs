//! Whose requests are whose: API keys, their shares and their limits.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::Figment;
use figment::providers::{Format, Toml};
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Who a session belongs to.
#[derive(Debug)]
pub struct Tenant {
    /// Of the key; empty for requests without one.
    pub name: String,
    /// The name on the wire: workers share passes fairly among tenants, and no cached prefix.
    pub id: u64,
    /// Share of the turns among all tenants.
    pub weight: f64,
    /// Most sessions at a time.
    pub max_sessions: usize,
    pub(crate) budget: Option<TokenBudget>,
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
        Self { name: String::new(), id: 0, weight: 1.0, max_sessions: usize::MAX, budget: None }
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
    /// Refills, adds `tokens` and returns what is left.
    fn change(&self, now: Instant, tokens: f64) -> f64 {
        // Two numbers are valid whatever a panicking holder left.
        let mut left = self.left.lock();
        let minutes = now.saturating_duration_since(left.1).as_secs_f64() / 60.0;
        *left = ((left.0 + minutes * self.per_minute).min(self.per_minute) + tokens, now.max(left.1));
        left.0
    }
}

/// Tenants by the digest of their key.
#[derive(Debug, Default)]
pub struct Tenants {
    by_digest: HashMap<[u8; 32], Arc<Tenant>>,
    nobody: Arc<Tenant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysContent {
    keys: Vec<KeyEntry>,
}

/// One entry of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    sha256: String,
    #[serde(default = "one")]
    weight: f64,
    max_sessions: Option<usize>,
    tokens_per_minute: Option<u64>,
}

fn one() -> f64 {
    1.0
}

/// A file that names no keys.
#[derive(Debug, thiserror::Error)]
#[error("api.keys_file: {}: {problem}", path.display())]
pub struct InvalidKeys {
    path: PathBuf,
    problem: String,
}

impl Tenants {
    /// Reads a TOML file of `[[keys]]` with `name`, `sha256` (of the key, in hex) and, as wanted, `weight` (1),
    /// `max_sessions` and `tokens_per_minute`.
    ///
    /// # Errors
    /// [`InvalidKeys`] names the file and the entry.
    pub fn read(path: &Path) -> Result<Self, InvalidKeys> {
        let invalid = |problem: String| InvalidKeys { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|cause| invalid(cause.to_string()))?;
        let content: KeysContent =
            Figment::from(Toml::string(&text)).extract().map_err(|cause| invalid(cause.to_string()))?;
        let mut tenants = Self::default();
        let mut names = std::collections::HashSet::new();
        for (at, key) in content.keys.into_iter().enumerate() {
            let name = key.name.clone();
            if name.is_empty() || !names.insert(name) {
                return Err(invalid(format!("keys[{at}].name is {:?}; names must be set and differ", key.name)));
            }
            let (digest, tenant) = key.checked().map_err(|problem| invalid(format!("keys[{at}].{problem}")))?;
            if tenants.by_digest.insert(digest, Arc::new(tenant)).is_some() {
                return Err(invalid(format!("keys[{at}].sha256 is that of another key")));
            }
        }
        Ok(tenants)
    }

    /// The tenant whose key `key` is.
    #[must_use]
    pub fn of(&self, key: &str) -> Option<Arc<Tenant>> {
        self.by_digest.get(Sha256::digest(key).as_slice()).cloned()
    }

    /// For requests without a key.
    #[must_use]
    pub fn nobody(&self) -> Arc<Tenant> {
        Arc::clone(&self.nobody)
    }
}

impl KeyEntry {
    fn checked(self) -> Result<([u8; 32], Tenant), String> {
        let digits = self.sha256.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        let digest = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let digest =
            digest.ok_or_else(|| format!("sha256 is {:?}; it must be 64 hexadecimal digits", self.sha256))?;
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(format!("weight is {}; it must be above 0", self.weight));
        }
        if self.max_sessions == Some(0) || self.tokens_per_minute == Some(0) {
            return Err("max_sessions or tokens_per_minute is 0; it must be at least 1".to_owned());
        }
        let budget = self.tokens_per_minute.map(|tokens| {
            let per_minute = tokens as f64;
            TokenBudget { per_minute, left: Mutex::new((per_minute, Instant::now())) }
        });
        let named = Sha256::digest(format!("cosec tenant\n{}", self.name));
        let id = named.iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte));
        let max_sessions = self.max_sessions.unwrap_or(usize::MAX);
        Ok((digest, Tenant { name: self.name, id, weight: self.weight, max_sessions, budget }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(text: &str) -> Result<Tenants, InvalidKeys> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Tenants::read(file.path())
    }

    /// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_key_names_its_tenant() {
        let tenants =
            read(&format!("[[keys]]\nname = 'a'\nsha256 = '{ABC}'\nweight = 2.5\nmax_sessions = 3")).unwrap();
        let tenant = tenants.of("abc").unwrap();
        assert_eq!((tenant.name.as_str(), tenant.weight, tenant.max_sessions), ("a", 2.5, 3));
        assert!(tenant.id != 0 && tenants.of("abd").is_none() && tenants.nobody().id == 0);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, named: &str| {
            let problem = read(text).unwrap_err().to_string();
            assert!(problem.contains(named), "{problem}");
        };
        let key = |more: &str| format!("[[keys]]\nname = 'a'\nsha256 = '{ABC}'\n{more}\n");
        check("keys = 3", "keys");
        check("[[keys]]\nname = 'a'\nsha256 = 'ab'", "keys[0].sha256");
        check(&key("colour = 1"), "colour");
        check(&key("weight = 0.0"), "keys[0].weight");
        check(&key("max_sessions = 0"), "keys[0].max_sessions");
        check(&(key("") + &key("")), "keys[1].name");
    }

    #[test]
    fn a_budget_refills_and_may_be_overdrawn() {
        let tenants = read(&format!("[[keys]]\nname = 'a'\nsha256 = '{ABC}'\ntokens_per_minute = 60")).unwrap();
        let tenant = tenants.of("abc").unwrap();
        let now = Instant::now();
        assert_eq!(tenant.may_begin(now), Ok(()));
        tenant.spend(90);
        let wait = tenant.may_begin(now).unwrap_err();
        assert!((29..=31).contains(&wait), "{wait}");
        assert_eq!(tenant.may_begin(now + Duration::from_secs(32)), Ok(()));
    }
}
