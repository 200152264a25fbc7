//! What a session holds of the queue: a place, a place with a turn, a place whose turn it gave back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::state::{CachedTokens, GivenTurn, SessionStage, WaitingSession};
use super::{Admission, SessionSize};
use crate::tenant::Tenant;

/// A place, held until its session ends.
pub struct QueuedPermit {
    admission: Admission,
    tenant: Arc<Tenant>,
    model: String,
    id: u64,
    /// Known when it joins the line.
    size: Option<SessionSize>,
}

/// A place whose session may decode.
pub(crate) struct ActivePermit {
    // Dropped before the place, which lets others in.
    turn: GivenTurn,
    place: QueuedPermit,
}

/// A place whose session has no turn because its client does not read.
pub(crate) struct StalledPermit {
    // As above.
    cached: CachedTokens,
    place: QueuedPermit,
    /// Tokens of caches that were given back.
    uncached_tokens: u64,
    evicted: CancellationToken,
}

impl QueuedPermit {
    pub(super) fn new(admission: Admission, tenant: Arc<Tenant>, model: String, id: u64) -> Self {
        Self { admission, tenant, model, id, size: None }
    }

    /// Joins the line at once; the future waits for the turn.
    pub(crate) fn activate(mut self, size: SessionSize) -> impl Future<Output = ActivePermit> + Send + use<> {
        self.size = Some(size);
        let (turn, given) = oneshot::channel();
        let admission = self.admission.clone();
        let state = &mut *admission.state.lock();
        state.move_to(self.id, SessionStage::Waiting { queued_tokens: size.tokens() });
        let waiting = WaitingSession {
            id: self.id,
            model: self.model.clone(),
            uncached_tokens: size.prompt_tokens,
            cached: state.cache_of(&self.model),
            turn,
        };
        let cost = (size.tokens() as f64, self.tenant.weight);
        state.queue.join(&self.tenant.share, cost, self.id, waiting);
        admission.dispatch(state);
        self.given(given)
    }

    /// Goes to the head of its client's line.
    fn rejoin(&self, cached: CachedTokens, uncached_tokens: u64) -> oneshot::Receiver<GivenTurn> {
        let (turn, given) = oneshot::channel();
        let (id, model) = (self.id, self.model.clone());
        let state = &mut *self.admission.state.lock();
        let waiting = WaitingSession { id, model, uncached_tokens, cached, turn };
        // A place that was taken for another session is not given a turn.
        if state.move_to(id, SessionStage::Waiting { queued_tokens: 0 }).is_some() {
            state.queue.rejoin(&self.tenant.share, id, waiting);
        }
        given
    }

    async fn given(self, turn: oneshot::Receiver<GivenTurn>) -> ActivePermit {
        match turn.await {
            Ok(turn) => ActivePermit { turn, place: self },
            // The sender is in the line for as long as the place is this permit's; without one there is no turn.
            Err(_) => std::future::pending().await,
        }
    }
}

impl ActivePermit {
    /// The session has one more token.
    pub(crate) fn grow(&mut self) {
        self.turn.cached.add(1);
    }

    /// Whether another client should have the turn.
    pub(crate) fn is_recalled(&self) -> bool {
        self.turn.recall.load(Ordering::Relaxed)
    }

    /// Gives the turn to another client; the future waits for the next one. The caches are kept.
    pub(crate) fn give_way(self) -> impl Future<Output = ActivePermit> + Send + use<> {
        let Self { place, turn } = self;
        place.admission.metrics.turns_given_back.with_label_values(&["fairness"]).inc();
        let waiting = place.rejoin(turn.cached, 0);
        place.admission.dispatch_recalled(&mut place.admission.state.lock());
        place.given(waiting)
    }

    /// Gives the turn back because the client does not read.
    pub(crate) fn stall(self) -> StalledPermit {
        let Self { place, turn: GivenTurn { cached, .. } } = self;
        let admission = place.admission.clone();
        admission.metrics.turns_given_back.with_label_values(&["slow_client"]).inc();
        let state = &mut *admission.state.lock();
        let evicted = state.stall(place.id);
        admission.dispatch(state);
        StalledPermit { cached, place, uncached_tokens: 0, evicted }
    }
}

impl StalledPermit {
    /// The session's caches on the workers are given back.
    pub(crate) fn give_caches_back(&mut self) {
        self.uncached_tokens += self.cached.clear();
        let admission = &self.place.admission;
        admission.dispatch(&mut admission.state.lock());
    }

    /// Waits until the place is taken for another session.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// The client reads again: joins the line at once; the future waits for the turn.
    pub(crate) fn activate(self) -> impl Future<Output = ActivePermit> + Send + use<> {
        let Self { place, cached, uncached_tokens, .. } = self;
        let waiting = place.rejoin(cached, uncached_tokens);
        place.admission.dispatch(&mut place.admission.state.lock());
        place.given(waiting)
    }
}

impl Drop for QueuedPermit {
    fn drop(&mut self) {
        let state = &mut *self.admission.state.lock();
        match (state.leave(self.id), self.size) {
            (Some(SessionStage::Active { .. }), Some(size)) => {
                state.throughput.note_end(Instant::now(), size.tokens());
            }
            (Some(SessionStage::Active { .. } | SessionStage::Waiting { .. } | SessionStage::Stalled { .. }), _) => {}
            // Whoever took the place has it.
            (None, _) => return,
        }
        self.admission.dispatch(state);
    }
}
