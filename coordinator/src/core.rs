//! The door of sessions: which models there are, whether they can serve, and one stream of events per choice.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use cosec_proto::wire::worker::DescribeResponse;
use cosec_proto::{ErrorCode, tokenizer_fingerprint, transport};
use futures::Stream;
use parking_lot::Mutex;
use prometheus::IntGauge;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::admission::{Admission, Demand, Limits, Place};
use crate::discovery::{Discovery, DiscoveryConfig, Etcd, Kubernetes, Member, MembersFile, StaticList};
use crate::request::{FinishReason, SessionError, SessionEvent, TokenizedRequest};
use crate::session::metrics::SessionMetrics;
use crate::session::plan::Plan;
use crate::session::speculation::{MOST_DRAFTED, Speculation};
use crate::session::{Driver, Opening, Pacers};
use crate::tenant::Tenant;
use crate::worker_pool::reply::OperationError;
use crate::worker_pool::tokenizers::{Owner, Tokenizer};
use crate::worker_pool::{Able, Fleet, PoolConfig, WorkerPool};
use cosec_proto::WorkerRole;

/// Settings of sessions and of the workers behind them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoreConfig {
    /// Models to serve. None by default.
    pub models: Vec<ModelConfig>,
    /// Where workers are looked up. Default: the addresses under the models.
    pub discovery: DiscoveryConfig,
    /// Zone of the coordinator; workers there are preferred. Default: none.
    pub zone: String,
    /// Most sessions (choices) that decode at the same time. Default 64.
    pub max_sessions: usize,
    /// Most sessions that wait for their turn; one more is refused as overloaded. Default 256.
    pub max_queued_sessions: usize,
    /// Most tokens (prompts, and the most new ones) of the sessions that wait; a session that would add more is refused.
    /// Default 1,000,000.
    pub max_queued_tokens: u64,
    /// Time for one operation of a worker before it counts as hung. Default 30,000.
    pub step_deadline_ms: u64,
    /// Pause between two looks at a worker's state. Default 5,000.
    pub describe_interval_ms: u64,
    /// What to do while no expert can serve. Default `fail_closed`.
    pub expert_absent: ExpertAbsent,
    /// Whether the expert drafts several tokens that the base verifies at once: `off`, `fixed:K` or `adaptive`. It changes
    /// the time, never the tokens. Default `adaptive`.
    pub speculation: Speculation,
    /// Most tokens that an adaptive draft takes, 1 to 64. Default 8.
    pub max_draft: u32,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            discovery: DiscoveryConfig::Static,
            zone: String::new(),
            max_sessions: 64,
            max_queued_sessions: 256,
            max_queued_tokens: 1_000_000,
            step_deadline_ms: 30_000,
            describe_interval_ms: 5_000,
            expert_absent: ExpertAbsent::FailClosed,
            speculation: Speculation::Adaptive,
            max_draft: 8,
        }
    }
}

/// One model that clients can name: a base and its expert.
#[derive(Clone, Debug, Deserialize)]
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
    /// Addresses of the workers that host the expert. Default none.
    #[serde(default)]
    pub expert: Vec<String>,
    /// Addresses of the workers that host the anti-expert of the rule `product`. Default none.
    #[serde(default)]
    pub anti_expert: Vec<String>,
    /// Name of the LoRA adapter that the base's workers apply, so that several models can share them. Default none.
    pub base_adapter: Option<String>,
    /// Name of the LoRA adapter that the expert's workers apply: one expert per language or weakness. Default none.
    pub expert_adapter: Option<String>,
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
}

/// What to do with a rule that needs the expert while no expert can serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertAbsent {
    /// The request fails with `expert_unavailable`.
    #[default]
    FailClosed,
    /// The request waits until its deadline.
    Wait,
    /// The base decodes alone; the stream says so by [`SessionEvent::Degraded`].
    Degrade,
}

