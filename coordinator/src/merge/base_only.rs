//! The base alone: unhardened, for comparison.

use cosec_proto::draw::Distribution;

use super::{Laws, MergeError, MergeRule};
use crate::request::{ChosenBy, Decision};
use crate::sampler::Draws;

/// p, drawn with the numbers that a fallback takes.
#[derive(Clone, Copy, Debug)]
pub struct BaseOnly;

impl MergeRule for BaseOnly {
    fn law(&self, laws: &Laws) -> Result<Distribution, MergeError> {
        laws.fallback_law().cloned()
    }

    fn decide(&self, laws: &Laws, draws: &Draws) -> Result<Decision, MergeError> {
        let own = laws.fallback(draws.fallback())?;
        Ok(Decision { id: own.id, chosen_by: ChosenBy::Base, p: Some(own.probability), q: None, rejected: None })
    }
}
