//! Who has a place, a turn, or neither any more. Pure bookkeeping under the queue's lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::fair_queue::FairQueue;
use super::throughput::Throughput;
use crate::tenant::{ShareKey, Tenant};

/// All sessions, and what they hold together.
#[derive(Default)]
pub(super) struct QueueState {
    /// By number; a session whose place was taken for another is not among them any more.
    pub(super) sessions: HashMap<u64, AdmittedSession>,
    clients: BTreeMap<ShareKey, ClientUse>,
    pub(super) active: usize,
    /// Of the sessions that wait, and bounds of those that will.
    pub(super) queued_tokens: u64,
    pub(super) queue: FairQueue<WaitingSession>,
    /// Tokens of the sessions that decode, as far as they are cached, by model.
    cached: HashMap<String, Arc<AtomicU64>>,
    pub(super) throughput: Throughput,
    /// Numbers sessions, turns and stalls.
    next_number: u64,
}

/// What one client holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ClientUse {
    pub(super) sessions: usize,
    pub(super) active: usize,
    /// Of the active ones, those whose turn was asked for.
    recalled: usize,
    pub(super) queued_tokens: u64,
    weight: f64,
}

impl ClientUse {
    /// Those that it keeps.
    fn turns_by_weight(&self) -> f64 {
        (self.active - self.recalled) as f64 / self.weight
    }
}

pub(super) struct AdmittedSession {
    tenant: Arc<Tenant>,
    stage: SessionStage,
}

/// What a session does with its place.
pub(super) enum SessionStage {
    /// Has its prompt tokenized, or waits in the line.
    Waiting { queued_tokens: u64 },
    /// Decodes. `turn` grows from one given turn to the next.
    Active { turn: u64, recall: Arc<AtomicBool> },
    /// Waits for its client to read. `stalled` grows from one such session to the next.
    Stalled { stalled: u64, evicted: CancellationToken },
}

/// A session in the line.
pub(super) struct WaitingSession {
    pub(super) id: u64,
    pub(super) model: String,
    /// Tokens to cache before it can go on, and what it has cached already.
    pub(super) uncached_tokens: u64,
    pub(super) cached: CachedTokens,
    pub(super) turn: oneshot::Sender<GivenTurn>,
}

/// A session's part of the caches of its model's workers; given back by `Drop`.
pub(super) struct CachedTokens {
    of_model: Arc<AtomicU64>,
    tokens: u64,
}

/// What comes with a turn.
pub(super) struct GivenTurn {
    pub(super) cached: CachedTokens,
    /// Set when the turn is to be given back.
    pub(super) recall: Arc<AtomicBool>,
}

impl QueueState {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn client(&self, share: &ShareKey) -> ClientUse {
        self.clients.get(share).copied().unwrap_or_default()
    }

    /// Sessions without a turn because their clients do not read.
    pub(super) fn stalled(&self) -> usize {
        let is_stalled = |session: &&AdmittedSession| matches!(session.stage, SessionStage::Stalled { .. });
        self.sessions.values().filter(is_stalled).count()
    }

    /// Counts a session until [`Self::leave`].
    pub(super) fn enter(&mut self, tenant: Arc<Tenant>, queued_tokens: u64) -> u64 {
        let id = self.number();
        let client = self.clients.entry(tenant.share.clone()).or_default();
        client.weight = tenant.weight;
        client.sessions += 1;
        client.queued_tokens += queued_tokens;
        self.queued_tokens += queued_tokens;
        self.sessions.insert(id, AdmittedSession { tenant, stage: SessionStage::Waiting { queued_tokens } });
        id
    }

    /// What the caches of a model's workers hold for its sessions.
    pub(super) fn cache_of(&mut self, model: &str) -> CachedTokens {
        CachedTokens { of_model: Arc::clone(self.cached.entry(model.to_owned()).or_default()), tokens: 0 }
    }

