//! The product of experts on raw logits: `DExperts` (Liu et al. 2021), proxy-tuning (Liu et al. 2024).

use cosec_proto::sampling::Distribution;

use super::{Lacking, Laws, MergeError, MergeRule, rejection};
use crate::request::Decision;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

/// `softmax(base + alpha (expert - anti-expert))` through the base's warp; without an anti-expert, `base + alpha expert`.
#[derive(Clone, Copy, Debug)]
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
    fn law(&self, laws: &Laws) -> Result<Distribution, MergeError> {
        let row = |role| laws.row(role).ok_or(Lacking::Row(role));
        let (base, expert) = (row(WorkerRole::Base)?, row(WorkerRole::Expert)?);
        let anti = laws.row(WorkerRole::AntiExpert);
        // Rows differ in length by padding: an id that a model does not know is ruled out by it.
        let at = |row: &[f32], id| row.get(id).copied().unwrap_or(f32::NEG_INFINITY);
        let blended: Vec<f32> = base
            .iter()
            .enumerate()
            .map(|(id, &logit)| self.logit(logit, at(expert, id), anti.map_or(0.0, |row| at(row, id))))
            .collect();
        Ok(Distribution::from_logits(&blended, &laws.warps().fallback)?)
    }

    fn decide(&self, laws: &Laws, draws: &PositionRandom) -> Result<Decision, MergeError> {
        rejection::decide(&self.law(laws)?, laws, draws)
    }
}
