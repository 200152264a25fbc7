//! Supervised co-decoding (Li et al. 2024, section 3): the expert proposes, the base lets pass or replaces.

use cosec_proto::sampling::Distribution;

use super::blend::blend;
use super::decision::{RejectedProposal, Verdict};
use super::evidence::{MergeError, PositionDistributions};
use super::rule::{DegenerateRule, MergeRule, RuleDescription, RuleParameter, RuleParameters, WeakeningSide};
use super::transport::LogitsTransport;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

const TAU: RuleParameter = RuleParameter {
    name: "tau",
    documentation: "Acceptance threshold of `cosec` (CoSec's is 0.3).",
    default: 0.3,
    range: 0.0..=f64::MAX,
    allowed: "a number of at least 0",
    weakens: WeakeningSide::Up,
};

const DESCRIPTION: RuleDescription = RuleDescription {
    name: "cosec",
    parameters: &[TAU],
    roles: &[WorkerRole::Base, WorkerRole::Expert],
    judges: true,
    transports: &[LogitsTransport::Sample, LogitsTransport::Gather, LogitsTransport::Nucleus, LogitsTransport::Full],
};

/// Draft x ~ q; keep it when `min(1, r(x) / q(x)) > tau`; else take x' ~ p, from the whole of p.
///
/// r judges: the base's own distribution, or p where the operator has it so. So `P(x) >= q(x) A(x)` whatever a client
/// asks for its sampling, as that changes p alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosec {
    /// From 1 on nothing is accepted; at 0 whatever the base gives any mass.
    pub tau: f64,
}

impl Cosec {
    /// The acceptance test on what judge and expert give a token, strict as the published code has it. A token that
    /// the expert cannot draw never passes.
    #[must_use]
    pub fn accepts(&self, r: f64, q: f64) -> bool {
        q > 0.0 && (r / q).min(1.0) > self.tau
    }
}

impl MergeRule for Cosec {
    fn with(parameters: &RuleParameters) -> Self {
        Self { tau: parameters.get(&TAU) }
    }

    fn description(&self) -> &'static RuleDescription {
        &DESCRIPTION
    }

    fn degenerate(&self) -> Option<DegenerateRule> {
        let to_base =
            DegenerateRule { to: WorkerRole::Base, parameter: TAU.name, value: self.tau, required: "less than 1" };
        (self.tau >= 1.0).then_some(to_base)
    }

    /// `q(x) A(x) + R p(x)`: A is the test, R the expert's mass on what fails it.
    fn distribution(&self, models: &PositionDistributions) -> Result<Distribution, MergeError> {
        let judge = models.acceptance_distribution()?;
        let (fallback, expert) = (models.fallback_distribution()?, models.expert_distribution()?);
        let accepts = |id, q| self.accepts(judge.probability(id), q);
        let rejected: f64 = expert.iter().filter(|&(id, q)| !accepts(id, q)).map(|(_, q)| q).sum();
        let accepted = |id, q| if accepts(id, q) { q } else { 0.0 };
        Ok(blend((expert, accepted), (fallback, |_, p| rejected * p))?)
    }

    fn decide(&self, models: &PositionDistributions, draws: &PositionRandom) -> Result<Verdict, MergeError> {
        let proposal = models.proposal(draws.draft())?;
        let p = models.judgement(proposal.id)?;
        if self.accepts(p, proposal.probability) {
            return Ok(Verdict { id: proposal.id, p: Some(p), q: Some(proposal.probability), rejected: None });
        }
        let own = models.fallback(draws.fallback())?;
        let rejected = RejectedProposal { id: proposal.id, p, q: proposal.probability };
        Ok(Verdict { id: own.id, p: Some(own.probability), q: None, rejected: Some(rejected) })
    }
}
