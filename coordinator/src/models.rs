//! The models that clients can name, and whether their workers can serve them now.

use std::path::PathBuf;
use std::sync::Arc;

use cosec_proto::{ErrorCode, WorkerRole};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::discovery::Member;
use crate::policy::PolicyConfig;
use crate::request::SessionError;
use crate::worker_pool::tokenizers::KnownTokenizer;
use crate::worker_pool::{ModelRequirement, RoleFacts, RoleRequirement, WorkerPool};

/// One model that clients can name: a base and its expert.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// As listed by `/v1/models`.
    pub name: String,
    /// Directory with tokenizer.json (and the chat template).
    pub tokenizer: PathBuf,
    /// Addresses (`host:port`) of the workers that host the base; names of SRV records where discovery is `kubernetes`,
    /// none where it is `file` or `etcd`.
    #[serde(default)]
    pub base: Vec<String>,
    /// Addresses of the workers that host the expert.
    #[serde(default)]
    pub expert: Vec<String>,
    /// Addresses of the workers that host the anti-expert of the rule `product`.
    #[serde(default)]
    pub anti_expert: Vec<String>,
    /// Name of the LoRA adapter that the base's workers apply, so that several models can share them.
    pub base_adapter: Option<String>,
    /// Name of the LoRA adapter that the expert's workers apply: one expert per language or weakness.
    pub expert_adapter: Option<String>,
    /// Fingerprint that the base's workers must have, with their adapter where there is one: 64 hexadecimal digits, as
    /// workers log them. Default: what most of them have.
    pub base_fingerprint: Option<String>,
    /// Fingerprint that the expert's workers must have. Default: what most of them have.
    pub expert_fingerprint: Option<String>,
    /// Fingerprint that the anti-expert's workers must have. Default: what most of them have.
    pub anti_expert_fingerprint: Option<String>,
    /// Fingerprint that the tokenizer must have. Default: that of `tokenizer`.
    pub tokenizer_fingerprint: Option<String>,
    /// What clients may ask for of this model, as `[policy]`: what it names wins over what stands there. Default: as
    /// there.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub policy: PolicyConfig,
}

impl ModelConfig {
    /// Name of the adapter that the workers of this role apply.
    #[must_use]
    pub fn adapter(&self, role: WorkerRole) -> Option<&str> {
        match role {
            WorkerRole::Base => self.base_adapter.as_deref(),
            WorkerRole::Expert => self.expert_adapter.as_deref(),
            WorkerRole::AntiExpert => None,
        }
    }

    /// Fingerprint that the workers of this role must have.
    #[must_use]
    pub fn fingerprint(&self, role: WorkerRole) -> Option<&str> {
        match role {
            WorkerRole::Base => self.base_fingerprint.as_deref(),
            WorkerRole::Expert => self.expert_fingerprint.as_deref(),
            WorkerRole::AntiExpert => self.anti_expert_fingerprint.as_deref(),
        }
    }

    /// What it asks of its workers; `tokenizer` is the coordinator's own.
    #[must_use]
    pub fn requirement(&self, tokenizer: Option<KnownTokenizer>) -> ModelRequirement {
        let role = |role| RoleRequirement {
            adapter: self.adapter(role).map(str::to_owned),
            fingerprint: self.fingerprint(role).map(str::to_owned),
        };
        ModelRequirement { tokenizer, roles: WorkerRole::ALL.map(role) }
    }

    /// Addresses of the workers by role.
    #[must_use]
    pub fn addresses(&self) -> [(WorkerRole, &[String]); 3] {
        [
            (WorkerRole::Base, &self.base),
            (WorkerRole::Expert, &self.expert),
            (WorkerRole::AntiExpert, &self.anti_expert),
        ]
    }

    /// The workers that the configuration names.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.addresses().into_iter().flat_map(move |(role, addresses)| {
            addresses.iter().map(move |address| Member { model: self.name.clone(), role, address: address.clone() })
        })
    }
}

/// A model as it stands now.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// As listed by `/v1/models`.
    pub name: String,
    /// Whether it can serve.
    pub readiness: Arc<ModelReadiness>,
}

/// What the workers of a model can do together.
#[derive(Clone, Debug)]
pub struct ModelReadiness {
    /// What they agree on, or why the base cannot serve.
    pub facts: Result<ModelFacts, SessionError>,
    /// Whether an expert can serve.
    pub expert: Result<(), SessionError>,
    /// Whether an anti-expert can serve; `None` for a model without one.
    pub anti_expert: Option<Result<(), SessionError>>,
    /// Workers that are connected and get no new sessions: their roles, addresses and the reasons.
    pub left_out: Vec<String>,
}

