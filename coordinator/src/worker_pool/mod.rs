//! Connections to all workers, and the choice of one for each role of a session.

mod changes;
mod circuit_breaker;
mod connection;
mod matching;
pub mod operation;
pub mod placement;
pub mod reply;
mod slot;
mod step_time;
pub mod tokenizers;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::wire::worker::DescribeResponse;
use cosec_proto::{ErrorCode, SessionId, transport};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::discovery::{Announcer, Discovery, Member};
use crate::session::metrics::SessionMetrics;
use crate::tasks::TaskSpawner;
use changes::Changes;
use cosec_proto::WorkerRole;
use placement::{PlacementCandidate, choose};
use reply::OperationError;
use tokenizers::{KnownTokenizer, TokenizerComparisons, TokenizerOwner};
use worker::{Keeper, State};

pub use slot::SessionSlot;
pub use worker::Worker;

/// Between two looks whether the last session has left a worker that is no member any more.
const PARTING_POLL: Duration = Duration::from_millis(50);

/// `[workers]` in the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Zone of the coordinator; workers there are preferred. Default: none.
    pub zone: String,
    /// Time for one operation of a worker before it counts as hung. Default 30,000.
    pub step_deadline_ms: u64,
    /// Pause between two looks at a worker's state. Default 5,000.
    pub describe_interval_ms: u64,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { zone: String::new(), step_deadline_ms: 30_000, describe_interval_ms: 5_000 }
    }
}

/// What a model asks of its workers.
#[derive(Clone, Debug, Default)]
pub struct ModelRequirements {
    /// The coordinator's own tokenizer by model, where it has one.
    pub tokenizers: HashMap<String, KnownTokenizer>,
    /// Name of the adapter that sessions apply by model and role, where there is one.
    pub adapters: HashMap<(String, WorkerRole), String>,
}

/// Which workers there should be and how they are reached.
pub struct WorkerSource {
    /// Where the membership comes from.
    pub discovery: Box<dyn Discovery>,
    /// Makes the channels to workers.
    pub connect: Arc<transport::Connect>,
}

/// All workers.
pub struct WorkerPool {
    config: PoolConfig,
    requirements: ModelRequirements,
    connect: Arc<transport::Connect>,
    metrics: Arc<SessionMetrics>,
    tasks: TaskSpawner,
    /// In the order of the membership.
    workers: RwLock<Vec<Connected>>,
    /// Models and roles that ever had a member: that the last one left is an absence, and makes no other rule.
    places: RwLock<BTreeSet<(String, WorkerRole)>>,
    changes: Arc<Changes>,
    comparisons: Arc<TokenizerComparisons>,
    /// What new sessions compute with, by model and role.
    served: Mutex<HashMap<(String, WorkerRole), String>>,
}

struct Connected {
    worker: Arc<Worker>,
    leave: CancellationToken,
}

/// A worker that can serve.
#[derive(Clone)]
pub struct ReadyWorker {
    /// Which.
    pub worker: Arc<Worker>,
    /// What it says of itself.
    pub description: Arc<DescribeResponse>,
}

/// What a session asks of a worker besides its role.
#[derive(Clone, Debug)]
pub struct SlotRequest {
    /// As configured.
    pub model: String,
    /// As what.
    pub role: WorkerRole,
    /// The very model that the session began on.
    pub fingerprint: Option<String>,
    /// Addresses of workers that failed, the latest last.
    pub avoid: Vec<String>,
    /// Names the beginning of its prompt.
    pub prefix: u64,
}

