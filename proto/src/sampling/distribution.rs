//! A distribution over token ids, and the draw from it by inverse CDF.

use super::chunked_sum::{chunks, sum, sum_of_chunk};

/// A distribution over token ids: its support in ascending order with probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    pub(super) ids: Vec<u32>,
    pub(super) probabilities: Vec<f64>,
    pub(super) log_normaliser: f64,
}

impl Distribution {
    /// Takes a support that was computed elsewhere.
    ///
    /// # Errors
    /// [`InvalidSupport`] unless `ids` are strictly ascending and as many as `probabilities`, which must be in
    /// [0, 1] and must not all be zero.
    pub fn from_support(ids: Vec<u32>, probabilities: Vec<f64>, log_normaliser: f64) -> Result<Self, InvalidSupport> {
        let ascending = ids.windows(2).all(|pair| pair[0] < pair[1]);
        let proper = probabilities.iter().all(|p| (0.0..=1.0).contains(p));
        let some = probabilities.iter().any(|&p| p > 0.0);
        if ids.len() == probabilities.len() && ascending && proper && some {
            Ok(Self { ids, probabilities, log_normaliser })
        } else {
            Err(InvalidSupport)
        }
    }

    /// Ids of the support, ascending.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Probabilities, in the order of [`Self::ids`].
    #[must_use]
    pub fn probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// Log of the sum of `exp(logit / temperature)` over the support.
    #[must_use]
    pub fn log_normaliser(&self) -> f64 {
        self.log_normaliser
    }

    /// Ids with their probabilities, ascending by id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f64)> + Clone + '_ {
        self.ids.iter().copied().zip(self.probabilities.iter().copied())
    }

    /// Probability of `id`; 0 outside the support.
    #[must_use]
    pub fn probability(&self, id: u32) -> f64 {
        self.ids.binary_search(&id).map_or(0.0, |at| self.probabilities[at])
    }

    /// The `cap` most probable tokens, lower ids first among equals, and whether these are all.
    #[must_use]
    pub fn most_probable(&self, cap: usize) -> (Self, bool) {
        let mut survivors: Vec<(u32, f64)> = self.iter().collect();
        let complete = survivors.len() <= cap;
        if !complete {
            survivors.select_nth_unstable_by(cap, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            survivors.truncate(cap);
            survivors.sort_unstable_by_key(|&(id, _)| id);
        }
        let (ids, probabilities) = survivors.into_iter().unzip();
        (Self { ids, probabilities, log_normaliser: self.log_normaliser }, complete)
    }

    /// The draw that belongs to `u` with its probability; see [`Self::sample`].
    #[must_use]
    pub fn sample_token(&self, u: f64) -> TokenProbability {
        let id = self.sample(u);
        TokenProbability { id, probability: self.probability(id) }
    }

    /// Ids and probabilities.
    pub(crate) fn into_support(self) -> (Vec<u32>, Vec<f64>) {
        (self.ids, self.probabilities)
    }

    /// The draw that belongs to `u` in [0, 1): the first id whose cumulative probability exceeds `u`.
    ///
    /// A token of probability zero is never drawn.
    #[must_use]
    pub fn sample(&self, u: f64) -> u32 {
        draw(&self.ids, &self.probabilities, u)
    }
}

/// A token and its probability under the distribution that was asked about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenProbability {
    /// Token id.
    pub id: u32,
    /// In [0, 1].
    pub probability: f64,
}

/// A support that is no distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ids must ascend and pair with probabilities in [0, 1] that are not all zero")]
pub struct InvalidSupport;

/// Logits that make no distribution; the model or its worker is broken.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidLogits {
    /// NaN or +inf.
    #[error("logit {index} is {value}")]
    Value {
        /// Token id.
        index: usize,
        /// What stands there.
        value: f32,
    },
    /// Empty, or every token has probability zero.
    #[error("no token has a finite logit")]
    NoSupport,
}

/// Draws from unnormalised `weights`, ascending by id, by inverse CDF: the first id whose cumulative weight exceeds `u`
/// of the total. Never draws a weight of zero while another is positive.
///
/// Cumulative weights are the sums of the chunks before, then one token after the other.
pub(super) fn draw(ids: &[u32], weights: &[f64], u: f64) -> u32 {
    let target = u * sum(ids, weights);
    let mut before = 0.0;
    for chunk in chunks(ids) {
        let (ids, weights) = (&ids[chunk.clone()], &weights[chunk]);
        let through = before + sum_of_chunk(ids, weights);
        if through > target {
            return walk(ids, weights, before, target);
        }
        before = through;
    }
    // There is no number between the target and the total.
    walk(ids, weights, 0.0, f64::INFINITY)
}

/// The first id whose weight and those before it and the weight `before` exceed `target`.
fn walk(ids: &[u32], weights: &[f64], before: f64, target: f64) -> u32 {
    let mut cumulative = before;
    let mut last_possible = 0;
    for (&id, &weight) in ids.iter().zip(weights) {
        cumulative += weight;
        if weight > 0.0 {
            if cumulative > target {
                return id;
            }
            // Rounding can leave the last sum at or below the target.
            last_possible = id;
        }
    }
    last_possible
}
