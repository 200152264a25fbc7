//! The product of experts on raw logits: `DExperts` (Liu et al. 2021), proxy-tuning (Liu et al. 2024).

use cosec_proto::sampling::Distribution;

use super::decision::Verdict;
use super::evidence::{MergeError, MissingEvidence, PositionDistributions};
use super::rejection;
use super::rule::{DegenerateRule, MergeRule, RuleDescription, RuleParameter, RuleParameters, WeakeningSide};
use super::transport::LogitsTransport;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

const ALPHA: RuleParameter = RuleParameter {
    name: "alpha",
    documentation: "Weight of the expert's logits in `product`.",
    default: 1.0,
    // Beyond it logits would meet at the ends of f32, and the arg max would be the first of equals.
    range: -1000.0..=1000.0,
    allowed: "from -1000 to 1000",
    weakens: WeakeningSide::Down,
};

const DESCRIPTION: RuleDescription = RuleDescription {
    name: "product",
    parameters: &[ALPHA],
    roles: &WorkerRole::ALL,
    judges: false,
    transports: &[LogitsTransport::Full],
};

/// `softmax(base + alpha (expert - anti-expert))` through the base's sampling parameters; without an anti-expert, `base
/// + alpha expert`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Finite.
    pub alpha: f64,
}

impl Product {
    /// One blended logit. What base or expert rule out stays out; what the anti-expert rules out (or does not know)
    /// it has no say in.
    fn logit(&self, base: f32, expert: f32, anti: f32) -> f32 {
        if self.alpha == 0.0 {
            return base;
        }
        if base == f32::NEG_INFINITY || expert == f32::NEG_INFINITY {
            return f32::NEG_INFINITY;
        }
        let anti = if anti == f32::NEG_INFINITY { 0.0 } else { anti };
        let sum = f64::from(base) + self.alpha * (f64::from(expert) - f64::from(anti));
        // A huge alpha must not reach infinity, which is no logit.
        sum.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
    }
}

impl MergeRule for Product {
    fn with(parameters: &RuleParameters) -> Self {
        Self { alpha: parameters.get(&ALPHA) }
    }

    fn description(&self) -> &'static RuleDescription {
        &DESCRIPTION
    }

    /// A negative weight turns the expert against its purpose: no better than the base alone.
    fn degenerate(&self) -> Option<DegenerateRule> {
        let to_base = DegenerateRule {
            to: WorkerRole::Base,
            parameter: ALPHA.name,
            value: self.alpha,
            required: "greater than 0",
        };
        (self.alpha <= 0.0).then_some(to_base)
    }

    fn distribution(&self, models: &PositionDistributions) -> Result<Distribution, MergeError> {
        let logits = |role| Ok::<_, MergeError>(models.logits(role)?.ok_or(MissingEvidence::Logits(role))?);
        let (base, expert) = (logits(WorkerRole::Base)?, logits(WorkerRole::Expert)?);
        let anti = models.logits(WorkerRole::AntiExpert)?;
        // Vocabularies differ in length by padding: an id that a model does not know is ruled out by it.
        let at = |logits: &[f32], id| logits.get(id).copied().unwrap_or(f32::NEG_INFINITY);
        let blended: Vec<f32> = base
            .iter()
            .enumerate()
            .map(|(id, &logit)| self.logit(logit, at(expert, id), anti.map_or(0.0, |logits| at(logits, id))))
            .collect();
        Ok(Distribution::from_logits(&blended, &models.sampling().fallback)?)
    }

    fn decide(&self, models: &PositionDistributions, draws: &PositionRandom) -> Result<Verdict, MergeError> {
        rejection::decide(&self.distribution(models)?, models, draws)
    }
}
