//! The base alone: unhardened, for comparison.

use cosec_proto::sampling::Distribution;

use super::{Laws, MergeError, MergeRule};
use crate::request::{ChosenBy, Decision};
use cosec_proto::sampling::PositionRandom;

/// p, drawn with the numbers that a fallback takes.
#[derive(Clone, Copy, Debug)]
pub struct BaseOnly;

impl MergeRule for BaseOnly {
    fn law(&self, laws: &Laws) -> Result<Distribution, MergeError> {
        laws.fallback_law().cloned()
    }

    fn decide(&self, laws: &Laws, draws: &PositionRandom) -> Result<Decision, MergeError> {
        let own = laws.fallback(draws.fallback())?;
        Ok(Decision { id: own.id, chosen_by: ChosenBy::Base, p: Some(own.probability), q: None, rejected: None })
    }
}
