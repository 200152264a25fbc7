//! Who decodes, who waits, and who is refused at once. Waiting sessions get their turn fairly by tenant: a tenant's share
//! of the tokens follows its weight, whatever the others ask for (start-time fair queueing, Goyal, Vin and Cheng 1996).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cosec_proto::ErrorCode;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::oneshot;

use crate::request::SessionError;
use crate::tenant::Tenant;

/// Bounds of what is taken in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sessions that decode at the same time.
    pub(crate) sessions: usize,
    /// Sessions that wait.
    pub(crate) queued_sessions: usize,
    /// Tokens (of the prompt, and the most new ones) of the sessions that wait.
    pub(crate) queued_tokens: u64,
}

/// What admission shows.
#[derive(Clone, Debug)]
pub struct AdmissionMetrics {
    /// Tokens of the sessions that wait.
    pub queued_tokens: IntGauge,
    /// Sessions that were refused, by what was full.
    pub refused: IntCounterVec,
}

impl AdmissionMetrics {
    /// Creates and registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let queued_tokens = IntGauge::new("cosec_queued_tokens", "Tokens of the sessions that wait for their turn")?;
        let options = Opts::new("cosec_refused_sessions_total", "Sessions that were not admitted, by what was full");
        let refused = IntCounterVec::new(options, &["full"])?;
        registry.register(Box::new(queued_tokens.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { queued_tokens, refused })
    }
}

/// Places for sessions, some of which decode.
#[derive(Clone)]
pub(crate) struct Admission {
    limits: Limits,
    metrics: AdmissionMetrics,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Places that are taken, by sessions that decode or wait.
    places: usize,
    active: usize,
    queued_tokens: u64,
    /// Start of the session that got its turn last, in tokens by weight.
    now: f64,
    next_id: u64,
    /// By name; only tenants with sessions.
    shares: HashMap<String, Share>,
}

#[derive(Default)]
struct Share {
    /// Where the next of its sessions starts.
    start: f64,
    places: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    id: u64,
    tokens: u64,
    weight: f64,
    turn: oneshot::Sender<()>,
}