/// A model as it stands now.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// As listed by `/v1/models`.
    pub name: String,
    /// Directory with tokenizer.json.
    pub tokenizer: PathBuf,
    /// Why the model cannot serve hardened completions now.
    pub ready: Result<(), String>,
    /// What its workers said; absent until base (and expert, where there is one) were reached and match.
    pub facts: Option<ModelFacts>,
}

/// What the workers of a model agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Token ids below this are valid: the shortest row of the workers.
    pub vocabulary: u32,
    /// Longest sequence: the shortest context of the workers.
    pub context_tokens: u32,
    /// Ids that end a generation, by the base.
    pub end_token_ids: Vec<u32>,
}

/// Settings that make no core.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A field has a value that is not allowed.
    #[error("{field} {problem}")]
    Config {
        /// Path of the field.
        field: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A file that the configuration names cannot be read.
    #[error("{}: {cause}", path.display())]
    Tokenizer {
        /// Of the file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// Sessions are tasks.
    #[error("the core must be started inside a tokio runtime")]
    NoRuntime,
}

/// Events that a client may lag behind before its session waits for it.
const EVENTS_AHEAD: usize = 32;

/// Owns the workers' connections and the sessions; cheap to clone.
#[derive(Clone)]
pub struct Core {
    shared: Arc<Shared>,
}

struct Shared {
    config: CoreConfig,
    pool: Arc<WorkerPool>,
    /// By model.
    known: HashMap<String, Mutex<Known>>,
    admission: Admission,
    pacers: Pacers,
    metrics: Arc<SessionMetrics>,
    tracker: TaskTracker,
    runtime: Handle,
    shutdown: CancellationToken,
}

/// What a model's workers say together: worked out anew only when one of them says something else, because there may be
/// hundreds of them for each request.
struct Known {
    /// The pool's changes when the workers were looked at.
    changes: u64,
    found: Option<Found>,
}

/// What they agree on, and whether hardened completions can be served.
type Found = Result<(ModelFacts, Result<(), OperationError>), OperationError>;

impl Core {
    /// Connects to the workers of all models in the background and begins to take sessions.
    ///
    /// Tasks are spawned through `tracker` and end after `shutdown`.
    ///
    /// # Errors
    /// [`StartError`] names the field that makes no sense.
    pub fn start(
        config: CoreConfig,
        metrics: Arc<SessionMetrics>,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let fleet = Fleet { discovery: discovery(&config)?, connect: Arc::new(transport::channel) };
        Self::start_in(fleet, config, metrics, tracker, shutdown)
    }

    /// As [`Self::start`], in a fleet of the caller's own: a simulated one.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(
        fleet: Fleet,
        config: CoreConfig,
        metrics: Arc<SessionMetrics>,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        check(&config)?;
        let pool_config = PoolConfig {
            tokenizers: tokenizers(&config.models)?,
            adapters: adapters(&config.models),
            zone: config.zone.clone(),
            step_deadline: Duration::from_millis(config.step_deadline_ms),
            describe_interval: Duration::from_millis(config.describe_interval_ms),
        };
        let pool = WorkerPool::start(
            pool_config,
            fleet,
            Arc::clone(&metrics),
            tracker.clone(),
            runtime.clone(),
            shutdown.clone(),
        );
        let unknown = || Mutex::new(Known { changes: 0, found: None });
        let known = config.models.iter().map(|model| (model.name.clone(), unknown())).collect();
        let limits = Limits {
            sessions: config.max_sessions,
            queued_sessions: config.max_queued_sessions,
            queued_tokens: config.max_queued_tokens,
        };
        let capacity = {
            let pool = Arc::clone(&pool);
            Arc::new(move |model: &str| pool.cache_tokens(model))
        };
        let admission = Admission::new(limits, capacity, metrics.admission.clone());
        let pacers = Pacers::new(config.speculation, config.max_draft);
        let shared = Shared { config, pool, known, admission, pacers, metrics, tracker, runtime, shutdown };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The models in the order of the configuration.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        self.shared.config.models.iter().map(|model| self.info(model)).collect()
    }

    fn info(&self, model: &ModelConfig) -> ModelInfo {
        let (facts, ready) = match self.shared.facts(model) {
            Ok((facts, ready)) => (Some(facts), ready),
            Err(error) => (None, Err(error)),
        };
        let ready = ready.map_err(|error| error.message);
        ModelInfo { name: model.name.clone(), tokenizer: model.tokenizer.clone(), ready, facts }
    }

    /// Whether every model can serve hardened completions.
    ///
    /// # Errors
    /// Says which model cannot and why.
    pub fn ready(&self) -> Result<(), String> {
        self.models().into_iter().try_for_each(|model| model.ready)
    }

    /// Admits a session and returns its events at once; it may still wait for its turn.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `InvalidArgument` when the settings contradict each other (such as a
    /// transport that the rule cannot use) or a token id is out of range, `ContextLengthExceeded`, `NotFound` for an
    /// unknown model, `Unavailable`, `ExpertUnavailable` or `ModelMismatch` when its workers cannot serve.
    pub async fn open(&self, request: TokenizedRequest) -> Result<SessionStream, SessionError> {
        let shared = &self.shared;
        if shared.shutdown.is_cancelled() {
            return Err(refusal(ErrorCode::Unavailable, "the coordinator shuts down"));
        }
        let find = |model: &&ModelConfig| model.name == request.model;
        let Some(model) = shared.config.models.iter().find(find) else {
            return Err(refusal(ErrorCode::NotFound, format!("there is no model {:?}", request.model)));
        };
        let plan = Plan::new(&request.settings, shared.pool.has(&model.name, WorkerRole::AntiExpert))
            .map_err(|error| refusal(ErrorCode::InvalidArgument, error.to_string()))?;
        let facts = shared.able(model, &plan)?;
        fits(&request, &facts)?;
        let tenant = Arc::clone(&request.tenant);
        let demand = Demand {
            model: &model.name,
            prompt_tokens: request.prompt.len() as u64,
            new_tokens: request.max_new_tokens.into(),
        };
        let place = shared.admission.enter(&tenant, demand)?;
        tenant.spend(demand.prompt_tokens);
        let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
        let cancel = shared.shutdown.child_token();
        // Part of the trace of whoever asks.
        let span = tracing::debug_span!(
            "session",
            model = model.name,
            rule = plan.rule.name(),
            sample = i64::from(request.sample),
            prompt_tokens = request.prompt.len() as i64
        );
        let opening = Opening {
            pacer: shared.pacers.of(&model.name, &plan),
            request,
            plan,
            end_tokens: facts.end_token_ids,
            expert_absent: shared.config.expert_absent,
            pool: Arc::clone(&shared.pool),
            metrics: Arc::clone(&shared.metrics),
            events,
            admitted: Instant::now(),
        };
        let stopped = Arc::new(AtomicBool::new(false));
        let ends = Ends { cancel: cancel.clone(), stopped: Arc::clone(&stopped), shutdown: shared.shutdown.clone() };
        shared.tracker.spawn_on(run(opening, place, ends).instrument(span), &shared.runtime);
        Ok(SessionStream { events: receiver, tenant, stopped, _cancel: cancel.drop_guard() })
    }
}

