//! Who decodes, who waits, and who is refused at once. Waiting sessions get their turn fairly by tenant: a tenant's share
//! of the tokens follows its weight, whatever the others ask for (start-time fair queueing, Goyal, Vin and Cheng 1996).
//!
//! A session begins when its prompt fits into the workers' caches beside what the sessions of its model have there. What
//! they come to later is not reserved, since few use all that they may: where it does not fit, the workers let the
//! youngest wait.

mod throughput;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cosec_proto::ErrorCode;
use parking_lot::{Mutex, MutexGuard};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::throughput::Throughput;
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

/// Tokens that the caches of a model's workers hold.
pub(crate) type Capacity = dyn Fn(&str) -> u64 + Send + Sync;

/// What a session asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand<'a> {
    pub(crate) model: &'a str,
    pub(crate) prompt_tokens: u64,
    /// Most that it generates.
    pub(crate) new_tokens: u64,
}

impl Demand<'_> {
    fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.new_tokens)
    }
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
    capacity: Arc<Capacity>,
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
    shares: BTreeMap<String, Share>,
    /// Tokens of the sessions that decode, as far as they are cached, by model.
    cached: HashMap<String, Arc<AtomicU64>>,
    throughput: Throughput,
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
    model: String,
    prompt_tokens: u64,
    tokens: u64,
    weight: f64,
    turn: oneshot::Sender<()>,
}

