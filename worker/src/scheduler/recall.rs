//! Tells the tokens of a sequence to a coordinator that goes on where another one is gone.

use cosec_proto::{SequenceName, SessionId};

use super::state::Scheduler;

impl Scheduler {
    /// At most `count` tokens from position `at` on, of the longest session that decodes or decoded `sequence`.
    pub(super) fn recalled(&self, sequence: SequenceName, at: usize, count: usize) -> Vec<u32> {
        let of_sequence = self.sessions.iter().filter(|(id, _)| id.sequence() == sequence);
        let longest = of_sequence.map(|(_, session)| &session.table).max_by_key(|table| table.length());
        let remembered = self.memory.tokens(sequence);
        match longest.filter(|table| table.length() > remembered.len()) {
            Some(table) => table.tokens(&self.pool).skip(at).take(count).collect(),
            None => remembered.iter().skip(at).take(count).copied().collect(),
        }
    }

    /// Remembers the tokens of a session that is about to lose them.
    pub(super) fn remember(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get(&id)
            && session.table.length() > 0
        {
            self.memory.remember(id.sequence(), session.table.tokens(&self.pool).collect());
        }
    }
}
