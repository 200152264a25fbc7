//! Opens sessions. Each is a task that waits for its turn, decodes, and tells its client by a stream of events.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use cosec_proto::metrics::{MetricError, MetricRegistry};
use cosec_proto::{ErrorCode, WorkerRole};
use futures::Stream;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use super::config::{ExpertAbsent, SessionConfig};
use super::metrics::SessionMetrics;
use super::plan::DecodePlan;
use super::{ClientPatience, SessionContext, SessionDriver};
use crate::admission::{ActivePermit, Admission, AdmissionLimits, AdmissionMetrics, QueuedPermit, SessionSize};
use crate::models::{ModelConfig, ModelInfo, ServedModels};
use crate::request::{FinishReason, SessionError, SessionEvent, TokenizedRequest};
use crate::speculation::SharedControllers;
use crate::speculation::metrics::SpeculationMetrics;
use crate::tasks::TaskSpawner;
use crate::tenant::Tenant;
use crate::worker_pool::metrics::PoolMetrics;
use crate::worker_pool::tokenizers::KnownTokenizer;
use crate::worker_pool::{PoolConfig, WorkerPool, WorkerSource};

/// Events that a client may be late by before a session waits for it: at least, at most, and in all sessions of a
/// request.
const EVENTS_AHEAD: (usize, usize) = (2, 32);
const REQUEST_EVENTS_AHEAD: usize = 512;

/// Owns the models, the workers' connections and the queue.
pub struct SessionService {
    models: ServedModels,
    pool: Arc<WorkerPool>,
    admission: Admission,
    controllers: SharedControllers,
    config: SessionConfig,
    metrics: Arc<SessionMetrics>,
    speculation_metrics: Arc<SpeculationMetrics>,
    tasks: TaskSpawner,
}

/// What sessions are served with.
#[derive(Clone, Debug, Default)]
pub struct ServiceConfig {
    /// The models that clients can name.
    pub models: Vec<ModelConfig>,
    /// Bounds of what is taken in.
    pub admission: AdmissionLimits,
    /// How workers are reached.
    pub workers: PoolConfig,
    /// How they decode.
    pub sessions: SessionConfig,
}

/// Metrics of the rooms that serve sessions.
#[expect(missing_docs, reason = "the field names say it")]
#[derive(Clone)]
pub struct ServiceMetrics {
    pub sessions: Arc<SessionMetrics>,
    pub speculation: Arc<SpeculationMetrics>,
    pub admission: AdmissionMetrics,
    pub pool: PoolMetrics,
}

impl ServiceMetrics {
    /// Creates and registers all of them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &MetricRegistry) -> Result<Self, MetricError> {
        Ok(Self {
            sessions: Arc::new(SessionMetrics::register(registry)?),
            speculation: Arc::new(SpeculationMetrics::register(registry)?),
            admission: AdmissionMetrics::register(registry)?,
            pool: PoolMetrics::register(registry)?,
        })
    }
}

impl SessionService {
    /// Connects to the workers of all models in the background and begins to take sessions.
    ///
    /// `tokenizers` are the coordinator's own, by model; a model without one takes that of its first base.
    pub fn start(
        config: ServiceConfig,
        tokenizers: HashMap<String, KnownTokenizer>,
        source: WorkerSource,
        metrics: ServiceMetrics,
        tasks: TaskSpawner,
    ) -> Arc<Self> {
        let ServiceConfig { models, admission, workers, sessions } = config;
        let requirement =
            |model: &ModelConfig| (model.name.clone(), model.requirement(tokenizers.get(&model.name).cloned()));
        let requirements = models.iter().map(requirement).collect();
        let pool = WorkerPool::start(workers, requirements, source, metrics.pool, tasks.clone());
        let capacity = {
            let pool = Arc::clone(&pool);
            Arc::new(move |model: &str| pool.cache_tokens(model))
        };
        Arc::new(Self {
            models: ServedModels::new(&models, Arc::clone(&pool)),
            pool,
            admission: Admission::new(admission, capacity, metrics.admission),
            controllers: SharedControllers::new(sessions.speculation, sessions.max_draft),
            config: sessions,
            metrics: metrics.sessions,
            speculation_metrics: metrics.speculation,
            tasks,
        })
    }

