//! The blocks of one session.

use super::block_pool::{BlockPool, OutOfBlocks};
use super::prefix_cache::PrefixHash;

/// Blocks of one sequence in order, of which the first `length` tokens are cached.
///
/// Blocks beyond the length are reserved for an operation in progress. Only full blocks are shared, so the block that
/// is written to next is always the table's own: nothing is ever copied on write. A table must be emptied with
/// [`Self::clear`] before it is dropped: it does not know its pool.
#[derive(Debug)]
pub struct BlockTable {
    root: PrefixHash,
    blocks: Vec<u32>,
    length: usize,
}

impl BlockTable {
    /// Holds nothing; has room for the numbers of `capacity` blocks.
    #[must_use]
    pub fn new(root: PrefixHash, capacity: usize) -> Self {
        Self { root, blocks: Vec::with_capacity(capacity), length: 0 }
    }

    /// Cached tokens.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Block ids in the order of the sequence, reserved ones included.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The cached tokens.
    pub fn tokens<'a>(&'a self, pool: &'a BlockPool) -> impl Iterator<Item = u32> + 'a {
        let blocks = self.blocks.iter().flat_map(|&block| pool.content(block, pool.block_tokens()));
        blocks.take(self.length).copied()
    }

    /// Most tokens that are left by a truncation to `at`: less than `at` when that lies within a block that others hold
    /// too.
    #[must_use]
    pub fn kept_by_truncation(&self, at: usize, pool: &BlockPool) -> usize {
        let block_tokens = pool.block_tokens();
        let at = at.min(self.length);
        let is_others = at < self.length
            && !at.is_multiple_of(block_tokens)
            && self.blocks.get(at / block_tokens).is_some_and(|&block| pool.holders(block) > 1);
        if is_others { at - at % block_tokens } else { at }
    }

    /// Forgets the tokens from `at` on (see [`Self::kept_by_truncation`]) and gives back their blocks and all reserved
    /// ones.
    pub fn truncate(&mut self, at: usize, pool: &mut BlockPool) {
        let kept = self.kept_by_truncation(at, pool);
        let block_tokens = pool.block_tokens();
        if kept < self.length && !kept.is_multiple_of(block_tokens) {
            pool.hide(self.blocks[kept / block_tokens]);
        }
        self.length = kept;
        // The last first: a prefix is of use without what follows it, so it is to stay for longer.
        while self.blocks.len() > kept.div_ceil(block_tokens) {
            if let Some(block) = self.blocks.pop() {
                pool.give(block);
            }
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self, pool: &mut BlockPool) {
        self.truncate(0, pool);
    }

    /// Takes over cached blocks that hold the beginning of `tokens`, at most `most` of them; returns how many tokens
    /// that were. Nothing may be reserved.
    pub fn share(&mut self, tokens: &[u32], most: usize, pool: &mut BlockPool) -> usize {
        let mut shared = 0;
        while self.length.is_multiple_of(pool.block_tokens())
            && let Some(hash) = self.next_hash(&tokens[shared..], pool)
            && shared + pool.block_tokens() <= most
            && let Some(block) = pool.hold(&hash)
        {
            self.blocks.push(block);
            self.length += pool.block_tokens();
            shared += pool.block_tokens();
        }
        shared
    }

    /// What the first block that is not full will be called when `tokens` fill it.
    #[must_use]
    pub fn next_hash(&self, tokens: &[u32], pool: &BlockPool) -> Option<PrefixHash> {
        let (index, slot) = (self.length / pool.block_tokens(), self.length % pool.block_tokens());
        let new = tokens.get(..pool.block_tokens() - slot)?;
        let before = self.blocks.get(index).map_or(&[][..], |&block| pool.content(block, slot));
        Some(self.hash_before(index, pool).followed_by(before.iter().chain(new)))
    }

    /// Of the tokens before block `index`.
    fn hash_before(&self, index: usize, pool: &BlockPool) -> PrefixHash {
        let last = index.checked_sub(1).and_then(|last| pool.hash(self.blocks[last]));
        debug_assert!(last.is_some() == (index > 0), "a full block has no hash");
        last.unwrap_or(self.root)
    }

    /// Makes room for `tokens` in all.
    ///
    /// # Errors
    /// [`OutOfBlocks`] when the pool has too few; then nothing is changed.
    pub fn reserve(&mut self, tokens: usize, pool: &mut BlockPool) -> Result<(), OutOfBlocks> {
        let needed = self.missing(tokens, pool);
        if needed > pool.free() {
            return Err(OutOfBlocks { needed, free: pool.free() });
        }
        self.blocks.extend((0..needed).map_while(|_| pool.take()));
        Ok(())
    }

    /// Blocks that [`Self::reserve`] would take.
    #[must_use]
    pub fn missing(&self, tokens: usize, pool: &BlockPool) -> usize {
        tokens.div_ceil(pool.block_tokens()).saturating_sub(self.blocks.len())
    }

    /// Counts `tokens` as cached after the others, and lets other tables find the blocks that are full now.
    /// They must have been reserved.
    pub fn append(&mut self, mut tokens: &[u32], pool: &mut BlockPool) {
        let block_tokens = pool.block_tokens();
        while !tokens.is_empty()
            && let Some(&block) = self.blocks.get(self.length / block_tokens)
        {
            let (index, slot) = (self.length / block_tokens, self.length % block_tokens);
            let (now, later) = tokens.split_at(tokens.len().min(block_tokens - slot));
            pool.write(block, slot, now, |pool| self.hash_before(index, pool));
            self.length += now.len();
            tokens = later;
        }
        debug_assert!(tokens.is_empty(), "cached beyond the reserved blocks");
    }

    /// Gives back what is reserved beyond the cached tokens.
    pub fn trim(&mut self, pool: &mut BlockPool) {
        self.truncate(self.length, pool);
    }
}