impl Shared {
    /// What the connected workers agree on, and whether hardened completions can be served.
    fn facts(&self, model: &ModelConfig) -> Found {
        let Some(known) = self.known.get(&model.name) else { return self.find(model) };
        // What is kept is replaced as a whole.
        let mut known = known.lock();
        // Before the workers are looked at: a change that comes meanwhile is not missed.
        let changes = self.pool.changes();
        if let Some(found) = &known.found
            && known.changes == changes
        {
            return found.clone();
        }
        known.changes = changes;
        known.found.insert(self.find(model)).clone()
    }

    fn find(&self, model: &ModelConfig) -> Found {
        let bases = self.pool.able(&model.name, WorkerRole::Base)?;
        let experts = self.pool.able(&model.name, WorkerRole::Expert);
        let anti_experts = if self.pool.has(&model.name, WorkerRole::AntiExpert) {
            self.pool.able(&model.name, WorkerRole::AntiExpert)
        } else {
            Ok(Vec::new())
        };
        let of = |workers: &[Able]| workers.iter().map(|able| Arc::clone(&able.description)).collect::<Vec<_>>();
        let mut all = of(&bases);
        for others in [&experts, &anti_experts] {
            all.extend(others.as_ref().map(|workers| of(workers)).unwrap_or_default());
        }
        let least = |read: fn(&DescribeResponse) -> u32| all.iter().map(|of| read(of)).min().unwrap_or(0);
        let facts = ModelFacts {
            vocabulary: least(|of| of.vocabulary),
            context_tokens: least(|of| of.context_tokens),
            end_token_ids: all.first().map(|base| base.end_token_ids.clone()).unwrap_or_default(),
        };
        Ok((facts, experts.and(anti_experts).map(|_| ())))
    }