    /// Moves a session to another stage; `None` when its place was taken. Returns the stage before.
    pub(super) fn move_to(&mut self, id: u64, stage: SessionStage) -> Option<SessionStage> {
        let session = self.sessions.get_mut(&id)?;
        let before = std::mem::replace(&mut session.stage, stage);
        let share = session.tenant.share.clone();
        self.uncount(&share, &before);
        self.count(&share, id);
        Some(before)
    }

    fn count(&mut self, share: &ShareKey, id: u64) {
        let (Some(client), Some(session)) = (self.clients.get_mut(share), self.sessions.get(&id)) else { return };
        match session.stage {
            SessionStage::Waiting { queued_tokens } => {
                client.queued_tokens += queued_tokens;
                self.queued_tokens += queued_tokens;
            }
            SessionStage::Active { .. } => {
                client.active += 1;
                self.active += 1;
            }
            SessionStage::Stalled { .. } => {}
        }
    }

    fn uncount(&mut self, share: &ShareKey, stage: &SessionStage) {
        let Some(client) = self.clients.get_mut(share) else { return };
        match stage {
            SessionStage::Waiting { queued_tokens } => {
                client.queued_tokens -= queued_tokens;
                self.queued_tokens -= queued_tokens;
            }
            SessionStage::Active { recall, .. } => {
                client.active -= 1;
                client.recalled -= usize::from(recall.load(Ordering::Relaxed));
                self.active -= 1;
            }
            SessionStage::Stalled { .. } => {}
        }
    }

    /// Stops decoding because the client does not read; the token is cancelled when the place is taken for another.
    pub(super) fn stall(&mut self, id: u64) -> CancellationToken {
        let evicted = CancellationToken::new();
        let stalled = self.number();
        self.move_to(id, SessionStage::Stalled { stalled, evicted: evicted.clone() });
        evicted
    }

    /// Takes the place of the session that has stalled for longest, if there is one.
    pub(super) fn evict_stalled(&mut self) {
        let stalled = self.sessions.iter().filter_map(|(id, session)| match &session.stage {
            SessionStage::Stalled { stalled, evicted } => Some((*stalled, *id, evicted.clone())),
            SessionStage::Waiting { .. } | SessionStage::Active { .. } => None,
        });
        if let Some((_, id, evicted)) = stalled.min_by_key(|(stalled, ..)| *stalled) {
            self.leave(id);
            evicted.cancel();
        }
    }

    /// Forgets a session, and returns the stage that it was in, if it still had its place.
    pub(super) fn leave(&mut self, id: u64) -> Option<SessionStage> {
        let AdmittedSession { tenant, stage } = self.sessions.remove(&id)?;
        self.uncount(&tenant.share, &stage);
        self.queue.leave(&tenant.share, id);
        if let Some(client) = self.clients.get_mut(&tenant.share) {
            client.sessions -= 1;
            if client.sessions == 0 {
                self.clients.remove(&tenant.share);
            }
        }
        if self.sessions.is_empty() {
            // Shares matter only while there are sessions.
            self.queue = FairQueue::default();
            self.cached.clear();
        }
        Some(stage)
    }

    /// Gives the next turn to a session for whose tokens there is room. Returns whether there was one.
    pub(super) fn give_turn(&mut self, capacity: &dyn Fn(&str) -> u64) -> bool {
        let next = self.queue.next(may_go(&self.cached, capacity));
        next.map(|next| self.give(next)).is_some()
    }

    /// Gives a turn to the client that has the fewest: it was taken from another for that.
    pub(super) fn give_recalled_turn(&mut self, capacity: &dyn Fn(&str) -> u64) {
        let next = self.poorest(capacity).and_then(|(share, _)| self.queue.next_of(&share));
        if let Some(next) = next {
            self.give(next);
        }
    }

    fn give(&mut self, next: WaitingSession) {
        let WaitingSession { id, uncached_tokens, mut cached, turn: given, .. } = next;
        cached.add(uncached_tokens);
        let (turn, recall) = (self.number(), Arc::<AtomicBool>::default());
        self.move_to(id, SessionStage::Active { turn, recall: Arc::clone(&recall) });
        // If the session waits no more, dropping its permit gives the turn back.
        let _ = given.send(GivenTurn { cached, recall });
    }

