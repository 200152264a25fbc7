//! Connections to all workers, and the choice of one for each role of a session.

mod changes;
mod connection;
mod election;
mod health;
mod matching;
mod membership;
pub mod metrics;
pub mod placement;
mod readiness;
mod recall;
mod reconnect;
mod slot;
pub mod tokenizers;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::tls::MutualTls;
use cosec_proto::{ErrorCode, OperationError, SessionId, WorkerDescription, WorkerRole, transport};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use self::changes::ChangeCount;
use self::membership::Membership;
use self::metrics::PoolMetrics;
use self::placement::{PlacementCandidate, choose};
use self::readiness::ReadinessCheck;
use self::tokenizers::TokenizerComparisons;
use crate::discovery::Member;
use crate::tasks::TaskSpawner;

pub(crate) use self::recall::RecallRequest;

pub use self::readiness::{ModelRequirement, ModelRequirements, ReadyWorker, RoleRequirement};
pub use self::slot::SessionSlot;
pub use self::worker::Worker;

/// `[workers]` in the configuration.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Zone of the coordinator; workers there are preferred.
    pub zone: String,
    /// Time for one operation of a worker before it counts as hung.
    pub step_deadline_ms: u64,
    /// Pause between two looks at a worker's state.
    pub describe_interval_ms: u64,
    /// Who this coordinator is to workers and to those who read metrics, and whose word it takes for who they are.
    pub tls: MutualTls,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { zone: String::new(), step_deadline_ms: 30_000, describe_interval_ms: 5_000, tls: MutualTls::default() }
    }
}

/// Which workers there should be and how they are reached.
pub struct WorkerSource {
    /// The members, now and after every change.
    pub members: watch::Receiver<Vec<Member>>,
    /// Opens a channel to an address.
    pub connect: Arc<transport::Connect>,
}

/// What a session asks of a worker.
#[derive(Clone, Debug)]
pub struct SlotRequest {
    /// Name of the model.
    pub model: String,
    /// What the worker is for.
    pub role: WorkerRole,
    /// The very model that the session began on.
    pub fingerprint: Option<String>,
    /// Addresses of workers that failed, the latest last.
    pub avoid: Vec<String>,
    /// Address of the worker that has its tokens in the cache.
    pub holder: Option<String>,
    /// Whether none of those is to be tried again.
    pub only_others: bool,
    /// Names the beginning of its prompt.
    pub prefix: u64,
    /// Most tokens of its sequence.
    pub tokens: u64,
}

/// What the workers of a role can do together.
#[derive(Clone, Debug)]
pub struct RoleFacts {
    /// Token ids below this are valid.
    pub vocabulary: u32,
    /// Longest sequence, in tokens.
    pub context_tokens: u32,
    /// Ids that end a generation.
    pub end_token_ids: Vec<u32>,
}

/// All workers, and which of them serve what.
pub struct WorkerPool {
    config: PoolConfig,
    membership: Arc<Membership>,
    readiness: ReadinessCheck,
    changes: Arc<ChangeCount>,
    tasks: TaskSpawner,
}

impl WorkerPool {
    /// Connects to the members of `source`, now and later.
    pub fn start(
        config: PoolConfig,
        requirements: ModelRequirements,
        source: WorkerSource,
        metrics: PoolMetrics,
        tasks: TaskSpawner,
    ) -> Arc<Self> {
        let WorkerSource { members, connect } = source;
        let changes = Arc::<ChangeCount>::default();
        let comparisons = TokenizerComparisons::new(Arc::clone(&connect), tasks.clone(), Arc::clone(&changes));
        let describe_interval = Duration::from_millis(config.describe_interval_ms);
        let (pooled, told) = (metrics.clone(), Mutex::default());
        let membership = Membership::new(connect, describe_interval, Arc::clone(&changes), pooled, tasks.clone());
        let readiness =
            ReadinessCheck { membership: Arc::clone(&membership), requirements, comparisons, metrics, told };
        let pool = Arc::new(Self { config, membership, readiness, changes, tasks });
        pool.tasks.spawn(Arc::clone(&pool).follow(members));
        pool
    }