    /// Refuses at once what would only fail later.
    fn able(&self, model: &ModelConfig, plan: &Plan) -> Result<ModelFacts, SessionError> {
        let (facts, _) = self.facts(model).map_err(session_error)?;
        if self.config.expert_absent == ExpertAbsent::FailClosed {
            // A rule without an anti-expert needs none.
            for role in [WorkerRole::Expert, WorkerRole::AntiExpert].into_iter().filter(|&role| plan.reads(role)) {
                self.pool.able(&model.name, role).map_err(session_error)?;
            }
        }
        Ok(facts)
    }
}

/// What may end a session from outside.
struct Ends {
    /// Nobody listens any more.
    cancel: CancellationToken,
    /// Whether that is because the text has come to its end.
    stopped: Arc<AtomicBool>,
    shutdown: CancellationToken,
}

/// Waits for the session's turn, runs it, and hands out its last event.
async fn run(opening: Opening, place: Place, ends: Ends) {
    let Ends { cancel, stopped, shutdown } = ends;
    let (events, metrics) = (opening.events.clone(), Arc::clone(&opening.metrics));
    let deadline = opening.request.settings.deadline;
    let waiting = Count::new(metrics.queued_sessions.clone());
    let began = Instant::now();
    let turn = tokio::select! {
        biased;
        () = cancel.cancelled() => None,
        turn = place.turn() => Some(turn),
        () = tokio::time::sleep_until(deadline) => None,
    };
    drop(waiting);
    metrics.queue_seconds.observe(began.elapsed().as_secs_f64());
    let last = match turn {
        Some(turn) => {
            let _active = Count::new(metrics.active_sessions.clone());
            Driver::new(opening, turn).run(&cancel).await
        }
        None if cancel.is_cancelled() => None,
        None => {
            let message = "the request's deadline passed while it waited for its turn";
            Some(SessionEvent::Failed(refusal(ErrorCode::DeadlineExceeded, message)))
        }
    };
    let last = last.or_else(|| {
        let message = "the coordinator shuts down";
        shutdown.is_cancelled().then(|| SessionEvent::Failed(refusal(ErrorCode::Unavailable, message)))
    });
    let outcome = match &last {
        Some(SessionEvent::Finished(FinishReason::Stop)) => "stop",
        Some(SessionEvent::Finished(FinishReason::Length)) => "length",
        Some(SessionEvent::Failed(error)) => error.code.name(),
        Some(SessionEvent::Prompt(_) | SessionEvent::Token(_) | SessionEvent::Degraded) | None
            if stopped.load(Ordering::Acquire) =>
        {
            "stop"
        }
        // Its client left.
        Some(SessionEvent::Prompt(_) | SessionEvent::Token(_) | SessionEvent::Degraded) | None => "closed",
    };
    metrics.choices.with_label_values(&[outcome]).inc();
    if let Some(last) = last {
        tokio::select! {
            biased;
            // A client that is gone wants no last word.
            _ = events.send(last) => {}
            () = cancel.cancelled(), if !shutdown.is_cancelled() => {}
            () = tokio::time::sleep(LAST_WORD), if shutdown.is_cancelled() => {}
        }
    }
}

