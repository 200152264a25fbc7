//! Log-probabilities of a token and of its most probable rivals.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use cosec_proto::sampling::Distribution;

use super::decision::TokenScore;

/// A token and its probability; the greater is the more probable, the lower id among equals.
#[derive(Clone, Copy, Debug)]
struct Rival {
    id: u32,
    probability: f64,
}

impl Ord for Rival {
    fn cmp(&self, other: &Self) -> Ordering {
        self.probability.total_cmp(&other.probability).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Rival {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rival {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rival {}

/// Scores `id` under `distribution`, with up to `alternatives` of the most probable ids (lower ids first among equals).
///
/// Takes memory for the alternatives only, however many tokens have mass: scores are kept until the client has them.
#[must_use]
pub fn score(distribution: &Distribution, id: u32, alternatives: usize) -> TokenScore {
    let mut best = BinaryHeap::with_capacity(alternatives.min(distribution.ids().len()));
    for (id, probability) in distribution.iter().filter(|&(_, probability)| probability > 0.0) {
        let rival = Reverse(Rival { id, probability });
        if best.len() < alternatives {
            best.push(rival);
        } else if let Some(mut least) = best.peek_mut()
            && rival < *least
        {
            *least = rival;
        }
    }
    let scored = |Reverse(Rival { id, probability }): Reverse<Rival>| (id, probability.ln());
    let alternatives = best.into_sorted_vec().into_iter().map(scored).collect();
    TokenScore { log_probability: distribution.probability(id).ln(), alternatives }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_come_first_and_nothing_else_is_kept() {
        let ids = 0..100_000;
        let probabilities = ids.clone().map(|id| f64::from(id % 1000) / 1e8).collect();
        let distribution = Distribution::from_support(ids.collect(), probabilities, 0.0).unwrap();
        for alternatives in [0, 1, 5, 20] {
            let score = score(&distribution, 7, alternatives);
            let best = [999, 1999, 2999].into_iter().take(alternatives).collect::<Vec<u32>>();
            let found: Vec<u32> = score.alternatives.iter().map(|&(id, _)| id).collect();
            assert!(found.starts_with(&best), "{found:?}");
            assert_eq!(found.len(), alternatives);
            assert!(score.alternatives.capacity() <= 2 * alternatives, "{}", score.alternatives.capacity());
            assert_eq!(score.log_probability, 7e-8f64.ln());
        }
    }

    #[test]
    fn tokens_without_mass_are_no_alternatives() {
        let distribution = Distribution::from_support(vec![1, 2, 4], vec![0.25, 0.75, 0.0], 0.0).unwrap();
        let TokenScore { log_probability, alternatives } = score(&distribution, 4, 20);
        assert_eq!(log_probability, f64::NEG_INFINITY);
        assert_eq!(alternatives, [(2, 0.75f64.ln()), (1, 0.25f64.ln())]);
    }
}
