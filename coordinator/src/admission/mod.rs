//! Who decodes, who waits, and who is refused at once. Waiting sessions get their turn fairly by tenant.
//!
//! A session takes its place in the queue before its prompt is tokenized, and joins the line when its tokens are known.
//! It begins when the workers' caches have room for its prompt next to the other sessions of its model. Room for new
//! tokens is not reserved, since few sessions use all that they may: if it runs out, the workers pause the youngest.

mod fair_queue;
mod throughput;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cosec_proto::ErrorCode;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::fair_queue::{FairQueue, WaitingSession};
use self::throughput::Throughput;
use crate::request::SessionError;
use crate::tenant::Tenant;

/// `[admission]` in the configuration: bounds of what is taken in.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionLimits {
    /// Most sessions (choices) that decode at the same time.
    pub max_sessions: usize,
    /// Most sessions that wait for their turn; one more is refused as overloaded.
    pub max_queued_sessions: usize,
    /// Most tokens (prompts, and the most new ones) of the sessions that wait; a session that would add more is
    /// refused.
    pub max_queued_tokens: u64,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self { max_sessions: 64, max_queued_sessions: 256, max_queued_tokens: 1_000_000 }
    }
}

/// Tokens that the caches of a model's workers hold.
type CacheCapacity = dyn Fn(&str) -> u64 + Send + Sync;

/// What a session asks for, once its prompt is tokenized.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionSize {
    pub(crate) prompt_tokens: u64,
    /// Most that it generates.
    pub(crate) new_tokens: u64,
}

impl SessionSize {
    fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.new_tokens)
    }
}

cosec_proto::metrics! {
    /// Metrics of admission.
    pub struct AdmissionMetrics {
        /// Tokens of the sessions that wait for their turn.
        pub queued_tokens: IntGauge = "cosec_queued_tokens";
        /// Sessions that were not admitted by the limit they met: `sessions`, `tokens`, `key_sessions` or `key_tokens`.
        pub refused: IntCounterVec = "cosec_refused_sessions_total" ["limit"];
    }
}

/// Admits sessions. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Admission {
    limits: AdmissionLimits,
    capacity: Arc<CacheCapacity>,
    metrics: AdmissionMetrics,
    state: Arc<Mutex<QueueState>>,
}

#[derive(Default)]
struct QueueState {
    /// Sessions that decode, wait, or have a prompt that is being tokenized.
    sessions: usize,
    active: usize,
    /// Of the sessions that wait, and bounds of those that will.
    queued_tokens: u64,
    next_id: u64,
    queue: FairQueue,
    /// Tokens of the sessions that decode, as far as they are cached, by model.
    cached: HashMap<String, Arc<AtomicU64>>,
    throughput: Throughput,
}

impl Admission {
    pub(crate) fn new(limits: AdmissionLimits, capacity: Arc<CacheCapacity>, metrics: AdmissionMetrics) -> Self {
        Self { limits, capacity, metrics, state: Arc::default() }
    }

    /// Takes a place for a session of at most `tokens` tokens.
    ///
    /// # Errors
    /// `Overloaded` when there is none, or when the tenant has all that it may have; with the time after which there
    /// may be one.
    pub(crate) fn enter(&self, tenant: &Arc<Tenant>, model: &str, tokens: u64) -> Result<QueuedPermit, SessionError> {
        let mut state = self.state.lock();
        let is_busy = state.active > 0;
        state.throughput.note_time(Instant::now(), is_busy);
        let will_wait = state.sessions >= self.limits.max_sessions || state.queue.has_waiting();
        // A session that finds a free turn takes nothing of the queue.
        let queued_tokens = if will_wait { tokens } else { 0 };
        if let Err(full) = self.check_limits(&state, tenant, queued_tokens) {
            self.metrics.refused.with_label_values(&[full.limit]).inc();
            let estimate = || state.throughput.seconds_for(state.queued_tokens + tokens);
            let retry_after_seconds = full.retry_after_seconds.or_else(estimate);
            return Err(SessionError {
                retry_after_seconds,
                ..SessionError::new(ErrorCode::Overloaded, full.message)
            });
        }
        let id = state.next_id;
        state.next_id += 1;
        state.sessions += 1;
        state.queue.enter(tenant);
        state.queued_tokens += queued_tokens;
        self.show(&state);
        let cached = Arc::clone(state.cached.entry(model.to_owned()).or_default());
        let (admission, tenant, model) = (self.clone(), Arc::clone(tenant), model.to_owned());
        Ok(QueuedPermit { admission, tenant, model, id, queued_tokens, size: None, cached })
    }

