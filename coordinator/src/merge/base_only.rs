//! The base alone: unhardened, for comparison.

use cosec_proto::sampling::Distribution;

use super::decision::Verdict;
use super::evidence::{MergeError, PositionDistributions};
use super::rule::{MergeRule, RuleDescription, RuleParameters};
use super::transport::LogitsTransport;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

const DESCRIPTION: RuleDescription = RuleDescription {
    name: "base_only",
    parameters: &[],
    roles: &[WorkerRole::Base],
    judges: false,
    transports: &[LogitsTransport::Sample, LogitsTransport::Nucleus, LogitsTransport::Full],
};

/// p, drawn with the numbers that a fallback takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BaseOnly;

impl MergeRule for BaseOnly {
    fn with(_: &RuleParameters) -> Self {
        Self
    }

    fn description(&self) -> &'static RuleDescription {
        &DESCRIPTION
    }

    fn distribution(&self, models: &PositionDistributions) -> Result<Distribution, MergeError> {
        models.fallback_distribution().cloned()
    }

    fn decide(&self, models: &PositionDistributions, draws: &PositionRandom) -> Result<Verdict, MergeError> {
        let own = models.fallback(draws.fallback())?;
        Ok(Verdict { id: own.id, p: Some(own.probability), q: None, rejected: None })
    }
}