/// How long a client may take for the last event once the coordinator shuts down.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Counts in a gauge while it lives.
struct Count(IntGauge);

impl Count {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn refusal(code: ErrorCode, message: impl Into<String>) -> SessionError {
    SessionError::new(code, message)
}

fn session_error(error: OperationError) -> SessionError {
    SessionError::new(error.code, error.message)
}

/// Holds a request against the model.
fn fits(request: &TokenizedRequest, facts: &ModelFacts) -> Result<(), SessionError> {
    let prompt = request.prompt.len();
    if prompt == 0 {
        return Err(refusal(ErrorCode::InvalidArgument, "prompt is empty; at least one token is needed"));
    }
    if let Some(id) = request.prompt.iter().find(|&&id| id >= facts.vocabulary) {
        let message = format!("prompt has the token id {id}; ids must be less than {}", facts.vocabulary);
        return Err(refusal(ErrorCode::InvalidArgument, message));
    }
    let total = prompt as u64 + u64::from(request.max_new_tokens);
    if total > u64::from(facts.context_tokens) {
        let message = format!(
            "prompt of {prompt} tokens and {} new tokens exceed the model's context of {} tokens",
            request.max_new_tokens, facts.context_tokens
        );
        return Err(refusal(ErrorCode::ContextLengthExceeded, message));
    }
    Ok(())
}

// === configuration ===

fn check(config: &CoreConfig) -> Result<(), StartError> {
    let problem = |field: String, problem: &str| Err(StartError::Config { field, problem: problem.to_owned() });
    let positive = [
        ("max_sessions", config.max_sessions as u64),
        ("step_deadline_ms", config.step_deadline_ms),
        ("describe_interval_ms", config.describe_interval_ms),
    ];
    for (field, value) in positive {
        if value == 0 {
            return problem(field.to_owned(), "is 0; it must be at least 1");
        }
    }
    if !(1..=MOST_DRAFTED).contains(&config.max_draft) {
        let what = format!("is {}; it must be 1 to {MOST_DRAFTED}", config.max_draft);
        return problem("max_draft".to_owned(), &what);
    }
    if config.models.is_empty() {
        return problem("models".to_owned(), "is empty; name at least one model");
    }
    for (index, model) in config.models.iter().enumerate() {
        if config.models[..index].iter().any(|other| other.name == model.name) {
            return problem(format!("models[{index}].name"), "names a model twice");
        }
        for (field, adapter) in [("base_adapter", &model.base_adapter), ("expert_adapter", &model.expert_adapter)] {
            if adapter.as_ref().is_some_and(String::is_empty) {
                return problem(
                    format!("models[{index}].{field}"),
                    "is empty; name an adapter of the workers, or leave it out",
                );
            }
        }
        check_addresses(config, index, model)?;
    }
    Ok(())
}

/// Holds a model's addresses against the kind of discovery.
fn check_addresses(config: &CoreConfig, index: usize, model: &ModelConfig) -> Result<(), StartError> {
    let problem = |role: &str, problem: &str| {
        Err(StartError::Config { field: format!("models[{index}].{role}"), problem: problem.to_owned() })
    };
    let lists = [("base", &model.base), ("expert", &model.expert), ("anti_expert", &model.anti_expert)];
    if let DiscoveryConfig::File { .. } | DiscoveryConfig::Etcd(_) = config.discovery {
        return match lists.iter().find(|(_, addresses)| !addresses.is_empty()) {
            Some((role, _)) => problem(role, "names addresses, but discovery is of a kind that finds them itself"),
            None => Ok(()),
        };
    }
    if model.base.is_empty() {
        return problem("base", "is empty; name the address of at least one worker");
    }
    if model.expert.is_empty() && config.expert_absent != ExpertAbsent::Degrade {
        let what = "is empty; name the address of at least one worker, or set expert_absent to degrade";
        return problem("expert", what);
    }
    if let DiscoveryConfig::Kubernetes { .. } = config.discovery {
        return Ok(());
    }
    for (role, addresses) in lists {
        for (place, address) in addresses.iter().enumerate() {
            if let Err(error) = transport::channel(address) {
                return problem(&format!("{role}[{place}]"), &error.to_string());
            }
        }
    }
    Ok(())
}

fn discovery(config: &CoreConfig) -> Result<Box<dyn Discovery>, StartError> {
    let invalid = |field: &str, problem: String| StartError::Config { field: field.to_owned(), problem };
    Ok(match &config.discovery {
        DiscoveryConfig::Static => Box::new(StaticList(members(&config.models))),
        DiscoveryConfig::File { path } => {
            let opened = MembersFile::open(path);
            Box::new(opened.map_err(|error| invalid("discovery.path", format!("cannot be used: {error}")))?)
        }
        DiscoveryConfig::Etcd(etcd) => {
            etcd.check().map_err(|error| invalid("discovery", error.to_string()))?;
            Box::new(Etcd(etcd.clone()))
        }
        DiscoveryConfig::Kubernetes { nameserver } => {
            let prepared = Kubernetes::new(members(&config.models), *nameserver);
            Box::new(prepared.map_err(|error| invalid("discovery.nameserver", format!("is needed: {error}")))?)
        }
    })
}

fn members(models: &[ModelConfig]) -> Vec<Member> {
    let mut members = Vec::new();
    for model in models {
        let lists = [
            (WorkerRole::Base, &model.base),
            (WorkerRole::Expert, &model.expert),
            (WorkerRole::AntiExpert, &model.anti_expert),
        ];
        for (role, addresses) in lists {
            let member = |address: &String| Member { model: model.name.clone(), role, address: address.clone() };
            members.extend(addresses.iter().map(member));
        }
    }
    members
}

fn adapters(models: &[ModelConfig]) -> HashMap<(String, WorkerRole), String> {
    let of = |model: &ModelConfig, role| Some(((model.name.clone(), role), model.adapter(role)?.to_owned()));
    models.iter().flat_map(|model| WorkerRole::ALL.into_iter().filter_map(move |role| of(model, role))).collect()
}

/// The tokenizers of those models that have one here.
fn tokenizers(models: &[ModelConfig]) -> Result<HashMap<String, Tokenizer>, StartError> {
    let mut tokenizers = HashMap::new();
    for model in models {
        let path = model.tokenizer.join("tokenizer.json");
        let fail = |cause: String| StartError::Tokenizer { path: path.clone(), cause };
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(fail(error.to_string())),
        };
        let fingerprint = tokenizer_fingerprint::fingerprint(&json).map_err(|error| fail(error.to_string()))?;
        tokenizers.insert(model.name.clone(), Tokenizer { fingerprint, owner: Owner::Coordinator(path) });
    }
    Ok(tokenizers)
}

/// Events of one session, in order; ends after `Finished` or `Failed`.
///
/// Dropping it cancels the session, which then releases its cache on all workers.
pub struct SessionStream {
    events: mpsc::Receiver<SessionEvent>,
    tenant: Arc<Tenant>,
    stopped: Arc<AtomicBool>,
    _cancel: DropGuard,
}

impl SessionStream {
    /// Ends the session because its text has come to its end: a stop string was found.
    pub fn stop(self) {
        self.stopped.store(true, Ordering::Release);
    }
}

impl Stream for SessionStream {
    type Item = SessionEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SessionEvent>> {
        let event = self.events.poll_recv(context);
        if let Poll::Ready(Some(SessionEvent::Token(_))) = &event {
            self.tenant.spend(1);
        }
        event
    }
}
