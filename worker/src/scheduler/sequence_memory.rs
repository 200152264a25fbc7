//! Tokens of sessions that are gone: released when their client left, without a lease, or without a cache or a place
//! because another one got it. They are few bytes, so they are remembered for a while.

use std::collections::{HashMap, VecDeque};

use cosec_proto::SequenceName;

/// Most tokens that are remembered, of 4 bytes each; the sequence that was remembered the longest ago goes first.
const REMEMBERED_TOKENS: usize = 4 << 20;

/// What a sequence takes besides its tokens, in tokens.
const SEQUENCE_OVERHEAD: usize = 32;

/// Tokens of sessions that are gone.
#[derive(Debug, Default)]
pub(super) struct SequenceMemory {
    sequences: HashMap<SequenceName, Box<[u32]>>,
    /// Each of them once, the oldest first.
    order: VecDeque<SequenceName>,
    /// With the overhead of each sequence.
    tokens: usize,
}

impl SequenceMemory {
    /// Remembers the tokens of a session; the longest of a sequence stay.
    pub(super) fn remember(&mut self, sequence: SequenceName, tokens: Vec<u32>) {
        match self.sequences.get_mut(&sequence) {
            Some(known) if known.len() >= tokens.len() => return,
            Some(known) => {
                self.tokens += tokens.len() - known.len();
                *known = tokens.into();
            }
            None => {
                self.tokens += tokens.len() + SEQUENCE_OVERHEAD;
                self.sequences.insert(sequence, tokens.into());
                self.order.push_back(sequence);
            }
        }
        while self.tokens > REMEMBERED_TOKENS
            && let Some(oldest) = self.order.pop_front()
        {
            let forgotten = self.sequences.remove(&oldest).map_or(0, |tokens| tokens.len());
            self.tokens -= forgotten + SEQUENCE_OVERHEAD;
        }
    }

    /// What is remembered of a sequence.
    pub(super) fn tokens(&self, sequence: SequenceName) -> &[u32] {
        self.sequences.get(&sequence).map_or(&[], |tokens| tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_a_sequence_is_remembered_and_the_oldest_goes_first() {
        let mut memory = SequenceMemory::default();
        let [first, second] = [SequenceName::random(), SequenceName::random()];
        memory.remember(first, vec![1, 2, 3]);
        memory.remember(first, vec![1]);
        assert_eq!(memory.tokens(first), [1, 2, 3]);
        memory.remember(first, vec![1, 2, 3, 4]);
        assert_eq!(memory.tokens(first), [1, 2, 3, 4]);
        assert!(memory.tokens(second).is_empty());
        memory.remember(second, vec![0; REMEMBERED_TOKENS - 3 * SEQUENCE_OVERHEAD]);
        assert_eq!((memory.tokens(first).len(), memory.sequences.len()), (4, 2));
        memory.remember(SequenceName::random(), vec![7; SEQUENCE_OVERHEAD]);
        assert_eq!((memory.tokens(first).len(), memory.sequences.len(), memory.order.len()), (0, 2, 2));
        // Sequences of one token are bounded, too.
        (0..REMEMBERED_TOKENS / 16).for_each(|_| memory.remember(SequenceName::random(), vec![1]));
        assert!(memory.tokens <= REMEMBERED_TOKENS && memory.order.len() == memory.sequences.len());
        assert_eq!(memory.sequences.len(), REMEMBERED_TOKENS / (SEQUENCE_OVERHEAD + 1));
    }
}