    /// Of the clients with a session that may begin, the one with the fewest turns, and how many it waits for.
    fn poorest(&self, capacity: &dyn Fn(&str) -> u64) -> Option<(ShareKey, usize)> {
        let ready = self.queue.ready(may_go(&self.cached, capacity));
        let turns = |share: &ShareKey| self.client(share).turns_by_weight();
        let poorest = ready.into_iter().min_by(|(a, _), (b, _)| turns(a).total_cmp(&turns(b)))?;
        Some((poorest.0.clone(), poorest.1))
    }

    /// Asks for turns of those that have more of them than the client that waits with the fewest.
    pub(super) fn recall_turns(&mut self, capacity: &dyn Fn(&str) -> u64) {
        let Some((claimant, waiting)) = self.poorest(capacity) else { return };
        let claimant = self.client(&claimant);
        let mut recalled: usize = self.clients.values().map(|client| client.recalled).sum();
        while recalled < waiting {
            let richest =
                self.clients.iter().max_by(|(_, a), (_, b)| a.turns_by_weight().total_cmp(&b.turns_by_weight()));
            let Some((richest, client)) = richest.map(|(share, client)| (share.clone(), *client)) else { return };
            // Afterwards the richest must still have no fewer than the other, or the turn would go to and fro.
            let left = client.turns_by_weight() - 1.0 / client.weight;
            let gained = (claimant.active + recalled + 1) as f64 / claimant.weight;
            if left < gained || !self.recall_youngest(&richest) {
                return;
            }
            recalled += 1;
        }
    }

    fn recall_youngest(&mut self, share: &ShareKey) -> bool {
        let turns = self.sessions.values().filter(|session| session.tenant.share == *share).filter_map(|session| {
            match &session.stage {
                SessionStage::Active { turn, recall } if !recall.load(Ordering::Relaxed) => Some((*turn, recall)),
                SessionStage::Active { .. } | SessionStage::Waiting { .. } | SessionStage::Stalled { .. } => None,
            }
        });
        let Some((_, recall)) = turns.max_by_key(|(turn, _)| *turn) else { return false };
        recall.store(true, Ordering::Relaxed);
        if let Some(client) = self.clients.get_mut(share) {
            client.recalled += 1;
        }
        true
    }
}

/// Whether a session's tokens fit next to those of the others of its model. One that does not fit keeps the later ones
/// of its model waiting, too.
fn may_go<'a>(
    cached: &'a HashMap<String, Arc<AtomicU64>>,
    capacity: &'a dyn Fn(&str) -> u64,
) -> impl FnMut(&WaitingSession) -> bool + 'a {
    let mut full = HashSet::new();
    move |next| {
        // One that is alone begins in any case: waiting would not make room.
        let before = cached.get(&next.model).map_or(0, |tokens| tokens.load(Ordering::Relaxed));
        let fits = next.uncached_tokens == 0
            || before == next.cached.tokens
            || before.saturating_add(next.uncached_tokens) <= capacity(&next.model);
        if !fits {
            full.insert(next.model.clone());
        }
        fits && !full.contains(&next.model)
    }
}

impl CachedTokens {
    pub(super) fn add(&mut self, tokens: u64) {
        self.tokens += tokens;
        self.of_model.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Tokens of all sessions of the model.
    #[cfg(test)]
    pub(super) fn of_all(&self) -> u64 {
        self.of_model.load(Ordering::Relaxed)
    }

    /// Gives all of them back, and returns how many they were.
    pub(super) fn clear(&mut self) -> u64 {
        self.of_model.fetch_sub(self.tokens, Ordering::Relaxed);
        std::mem::take(&mut self.tokens)
    }
}

impl Drop for CachedTokens {
    fn drop(&mut self) {
        self.clear();
    }
}
