//! What became of the expert's drafts.

/// Counts since they were last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tokens that the expert drew.
    pub drafted: u64,
    /// Proposals that passed the rule's test.
    pub accepted: u64,
    /// Proposals that did not.
    pub rejected: u64,
    /// Times that drafts or an operation on them were discarded.
    pub rollbacks: u64,
    /// Operations of the expert or the base that were withdrawn for it.
    pub withdrawn: u64,
    /// Proposals accepted in each block that is over.
    pub accepted_lengths: Vec<u32>,
    /// In the block under way.
    run: u32,
}

impl Tally {
    pub(super) fn drafted(&mut self, tokens: usize) {
        self.drafted += tokens as u64;
    }

    pub(super) fn judged(&mut self, accepted: bool) {
        let count = if accepted { &mut self.accepted } else { &mut self.rejected };
        *count += 1;
        self.run += u32::from(accepted);
    }

    pub(super) fn rolled_back(&mut self, discarded: usize, withdrawn: usize) {
        self.rollbacks += u64::from(discarded > 0 || withdrawn > 0);
        self.withdrawn += withdrawn as u64;
    }

    pub(super) fn end_block(&mut self) {
        self.accepted_lengths.push(std::mem::take(&mut self.run));
    }

    /// Takes the counts; the block under way goes on.
    pub(super) fn take(&mut self) -> Self {
        let run = self.run;
        std::mem::replace(self, Self { run, ..Self::default() })
    }
}
