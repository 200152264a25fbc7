//! A forward pass that is being planned.

use std::ops::Range;

use super::fairness::FlowId;
use super::job::JobId;

/// The tokens of one job that ride in a forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchSlice {
    pub(crate) job: JobId,
    pub(crate) tokens: usize,
    /// Indices of the tokens whose logits are wanted.
    pub(crate) wanted: Range<usize>,
}

/// A forward pass that is being planned. Kept from one to the next for its memory.
#[derive(Debug, Default)]
pub(crate) struct BatchPlan {
    pub(crate) slices: Vec<BatchSlice>,
    /// The first job of every session, by flow, then by arrival.
    pub(super) candidates: Vec<BatchCandidate>,
    pub(super) flows: Vec<FlowCandidates>,
    /// Room that is left.
    pub(super) tokens: usize,
    pub(super) logits: usize,
    pub(super) answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BatchCandidate {
    pub(super) flow: FlowId,
    pub(super) arrival: u64,
    pub(super) job: JobId,
    /// To be fed.
    pub(super) tokens: usize,
    /// It has a slice.
    pub(super) is_planned: bool,
}

/// The candidates of one flow.
#[derive(Debug)]
pub(super) struct FlowCandidates {
    pub(super) flow: FlowId,
    pub(super) first: usize,
    /// Has been served so much more than others that it must not go before their prompts.
    pub(super) is_ahead: bool,
    /// Waits for more than this pass gives it.
    pub(super) is_left: bool,
    /// The candidate that is next.
    pub(super) next: usize,
    pub(super) end: usize,
}

impl BatchPlan {
    /// The flows that wait for more than this pass gives them.
    pub(super) fn unserved(&self) -> impl Iterator<Item = FlowId> + Clone + '_ {
        let is_unserved = |flow: &&FlowCandidates| {
            flow.is_left || self.candidates[flow.next..flow.end].iter().any(|candidate| !candidate.is_planned)
        };
        self.flows.iter().filter(is_unserved).map(|flow| flow.flow)
    }
}
