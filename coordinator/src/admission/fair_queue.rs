//! Start-time fair queueing (Goyal, Vin and Cheng 1996): a tenant's share of the tokens follows its weight, whatever
//! the others ask for.

use std::collections::{BTreeMap, HashSet, VecDeque};

use tokio::sync::oneshot;

use crate::tenant::Tenant;

/// The sessions of all tenants.
#[derive(Default)]
pub(super) struct FairQueue {
    /// Start of the session that got its turn last, in tokens by weight.
    now: f64,
    /// By name; only tenants with sessions.
    shares: BTreeMap<String, TenantShare>,
}

#[derive(Default)]
struct TenantShare {
    /// Where its next session starts, in tokens by weight.
    start: f64,
    /// Those that wait and those that decode.
    sessions: usize,
    line: VecDeque<WaitingSession>,
}

/// A session that waits for its turn.
pub(super) struct WaitingSession {
    pub(super) id: u64,
    pub(super) model: String,
    pub(super) prompt_tokens: u64,
    /// Of the prompt, and the most new ones.
    pub(super) tokens: u64,
    pub(super) weight: f64,
    pub(super) turn: oneshot::Sender<()>,
}

impl FairQueue {
    pub(super) fn sessions(&self, tenant: &Tenant) -> usize {
        self.shares.get(&tenant.name).map_or(0, |share| share.sessions)
    }

    pub(super) fn has_waiting(&self) -> bool {
        self.shares.values().any(|share| !share.line.is_empty())
    }

    /// Counts a session of `tenant` until [`Self::leave`].
    pub(super) fn enter(&mut self, tenant: &Tenant) {
        self.shares.entry(tenant.name.clone()).or_default().sessions += 1;
    }

    /// Lets a session that has entered wait.
    pub(super) fn join(&mut self, tenant: &Tenant, session: WaitingSession) {
        let share = self.shares.entry(tenant.name.clone()).or_default();
        // Time in which a tenant asked for nothing is not saved up.
        share.start = share.start.max(self.now);
        share.line.push_back(session);
    }

    /// Takes out the next session that `fits`. One that does not keeps the later ones of its model waiting, too.
    pub(super) fn next(&mut self, fits: impl Fn(&WaitingSession) -> bool) -> Option<WaitingSession> {
        let mut shares: Vec<&mut TenantShare> = self.shares.values_mut().collect();
        shares.sort_by(|a, b| a.start.total_cmp(&b.start));
        let mut full = HashSet::new();
        for share in shares {
            let Some(next) = share.line.front() else { continue };
            if full.contains(&next.model) {
                continue;
            }
            if !fits(next) {
                full.insert(next.model.clone());
                continue;
            }
            self.now = share.start;
            share.start += next.tokens as f64 / next.weight;
            return share.line.pop_front();
        }
        None
    }

    /// Forgets a session, and returns it if it was still waiting.
    pub(super) fn leave(&mut self, tenant: &Tenant, id: u64) -> Option<WaitingSession> {
        let share = self.shares.get_mut(&tenant.name)?;
        share.sessions -= 1;
        let waiting = share.line.iter().position(|waiting| waiting.id == id);
        let waiting = waiting.and_then(|at| share.line.remove(at));
        if share.sessions == 0 && share.start <= self.now {
            self.shares.remove(&tenant.name);
        }
        waiting
    }
}
