//! Log-probabilities of a token and of its most probable rivals.

use cosec_proto::sampling::Distribution;

use super::decision::TokenScore;

/// Scores `id` under `distribution`, with up to `alternatives` of the most probable ids (lower ids first among equals).
#[must_use]
pub fn score(distribution: &Distribution, id: u32, alternatives: usize) -> TokenScore {
    let mut rivals: Vec<(u32, f64)> = distribution.iter().filter(|&(_, probability)| probability > 0.0).collect();
    let best_first = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if alternatives < rivals.len() {
        rivals.select_nth_unstable_by(alternatives, best_first);
        rivals.truncate(alternatives);
    }
    rivals.sort_unstable_by(best_first);
    for (_, probability) in &mut rivals {
        *probability = probability.ln();
    }
    TokenScore { log_probability: distribution.probability(id).ln(), alternatives: rivals }
}