    /// The models in the order of the configuration.
    pub fn models(&self) -> impl Iterator<Item = ModelInfo> + '_ {
        self.models.all()
    }

    /// The model of this name.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        self.models.find(name)
    }

    /// The most sessions that `tenant` can have at a time, with nobody else there.
    #[must_use]
    pub fn most_sessions(&self, tenant: &Tenant) -> usize {
        self.admission.most_sessions(tenant)
    }

    /// Takes a place in the queue for a session of at most `tokens` tokens, before its prompt is tokenized.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full; `Unavailable`, `ExpertUnavailable` or `ModelMismatch` when the model's
    /// workers cannot serve `plan`: that would only fail later.
    pub fn enter(
        &self,
        model: &ModelInfo,
        plan: &DecodePlan,
        tenant: &Arc<Tenant>,
        tokens: u64,
    ) -> Result<QueuedPermit, SessionError> {
        if self.tasks.shutdown.is_cancelled() {
            return Err(SessionError::new(ErrorCode::Unavailable, "the coordinator shuts down"));
        }
        // A rule without an anti-expert needs none, and what may come later is waited for.
        let is_needed = |role: &WorkerRole| match role {
            WorkerRole::Base => true,
            WorkerRole::Expert | WorkerRole::AntiExpert => {
                self.config.expert_absent == ExpertAbsent::FailClosed && plan.reads(*role)
            }
        };
        let mut needed = WorkerRole::ALL.into_iter().filter(is_needed);
        needed.try_for_each(|role| model.readiness.of(role)).map_err(Clone::clone)?;
        self.admission.enter(tenant, &model.name, tokens)
    }

    /// Begins a session and returns its events at once; it may still wait for its turn.
    ///
    /// # Errors
    /// When the model's base cannot serve any more.
    pub fn open(
        &self,
        request: TokenizedRequest,
        plan: DecodePlan,
        permit: QueuedPermit,
    ) -> Result<SessionStream, SessionError> {
        let unknown = || SessionError::new(ErrorCode::NotFound, format!("there is no model {:?}", request.model));
        let model = self.model(&request.model).ok_or_else(unknown)?;
        let end_tokens = model.readiness.facts.as_ref().map_err(Clone::clone)?.end_token_ids.clone();
        let prompt_tokens = request.prompt.len() as u64;
        let size = SessionSize { prompt_tokens, new_tokens: request.max_new_tokens.into() };
        let tenant = Arc::clone(&request.tenant);
        tenant.spend(prompt_tokens);
        let (least, most) = EVENTS_AHEAD;
        let ahead = (REQUEST_EVENTS_AHEAD / request.choices.max(1) as usize).clamp(least, most);
        let (events, receiver) = mpsc::channel(ahead);
        let last = Arc::<Mutex<Option<SessionEvent>>>::default();
        let cancel = self.tasks.shutdown.child_token();
        // Part of the request's trace.
        let span = tracing::debug_span!(
            "session",
            model = model.name,
            rule = plan.rule.name(),
            sample = i64::from(request.sample),
            prompt_tokens = prompt_tokens as i64
        );
        let context = SessionContext {
            controller: self.controllers.of(&model.name, plan.rule.name(), plan.transport().name()),
            request,
            plan,
            end_tokens,
            expert_absent: self.config.expert_absent,
            pool: Arc::clone(&self.pool),
            metrics: Arc::clone(&self.metrics),
            speculation_metrics: Arc::clone(&self.speculation_metrics),
            events,
            patience: ClientPatience::of(&self.config),
            admitted: Instant::now(),
        };
        let stopped = Arc::new(AtomicBool::new(false));
        let reasons = CancelReasons {
            left: cancel.clone(),
            stopped: Arc::clone(&stopped),
            shutdown: self.tasks.shutdown.clone(),
        };
        let session = run(context, permit.activate(size), reasons, Arc::clone(&last));
        self.tasks.spawn(session.instrument(span));
        Ok(SessionStream { events: receiver, last, tenant, stopped, _cancel: cancel.drop_guard() })
    }
}

