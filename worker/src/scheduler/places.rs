//! Who gives way when all places of sessions are taken.
//!
//! A worker has so many places. While they last, a coordinator may take as many as it likes. Then a newcomer gets the
//! place of a session that has been idle for a while, or else, where its coordinator has fewer sessions than another
//! one, the place of one of those. So no coordinator shuts another out. A session that lost its place loses no token:
//! its next operation is answered `NeedPrefix`, as after a loss of its cache.

use std::collections::HashMap;
use std::time::Instant;

use cosec_proto::SessionId;

use super::state::{IDLE, Scheduler};

impl Scheduler {
    /// Whether another session needs the place of one that is there.
    pub(super) fn is_full(&self) -> bool {
        self.sessions.len() >= self.options.max_sessions
    }

    /// The session that gives its place to a new one of the coordinator behind `stream`: of the coordinator with the most
    /// sessions, the one that has been idle the longest. `None` when all are in use and no coordinator has more than
    /// its part.
    pub(super) fn gives_place(&self, stream: u64, now: Instant) -> Option<SessionId> {
        let mut held = HashMap::<u64, usize>::new();
        for session in self.sessions.values() {
            *held.entry(session.stream).or_default() += 1;
        }
        let part = held.get(&stream).map_or(0, |own| *own) + 1;
        let candidates = self.sessions.iter().filter(|(id, session)| !session.busy && !self.queue.concerns(**id));
        let candidates = candidates.map(|(id, session)| {
            let idle = now.saturating_duration_since(session.last_activity);
            (idle >= IDLE, held.get(&session.stream).copied().unwrap_or(0), idle, *id)
        });
        let (is_idle, of_coordinator, _, id) = candidates.max()?;
        (is_idle || of_coordinator > part).then_some(id)
    }

    /// Takes the place of a session for another one.
    pub(super) fn displace(&mut self, id: SessionId) {
        tracing::debug!(session = %id, "displaced");
        self.forget(id);
        self.metrics.displacements.inc();
    }
}
