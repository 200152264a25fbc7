//! The mixture of both distributions.

use cosec_proto::draw::Distribution;

use super::blend::blend;
use super::{Decision, Laws, MergeError, MergeRule};
use crate::request::ChosenBy;
use crate::sampler::Draws;

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

    fn decide(&self, laws: &Laws, draws: &Draws) -> Result<Decision, MergeError> {
        let id = self.law(laws)?.sample(draws.merged());
        let p = laws.fallback_law()?.probability(id);
        let q = laws.expert_law()?.probability(id);
        Ok(Decision { id, chosen_by: ChosenBy::Merged, p: Some(p), q: Some(q), rejected: None })
    }
}