    /// Follows the membership and whatever changes which workers can serve.
    async fn follow(self: Arc<Self>, mut members: watch::Receiver<Vec<Member>>) {
        let mut is_new = true;
        loop {
            let changed = self.changes.next();
            if is_new {
                let now = members.borrow_and_update().clone();
                self.membership.reconcile(&now);
            }
            self.readiness.mark_handovers();
            self.readiness.tell_left_out();
            is_new = tokio::select! {
                biased;
                () = self.tasks.shutdown.cancelled() => return,
                changed = members.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    true
                }
                () = changed => false,
            };
        }
    }

    /// Counts up whenever [`Self::facts`] may say something else.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.count()
    }

    /// Whether a model has, or had, workers of `role`, ready or not.
    #[must_use]
    pub fn has(&self, model: &str, role: WorkerRole) -> bool {
        self.membership.has(model, role)
    }

    /// What new sessions can rely on of the workers of `role`, by what most of them say: one odd worker changes nothing.
    ///
    /// # Errors
    /// When none can serve: `ModelMismatch` if one is connected that does not belong here, else `Unavailable` or
    /// `ExpertUnavailable`, each with the reasons.
    pub fn facts(&self, model: &str, role: WorkerRole) -> Result<RoleFacts, OperationError> {
        let workers = self.readiness.elected_workers(model, role)?;
        let context_tokens = election::context_tokens(workers.iter().map(|worker| &*worker.description));
        let hosted = workers.first().map(|worker| &worker.description);
        Ok(RoleFacts {
            vocabulary: hosted.map_or(0, |hosted| hosted.limits.vocabulary),
            context_tokens,
            end_token_ids: hosted.map(|hosted| hosted.end_token_ids.clone()).unwrap_or_default(),
        })
    }

    /// Workers of `model` that are connected and get no new sessions, each with the reason.
    #[must_use]
    pub fn left_out(&self, model: &str) -> Vec<(Member, String)> {
        self.readiness.left_out(model)
    }

    /// Takes a slot for `session` on the least loaded worker that can serve, waiting for one until `until`.
    ///
    /// # Errors
    /// As [`Self::facts`] says at `until`; `ModelMismatch` or `Unavailable` when those that can serve host another model
    /// than the session's or cannot hold its sequence; at once `Overloaded`, where all workers are to be left out.
    pub async fn locate(
        &self,
        request: &SlotRequest,
        session: SessionId,
        until: Instant,
    ) -> Result<Arc<SessionSlot>, OperationError> {
        loop {
            let changed = self.changes.next();
            let why = match self.choose(request) {
                Ok(ready) => {
                    let adapter = self.readiness.adapter(&request.model, request.role);
                    let (deadline, tasks) = (self.step_deadline(), self.tasks.clone());
                    return Ok(Arc::new(SessionSlot::new(ready, adapter, session, deadline, tasks)));
                }
                Err(why) if why.code == ErrorCode::Overloaded => return Err(why),
                Err(why) => why,
            };
            let waited = tokio::time::timeout_at(until, changed).await;
            if waited.is_err() || self.tasks.shutdown.is_cancelled() {
                return Err(why);
            }
        }
    }

    fn choose(&self, request: &SlotRequest) -> Result<ReadyWorker, OperationError> {
        let SlotRequest { model, role, .. } = request;
        let mut ready = self.readiness.ready_workers(model, *role)?;
        if let Some(fingerprint) = &request.fingerprint {
            let adapter = self.readiness.adapter(model, *role);
            ready.retain(|ready| matching::fingerprint(&ready.description, adapter) == Ok(fingerprint.as_str()));
            if ready.is_empty() {
                let message = format!("no {} hosts the model that the session began on", role.name());
                return Err(OperationError::new(ErrorCode::ModelMismatch, message));
            }
        }
        self.readiness.retain_elected(model, *role, &mut ready);
        // Those whose cache is smaller serve shorter sequences.
        ready.retain(|ready| u64::from(ready.description.limits.context_tokens) >= request.tokens);
        let candidates: Vec<PlacementCandidate<'_>> =
            ready.iter().map(|ready| self.candidate(ready, request)).collect();
        let is_known = |of: &PlacementCandidate<'_>| request.avoid.iter().any(|address| address == of.address);
        if request.only_others && !candidates.is_empty() && candidates.iter().all(is_known) {
            let message = format!("every {} of the model is busy; try again later", request.role.name());
            return Err(OperationError::new(ErrorCode::Overloaded, message));
        }
        match choose(&candidates, request.prefix) {
            Some(index) => {
                let chosen = ready.swap_remove(index);
                chosen.worker.health.placed();
                Ok(chosen)
            }
            None => Err(OperationError::new(
                ErrorCode::Unavailable,
                format!("no {} that can serve now holds a sequence of {} tokens", role.name(), request.tokens),
            )),
        }
    }

    fn candidate<'a>(&self, ready: &'a ReadyWorker, request: &SlotRequest) -> PlacementCandidate<'a> {
        let ReadyWorker { worker, description } = ready;
        let address = worker.member.address.as_str();
        // What the worker said of all its sessions is some seconds old; what it holds for this coordinator is known.
        let sessions = worker.load.load(Ordering::Relaxed).max(description.sessions as usize);
        let queued = f64::from(description.queued_tokens) / f64::from(description.limits.operation_tokens);
        let failed = request.avoid.iter().rposition(|failed| failed == address).map_or(0, |at| at + 1);
        PlacementCandidate {
            address,
            holds: request.holder.as_deref() == Some(address),
            load: sessions as f64 + queued,
            full: description.total_blocks > 0 && description.free_blocks == 0,
            avoid: failed.max(usize::from(worker.health.is_avoided())),
            far: !self.config.zone.is_empty() && description.zone != self.config.zone,
        }
    }

    /// Tokens that the caches of a model's workers hold, by the role that has the least of them; without bound for a
    /// role of which no worker says it.
    #[must_use]
    pub fn cache_tokens(&self, model: &str) -> u64 {
        let of_worker = |ready: &ReadyWorker| {
            let WorkerDescription { total_blocks, block_tokens, .. } = *ready.description;
            u64::from(total_blocks) * u64::from(block_tokens)
        };
        let of_role = |role| {
            let ready = self.readiness.elected_workers(model, role).unwrap_or_default();
            let sum = ready.iter().map(of_worker).fold(0, u64::saturating_add);
            if sum == 0 { u64::MAX } else { sum }
        };
        WorkerRole::ALL.into_iter().map(of_role).min().unwrap_or(u64::MAX)
    }

    /// Deadline of one operation.
    #[must_use]
    pub fn step_deadline(&self) -> Duration {
        Duration::from_millis(self.config.step_deadline_ms)
    }
}