impl Admission {
    pub(crate) fn new(limits: Limits, metrics: AdmissionMetrics) -> Self {
        Self { limits, metrics, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever holds it changes counts only, in one go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a session of at most `tokens` tokens.
    ///
    /// # Errors
    /// `Overloaded` when there is none, or when the tenant has all that it may have.
    pub(crate) fn enter(&self, tenant: &Arc<Tenant>, tokens: u64) -> Result<Place, SessionError> {
        let mut state = self.state();
        if let Err((full, message)) = self.room(&state, tenant, tokens) {
            self.metrics.refused.with_label_values(&[full]).inc();
            return Err(SessionError { code: ErrorCode::Overloaded, message });
        }
        let (turn, given) = oneshot::channel();
        let id = state.next_id;
        let now = state.now;
        let share = state.shares.entry(tenant.name.clone()).or_default();
        share.places += 1;
        // Time in which a tenant asked for nothing is not saved up.
        share.start = share.start.max(now);
        share.waiting.push_back(Waiting { id, tokens, weight: tenant.weight, turn });
        state.next_id += 1;
        state.places += 1;
        state.queued_tokens += tokens;
        self.dispatch(&mut state);
        Ok(Place { admission: self.clone(), tenant: Arc::clone(tenant), id, given })
    }

    fn room(&self, state: &State, tenant: &Tenant, tokens: u64) -> Result<(), (&'static str, String)> {
        let Limits { sessions, queued_sessions, queued_tokens } = self.limits;
        if state.places >= sessions.saturating_add(queued_sessions) {
            return Err(("sessions", "too many requests are waiting; try again later".to_owned()));
        }
        if state.active >= sessions && state.queued_tokens.saturating_add(tokens) > queued_tokens {
            let message = format!("{} tokens are waiting already; try again later", state.queued_tokens);
            return Err(("tokens", message));
        }
        let places = state.shares.get(&tenant.name).map_or(0, |share| share.places);
        if places >= tenant.max_sessions {
            let message = format!("the key {} has {places} choices under way, as many as it may", tenant.name);
            return Err(("key_sessions", message));
        }
        tenant.may_begin(Instant::now()).map_err(|seconds| {
            let message =
                format!("the key {} has used up its tokens for now; try again in {seconds} seconds", tenant.name);
            ("key_tokens", message)
        })
    }

    /// Gives turns to those who wait while there is room.
    fn dispatch(&self, state: &mut State) {
        while state.active < self.limits.sessions {
            let waiting = state.shares.values_mut().filter(|share| !share.waiting.is_empty());
            let Some(share) = waiting.min_by(|a, b| a.start.total_cmp(&b.start)) else { break };
            let Some(next) = share.waiting.pop_front() else { break };
            state.now = share.start;
            share.start += next.tokens as f64 / next.weight;
            state.queued_tokens -= next.tokens;
            state.active += 1;
            // A session that waits no more gives its turn back when its place is dropped.
            let _ = next.turn.send(());
        }
        self.metrics.queued_tokens.set(i64::try_from(state.queued_tokens).unwrap_or(i64::MAX));
    }
}

/// A place, held until its session ends.
pub(crate) struct Place {
    admission: Admission,
    tenant: Arc<Tenant>,
    id: u64,
    given: oneshot::Receiver<()>,
}

/// A place whose session may decode.
pub(crate) struct Turn {
    _place: Place,
}

impl Place {
    /// Waits for the turn.
    pub(crate) async fn turn(mut self) -> Turn {
        // The sender waits in the queue for as long as this place is there.
        let _ = (&mut self.given).await;
        Turn { _place: self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        let state = &mut *state;
        state.places -= 1;
        if let Some(share) = state.shares.get_mut(&self.tenant.name) {
            share.places -= 1;
            match share.waiting.iter().position(|waiting| waiting.id == self.id) {
                Some(at) => {
                    let tokens = share.waiting.remove(at).map_or(0, |waiting| waiting.tokens);
                    state.queued_tokens -= tokens;
                }
                None => state.active -= 1,
            }
            if share.places == 0 && share.start <= state.now {
                state.shares.remove(&self.tenant.name);
            }
        }
        if state.places == 0 {
            // Nobody is left to be fair to.
            state.shares.clear();
            state.now = 0.0;
        }
        self.admission.dispatch(state);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn admission(sessions: usize, queued_sessions: usize, queued_tokens: u64) -> Admission {
        let metrics = AdmissionMetrics::register(&Registry::new()).unwrap();
        Admission::new(Limits { sessions, queued_sessions, queued_tokens }, metrics)
    }

    fn tenant(name: &str, weight: f64) -> Arc<Tenant> {
        Arc::new(Tenant { name: name.to_owned(), weight, ..Tenant::default() })
    }

    fn refusal(admission: &Admission, tenant: &Arc<Tenant>, tokens: u64) -> String {
        admission.enter(tenant, tokens).err().unwrap().message
    }

    #[test]
    fn what_is_full_is_named_and_given_back() {
        let admission = admission(1, 2, 100);
        let limited = Arc::new(Tenant { name: "b".to_owned(), max_sessions: 1, ..Tenant::default() });
        let free = tenant("a", 1.0);
        let first = admission.enter(&free, 500).unwrap();
        let second = admission.enter(&limited, 60).unwrap();
        assert!(refusal(&admission, &free, 41).contains("60 tokens are waiting"));
        assert!(refusal(&admission, &limited, 1).contains("key b has 1"));
        let third = admission.enter(&free, 40).unwrap();
        assert!(refusal(&admission, &free, 0).contains("too many requests"));
        assert_eq!(admission.metrics.queued_tokens.get(), 100);
        drop(second);
        assert_eq!(admission.metrics.queued_tokens.get(), 40);
        drop((first, third));
        let state = admission.state();
        assert_eq!((state.places, state.active, state.queued_tokens, state.shares.len()), (0, 0, 0, 0));
    }

    #[test]
    fn turns_follow_the_weights_and_not_the_demand() {
        let admission = admission(1, 1000, u64::MAX);
        let (greedy, modest) = (tenant("greedy", 1.0), tenant("modest", 3.0));
        let running = admission.enter(&greedy, 10).unwrap();
        let mut waiting: Vec<_> = (0..100).map(|_| ("greedy", admission.enter(&greedy, 10).unwrap())).collect();
        waiting.extend((0..30).map(|_| ("modest", admission.enter(&modest, 10).unwrap())));
        drop(running);
        let mut turns = Vec::new();
        while turns.len() < 40 {
            let at = waiting.iter_mut().position(|(_, place)| (&mut place.given).now_or_never().is_some()).unwrap();
            let (name, place) = waiting.remove(at);
            turns.push(name);
            drop(place);
        }
        let modest = turns.iter().filter(|&&name| name == "modest").count();
        assert!((28..=30).contains(&modest), "{turns:?}");
    }
}
