//! The blocks that belong to nobody.

/// Free list over the blocks `0..total`.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    total: usize,
}

impl BlockPool {
    /// All of `total` blocks are free.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let mut free: Vec<u32> = (0..u32::MAX).take(total).collect();
        // Taken from the end: low numbers first.
        free.reverse();
        Self { free, total }
    }

    /// Blocks that nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Moves `count` free blocks to the end of `table`.
    ///
    /// # Errors
    /// [`OutOfBlocks`] when fewer are free; then none is moved.
    pub(super) fn take(&mut self, count: usize, table: &mut Vec<u32>) -> Result<(), OutOfBlocks> {
        let Some(rest) = self.free.len().checked_sub(count) else {
            return Err(OutOfBlocks { needed: count, free: self.free.len() });
        };
        table.extend(self.free.drain(rest..).rev());
        Ok(())
    }

    /// Takes blocks back.
    pub(super) fn give(&mut self, blocks: impl DoubleEndedIterator<Item = u32>) {
        self.free.extend(blocks.rev());
        debug_assert!(self.free.len() <= self.total, "a block was given back twice");
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
