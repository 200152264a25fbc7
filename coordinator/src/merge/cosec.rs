//! Supervised co-decoding (Li et al. 2024, section 3): the expert proposes, the base lets pass or replaces.

use cosec_proto::sampling::Distribution;

use super::blend::blend;
use super::{Laws, MergeError, MergeRule};
use crate::request::{ChosenBy, Decision, Rejected};
use cosec_proto::sampling::PositionRandom;

/// Draft x ~ q; keep it when `min(1, p(x) / q(x)) > tau`; else take x' ~ p, from the whole of p.
#[derive(Clone, Copy, Debug)]
pub struct Cosec {
    /// From 1 on nothing is accepted; at 0 whatever the base gives any mass.
    pub tau: f64,
}

impl Cosec {
    /// The acceptance test, strict as the published code has it. A token that the expert cannot draw never passes.
    #[must_use]
    pub fn accepts(&self, p: f64, q: f64) -> bool {
        q > 0.0 && (p / q).min(1.0) > self.tau
    }
}

impl MergeRule for Cosec {
    /// `q(x) A(x) + R p(x)`: A is the test, R the expert's mass on what fails it.
    fn law(&self, laws: &Laws) -> Result<Distribution, MergeError> {
        let (judged, fallback, expert) = (laws.judged_law()?, laws.fallback_law()?, laws.expert_law()?);
        let accepts = |id, q| self.accepts(judged.probability(id), q);
        let rejected: f64 = expert.iter().filter(|&(id, q)| !accepts(id, q)).map(|(_, q)| q).sum();
        let accepted = |id, q| if accepts(id, q) { q } else { 0.0 };
        Ok(blend((expert, accepted), (fallback, |_, p| rejected * p))?)
    }

    fn decide(&self, laws: &Laws, draws: &PositionRandom) -> Result<Decision, MergeError> {
        let proposal = laws.proposal(draws.draft())?;
        let p = laws.judged(proposal.id)?;
        if self.accepts(p, proposal.probability) {
            return Ok(Decision {
                id: proposal.id,
                chosen_by: ChosenBy::Expert,
                p: Some(p),
                q: Some(proposal.probability),
                rejected: None,
            });
        }
        let own = laws.fallback(draws.fallback())?;
        let rejected = Rejected { id: proposal.id, p, q: proposal.probability };
        Ok(Decision {
            id: own.id,
            chosen_by: ChosenBy::Base,
            p: Some(own.probability),
            q: None,
            rejected: Some(rejected),
        })
    }
}
