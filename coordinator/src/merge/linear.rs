//! The mixture of both distributions.

use cosec_proto::sampling::Distribution;

use super::blend::blend;
use super::decision::Verdict;
use super::evidence::{MergeError, PositionDistributions};
use super::rejection;
use super::rule::{DegenerateRule, MergeRule, RuleDescription, RuleParameter, RuleParameters, WeakeningSide};
use super::transport::LogitsTransport;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

const LAMBDA: RuleParameter = RuleParameter {
    name: "lambda",
    documentation: "Weight of the expert in `linear`.",
    default: 0.5,
    range: 0.0..=1.0,
    allowed: "from 0 to 1",
    weakens: WeakeningSide::Down,
};

const DESCRIPTION: RuleDescription = RuleDescription {
    name: "linear",
    parameters: &[LAMBDA],
    roles: &[WorkerRole::Base, WorkerRole::Expert],
    judges: false,
    transports: &[LogitsTransport::Nucleus, LogitsTransport::Full],
};

/// `lambda q + (1 - lambda) p`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Weight of the expert, in [0, 1].
    pub lambda: f64,
}

impl MergeRule for Linear {
    fn with(parameters: &RuleParameters) -> Self {
        Self { lambda: parameters.get(&LAMBDA) }
    }

    fn description(&self) -> &'static RuleDescription {
        &DESCRIPTION
    }

    fn degenerate(&self) -> Option<DegenerateRule> {
        let at = |to, required| Some(DegenerateRule { to, parameter: LAMBDA.name, value: self.lambda, required });
        match self.lambda {
            ..=0.0 => at(WorkerRole::Base, "greater than 0"),
            1.0.. => at(WorkerRole::Expert, "less than 1"),
            _ => None,
        }
    }

    fn distribution(&self, models: &PositionDistributions) -> Result<Distribution, MergeError> {
        let of_expert = |_, q| self.lambda * q;
        let of_base = |_, p| (1.0 - self.lambda) * p;
        Ok(blend((models.expert_distribution()?, of_expert), (models.fallback_distribution()?, of_base))?)
    }

    fn decide(&self, models: &PositionDistributions, draws: &PositionRandom) -> Result<Verdict, MergeError> {
        rejection::decide(&self.distribution(models)?, models, draws)
    }
}
