//! The expert alone, for comparison.

use cosec_proto::sampling::Distribution;

use super::decision::Verdict;
use super::evidence::{MergeError, PositionDistributions};
use super::rule::{MergeRule, RuleDescription, RuleParameters};
use super::transport::LogitsTransport;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

const DESCRIPTION: RuleDescription = RuleDescription {
    name: "expert_only",
    parameters: &[],
    roles: &[WorkerRole::Expert],
    judges: false,
    transports: &[LogitsTransport::Sample, LogitsTransport::Nucleus, LogitsTransport::Full],
};

/// q, drawn with the numbers that a proposal takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertOnly;

impl MergeRule for ExpertOnly {
    fn with(_: &RuleParameters) -> Self {
        Self
    }

    fn description(&self) -> &'static RuleDescription {
        &DESCRIPTION
    }

    fn distribution(&self, models: &PositionDistributions) -> Result<Distribution, MergeError> {
        models.expert_distribution().cloned()
    }

    fn decide(&self, models: &PositionDistributions, draws: &PositionRandom) -> Result<Verdict, MergeError> {
        let proposal = models.proposal(draws.draft())?;
        Ok(Verdict { id: proposal.id, p: None, q: Some(proposal.probability), rejected: None })
    }
}
