//! The mixture of both distributions.

use cosec_proto::sampling::Distribution;

use super::blend::blend;
use super::{Laws, MergeError, MergeRule, rejection};
use crate::request::Decision;
use cosec_proto::sampling::PositionRandom;

/// `lambda q + (1 - lambda) p`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Weight of the expert, in [0, 1].
    pub lambda: f64,
}

impl MergeRule for Linear {
    fn law(&self, laws: &Laws) -> Result<Distribution, MergeError> {
        let of_expert = |_, q| self.lambda * q;
        let of_base = |_, p| (1.0 - self.lambda) * p;
        Ok(blend((laws.expert_law()?, of_expert), (laws.fallback_law()?, of_base))?)
    }

    fn decide(&self, laws: &Laws, draws: &PositionRandom) -> Result<Decision, MergeError> {
        rejection::decide(&self.law(laws)?, laws, draws)
    }
}