impl WorkerPool {
    /// Connects to the members that the fleet's discovery announces, now and later.
    pub fn start(
        config: PoolConfig,
        requirements: ModelRequirements,
        source: WorkerSource,
        metrics: Arc<SessionMetrics>,
        tasks: TaskSpawner,
    ) -> Arc<Self> {
        let WorkerSource { discovery, connect } = source;
        let (workers, changes) = (RwLock::default(), Arc::<Changes>::default());
        let comparisons = TokenizerComparisons::new(Arc::clone(&connect), tasks.clone(), Arc::clone(&changes));
        let pool = Arc::new(Self {
            config,
            requirements,
            connect,
            metrics,
            tasks,
            workers,
            places: RwLock::default(),
            changes,
            comparisons,
            served: Mutex::default(),
        });
        let announcer = Announcer::new(pool.metrics.discovery.clone());
        let members = announcer.members();
        let shutdown = pool.tasks.shutdown.clone();
        let discover = async move {
            shutdown.run_until_cancelled(discovery.run(announcer)).await;
        };
        pool.tasks.spawn(discover);
        let following = Arc::clone(&pool);
        let follow = async move {
            let mut members = members;
            let mut others = true;
            loop {
                let changed = following.changes.next();
                if others {
                    let now = members.borrow_and_update().clone();
                    following.reconcile(&now);
                }
                following.mark_handovers();
                others = tokio::select! {
                    biased;
                    () = following.tasks.shutdown.cancelled() => return,
                    changed = members.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        true
                    }
                    () = changed => false,
                };
            }
        };
        pool.tasks.spawn(follow);
        pool
    }

    fn reconcile(self: &Arc<Self>, members: &[Member]) {
        let places = members.iter().map(|member| (member.model.clone(), member.role));
        self.places.write().extend(places);
        let mut workers = self.workers.write();
        let mut before = std::mem::take(&mut *workers);
        for member in members {
            match before.iter().position(|connected| connected.worker.member == *member) {
                Some(at) => {
                    let stays = before.swap_remove(at);
                    stays.worker.leaving.send_replace(false);
                    workers.push(stays);
                }
                None => workers.extend(self.connect(member)),
            }
        }
        for gone in before {
            if !gone.worker.leaving.send_replace(true) {
                self.tasks.spawn(Arc::clone(self).part(Arc::clone(&gone.worker)));
            }
            workers.push(gone);
        }
        drop(workers);
        self.changes.tell();
    }

    /// Says which workers' sessions should move. A worker that drains keeps its sessions where nobody else hosts its model.
    fn mark_handovers(&self) {
        let workers = self.workers.read();
        let hosted = |worker: &Worker| match &*worker.state.borrow() {
            State::Up { description, serving, .. } => {
                let goes = *worker.leaving.borrow() || !serving || description.draining;
                let adapter = self.adapter(&worker.member.model, worker.member.role);
                Some((matching::fingerprint(description, adapter).ok()?.to_owned(), goes))
            }
            State::Down(_) => None,
        };
        for Connected { worker, .. } in workers.iter() {
            let replaceable = hosted(worker).is_some_and(|(fingerprint, goes)| {
                let same_place = |other: &&Connected| {
                    let (own, others) = (&worker.member, &other.worker.member);
                    own.model == others.model && own.role == others.role
                };
                let stays = Some((fingerprint, false));
                goes && workers.iter().filter(same_place).any(|other| hosted(&other.worker) == stays)
            });
            worker.hands_over.store(replaceable, Ordering::Release);
        }
    }

    /// Lets a worker go that is no member any more, once no session sits there; not if it becomes a member again.
    async fn part(self: Arc<Self>, worker: Arc<Worker>) {
        let mut leaving = worker.leaving.subscribe();
        loop {
            tokio::select! {
                biased;
                () = self.tasks.shutdown.cancelled() => return,
                () = tokio::time::sleep(PARTING_POLL) => {}
                _ = leaving.wait_for(|leaving| !leaving) => return,
            }
            let mut workers = self.workers.write();
            if *leaving.borrow() && worker.load.load(Ordering::Acquire) == 0 {
                workers.retain(|connected| {
                    let is_it = Arc::ptr_eq(&connected.worker, &worker);
                    if is_it {
                        connected.leave.cancel();
                    }
                    !is_it
                });
                return;
            }
        }
    }

    fn connect(self: &Arc<Self>, member: &Member) -> Option<Connected> {
        // The channel's own task needs a runtime.
        let channel = match self.tasks.entered(|| (self.connect)(&member.address)) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::error!(%error, "worker left out");
                return None;
            }
        };
        let worker = Arc::new(Worker::new(member.clone(), Arc::clone(&self.metrics)));
        let leave = self.tasks.shutdown.child_token();
        let keeper = Keeper {
            worker: Arc::clone(&worker),
            channel,
            describe_interval: Duration::from_millis(self.config.describe_interval_ms),
            shutdown: leave.clone(),
            changes: Arc::clone(&self.changes),
        };
        self.tasks.spawn(keeper.run());
        Some(Connected { worker, leave })
    }

    /// Counts up whenever [`Self::ready_workers`] may say something else.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.count()
    }

    /// Whether a model has, or had, workers of `role`, able or not.
    #[must_use]
    pub fn has(&self, model: &str, role: WorkerRole) -> bool {
        self.places.read().contains(&(model.to_owned(), role))
    }

    /// The members, not those that leave.
    fn of(&self, model: &str, role: WorkerRole) -> Vec<Arc<Worker>> {
        let workers = self.workers.read();
        let of_role = |worker: &&Arc<Worker>| {
            worker.member.model == model && worker.member.role == role && !*worker.leaving.borrow()
        };
        workers.iter().map(|connected| &connected.worker).filter(of_role).cloned().collect()
    }

    /// The workers that can serve `role` now.
    ///
    /// # Errors
    /// When there is none: `ModelMismatch` if one is connected that does not belong here, else `Unavailable` or
    /// `ExpertUnavailable`, each with the reasons.
    pub fn ready_workers(&self, model: &str, role: WorkerRole) -> Result<Vec<ReadyWorker>, OperationError> {
        let (tokenizer, adapter) = (self.tokenizer(model), self.adapter(model, role));
        let mut able = Vec::new();
        let mut reasons = Vec::new();
        let mut mismatch = false;
        for worker in self.of(model, role) {
            let state = worker.state.borrow().clone();
            let reason = match state {
                State::Down(why) => why,
                State::Up { serving: false, .. } => "it says that it does not serve now".to_owned(),
                State::Up { description, .. } if description.draining => "it drains".to_owned(),
                State::Up { description, .. } => {
                    match self.matches(role, tokenizer.as_ref(), adapter, &worker, &description) {
                        Ok(()) => {
                            able.push(ReadyWorker { worker, description });
                            continue;
                        }
                        Err(why) => {
                            mismatch = true;
                            why
                        }
                    }
                }
            };
            reasons.push(format!("{}: {reason}", worker.member.address));
        }
        if !able.is_empty() {
            return Ok(able);
        }
        let code = match role {
            _ if mismatch => ErrorCode::ModelMismatch,
            WorkerRole::Base => ErrorCode::Unavailable,
            WorkerRole::Expert | WorkerRole::AntiExpert => ErrorCode::ExpertUnavailable,
        };
        let reasons = if reasons.is_empty() { "none is known".to_owned() } else { reasons.join("; ") };
        Err(OperationError::new(code, format!("model {model} has no {} that can serve: {reasons}", role.name())))
    }

    fn adapter(&self, model: &str, role: WorkerRole) -> Option<&str> {
        self.requirements.adapters.get(&(model.to_owned(), role)).map(String::as_str)
    }

    /// Holds a worker against its place in a model.
    fn matches(
        &self,
        role: WorkerRole,
        tokenizer: Option<&KnownTokenizer>,
        adapter: Option<&str>,
        worker: &Worker,
        description: &DescribeResponse,
    ) -> Result<(), String> {
        matching::check(role, adapter, description)?;
        match tokenizer {
            Some(expected) if expected.fingerprint != description.tokenizer_fingerprint => {
                Err(self.comparisons.differ(expected, &tokenizer_of(worker, description)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The tokenizer that all workers of a model must have: the coordinator's, else the first connected base's.
    fn tokenizer(&self, model: &str) -> Option<KnownTokenizer> {
        self.requirements.tokenizers.get(model).cloned().or_else(|| {
            self.of(model, WorkerRole::Base).iter().find_map(|worker| match &*worker.state.borrow() {
                State::Up { description, .. } => Some(tokenizer_of(worker, description)),
                State::Down(_) => None,
            })
        })
    }

    /// Takes a slot for `session` on the least loaded worker that can serve, waiting for one until `until`.
    ///
    /// # Errors
    /// As [`Self::ready_workers`] says at `until`.
    pub async fn locate(
        &self,
        wanted: &SlotRequest,
        session: SessionId,
        until: Instant,
    ) -> Result<Arc<SessionSlot>, OperationError> {
        loop {
            let changed = self.changes.next();
            let why = match self.choose(wanted) {
                Ok(ReadyWorker { worker, description }) => {
                    let adapter = self.adapter(&wanted.model, wanted.role);
                    return Ok(Arc::new(SessionSlot::new(self, worker, description, adapter, session)));
                }
                Err(why) => why,
            };
            let waited = tokio::time::timeout_at(until, changed).await;
            if waited.is_err() || self.tasks.shutdown.is_cancelled() {
                return Err(why);
            }
        }
    }

    fn choose(&self, wanted: &SlotRequest) -> Result<ReadyWorker, OperationError> {
        let mut able = self.ready_workers(&wanted.model, wanted.role)?;
        if let Some(fingerprint) =
            wanted.fingerprint.clone().or_else(|| self.served(&wanted.model, wanted.role, &able))
        {
            let adapter = self.adapter(&wanted.model, wanted.role);
            able.retain(|able| matching::fingerprint(&able.description, adapter) == Ok(fingerprint.as_str()));
        }
        let candidates: Vec<PlacementCandidate<'_>> = able.iter().map(|able| self.candidate(able, wanted)).collect();
        match choose(&candidates, wanted.prefix) {
            Some(index) => {
                let chosen = able.swap_remove(index);
                chosen.worker.chosen();
                Ok(chosen)
            }
            None => Err(OperationError::new(
                ErrorCode::ModelMismatch,
                format!("no {} hosts the model that the session began on", wanted.role.name()),
            )),
        }
    }

    /// The fingerprint that most workers host, and among equals the one that is served already: so a worker that came
    /// back with another model gets no session, and an upgrade of all of them switches once.
    fn served(&self, model: &str, role: WorkerRole, able: &[ReadyWorker]) -> Option<String> {
        let adapter = self.adapter(model, role);
        let mut counts = HashMap::<&str, usize>::new();
        for able in able {
            *counts.entry(matching::fingerprint(&able.description, adapter).ok()?).or_default() += 1;
        }
        // One entry replaces another in one go.
        let mut served = self.served.lock();
        let key = (model.to_owned(), role);
        let before = served.get(&key).map(String::as_str);
        let rank =
            |(fingerprint, count): &(&str, usize)| (*count, before == Some(*fingerprint), fingerprint.to_string());
        let most = counts.into_iter().max_by_key(rank)?.0.to_owned();
        if before.is_some_and(|before| before != most) {
            tracing::warn!(model, role = role.name(), fingerprint = most, "most workers host another model now");
        }
        served.insert(key, most.clone());
        Some(most)
    }

    fn candidate<'a>(&self, able: &'a ReadyWorker, wanted: &SlotRequest) -> PlacementCandidate<'a> {
        let ReadyWorker { worker, description } = able;
        let address = worker.member.address.as_str();
        // What the worker said of all its sessions is some seconds old; what sits there from here is known.
        let sessions = worker.load.load(Ordering::Relaxed).max(description.sessions as usize);
        let queued = f64::from(description.queued_tokens) / f64::from(description.max_operation_tokens);
        let failed = wanted.avoid.iter().rposition(|failed| failed == address).map_or(0, |at| at + 1);
        PlacementCandidate {
            address,
            load: sessions as f64 + queued,
            full: description.total_blocks > 0 && description.free_blocks == 0,
            avoid: failed.max(usize::from(worker.is_avoided())),
            far: !self.config.zone.is_empty() && description.zone != self.config.zone,
        }
    }

    /// Tokens that the caches of a model's workers hold, by the role that has the least of them. Without bound for a role
    /// whose workers do not say.
    #[must_use]
    pub fn cache_tokens(&self, model: &str) -> u64 {
        let of_worker = |able: &ReadyWorker| {
            let DescribeResponse { total_blocks, block_tokens, .. } = *able.description;
            u64::from(total_blocks) * u64::from(block_tokens)
        };
        let of_role = |role| {
            let able = self.ready_workers(model, role).unwrap_or_default();
            if able.is_empty() || able.iter().any(|able| of_worker(able) == 0) {
                return u64::MAX;
            }
            able.iter().map(of_worker).sum()
        };
        WorkerRole::ALL.into_iter().map(of_role).min().unwrap_or(u64::MAX)
    }

    /// Deadline of one operation.
    #[must_use]
    pub fn step_deadline(&self) -> Duration {
        Duration::from_millis(self.config.step_deadline_ms)
    }
}

fn tokenizer_of(worker: &Worker, description: &DescribeResponse) -> KnownTokenizer {
    let owner = TokenizerOwner::Worker(worker.member.address.clone());
    KnownTokenizer { fingerprint: description.tokenizer_fingerprint.clone(), owner }
}
