//! What became of the expert's drafts.

/// Counts since they were last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DraftTally {
    /// Tokens that the expert drafted.
    pub drafted: u64,
    /// Draft tokens that passed the rule's test.
    pub accepted: u64,
    /// Draft tokens that did not.
    pub rejected: u64,
    /// Times that drafts or an operation on them were discarded.
    pub rollbacks: u64,
    /// Operations of the expert or the base that were withdrawn for it.
    pub withdrawn: u64,
    /// Blocks that ended.
    pub blocks: Vec<VerifiedBlock>,
    block: VerifiedBlock,
}

/// A block of drafts up to the first that did not stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifiedBlock {
    /// Draft tokens that the rule looked at.
    pub proposals: u32,
    /// Those that passed its test.
    pub accepted: u32,
    /// Those that were the token decided, whether they passed or were drawn again.
    pub stood: u32,
}

impl DraftTally {
    pub(crate) fn drafted(&mut self, tokens: usize) {
        self.drafted += tokens as u64;
    }

    pub(crate) fn judged(&mut self, accepted: bool, stood: bool) {
        let count = if accepted { &mut self.accepted } else { &mut self.rejected };
        *count += 1;
        self.block.proposals += 1;
        self.block.accepted += u32::from(accepted);
        self.block.stood += u32::from(stood);
    }

    pub(crate) fn rolled_back(&mut self, discarded: usize, withdrawn: usize) {
        self.rollbacks += u64::from(discarded > 0 || withdrawn > 0);
        self.withdrawn += withdrawn as u64;
    }

    pub(crate) fn end_block(&mut self) {
        self.blocks.push(std::mem::take(&mut self.block));
    }

    /// Takes the counts; the block under way goes on.
    pub(crate) fn take(&mut self) -> Self {
        let block = self.block;
        std::mem::replace(self, Self { block, ..Self::default() })
    }
}