impl Admission {
    pub(crate) fn new(limits: Limits, capacity: Arc<Capacity>, metrics: AdmissionMetrics) -> Self {
        Self { limits, capacity, metrics, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever holds it changes counts only, in one go.
        self.state.lock()
    }

    /// Takes a place for a session.
    ///
    /// # Errors
    /// `Overloaded` when there is none, or when the tenant has all that it may have; with the time after which there may
    /// be one.
    pub(crate) fn enter(&self, tenant: &Arc<Tenant>, demand: Demand<'_>) -> Result<Place, SessionError> {
        let tokens = demand.tokens();
        let mut state = self.state();
        state.note_time(0);
        if let Err(Full { what, message, seconds }) = self.room(&state, tenant, tokens) {
            self.metrics.refused.with_label_values(&[what]).inc();
            let retry_after_seconds = seconds.or_else(|| state.throughput.seconds_for(state.queued_tokens + tokens));
            return Err(SessionError { retry_after_seconds, ..SessionError::new(ErrorCode::Overloaded, message) });
        }
        let (turn, given) = oneshot::channel();
        let id = state.next_id;
        let now = state.now;
        let share = state.shares.entry(tenant.name.clone()).or_default();
        share.places += 1;
        // Time in which a tenant asked for nothing is not saved up.
        share.start = share.start.max(now);
        share.waiting.push_back(Waiting {
            id,
            model: demand.model.to_owned(),
            prompt_tokens: demand.prompt_tokens,
            tokens,
            weight: tenant.weight,
            turn,
        });
        state.next_id += 1;
        state.places += 1;
        state.queued_tokens += tokens;
        let cached = Arc::clone(state.cached.entry(demand.model.to_owned()).or_default());
        self.dispatch(&mut state);
        let Demand { prompt_tokens, .. } = demand;
        Ok(Place { admission: self.clone(), tenant: Arc::clone(tenant), id, tokens, prompt_tokens, cached, given })
    }

    fn room(&self, state: &State, tenant: &Tenant, tokens: u64) -> Result<(), Full> {
        let full = |what, message| Err(Full { what, message, seconds: None });
        let Limits { sessions, queued_sessions, queued_tokens } = self.limits;
        if state.places >= sessions.saturating_add(queued_sessions) {
            return full("sessions", "too many requests are waiting; try again later".to_owned());
        }
        let waits = state.active >= sessions || state.queued_tokens > 0;
        if waits && state.queued_tokens.saturating_add(tokens) > queued_tokens {
            return full("tokens", format!("{} tokens are waiting already; try again later", state.queued_tokens));
        }
        let places = state.shares.get(&tenant.name).map_or(0, |share| share.places);
        if places >= tenant.max_sessions {
            let message = format!("the key {} has {places} choices under way, as many as it may", tenant.name);
            return full("key_sessions", message);
        }
        tenant.may_begin(Instant::now()).map_err(|seconds| {
            let message =
                format!("the key {} has used up its tokens for now; try again in {seconds} seconds", tenant.name);
            Full { what: "key_tokens", message, seconds: Some(seconds) }
        })
    }

    /// Gives turns to those who wait while there is room.
    fn dispatch(&self, state: &mut State) {
        // Whoever waits for a full cache keeps the later ones of the same model behind it.
        let mut full = HashSet::new();
        while state.active < self.limits.sessions {
            let may_be_next =
                |share: &&mut Share| share.waiting.front().is_some_and(|next| !full.contains(&next.model));
            let waiting = state.shares.values_mut().filter(may_be_next);
            let Some(share) = waiting.min_by(|a, b| a.start.total_cmp(&b.start)) else { break };
            let Some(next) = share.waiting.front() else { break };
            let cached = state.cached.entry(next.model.clone()).or_default();
            let before = cached.load(Ordering::Relaxed);
            // One that is alone begins in any case: nothing that it could wait for would end.
            if before > 0 && before.saturating_add(next.prompt_tokens) > (self.capacity)(&next.model) {
                full.insert(next.model.clone());
                continue;
            }
            let Some(next) = share.waiting.pop_front() else { break };
            cached.fetch_add(next.prompt_tokens, Ordering::Relaxed);
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

impl State {
    /// Sessions of so many tokens have ended.
    fn note_time(&mut self, ended_tokens: u64) {
        self.throughput.note(Instant::now(), self.active > 0, ended_tokens);
    }
}

/// Why there is no place.
struct Full {
    /// As the metric names it.
    what: &'static str,
    message: String,
    /// Until there is one, where that is known.
    seconds: Option<u64>,
}

/// A place, held until its session ends.
pub(crate) struct Place {
    admission: Admission,
    tenant: Arc<Tenant>,
    id: u64,
    tokens: u64,
    prompt_tokens: u64,
    cached: Arc<AtomicU64>,
    given: oneshot::Receiver<()>,
}

/// A place whose session may decode.
pub(crate) struct Turn {
    place: Place,
    grown: u64,
}

impl Turn {
    /// The session has one more token.
    pub(crate) fn grow(&mut self) {
        self.grown += 1;
        self.place.cached.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before the place, whose end lets others in.
        self.place.cached.fetch_sub(self.grown, Ordering::Relaxed);
    }
}

impl Place {
    /// Waits for the turn.
    pub(crate) async fn turn(mut self) -> Turn {
        // The sender waits in the queue for as long as this place is there.
        let _ = (&mut self.given).await;
        Turn { place: self, grown: 0 }
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
                None => {
                    state.throughput.note(Instant::now(), true, self.tokens);
                    state.active -= 1;
                    self.cached.fetch_sub(self.prompt_tokens, Ordering::Relaxed);
                }
            }
            if share.places == 0 && share.start <= state.now {
                state.shares.remove(&self.tenant.name);
            }
        }
        if state.places == 0 {
            // Nobody is left to be fair to.
            state.shares.clear();
            state.cached.clear();
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
        let capacity = |model: &str| if model == "small" { 100 } else { u64::MAX };
        Admission::new(Limits { sessions, queued_sessions, queued_tokens }, Arc::new(capacity), metrics)
    }

    fn demand(tokens: u64) -> Demand<'static> {
        Demand { model: "large", prompt_tokens: tokens, new_tokens: 0 }
    }

    fn tenant(name: &str, weight: f64) -> Arc<Tenant> {
        Arc::new(Tenant { name: name.to_owned(), weight, ..Tenant::default() })
    }

    fn refusal(admission: &Admission, tenant: &Arc<Tenant>, tokens: u64) -> String {
        admission.enter(tenant, demand(tokens)).err().unwrap().message
    }

    #[test]
    fn what_is_full_is_named_and_given_back() {
        let admission = admission(1, 2, 100);
        let limited = Arc::new(Tenant { name: "b".to_owned(), max_sessions: 1, ..Tenant::default() });
        let free = tenant("a", 1.0);
        let first = admission.enter(&free, demand(500)).unwrap();
        let second = admission.enter(&limited, demand(60)).unwrap();
        assert!(refusal(&admission, &free, 41).contains("60 tokens are waiting"));
        assert!(refusal(&admission, &limited, 1).contains("key b has 1"));
        let third = admission.enter(&free, demand(40)).unwrap();
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
        let running = admission.enter(&greedy, demand(10)).unwrap();
        let mut waiting: Vec<_> =
            (0..100).map(|_| ("greedy", admission.enter(&greedy, demand(10)).unwrap())).collect();
        waiting.extend((0..30).map(|_| ("modest", admission.enter(&modest, demand(10)).unwrap())));
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

    #[test]
    fn a_prompt_waits_until_the_caches_of_its_model_have_room() {
        let admission = admission(10, 10, u64::MAX);
        let tenant = tenant("a", 1.0);
        let enter = |model, prompt_tokens| {
            let place = admission.enter(&tenant, Demand { model, prompt_tokens, new_tokens: 1000 }).unwrap();
            Box::pin(place.turn())
        };
        // More than there is; but nobody else is there.
        let mut first = enter("small", 150).now_or_never().unwrap();
        let mut second = enter("small", 60);
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        first = second.now_or_never().unwrap();
        (0..20).for_each(|_| first.grow());
        let mut third = enter("small", 30);
        let mut fourth = enter("small", 5);
        assert!(third.as_mut().now_or_never().is_none(), "60 of a prompt, 20 behind it, and 30");
        assert!(fourth.as_mut().now_or_never().is_none(), "nobody overtakes");
        drop(first);
        let (third, fourth) = (third.now_or_never().unwrap(), fourth.now_or_never().unwrap());
        assert_eq!(admission.state().cached["small"].load(Ordering::Relaxed), 35);
        drop((third, fourth));
        assert!(admission.state().cached.is_empty());
    }

    #[test]
    fn models_do_not_wait_for_each_others_caches() {
        let admission = admission(10, 10, u64::MAX);
        let enter = |name: &str, model, prompt_tokens| {
            let demand = Demand { model, prompt_tokens, new_tokens: 0 };
            Box::pin(admission.enter(&tenant(name, 1.0), demand).unwrap().turn())
        };
        let first = enter("a", "small", 80).now_or_never().unwrap();
        let mut second = enter("a", "small", 80);
        assert!(second.as_mut().now_or_never().is_none());
        assert!(enter("b", "large", 80).now_or_never().is_some());
        drop(first);
        assert!(second.now_or_never().is_some());
    }
}
