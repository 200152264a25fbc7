//! What a client asks to change in the logits of both models before sampling parameters apply. What the base judges by
//! knows nothing of it.

use std::collections::{BTreeMap, HashMap};

/// Changes to logits, the same for base and expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitAdjustments {
    /// Subtracted once per earlier occurrence in the new tokens; in [-2, 2].
    pub frequency_penalty: f64,
    /// Subtracted when the token occurs in the new tokens; in [-2, 2].
    pub presence_penalty: f64,
    /// Added, by token id; in [-100, 100].
    pub logit_bias: BTreeMap<u32, f64>,
}

/// Says what changes at each position; keeps count of the new tokens.
#[derive(Clone, Debug)]
pub struct LogitAdjuster {
    adjustments: LogitAdjustments,
    /// Not to be drawn before so many new tokens.
    banned: Vec<u32>,
    min_tokens: u32,
    new_tokens: u32,
    occurrences: HashMap<u32, u32>,
}

/// Changes to the logits of one position, the same for base and expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitChanges {
    /// By token id, in this order: bias, then penalties.
    added: Vec<(u32, f64)>,
    /// Not to be drawn.
    banned: Vec<u32>,
}

/// Logits of which the adjustments left nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("logit_bias, the penalties and min_tokens together leave no token to draw")]
pub struct OverAdjusted;

impl LogitAdjuster {
    /// Bans `end_tokens` before `min_tokens` new tokens.
    #[must_use]
    pub fn new(adjustments: LogitAdjustments, end_tokens: Vec<u32>, min_tokens: u32) -> Self {
        Self { adjustments, banned: end_tokens, min_tokens, new_tokens: 0, occurrences: HashMap::new() }
    }

    /// Notes a new token.
    pub fn emitted(&mut self, id: u32) {
        self.new_tokens += 1;
        *self.occurrences.entry(id).or_default() += 1;
    }

    /// What changes at the next position.
    #[must_use]
    pub fn changes(&self) -> LogitChanges {
        let LogitAdjustments { frequency_penalty, presence_penalty, logit_bias } = &self.adjustments;
        let mut added: Vec<(u32, f64)> = logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
        if (*frequency_penalty, *presence_penalty) != (0.0, 0.0) {
            let penalty =
                |(&id, &count): (&u32, &u32)| (id, -frequency_penalty * f64::from(count) - presence_penalty);
            added.extend(self.occurrences.iter().map(penalty));
        }
        let banned = if self.new_tokens < self.min_tokens { self.banned.clone() } else { Vec::new() };
        LogitChanges { added, banned }
    }
}

impl LogitChanges {
    /// Whether all logits stay as they are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.banned.is_empty()
    }

    /// A changed copy of raw logits.
    ///
    /// # Errors
    /// [`OverAdjusted`] when no finite logit is left; `logits` held one before.
    pub fn apply(&self, logits: &[f32]) -> Result<Vec<f32>, OverAdjusted> {
        let mut changed = logits.to_vec();
        for &(id, by) in &self.added {
            if let Some(logit) = changed.get_mut(id as usize) {
                *logit = (f64::from(*logit) + by) as f32;
            }
        }
        for &id in &self.banned {
            if let Some(logit) = changed.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if changed.iter().any(|logit| logit.is_finite()) { Ok(changed) } else { Err(OverAdjusted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_penalties_and_ban_add_up() {
        let adjustments = LogitAdjustments {
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            logit_bias: [(0, 3.0), (9, 1.0)].into(),
        };
        let mut adjuster = LogitAdjuster::new(adjustments, vec![3], 3);
        adjuster.emitted(1);
        adjuster.emitted(1);
        let row = [1.0, 1.0, 1.0, 1.0];
        assert_eq!(adjuster.changes().apply(&row).unwrap(), [4.0, -0.25, 1.0, f32::NEG_INFINITY]);
        adjuster.emitted(2);
        assert_eq!(adjuster.changes().apply(&row).unwrap(), [4.0, -0.25, 0.25, 1.0]);
    }

    #[test]
    fn nothing_changes_unless_asked_for() {
        let mut adjuster = LogitAdjuster::new(LogitAdjustments::default(), vec![1], 0);
        adjuster.emitted(1);
        assert!(adjuster.changes().is_empty());
    }

    #[test]
    fn a_row_of_which_nothing_is_left_is_refused() {
        let adjuster = LogitAdjuster::new(LogitAdjustments::default(), vec![1], 1);
        assert_eq!(adjuster.changes().apply(&[f32::NEG_INFINITY, 2.0]), Err(OverAdjusted));
    }
}
