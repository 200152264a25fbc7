//! Who decodes, who waits, and who is refused at once. Waiting sessions get their turn fairly by client.
//!
//! A session takes its place before its prompt is tokenized, and joins the line when its tokens are known. It begins
//! when the workers' caches have room for its prompt next to the other sessions of its model. Room for new tokens is
//! not reserved, since few sessions use all that they may: if it runs out, the workers pause the youngest.
//!
//! A turn is not kept for ever. A session whose client does not read gives it back, and its place too where others need
//! it. While one client has more turns than another that waits, the first is asked for its youngest turn. And a client
//! waits with no more than a multiple of what is still free, so that others always find a place.

mod config;
pub(crate) mod fair_queue;
mod permits;
mod state;
mod throughput;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use cosec_proto::ErrorCode;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge};
use tokio::time::Instant;

use self::state::QueueState;
use crate::request::SessionError;
use crate::tenant::Tenant;

pub use self::config::AdmissionLimits;
pub use self::permits::QueuedPermit;
pub(crate) use self::permits::{ActivePermit, StalledPermit};

/// A client may wait with at most so many times what is free (dynamic thresholds; Choudhury and Hahne 1998): alone it
/// gets four fifths of the queue, and the more clients fill it, the smaller is the part of each.
const WAITING_PER_FREE: usize = 4;

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
        /// Sessions without a turn because their client does not read.
        pub stalled_sessions: IntGauge = "cosec_stalled_sessions";
        /// Turns that sessions gave back before their end: to another client (`fairness`), or because their own did not
        /// read (`slow_client`).
        pub turns_given_back: IntCounterVec = "cosec_turns_given_back_total" ["reason"];
        /// Sessions that were not admitted by the limit they met: `sessions`, `tokens`, `client_sessions`,
        /// `client_tokens`, `key_sessions` or `key_tokens`.
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

impl Admission {
    pub(crate) fn new(limits: AdmissionLimits, capacity: Arc<CacheCapacity>, metrics: AdmissionMetrics) -> Self {
        Self { limits, capacity, metrics, state: Arc::default() }
    }

    /// The most sessions that `tenant` can have at a time, with nobody else there.
    pub(crate) fn most_sessions(&self, tenant: &Tenant) -> usize {
        let AdmissionLimits { max_sessions, max_queued_sessions, .. } = self.limits;
        let waiting = WAITING_PER_FREE * (max_queued_sessions + 1) / (WAITING_PER_FREE + 1);
        tenant.max_sessions.min(max_sessions.saturating_add(waiting.min(max_queued_sessions)))
    }

    /// Takes a place for a session of at most `tokens` tokens.
    ///
    /// # Errors
    /// `Overloaded` when there is none, or when the client has all that it may have; with the time after which there
    /// may be one.
    pub(crate) fn enter(&self, tenant: &Arc<Tenant>, model: &str, tokens: u64) -> Result<QueuedPermit, SessionError> {
        let mut state = self.state.lock();
        let is_busy = state.active > 0;
        state.throughput.note_time(Instant::now(), is_busy);
        let runnable = state.sessions.len() - state.stalled();
        let will_wait = runnable >= self.limits.max_sessions || !state.queue.is_empty();
        // A session that finds a free turn takes nothing of the queue.
        let queued_tokens = if will_wait { tokens } else { 0 };
        if let Err(full) = self.check_limits(&state, tenant, will_wait.then_some(tokens)) {
            self.metrics.refused.with_label_values(&[full.limit]).inc();
            let estimate = || state.throughput.seconds_for(state.queued_tokens + tokens);
            let retry_after_seconds = full.retry_after_seconds.or_else(estimate);
            return Err(SessionError {
                retry_after_seconds,
                ..SessionError::new(ErrorCode::Overloaded, full.message)
            });
        }
        if state.sessions.len() >= self.places() {
            // A client that reads goes before one that does not.
            state.evict_stalled();
        }
        let id = state.enter(Arc::clone(tenant), queued_tokens);
        self.show(&state);
        Ok(QueuedPermit::new(self.clone(), Arc::clone(tenant), model.to_owned(), id))
    }

    fn places(&self) -> usize {
        self.limits.max_sessions.saturating_add(self.limits.max_queued_sessions)
    }

    /// `tokens` of a session that will wait.
    fn check_limits(&self, state: &QueueState, tenant: &Tenant, tokens: Option<u64>) -> Result<(), LimitReached> {
        let reached = |limit, message| Err(LimitReached { limit, message, retry_after_seconds: None });
        let AdmissionLimits { max_queued_sessions, max_queued_tokens, .. } = self.limits;
        let runnable = state.sessions.len() - state.stalled();
        if runnable >= self.places() {
            return reached("sessions", "too many requests are waiting; try again later".to_owned());
        }
        let client = state.client(&tenant.share);
        if let Some(tokens) = tokens {
            if state.queued_tokens.saturating_add(tokens) > max_queued_tokens {
                let message = format!("{} tokens are waiting already; try again later", state.queued_tokens);
                return reached("tokens", message);
            }
            let free = max_queued_sessions.saturating_sub(runnable - state.active);
            let waiting = client.sessions - client.active;
            if waiting >= WAITING_PER_FREE.saturating_mul(free) {
                let message = format!(
                    "{waiting} choices of this client wait, as many as it may while {free} places are free; try again later"
                );
                return reached("client_sessions", message);
            }
            let free = max_queued_tokens - state.queued_tokens;
            if client.queued_tokens.saturating_add(tokens) > (WAITING_PER_FREE as u64).saturating_mul(free) {
                let waiting = client.queued_tokens;
                let message = format!(
                    "{waiting} tokens of this client wait, and it may not take {tokens} of the {free} that are free; \
                     try again later"
                );
                return reached("client_tokens", message);
            }
        }
        if client.sessions >= tenant.max_sessions {
            let message =
                format!("the key {} has {} choices under way, as many as it may", tenant.name, client.sessions);
            return reached("key_sessions", message);
        }
        tenant.may_begin(Instant::now()).map_err(|seconds| {
            let message =
                format!("the key {} has used up its tokens for now; try again in {seconds} seconds", tenant.name);
            LimitReached { limit: "key_tokens", message, retry_after_seconds: Some(seconds) }
        })
    }

    /// Gives turns to those who wait while there is room, and asks for turns back where one client has fewer than
    /// another for no better reason than that it came later.
    fn dispatch(&self, state: &mut QueueState) {
        while state.active < self.limits.max_sessions && state.give_turn(&*self.capacity) {}
        if state.active >= self.limits.max_sessions {
            state.recall_turns(&*self.capacity);
        }
        self.show(state);
    }

    /// As [`Self::dispatch`], after a session gave its turn to another client.
    fn dispatch_recalled(&self, state: &mut QueueState) {
        if state.active < self.limits.max_sessions {
            state.give_recalled_turn(&*self.capacity);
        }
        self.dispatch(state);
    }

    fn show(&self, state: &QueueState) {
        self.metrics.queued_tokens.set(i64::try_from(state.queued_tokens).unwrap_or(i64::MAX));
        self.metrics.stalled_sessions.set(i64::try_from(state.stalled()).unwrap_or(i64::MAX));
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
