//! The tenants that a file names: API keys and their limits.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::secret_file;
use figment::Figment;
use figment::providers::{Format, Toml};
use parking_lot::RwLock;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::metrics::TenantMetrics;
use super::{Tenant, TenantFactory, TokenBudget};
use crate::policy::{OperatorPolicy, PolicyConfig, TenantPolicy};

/// Pause between two looks at the file. Looking works where notification does not: for mounted Secrets, which change by a
/// symbolic link.
const INTERVAL: Duration = Duration::from_secs(1);

/// Everybody who may ask.
pub struct Tenants {
    factory: TenantFactory,
    /// What the entries of the file are held against.
    policy: Arc<OperatorPolicy>,
    known: RwLock<KnownTenants>,
}

/// What a file says.
#[derive(Default)]
struct KnownTenants {
    text: String,
    by_digest: HashMap<[u8; 32], Arc<Tenant>>,
    by_name: HashMap<String, Arc<Tenant>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContent {
    /// Tenants with a key.
    #[serde(default)]
    keys: Vec<TenantEntry>,
    /// Tenants that an issuer's tokens name.
    #[serde(default)]
    tenants: Vec<TenantEntry>,
}

/// One entry of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantEntry {
    name: String,
    sha256: Option<String>,
    #[serde(default = "one")]
    weight: f64,
    max_sessions: Option<usize>,
    tokens_per_minute: Option<u64>,
    models: Option<Vec<String>>,
    #[serde(default)]
    policy: PolicyConfig,
}

fn one() -> f64 {
    1.0
}

/// A file that names no tenants.
#[derive(Debug, thiserror::Error)]
#[error("api.keys_file: {}: {problem}", path.display())]
pub struct InvalidKeys {
    path: PathBuf,
    problem: String,
}

impl Tenants {
    /// Knows nobody by a key.
    #[must_use]
    pub fn unknown(factory: TenantFactory, policy: Arc<OperatorPolicy>) -> Self {
        Self { factory, policy, known: RwLock::default() }
    }

    /// Reads a TOML file of `[[keys]]` with `name`, `sha256` (of the key, in hex) and, as wanted, `weight` (1),
    /// `max_sessions`, `tokens_per_minute`, `models` and `policy`; and of `[[tenants]]` with the same but `sha256`.
    ///
    /// # Errors
    /// [`InvalidKeys`] names the file and the entry.
    pub fn read(path: &Path, factory: TenantFactory, policy: Arc<OperatorPolicy>) -> Result<Self, InvalidKeys> {
        let tenants = Self::unknown(factory, policy);
        let invalid = |problem: String| InvalidKeys { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|cause| invalid(cause.to_string()))?;
        secret_file::warn_if_loose("api.keys_file", path);
        tenants.replace(&text).map_err(invalid)?;
        Ok(tenants)
    }

