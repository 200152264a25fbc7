//! The models that clients can name, and whether their workers can serve them now.

use std::path::PathBuf;
use std::sync::Arc;

use cosec_proto::{WorkerDescription, WorkerRole};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::discovery::Member;
use crate::policy::PolicyConfig;
use crate::request::SessionError;
use crate::worker_pool::{ReadyWorker, WorkerPool};

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
}

/// What the workers of a model agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Token ids below this are valid: the smallest vocabulary of the workers.
    pub vocabulary: u32,
    /// Longest sequence: the shortest context of the workers.
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

    /// Whether hardened completions can be served.
    ///
    /// # Errors
    /// Why not.
    pub fn hardened(&self) -> Result<(), &SessionError> {
        WorkerRole::ALL.into_iter().try_for_each(|role| self.of(role))
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
    let ready = |role| {
        let workers = pool.ready_workers(model, role);
        workers.map_err(|error| SessionError::new(error.code, error.message))
    };
    let (bases, experts) = (ready(WorkerRole::Base), ready(WorkerRole::Expert));
    let anti_experts = pool.has(model, WorkerRole::AntiExpert).then(|| ready(WorkerRole::AntiExpert));
    let facts = bases.map(|bases| {
        let others = [experts.as_ref().ok(), anti_experts.as_ref().and_then(|workers| workers.as_ref().ok())];
        let others = others.into_iter().flatten().flatten();
        let all: Vec<&ReadyWorker> = bases.iter().chain(others).collect();
        let least =
            |read: fn(&WorkerDescription) -> u32| all.iter().map(|of| read(&of.description)).min().unwrap_or(0);
        ModelFacts {
            vocabulary: least(|of| of.limits.vocabulary),
            context_tokens: least(|of| of.limits.context_tokens),
            end_token_ids: all.first().map(|base| base.description.end_token_ids.clone()).unwrap_or_default(),
        }
    });
    let anti_expert = anti_experts.map(|ready| ready.map(|_| ()));
    ModelReadiness { facts, expert: experts.map(|_| ()), anti_expert }
}
