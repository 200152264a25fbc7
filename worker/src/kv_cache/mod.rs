//! Which blocks of the paged KV cache belong to which session.
//!
//! Knows numbers only; the memory behind them is the model runner's. Full blocks are shared by sessions that begin
//! alike, of one tenant and under one adapter.

pub mod block_pool;
pub mod block_table;

pub mod prefix_cache;

pub use block_pool::{BlockPool, OutOfBlocks};
pub use block_table::BlockTable;
pub use prefix_cache::PrefixHash;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const BLOCK_TOKENS: usize = 4;
    const BLOCKS: usize = 12;

    #[derive(Clone, Debug)]
    enum Action {
        /// From the beginning, as far as it is cached from there.
        Open(Vec<u32>),
        Extend(Vec<u32>),
        Truncate(usize),
        Reserve(usize),
        Trim,
        Clear,
    }

    /// Two tokens and few lengths, so that sessions have common beginnings.
    fn tokens() -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(0..2_u32, 0..20)
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => tokens().prop_map(Action::Open),
            4 => tokens().prop_map(Action::Extend),
            3 => (0..30_usize).prop_map(Action::Truncate),
            1 => (0..30_usize).prop_map(Action::Reserve),
            1 => Just(Action::Trim),
            1 => Just(Action::Clear),
        ]
    }

    /// A session kept the simple way.
    struct Expected {
        table: BlockTable,
        tenant: u64,
        tokens: Vec<u32>,
    }

    /// What a model would have in its cache: for each slot, whose token stands there after which others.
    type Memory = Vec<Option<(u64, Vec<u32>)>>;

    impl Expected {
        fn new(tenant: u64) -> Self {
            Self { table: BlockTable::new(PrefixHash::root(tenant, None), BLOCKS), tenant, tokens: Vec::new() }
        }

        fn slot(&self, position: usize) -> usize {
            self.table.blocks()[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
        }

        /// As a forward pass does.
        fn feed(&mut self, tokens: &[u32], pool: &mut BlockPool, memory: &mut Memory) {
            let length = self.tokens.len() + tokens.len();
            let missing = self.table.missing(length, pool);
            let fits = missing <= pool.free();
            assert_eq!(self.table.reserve(length, pool).is_ok(), fits);
            if !fits {
                return;
            }
            for &token in tokens {
                self.tokens.push(token);
                let slot = self.slot(self.tokens.len() - 1);
                memory[slot] = Some((self.tenant, self.tokens.clone()));
            }
            self.table.append(tokens, pool);
        }

        fn truncate(&mut self, at: usize, pool: &mut BlockPool) {
            let kept = self.table.kept_by_truncation(at, pool);
            let at = at.min(self.tokens.len());
            assert!(kept == at || (kept < at && kept == at - at % BLOCK_TOKENS));
            self.table.truncate(at, pool);
            self.tokens.truncate(kept);
        }

        fn act(&mut self, action: &Action, pool: &mut BlockPool, memory: &mut Memory) {
            match action {
                Action::Open(tokens) => {
                    self.truncate(0, pool);
                    let shared = self.table.share(tokens, tokens.len().saturating_sub(1), pool);
                    assert!(shared == 0 || shared < tokens.len());
                    self.tokens.extend(&tokens[..shared]);
                    self.feed(&tokens[shared..], pool, memory);
                }
                Action::Extend(tokens) => self.feed(tokens, pool, memory),
                Action::Truncate(at) => self.truncate(*at, pool),
                Action::Reserve(length) => {
                    let fits = self.table.missing(*length, pool) <= pool.free();
                    assert_eq!(self.table.reserve(*length, pool).is_ok(), fits);
                }
                Action::Trim => self.table.trim(pool),
                Action::Clear => self.truncate(0, pool),
            }
        }
    }

    fn check(sessions: &[Expected], pool: &BlockPool, memory: &Memory) {
        let mut holders: BTreeMap<u32, u32> = BTreeMap::new();
        for session in sessions {
            assert_eq!(session.table.length(), session.tokens.len());
            assert!(session.table.blocks().len() >= session.tokens.len().div_ceil(BLOCK_TOKENS));
            session.table.blocks().iter().for_each(|&block| *holders.entry(block).or_default() += 1);
            for position in 0..session.tokens.len() {
                let expected = (session.tenant, session.tokens[..=position].to_vec());
                assert_eq!(memory[session.slot(position)].as_ref(), Some(&expected), "position {position}");
            }
        }
        assert_eq!(holders.len() + pool.free(), BLOCKS);
        (0..BLOCKS as u32).for_each(|block| assert_eq!(pool.holders(block), *holders.get(&block).unwrap_or(&0)));
        assert!(pool.findable() <= BLOCKS);
    }

    proptest! {
        #[test]
        fn no_block_is_leaked_lost_or_wrongly_shared(actions in proptest::collection::vec((0..4_usize, action()), 1..120)) {
            let mut pool = BlockPool::new(BLOCKS, BLOCK_TOKENS);
            let mut memory: Memory = vec![None; BLOCKS * BLOCK_TOKENS];
            // Two sessions of each of two tenants.
            let mut sessions: Vec<Expected> = [0, 0, 1, 1].map(Expected::new).into();
            for (session, action) in &actions {
                sessions[*session].act(action, &mut pool, &mut memory);
                check(&sessions, &pool, &memory);
            }
            sessions.iter_mut().for_each(|session| session.table.clear(&mut pool));
            prop_assert_eq!(pool.free(), BLOCKS);
        }
    }

    /// A table that has cached `tokens`, and how many of them it found.
    fn cached(tenant: u64, tokens: &[u32], pool: &mut BlockPool) -> (BlockTable, usize) {
        let mut table = BlockTable::new(PrefixHash::root(tenant, None), BLOCKS);
        let shared = table.share(tokens, tokens.len() - 1, pool);
        table.reserve(tokens.len(), pool).unwrap();
        table.append(&tokens[shared..], pool);
        (table, shared)
    }

    #[test]
    fn a_common_beginning_is_held_once_and_found_after_all_have_let_go() {
        let mut pool = BlockPool::new(BLOCKS, BLOCK_TOKENS);
        let tokens: Vec<u32> = (0..14).collect();
        let (mut first, shared) = cached(7, &tokens, &mut pool);
        assert_eq!(shared, 0);
        let (mut second, shared) = cached(7, &tokens[..12], &mut pool);
        // The last token's row has to be computed.
        assert_eq!(shared, 8);
        assert_eq!(first.blocks()[..2], second.blocks()[..2]);
        assert_eq!(pool.free(), BLOCKS - 5);
        // Behind other tokens the same block is another.
        assert_eq!(cached(7, &[&[9; 4], &tokens[4..8]].concat(), &mut pool).1, 0);
        assert_eq!(cached(8, &tokens, &mut pool).1, 0, "another tenant's");
        first.clear(&mut pool);
        second.clear(&mut pool);
        assert_eq!(cached(7, &tokens, &mut pool).1, 12);
    }

    #[test]
    fn what_was_let_go_the_longest_ago_is_used_first_and_of_a_sequence_its_end() {
        let mut pool = BlockPool::new(BLOCKS, BLOCK_TOKENS);
        let [old, young] = [3, 4].map(|token| vec![token; 5 * BLOCK_TOKENS]);
        for tokens in [&old, &young] {
            let (mut table, _) = cached(0, tokens, &mut pool);
            table.clear(&mut pool);
        }
        assert_eq!((pool.free(), pool.findable()), (BLOCKS, 10));
        // Two blank blocks, then the last three of the old sequence.
        let (_, shared) = cached(0, &[5; 5 * BLOCK_TOKENS], &mut pool);
        assert_eq!(shared, 0);
        assert_eq!(cached(0, &old, &mut pool).1, 2 * BLOCK_TOKENS);
    }
}