    /// Looks at the file again and again. What it says takes the place of what it said; what cannot be used changes
    /// nothing.
    pub async fn follow(self: Arc<Self>, path: PathBuf, metrics: TenantMetrics) {
        let mut last_problem = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let text = tokio::fs::read_to_string(&path).await.map_err(|cause| cause.to_string());
            let problem = text.and_then(|text| self.take(&text, &path)).err();
            metrics.keys_file_broken.set(problem.is_some().into());
            if problem != last_problem {
                if let Some(problem) = &problem {
                    let file = path.display();
                    tracing::error!(%file, problem, "api.keys_file cannot be used; the keys that it had before hold");
                }
                last_problem = problem;
            }
        }
    }

    fn take(&self, text: &str, path: &Path) -> Result<(), String> {
        if self.known.read().text == text {
            return Ok(());
        }
        self.replace(text)?;
        secret_file::warn_if_loose("api.keys_file", path);
        tracing::info!(file = %path.display(), "the API keys have changed");
        Ok(())
    }

    /// Knows from now on those that `text` names and nobody else.
    fn replace(&self, text: &str) -> Result<(), String> {
        let content: FileContent = Figment::from(Toml::string(text)).extract().map_err(|cause| cause.to_string())?;
        let mut known = KnownTenants { text: text.to_owned(), ..KnownTenants::default() };
        let mut names = HashSet::new();
        let lists = [("keys", content.keys), ("tenants", content.tenants)];
        for (list, at, entry) in lists
            .into_iter()
            .flat_map(|(list, entries)| entries.into_iter().enumerate().map(move |(at, entry)| (list, at, entry)))
        {
            let invalid = |problem: &str| format!("{list}[{at}].{problem}");
            if entry.name.is_empty() || !names.insert(entry.name.clone()) {
                return Err(invalid(&format!("name is {:?}; names must be set and differ", entry.name)));
            }
            let digest = entry.digest(list == "keys").map_err(|problem| invalid(&problem))?;
            let tenant = entry.tenant(&self.factory).map_err(|problem| invalid(&problem))?;
            self.policy.check_tenant(&tenant.policy).map_err(|violation| invalid(&violation.message))?;
            let tenant = Arc::new(self.with_spent_budget(tenant));
            if let Some(digest) = digest
                && known.by_digest.insert(digest, Arc::clone(&tenant)).is_some()
            {
                return Err(invalid("sha256 is that of another key"));
            }
            known.by_name.insert(tenant.name.clone(), tenant);
        }
        *self.known.write() = known;
        Ok(())
    }

    /// `tenant`, with what is left of its budget if it had the same one before.
    fn with_spent_budget(&self, tenant: Tenant) -> Tenant {
        let known = self.known.read();
        let before = known.by_name.get(&tenant.name).and_then(|before| before.budget.as_ref());
        match (&tenant.budget, before) {
            (Some(budget), Some(before)) if budget.per_minute == before.per_minute => {
                Tenant { budget: Some(Arc::clone(before)), ..tenant }
            }
            _ => tenant,
        }
    }

    /// The tenant whose key `key` is.
    #[must_use]
    pub fn of_key(&self, key: &str) -> Option<Arc<Tenant>> {
        self.known.read().by_digest.get(Sha256::digest(key).as_slice()).cloned()
    }

    /// The tenant of this name, which a token says; without limits where the file does not name it.
    #[must_use]
    pub fn named(&self, name: &str) -> Arc<Tenant> {
        let known = self.known.read().by_name.get(name).cloned();
        known.unwrap_or_else(|| Arc::new(self.factory.named(name)))
    }

    /// The clients without a key that are where `address` is.
    #[must_use]
    pub fn anonymous(&self, address: IpAddr) -> Arc<Tenant> {
        Arc::new(self.factory.anonymous(address))
    }
}

impl TenantEntry {
    /// Of the key, which an entry under `[[keys]]` has and no other.
    fn digest(&self, has_key: bool) -> Result<Option<[u8; 32]>, String> {
        let Some(digits) = &self.sha256 else {
            return if has_key { Err("sha256 is missing".to_owned()) } else { Ok(None) };
        };
        if !has_key {
            return Err("sha256 is set; an entry with a key belongs under [[keys]]".to_owned());
        }
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
        let digest = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        digest.map(Some).ok_or_else(|| format!("sha256 is {digits:?}; it must be 64 hexadecimal digits"))
    }