    fn check_limits(&self, state: &QueueState, tenant: &Tenant, tokens: u64) -> Result<(), LimitReached> {
        let reached = |limit, message| Err(LimitReached { limit, message, retry_after_seconds: None });
        let AdmissionLimits { max_sessions, max_queued_sessions, max_queued_tokens } = self.limits;
        if state.sessions >= max_sessions.saturating_add(max_queued_sessions) {
            return reached("sessions", "too many requests are waiting; try again later".to_owned());
        }
        if tokens > 0 && state.queued_tokens.saturating_add(tokens) > max_queued_tokens {
            return reached("tokens", format!("{} tokens are waiting already; try again later", state.queued_tokens));
        }
        let sessions = state.queue.sessions(tenant);
        if sessions >= tenant.max_sessions {
            let message = format!("the key {} has {sessions} choices under way, as many as it may", tenant.name);
            return reached("key_sessions", message);
        }
        tenant.may_begin(Instant::now()).map_err(|seconds| {
            let message =
                format!("the key {} has used up its tokens for now; try again in {seconds} seconds", tenant.name);
            LimitReached { limit: "key_tokens", message, retry_after_seconds: Some(seconds) }
        })
    }

    /// Gives turns to those who wait while there is room.
    fn dispatch(&self, state: &mut QueueState) {
        while state.active < self.limits.max_sessions {
            let cached = |model: &str| state.cached.get(model).map_or(0, |tokens| tokens.load(Ordering::Relaxed));
            // One that is alone begins in any case: waiting would not make room.
            let fits = |next: &WaitingSession| {
                let before = cached(&next.model);
                before == 0 || before.saturating_add(next.prompt_tokens) <= (self.capacity)(&next.model)
            };
            let Some(next) = state.queue.next(fits) else { break };
            state.cached.entry(next.model).or_default().fetch_add(next.prompt_tokens, Ordering::Relaxed);
            state.queued_tokens -= next.tokens;
            state.active += 1;
            // If the session waits no more, dropping its permit gives the turn back.
            let _ = next.turn.send(());
        }
        self.show(state);
    }

    fn show(&self, state: &QueueState) {
        self.metrics.queued_tokens.set(i64::try_from(state.queued_tokens).unwrap_or(i64::MAX));
    }
}

/// Why a session is refused.
struct LimitReached {
    /// As the metric names it.
    limit: &'static str,
    message: String,
    /// Until it may be admitted, where that is known.
    retry_after_seconds: Option<u64>,
}

/// A place, held until its session ends.
pub struct QueuedPermit {
    admission: Admission,
    tenant: Arc<Tenant>,
    model: String,
    id: u64,
    /// What it takes of the queue while its prompt is being tokenized.
    queued_tokens: u64,
    /// Known when it joins the line.
    size: Option<SessionSize>,
    cached: Arc<AtomicU64>,
}

/// A place whose session may decode.
pub(crate) struct ActivePermit {
    queued: QueuedPermit,
    new_tokens: u64,
}

