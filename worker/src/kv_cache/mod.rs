//! Which blocks of the paged KV cache belong to which session.
//!
//! Knows numbers only; the memory behind them is the model runner's.

pub mod block_pool;
pub mod block_table;

pub use block_pool::{BlockPool, OutOfBlocks};
pub use block_table::BlockTable;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const BLOCK_TOKENS: usize = 4;
    const BLOCKS: usize = 12;

    #[derive(Clone, Debug)]
    enum Action {
        Reserve { session: u8, tokens: usize },
        Commit { session: u8 },
        Trim { session: u8 },
        Truncate { session: u8, length: usize },
        Release { session: u8 },
    }

    fn action() -> impl Strategy<Value = Action> {
        let session = 0..4_u8;
        prop_oneof![
            4 => (session.clone(), 0..30_usize).prop_map(|(session, tokens)| Action::Reserve { session, tokens }),
            4 => session.clone().prop_map(|session| Action::Commit { session }),
            1 => session.clone().prop_map(|session| Action::Trim { session }),
            2 => (session.clone(), 0..30_usize).prop_map(|(session, length)| Action::Truncate { session, length }),
            1 => session.prop_map(|session| Action::Release { session }),
        ]
    }

    /// Committed length and reserved tokens of each session, kept the simple way.
    #[derive(Default)]
    struct Expected {
        length: usize,
        blocks: usize,
    }

    fn apply(
        action: &Action,
        pool: &mut BlockPool,
        tables: &mut BTreeMap<u8, BlockTable>,
        expected: &mut BTreeMap<u8, Expected>,
    ) {
        let (Action::Reserve { session, .. }
        | Action::Commit { session }
        | Action::Trim { session }
        | Action::Truncate { session, .. }
        | Action::Release { session }) = *action;
        let table = tables.entry(session).or_insert_with(|| BlockTable::new(BLOCK_TOKENS));
        let expected = expected.entry(session).or_default();
        match *action {
            Action::Reserve { tokens, .. } => {
                let wanted = tokens.div_ceil(BLOCK_TOKENS).max(expected.blocks);
                let fits = wanted - expected.blocks <= pool.free();
                assert_eq!(table.reserve(tokens, pool).is_ok(), fits);
                if fits {
                    expected.blocks = wanted;
                }
            }
            Action::Commit { .. } => {
                table.commit(expected.blocks * BLOCK_TOKENS);
                expected.length = expected.blocks * BLOCK_TOKENS;
            }
            Action::Trim { .. } => {
                table.trim(pool);
                expected.blocks = expected.length.div_ceil(BLOCK_TOKENS);
            }
            Action::Truncate { length, .. } => {
                table.truncate(length, pool);
                expected.length = expected.length.min(length);
                expected.blocks = expected.length.div_ceil(BLOCK_TOKENS);
            }
            Action::Release { .. } => {
                table.truncate(0, pool);
                *expected = Expected::default();
            }
        }
        assert_eq!((table.length(), table.blocks().len()), (expected.length, expected.blocks));
    }

    proptest! {
        #[test]
        fn no_block_is_leaked_or_shared(actions in proptest::collection::vec(action(), 1..80)) {
            let mut pool = BlockPool::new(BLOCKS);
            let mut tables = BTreeMap::new();
            let mut expected = BTreeMap::new();
            for action in &actions {
                let prefix: BTreeMap<u8, Vec<u32>> =
                    tables.iter().map(|(&id, table): (&u8, &BlockTable)| (id, table.blocks().to_vec())).collect();
                apply(action, &mut pool, &mut tables, &mut expected);
                let held: Vec<u32> = tables.values().flat_map(|table| table.blocks().iter().copied()).collect();
                let distinct: BTreeSet<u32> = held.iter().copied().collect();
                prop_assert_eq!(held.len(), distinct.len());
                prop_assert!(distinct.iter().all(|&block| (block as usize) < BLOCKS));
                prop_assert_eq!(held.len() + pool.free(), BLOCKS);
                // What a table keeps stays where it was.
                for (id, before) in prefix {
                    let now = tables[&id].blocks();
                    let kept = before.len().min(now.len());
                    prop_assert_eq!(&before[..kept], &now[..kept]);
                }
            }
        }
    }
}
