//! The blocks of one session.

use super::block_pool::{BlockPool, OutOfBlocks};

/// Blocks of one sequence in order, of which the first `length` tokens are cached.
///
/// Blocks beyond the length are reserved for an operation in progress. A table must be emptied with
/// `truncate(0, pool)` before it is dropped: it does not know its pool.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<u32>,
    length: usize,
    block_tokens: usize,
}

impl BlockTable {
    /// Holds nothing; a block takes `block_tokens` tokens.
    #[must_use]
    pub fn new(block_tokens: usize) -> Self {
        Self { blocks: Vec::new(), length: 0, block_tokens }
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

    /// Blocks that must be taken from a pool so that `tokens` fit behind a truncation to `at`.
    #[must_use]
    pub fn missing(&self, at: usize, tokens: usize) -> usize {
        let kept = self.blocks.len().min(at.div_ceil(self.block_tokens));
        tokens.div_ceil(self.block_tokens).saturating_sub(kept)
    }

    /// Blocks that a truncation to `at` would give back.
    #[must_use]
    pub fn freed_by_truncation(&self, at: usize) -> usize {
        self.blocks.len().saturating_sub(at.min(self.length).div_ceil(self.block_tokens))
    }

    /// Makes room for `tokens` in all.
    ///
    /// # Errors
    /// [`OutOfBlocks`] when the pool has too few; then nothing is changed.
    pub fn reserve(&mut self, tokens: usize, pool: &mut BlockPool) -> Result<(), OutOfBlocks> {
        let more = tokens.div_ceil(self.block_tokens).saturating_sub(self.blocks.len());
        pool.take(more, &mut self.blocks)
    }

    /// Declares the first `length` tokens cached; at most what was reserved counts.
    pub fn commit(&mut self, length: usize) {
        debug_assert!(length <= self.blocks.len() * self.block_tokens, "committed beyond the reserved blocks");
        self.length = length.min(self.blocks.len() * self.block_tokens);
    }

    /// Gives back what is reserved beyond the cached tokens.
    pub fn trim(&mut self, pool: &mut BlockPool) {
        let kept = self.length.div_ceil(self.block_tokens);
        pool.give(self.blocks.drain(kept..));
    }

    /// Forgets the tokens from `length` on and gives back their blocks and all reserved ones.
    pub fn truncate(&mut self, length: usize, pool: &mut BlockPool) {
        self.length = self.length.min(length);
        self.trim(pool);
    }
}