impl QueuedPermit {
    /// Joins the line at once; the future waits for the turn.
    pub(crate) fn activate(mut self, size: SessionSize) -> impl Future<Output = ActivePermit> + Send + use<> {
        let (turn, given) = oneshot::channel();
        self.size = Some(size);
        let admission = self.admission.clone();
        let state = &mut *admission.state.lock();
        state.queued_tokens = state.queued_tokens - self.queued_tokens + size.tokens();
        let waiting = WaitingSession {
            id: self.id,
            model: self.model.clone(),
            prompt_tokens: size.prompt_tokens,
            tokens: size.tokens(),
            weight: self.tenant.weight,
            turn,
        };
        state.queue.join(&self.tenant, waiting);
        admission.dispatch(state);
        async move {
            // The sender is in the line for as long as this permit is there.
            let _ = given.await;
            ActivePermit { queued: self, new_tokens: 0 }
        }
    }
}

impl ActivePermit {
    /// The session has one more token.
    pub(crate) fn grow(&mut self) {
        self.new_tokens += 1;
        self.queued.cached.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for ActivePermit {
    fn drop(&mut self) {
        // Before the place is given back, which lets others in.
        self.queued.cached.fetch_sub(self.new_tokens, Ordering::Relaxed);
    }
}

impl Drop for QueuedPermit {
    fn drop(&mut self) {
        let state = &mut *self.admission.state.lock();
        state.sessions -= 1;
        match (state.queue.leave(&self.tenant, self.id), self.size) {
            (Some(waiting), _) => state.queued_tokens -= waiting.tokens,
            (None, None) => state.queued_tokens -= self.queued_tokens,
            (None, Some(size)) => {
                state.throughput.note_end(Instant::now(), size.tokens());
                state.active -= 1;
                self.cached.fetch_sub(size.prompt_tokens, Ordering::Relaxed);
            }
        }
        if state.sessions == 0 {
            // Shares matter only while there are sessions.
            state.queue = FairQueue::default();
            state.cached.clear();
        }
        self.admission.dispatch(state);
    }
}

#[cfg(test)]
mod tests {
    use cosec_proto::metrics::MetricRegistry;
    use futures::FutureExt;

    use super::*;

    fn admission(max_sessions: usize, max_queued_sessions: usize, max_queued_tokens: u64) -> Admission {
        let metrics = AdmissionMetrics::register(&MetricRegistry::default()).unwrap();
        let capacity = |model: &str| if model == "small" { 100 } else { u64::MAX };
        let limits = AdmissionLimits { max_sessions, max_queued_sessions, max_queued_tokens };
        Admission::new(limits, Arc::new(capacity), metrics)
    }

    type Turn = futures::future::BoxFuture<'static, ActivePermit>;

    fn turn(
        admission: &Admission,
        tenant: &Arc<Tenant>,
        (model, prompt_tokens, new_tokens): (&str, u64, u64),
    ) -> Turn {
        let size = SessionSize { prompt_tokens, new_tokens };
        Box::pin(admission.enter(tenant, model, size.tokens()).unwrap().activate(size))
    }

    fn tenant(name: &str, weight: f64) -> Arc<Tenant> {
        Arc::new(Tenant { name: name.to_owned(), weight, ..Tenant::default() })
    }

    fn refusal(admission: &Admission, tenant: &Arc<Tenant>, tokens: u64) -> String {
        admission.enter(tenant, "large", tokens).err().unwrap().message
    }

    #[test]
    fn what_is_full_is_named_and_given_back() {
        let admission = admission(1, 2, 100);
        let limited = Arc::new(Tenant { name: "b".to_owned(), max_sessions: 1, ..Tenant::default() });
        let free = tenant("a", 1.0);
        let first = turn(&admission, &free, ("large", 500, 0));
        let second = turn(&admission, &limited, ("large", 60, 0));
        assert!(refusal(&admission, &free, 41).contains("60 tokens are waiting"));
        assert!(refusal(&admission, &limited, 1).contains("key b has 1"));
        let third = turn(&admission, &free, ("large", 40, 0));
        assert!(refusal(&admission, &free, 0).contains("too many requests"));
        assert_eq!(admission.metrics.queued_tokens.get(), 100);
        drop(second);
        assert_eq!(admission.metrics.queued_tokens.get(), 40);
        drop((first, third));
        let state = admission.state.lock();
        assert_eq!((state.sessions, state.active, state.queued_tokens), (0, 0, 0));
        assert_eq!(state.queue.sessions(&free), 0);
    }

    #[test]
    fn a_place_is_taken_before_the_tokens_are_known() {
        let admission = admission(1, 2, 100);
        let tenant = tenant("a", 1.0);
        // A session that finds a free turn takes nothing of the queue; the next one takes its bound.
        let first = admission.enter(&tenant, "large", 500).unwrap();
        let second = admission.enter(&tenant, "large", 90).unwrap();
        assert_eq!(admission.metrics.queued_tokens.get(), 90);
        assert!(refusal(&admission, &tenant, 11).contains("90 tokens are waiting"));
        // The line is formed by those whose tokens are known.
        let mut second = Box::pin(second.activate(SessionSize { prompt_tokens: 20, new_tokens: 10 }));
        let active = second.as_mut().now_or_never().unwrap();
        let mut first = Box::pin(first.activate(SessionSize { prompt_tokens: 20, new_tokens: 20 }));
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(admission.metrics.queued_tokens.get(), 40);
        let third = admission.enter(&tenant, "large", 60).unwrap();
        assert_eq!(admission.metrics.queued_tokens.get(), 100);
        drop(third);
        drop(active);
        assert!(first.now_or_never().is_some());
        assert_eq!(admission.metrics.queued_tokens.get(), 0);
    }

    #[test]
    fn turns_follow_the_weights_and_not_the_demand() {
        let admission = admission(1, 1000, u64::MAX);
        let (greedy, modest) = (tenant("greedy", 1.0), tenant("modest", 3.0));
        let turn = |tenant: &Arc<Tenant>| turn(&admission, tenant, ("large", 10, 0));
        let running = turn(&greedy);
        let mut waiting: Vec<_> = (0..100).map(|_| ("greedy", turn(&greedy))).collect();
        waiting.extend((0..30).map(|_| ("modest", turn(&modest))));
        drop(running);
        let mut turns = Vec::new();
        while turns.len() < 40 {
            let at = waiting.iter_mut().position(|(_, turn)| turn.now_or_never().is_some()).unwrap();
            turns.push(waiting.remove(at).0);
        }
        let modest = turns.iter().filter(|&&name| name == "modest").count();
        assert!((28..=30).contains(&modest), "{turns:?}");
    }

    #[test]
    fn a_prompt_waits_until_the_caches_of_its_model_have_room() {
        let admission = admission(10, 10, u64::MAX);
        let tenant = tenant("a", 1.0);
        let enter = |model, prompt_tokens| turn(&admission, &tenant, (model, prompt_tokens, 1000));
        // More than there is, but it is alone.
        let mut first = enter("small", 150).now_or_never().unwrap();
        let mut second = enter("small", 60);
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        first = second.now_or_never().unwrap();
        (0..20).for_each(|_| first.grow());
        let mut third = enter("small", 30);
        let mut fourth = enter("small", 5);
        assert!((&mut third).now_or_never().is_none(), "60 of a prompt, 20 after it, and 30");
        assert!((&mut fourth).now_or_never().is_none(), "nobody overtakes");
        drop(first);
        let (third, fourth) = (third.now_or_never().unwrap(), fourth.now_or_never().unwrap());
        assert_eq!(admission.state.lock().cached["small"].load(Ordering::Relaxed), 35);
        drop((third, fourth));
        assert!(admission.state.lock().cached.is_empty());
    }

    #[test]
    fn models_do_not_wait_for_each_others_caches() {
        let admission = admission(10, 10, u64::MAX);
        let enter = |name: &str, model| turn(&admission, &tenant(name, 1.0), (model, 80, 0));
        let first = enter("a", "small").now_or_never().unwrap();
        let mut second = enter("a", "small");
        assert!((&mut second).now_or_never().is_none());
        assert!(enter("b", "large").now_or_never().is_some());
        drop(first);
        assert!(second.now_or_never().is_some());
    }
}
