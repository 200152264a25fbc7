//! The expert alone, for comparison.

use cosec_proto::sampling::Distribution;

use super::{Laws, MergeError, MergeRule};
use crate::request::{ChosenBy, Decision};
use cosec_proto::sampling::PositionRandom;

/// q, drawn with the numbers that a proposal takes.
#[derive(Clone, Copy, Debug)]
pub struct ExpertOnly;

impl MergeRule for ExpertOnly {
    fn law(&self, laws: &Laws) -> Result<Distribution, MergeError> {
        laws.expert_law().cloned()
    }

    fn decide(&self, laws: &Laws, draws: &PositionRandom) -> Result<Decision, MergeError> {
        let proposal = laws.proposal(draws.draft())?;
        Ok(Decision {
            id: proposal.id,
            chosen_by: ChosenBy::Expert,
            p: None,
            q: Some(proposal.probability),
            rejected: None,
        })
    }
}