    fn tenant(self, factory: &TenantFactory) -> Result<Tenant, String> {
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(format!("weight is {}; it must be above 0", self.weight));
        }
        if self.max_sessions == Some(0) || self.tokens_per_minute == Some(0) {
            return Err("max_sessions or tokens_per_minute is 0; it must be at least 1".to_owned());
        }
        Ok(Tenant {
            weight: self.weight,
            max_sessions: self.max_sessions.unwrap_or(usize::MAX),
            budget: self.tokens_per_minute.map(|tokens| Arc::new(TokenBudget::new(tokens))),
            policy: TenantPolicy { models: self.models, settings: self.policy },
            ..factory.named(&self.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::shared_key::SharedKey;

    fn read(text: &str) -> Result<Tenants, InvalidKeys> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Tenants::read(file.path(), TenantFactory::new(&SharedKey::random()), Arc::default())
    }

    /// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_key_names_its_tenant() {
        let tenants =
            read(&format!("[[keys]]\nname = 'a'\nsha256 = '{ABC}'\nweight = 2.5\nmax_sessions = 3")).unwrap();
        let tenant = tenants.of_key("abc").unwrap();
        assert_eq!((tenant.name.as_str(), tenant.weight, tenant.max_sessions), ("a", 2.5, 3));
        assert!(tenants.of_key("abd").is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, named: &str| {
            let problem = read(text).err().unwrap().to_string();
            assert!(problem.contains(named), "{problem}");
        };
        let key = |more: &str| format!("[[keys]]\nname = 'a'\nsha256 = '{ABC}'\n{more}\n");
        check("keys = 3", "keys");
        check("[[keys]]\nname = 'a'\nsha256 = 'ab'", "keys[0].sha256");
        check("[[keys]]\nname = 'a'", "keys[0].sha256 is missing");
        check(&key("colour = 1"), "colour");
        check(&key("weight = 0.0"), "keys[0].weight");
        check(&key("max_sessions = 0"), "keys[0].max_sessions");
        check(&key("models = ['a']"), "keys[0].models");
        check(&key("policy = { allowed_rules = ['magic'] }"), "keys[0].policy.allowed_rules");
        check(&(key("") + &key("")), "keys[1].name");
        check(&(key("") + "[[tenants]]\nname = 'a'"), "tenants[0].name");
        check(&key("").replace("keys", "tenants"), "tenants[0].sha256 is set");
    }

    #[test]
    fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
        let (path, def) =
            (Path::new("keys.toml"), "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34");
        let key = |name: &str, digest: &str| format!("[[keys]]\nname = '{name}'\nsha256 = '{digest}'\n");
        let limited = key("a", ABC) + "tokens_per_minute = 60\n";
        let tenants = read(&limited).unwrap();
        tenants.of_key("abc").unwrap().spend(90);
        for broken in ["keys", &key("", def), "[[keys]]\nname = 'b'"] {
            assert!(tenants.take(broken, path).is_err() && tenants.of_key("abc").is_some(), "{broken}");
        }
        tenants.take(&(limited.clone() + &key("b", def)), path).unwrap();
        assert_eq!(tenants.of_key("def").unwrap().name, "b");
        assert!(tenants.of_key("abc").unwrap().may_begin(Instant::now()).is_err(), "a budget stays spent");
        tenants.take(&key("b", def), path).unwrap();
        assert!(tenants.of_key("abc").is_none());
    }

    #[test]
    fn tokens_name_tenants_with_and_without_limits() {
        let tenants = read("[[tenants]]\nname = 'a'\nmax_sessions = 3").unwrap();
        let (known, other) = (tenants.named("a"), tenants.named("b"));
        assert_eq!((known.max_sessions, other.max_sessions), (3, usize::MAX));
        assert!(known.id != other.id && known.share != other.share);
    }

    #[test]
    fn a_budget_refills_and_may_be_overdrawn() {
        let tenants = read(&format!("[[keys]]\nname = 'a'\nsha256 = '{ABC}'\ntokens_per_minute = 60")).unwrap();
        let tenant = tenants.of_key("abc").unwrap();
        let now = Instant::now();
        assert_eq!(tenant.may_begin(now), Ok(()));
        tenant.spend(90);
        let wait = tenant.may_begin(now).unwrap_err();
        assert!((29..=31).contains(&wait), "{wait}");
        assert_eq!(tenant.may_begin(now + Duration::from_secs(32)), Ok(()));
    }
}