/// What the workers of a model agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Token ids below this are valid: the smaller vocabulary of base and expert.
    pub vocabulary: u32,
    /// Longest sequence: the shorter context of base and expert, of each that which at least half of its workers hold.
    pub context_tokens: u32,
    /// Ids that end a generation, by the base.
    pub end_token_ids: Vec<u32>,
}

impl ModelReadiness {
    /// Whether the workers of `role` can serve.
    ///
    /// # Errors
    /// Why not.
    pub fn of(&self, role: WorkerRole) -> Result<(), &SessionError> {
        match role {
            WorkerRole::Base => self.facts.as_ref().map(|_| ()),
            WorkerRole::Expert => self.expert.as_ref().map(|&()| ()),
            WorkerRole::AntiExpert => self.anti_expert.as_ref().map_or(Ok(()), |ready| ready.as_ref().map(|&()| ())),
        }
    }

    /// Whether hardened completions can be served. An anti-expert, which one rule reads, is missed by its requests
    /// alone.
    ///
    /// # Errors
    /// Why not.
    pub fn hardened(&self) -> Result<(), &SessionError> {
        [WorkerRole::Base, WorkerRole::Expert].into_iter().try_for_each(|role| self.of(role))
    }
}

/// The configured models, with the readiness of each.
pub(crate) struct ServedModels {
    models: Vec<ServedModel>,
    pool: Arc<WorkerPool>,
}

struct ServedModel {
    name: String,
    cached: Mutex<Option<CachedReadiness>>,
}

/// Worked out anew only when a worker says something else, because there may be hundreds of them for each request.
struct CachedReadiness {
    /// The pool's changes when the workers were looked at.
    changes: u64,
    readiness: Arc<ModelReadiness>,
}

impl ServedModels {
    pub(crate) fn new(models: &[ModelConfig], pool: Arc<WorkerPool>) -> Self {
        let served = |model: &ModelConfig| ServedModel { name: model.name.clone(), cached: Mutex::default() };
        Self { models: models.iter().map(served).collect(), pool }
    }

    /// In the order of the configuration.
    pub(crate) fn all(&self) -> impl Iterator<Item = ModelInfo> + '_ {
        self.models.iter().map(|model| self.info(model))
    }

    pub(crate) fn find(&self, name: &str) -> Option<ModelInfo> {
        self.models.iter().find(|model| model.name == name).map(|model| self.info(model))
    }

    fn info(&self, ServedModel { name, cached }: &ServedModel) -> ModelInfo {
        let mut cached = cached.lock();
        // Read before the workers are looked at, so that no change is missed meanwhile.
        let changes = self.pool.changes();
        cached.take_if(|cached| cached.changes != changes);
        let ask = || CachedReadiness { changes, readiness: Arc::new(ask_workers(&self.pool, name)) };
        let readiness = Arc::clone(&cached.get_or_insert_with(ask).readiness);
        ModelInfo { name: name.clone(), readiness }
    }
}

fn ask_workers(pool: &WorkerPool, model: &str) -> ModelReadiness {
    let facts = |role| pool.facts(model, role).map_err(|error| SessionError::new(error.code, error.message));
    let (base, expert) = (facts(WorkerRole::Base), facts(WorkerRole::Expert));
    let anti_expert = pool.has(model, WorkerRole::AntiExpert).then(|| facts(WorkerRole::AntiExpert));
    let facts = base.map(|base| {
        let least = |read: fn(&RoleFacts) -> u32| {
            let of_expert = expert.as_ref().map_or(u32::MAX, read);
            read(&base).min(of_expert)
        };
        let (vocabulary, context_tokens) = (least(|role| role.vocabulary), least(|role| role.context_tokens));
        ModelFacts { vocabulary, context_tokens, end_token_ids: base.end_token_ids }
    });
    let anti_expert =
        anti_expert.map(|anti_expert| anti_expert.and_then(|role| is_as_large(&role, facts.as_ref().ok())));
    let left_out = |(Member { role, address, .. }, why): (Member, String)| format!("{role} at {address}: {why}");
    ModelReadiness {
        facts,
        expert: expert.map(|_| ()),
        anti_expert,
        left_out: pool.left_out(model).into_iter().map(left_out).collect(),
    }
}

/// An anti-expert, which few rules read, must not make the model smaller for the others.
fn is_as_large(anti_expert: &RoleFacts, model: Option<&ModelFacts>) -> Result<(), SessionError> {
    let RoleFacts { vocabulary, context_tokens, .. } = *anti_expert;
    match model {
        Some(model) if vocabulary < model.vocabulary || context_tokens < model.context_tokens => {
            let message = format!(
                "the anti-expert has a vocabulary of {vocabulary} and a context of {context_tokens}; base and expert \
                 have {} and {}",
                model.vocabulary, model.context_tokens
            );
            Err(SessionError::new(ErrorCode::ModelMismatch, message))
        }
        Some(_) | None => Ok(()),
    }
}
