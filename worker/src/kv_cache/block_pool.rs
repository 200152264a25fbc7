//! All blocks: who holds them, what they contain, and which of those that nobody holds is used again first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::prefix_cache::PrefixHash;

/// The blocks `0..total`.
///
/// Full blocks are found by their [`PrefixHash`] and held by any number of tables. One that nobody holds any more stays
/// findable until its memory is needed; the one let go the longest ago goes first.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Token of each slot of each block; all memory is taken at the start.
    contents: Vec<u32>,
    block_tokens: usize,
    /// Blocks that nobody holds and nobody can find.
    blank: Vec<u32>,
    found: HashMap<PrefixHash, u32>,
    /// Ends of the list of blocks that nobody holds but that can be found.
    oldest: Option<u32>,
    newest: Option<u32>,
    evictable: usize,
}

#[derive(Clone, Debug)]
struct Block {
    holders: u32,
    /// Of a full block.
    hash: Option<PrefixHash>,
    /// Neighbours in the list of evictable blocks.
    older: Option<u32>,
    newer: Option<u32>,
}

impl BlockPool {
    /// All of `total` blocks of `block_tokens` tokens are free.
    #[must_use]
    pub fn new(total: usize, block_tokens: usize) -> Self {
        let mut blank: Vec<u32> = (0..u32::MAX).take(total).collect();
        // Taken from the end: low numbers first.
        blank.reverse();
        let block = Block { holders: 0, hash: None, older: None, newer: None };
        Self {
            blocks: vec![block; total],
            contents: vec![0; total * block_tokens],
            block_tokens,
            blank,
            found: HashMap::with_capacity(total),
            oldest: None,
            newest: None,
            evictable: 0,
        }
    }

    /// Tokens of a block.
    #[must_use]
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.blank.len() + self.evictable
    }

    /// Blocks that can be found by their hash.
    #[must_use]
    pub fn findable(&self) -> usize {
        self.found.len()
    }

    /// How many tables hold `block`.
    #[must_use]
    pub fn holders(&self, block: u32) -> u32 {
        self.blocks[block as usize].holders
    }

    /// A block of one holder, of unknown content; `None` when all are held.
    pub(super) fn take(&mut self) -> Option<u32> {
        let block = match self.blank.pop() {
            Some(block) => block,
            None => {
                let oldest = self.oldest?;
                self.unlink(oldest);
                self.hide(oldest);
                oldest
            }
        };
        self.blocks[block as usize].holders = 1;
        Some(block)
    }

    /// The block that is called `hash`, with one holder more.
    pub(super) fn hold(&mut self, hash: &PrefixHash) -> Option<u32> {
        let block = *self.found.get(hash)?;
        if self.holders(block) == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].holders += 1;
        Some(block)
    }

    /// Takes a block back from one of its holders.
    pub(super) fn give(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        debug_assert!(state.holders > 0, "a block was given back twice");
        state.holders = state.holders.saturating_sub(1);
        if state.holders > 0 {
            return;
        }
        match state.hash {
            Some(hash) if self.found.get(&hash) == Some(&block) => self.link(block),
            _ => {
                state.hash = None;
                self.blank.push(block);
            }
        }
    }

    /// Writes `tokens` into `block` from `slot` on; with the last slot the block is full, and called after what comes
    /// before it.
    pub(super) fn write(
        &mut self,
        block: u32,
        slot: usize,
        tokens: &[u32],
        before: impl FnOnce(&Self) -> PrefixHash,
    ) {
        let first = block as usize * self.block_tokens;
        self.contents[first + slot..][..tokens.len()].copy_from_slice(tokens);
        if slot + tokens.len() < self.block_tokens {
            return;
        }
        let hash = before(self).followed_by(&self.contents[first..][..self.block_tokens]);
        self.blocks[block as usize].hash = Some(hash);
        // Whoever comes second keeps its copy to itself.
        if let Entry::Vacant(vacant) = self.found.entry(hash) {
            vacant.insert(block);
        }
    }

    /// The first `tokens` tokens of a block.
    pub(super) fn content(&self, block: u32, tokens: usize) -> &[u32] {
        &self.contents[block as usize * self.block_tokens..][..tokens]
    }

    /// The hash of a full block.
    pub(super) fn hash(&self, block: u32) -> Option<PrefixHash> {
        self.blocks[block as usize].hash
    }

    /// `block` is about to change: nobody finds it any more.
    pub(super) fn hide(&mut self, block: u32) {
        if let Some(hash) = self.blocks[block as usize].hash.take()
            && self.found.get(&hash) == Some(&block)
        {
            self.found.remove(&hash);
        }
    }

    /// Appends to the list of evictable blocks.
    fn link(&mut self, block: u32) {
        let before = self.newest.replace(block);
        match before {
            Some(before) => self.blocks[before as usize].newer = Some(block),
            None => self.oldest = Some(block),
        }
        let state = &mut self.blocks[block as usize];
        (state.older, state.newer) = (before, None);
        self.evictable += 1;
    }

    fn unlink(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        let (older, newer) = (state.older.take(), state.newer.take());
        match older {
            Some(older) => self.blocks[older as usize].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.blocks[newer as usize].older = older,
            None => self.newest = older,
        }
        self.evictable -= 1;
    }
}

/// Fewer blocks are free than needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more cache blocks are needed and {free} are free")]
pub struct OutOfBlocks {
    /// Blocks asked for.
    pub needed: usize,
    /// Blocks at hand.
    pub free: usize,
}