/// What may end a session from outside.
struct CancelReasons {
    /// The stream was dropped, or the coordinator shuts down.
    left: CancellationToken,
    /// Whether the stream was dropped because its text has ended.
    stopped: Arc<AtomicBool>,
    shutdown: CancellationToken,
}

/// Waits for the session's turn, runs it, and leaves its `last` event to the client: it waits for no client that does
/// not read.
async fn run(
    context: SessionContext,
    turn: impl Future<Output = ActivePermit>,
    reasons: CancelReasons,
    last: Arc<Mutex<Option<SessionEvent>>>,
) {
    let (events, metrics) = (context.events.clone(), Arc::clone(&context.metrics));
    let began = Instant::now();
    let waiting = GaugeGuard::new(&metrics.queued_sessions);
    let turn = tokio::select! {
        biased;
        () = reasons.left.cancelled() => None,
        permit = turn => Some(permit),
        () = tokio::time::sleep_until(context.request.settings.deadline) => None,
    };
    drop(waiting);
    metrics.queue_seconds.observe(began.elapsed().as_secs_f64());
    let ended = match turn {
        Some(permit) => SessionDriver::new(context, permit).run(&reasons.left).await,
        None if reasons.left.is_cancelled() => None,
        None => {
            let message = "the request's deadline passed while it waited for its turn";
            Some(SessionEvent::Failed(SessionError::new(ErrorCode::DeadlineExceeded, message)))
        }
    };
    let ended = ended.or_else(|| {
        let error = || SessionError::new(ErrorCode::Unavailable, "the coordinator shuts down");
        reasons.shutdown.is_cancelled().then(|| SessionEvent::Failed(error()))
    });
    metrics.choices.with_label_values(&[outcome(ended.as_ref(), &reasons)]).inc();
    *last.lock() = ended;
    // Only now do the events end.
    drop(events);
}

/// How a session ended, as metrics say it.
fn outcome(last: Option<&SessionEvent>, reasons: &CancelReasons) -> &'static str {
    match last {
        Some(SessionEvent::Finished(FinishReason::Stop)) => "stop",
        Some(SessionEvent::Finished(FinishReason::Length)) => "length",
        Some(SessionEvent::Failed(error)) => error.code.name(),
        Some(
            SessionEvent::Prompt(_) | SessionEvent::TakenOver(_) | SessionEvent::Token(_) | SessionEvent::Degraded,
        )
        | None => {
            if reasons.stopped.load(Ordering::Acquire) {
                "stop"
            } else {
                "closed"
            }
        }
    }
}

/// Counts in a gauge while it lives.
struct GaugeGuard(IntGauge);

impl GaugeGuard {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Events of one session, in order; ends after `Finished` or `Failed`.
///
/// Dropping it cancels the session, which then releases its cache on all workers.
pub struct SessionStream {
    events: mpsc::Receiver<SessionEvent>,
    /// Follows the others.
    last: Arc<Mutex<Option<SessionEvent>>>,
    tenant: Arc<Tenant>,
    stopped: Arc<AtomicBool>,
    _cancel: DropGuard,
}

impl SessionStream {
    /// Ends the session because its text has ended: a stop string was found.
    pub fn stop(self) {
        self.stopped.store(true, Ordering::Release);
    }
}

impl Stream for SessionStream {
    type Item = SessionEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SessionEvent>> {
        let event = self.events.poll_recv(context);
        match event {
            Poll::Ready(Some(SessionEvent::Token(_))) => self.tenant.spend(1),
            Poll::Ready(None) => return Poll::Ready(self.last.lock().take()),
            Poll::Ready(Some(_)) | Poll::Pending => {}
        }
        event
    }
}
