//! What a client asks to change in the logits of both models before their warps.

use std::collections::HashMap;

use crate::request::Adjustments;

/// Changes rows of logits; keeps count of the new tokens.
#[derive(Clone, Debug)]
pub struct Adjuster {
    adjustments: Adjustments,
    /// Not to be drawn before so many new tokens.
    banned: Vec<u32>,
    min_tokens: u32,
    new_tokens: u32,
    occurrences: HashMap<u32, u32>,
}

/// A row of which the adjustments left nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("logit_bias, the penalties and min_tokens together leave no token to draw")]
pub struct OverAdjusted;

impl Adjuster {
    /// Bans `end_tokens` before `min_tokens` new tokens.
    #[must_use]
    pub fn new(adjustments: Adjustments, end_tokens: Vec<u32>, min_tokens: u32) -> Self {
        Self { adjustments, banned: end_tokens, min_tokens, new_tokens: 0, occurrences: HashMap::new() }
    }

    /// Notes a new token.
    pub fn emitted(&mut self, id: u32) {
        self.new_tokens += 1;
        *self.occurrences.entry(id).or_default() += 1;
    }

    /// Applies bias, then penalties, then the ban of end tokens to a row of raw logits.
    ///
    /// # Errors
    /// [`OverAdjusted`] when no finite logit is left; `row` held one before.
    pub fn adjust(&self, row: &mut [f32]) -> Result<(), OverAdjusted> {
        let mut change = |id: u32, by: f64| {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit = (f64::from(*logit) + by) as f32;
            }
        };
        for (&id, &bias) in &self.adjustments.logit_bias {
            change(id, bias);
        }
        for (&id, &count) in &self.occurrences {
            let frequency = self.adjustments.frequency_penalty * f64::from(count);
            change(id, -frequency - self.adjustments.presence_penalty);
        }
        if self.new_tokens < self.min_tokens {
            for &id in &self.banned {
                if let Some(logit) = row.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        if row.iter().any(|logit| logit.is_finite()) { Ok(()) } else { Err(OverAdjusted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_penalties_and_ban_add_up() {
        let adjustments =
            Adjustments { frequency_penalty: 0.5, presence_penalty: 0.25, logit_bias: [(0, 3.0), (9, 1.0)].into() };
        let mut adjuster = Adjuster::new(adjustments, vec![3], 3);
        adjuster.emitted(1);
        adjuster.emitted(1);
        let mut row = [1.0, 1.0, 1.0, 1.0];
        adjuster.adjust(&mut row).unwrap();
        assert_eq!(row, [4.0, -0.25, 1.0, f32::NEG_INFINITY]);
        adjuster.emitted(2);
        let mut row = [1.0, 1.0, 1.0, 1.0];
        adjuster.adjust(&mut row).unwrap();
        assert_eq!(row, [4.0, -0.25, 0.25, 1.0]);
    }

    #[test]
    fn a_row_of_which_nothing_is_left_is_refused() {
        let adjuster = Adjuster::new(Adjustments::default(), vec![1], 1);
        assert_eq!(adjuster.adjust(&mut [f32::NEG_INFINITY, 2.0]), Err(OverAdjusted));
    }
}
