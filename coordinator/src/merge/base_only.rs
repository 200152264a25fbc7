//! The base alone: unhardened, for comparison.

use cosec_proto::sampling::Distribution;

use super::decision::{ChosenBy, Decision};
use super::evidence::PositionDistributions;
use super::rule::{MergeError, MergeRule, RuleNeeds, RuleParameters};
use super::transport::LogitsTransport;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

/// p, drawn with the numbers that a fallback takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BaseOnly;

impl MergeRule for BaseOnly {
    fn with(_: &RuleParameters) -> Self {
        Self
    }

    fn name(&self) -> &'static str {
        "base_only"
    }

    fn needs(&self) -> RuleNeeds {
        RuleNeeds {
            roles: &[WorkerRole::Base],
            judges: false,
            transports: &[LogitsTransport::Sample, LogitsTransport::Nucleus, LogitsTransport::Full],
        }
    }

    fn distribution(&self, models: &PositionDistributions) -> Result<Distribution, MergeError> {
        models.fallback_distribution().cloned()
    }

    fn decide(&self, models: &PositionDistributions, draws: &PositionRandom) -> Result<Decision, MergeError> {
        let own = models.fallback(draws.fallback())?;
        Ok(Decision { id: own.id, chosen_by: ChosenBy::Base, p: Some(own.probability), q: None, rejected: None })
    }
}
