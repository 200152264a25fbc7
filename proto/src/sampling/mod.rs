//! From logits to a token: sampling parameters, distribution, inverse CDF, and the random numbers.
//!
//! All arithmetic is f64 on f32 logits and has one order of operations, so that coordinator and worker, on whatever
//! device, compute the same bits from the same logits.
//!
//! **Sums.** The tokens from `512 c` to `512 c + 511` are chunk `c`. A token's number is added to lane `id % 8` of its
//! chunk, in the order of the ids; the lanes of a chunk are added in order, then the sums of the chunks. So chunks are
//! summed side by side, and tokens of weight zero may be left out.

mod params;

mod exp;

mod chunked_sum;

mod distribution;

mod processor;

mod random;

pub use distribution::{Distribution, InvalidLogits, InvalidSupport, TokenProbability};
pub use params::{InvalidSamplingParams, SamplingParams};
pub use processor::{LogitsProcessor, LogitsSums, token_probabilities};
pub use random::{DrawPurpose, PositionRandom, SamplingSeed};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::chunked_sum::{sum, sum_from};
    use super::distribution::draw;
    use super::processor::{checked_max, least_of_top_k, weigh};
    use super::*;

    /// Top-p as Hugging Face writes it: ascending, stable, cumulative.
    fn reference_top_p(logits: &[f32], temperature: f64, top_p: f64) -> Vec<u32> {
        let z: Vec<f64> = logits.iter().map(|&l| f64::from(l) / temperature).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = z.iter().map(|z| (z - max).exp()).sum();
        let mut order: Vec<usize> = (0..z.len()).collect();
        order.sort_by(|&a, &b| z[a].total_cmp(&z[b]));
        let mut cumulative = 0.0;
        let mut kept = Vec::new();
        for (rank, &at) in order.iter().enumerate() {
            cumulative += (z[at] - max).exp() / total;
            if cumulative > 1.0 - top_p || rank + 1 == order.len() {
                kept.push(at as u32);
            }
        }
        kept.sort_unstable();
        kept
    }

    proptest! {
        #[test]
        fn nucleus_is_the_ascending_rule(
            logits in proptest::collection::vec(-20f32..20.0, 1..1500),
            temperature in 0.1f64..3.0,
            top_p in 0.001f64..1.0,
        ) {
            let params = SamplingParams::new(temperature, top_p, 0).unwrap();
            let distribution = Distribution::from_logits(&logits, &params).unwrap();
            let expected = reference_top_p(&logits, temperature, top_p);
            prop_assert_eq!(distribution.ids(), &expected[..]);
            prop_assert!((distribution.probabilities().iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }

        #[test]
        fn impossible_tokens_are_never_drawn(
            weights in proptest::collection::vec(prop_oneof![Just(0.0), 1e-300f64..1.0], 1..1500),
            u in 0f64..1.0,
        ) {
            prop_assume!(weights.iter().any(|&w| w > 0.0));
            let id = draw(&(0..weights.len() as u32).collect::<Vec<_>>(), &weights, u);
            prop_assert!(weights[id as usize] > 0.0);
        }

        #[test]
        fn any_row_makes_a_distribution_or_an_error(bits in proptest::collection::vec(any::<u32>(), 0..64), t in 0f64..2.0) {
            let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            if let Ok(d) = Distribution::from_logits(&logits, &SamplingParams::new(t, 0.9, 3).unwrap()) {
                prop_assert!((d.probabilities().iter().sum::<f64>() - 1.0).abs() < 1e-9);
                prop_assert!(d.probability(d.sample(0.999_999)) > 0.0);
            }
        }
    }

    proptest! {
        #[test]
        fn a_processor_gives_the_same_bits_whatever_it_did_before(
            rows in proptest::collection::vec(proptest::collection::vec(-20f32..20.0, 1..900), 1..5),
            temperature in prop_oneof![Just(0.0), Just(1.0), 0.1f64..3.0],
            top_p in prop_oneof![Just(1.0), 0.001f64..1.0],
            top_k in prop_oneof![Just(0), 0..50_u32],
        ) {
            let params = SamplingParams::new(temperature, top_p, top_k).unwrap();
            let mut processor = LogitsProcessor::default();
            for row in &rows {
                let fresh = Distribution::from_logits(row, &params).unwrap();
                prop_assert_eq!(processor.process(row, &params).unwrap(), &fresh);
                let ids: Vec<u32> = (0..row.len() as u32 + 1).collect();
                let expected: Vec<u64> = ids.iter().map(|&id| fresh.probability(id).to_bits()).collect();
                let found = token_probabilities(&ids, row, &params).unwrap();
                prop_assert_eq!(found.iter().map(|token| token.probability.to_bits()).collect::<Vec<_>>(), expected);
            }
        }
    }

    proptest! {
        /// Chunks and lanes as the module has them, one number after the other.
        #[test]
        fn sums_go_by_chunk_and_lane(
            tokens in proptest::collection::btree_map(0u32..3000, prop_oneof![Just(0.0), 0f64..1.0], 1..2500),
            u in 0f64..1.0,
        ) {
            let mut chunks = vec![[0.0; 8]; 6];
            tokens.iter().for_each(|(&id, weight)| chunks[id as usize / 512][id as usize % 8] += weight);
            let chunks: Vec<f64> = chunks.iter().map(|lanes| lanes.iter().fold(0.0, |sum, lane| sum + lane)).collect();
            let total = chunks.iter().fold(0.0, |sum, chunk| sum + chunk);
            let (ids, weights): (Vec<u32>, Vec<f64>) = tokens.iter().unzip();
            prop_assert_eq!(sum(&ids, &weights).to_bits(), total.to_bits());
            let dense: Vec<f64> = (0..3000).map(|id| *tokens.get(&id).unwrap_or(&0.0)).collect();
            prop_assert_eq!(sum_from(0.0, &dense).to_bits(), total.to_bits());
            prop_assert_eq!(sum(&(0..3000).collect::<Vec<_>>(), &dense).to_bits(), total.to_bits());

            prop_assume!(total > 0.0);
            let (mut through, mut chunk) = (chunks[0], 0);
            while through <= u * total {
                chunk += 1;
                through += chunks[chunk];
            }
            let mut cumulative = chunks[..chunk].iter().fold(0.0, |sum, chunk| sum + chunk);
            let of_chunk = 512 * chunk as u32..512 * (chunk as u32 + 1);
            let possible = tokens.range(of_chunk).filter(|&(_, &weight)| weight > 0.0);
            let mut candidates = possible.clone().skip_while(|&(_, weight)| { cumulative += weight; cumulative <= u * total });
            let expected = candidates.next().or(possible.clone().next_back()).map(|(&id, _)| id);
            prop_assert_eq!(Some(draw(&ids, &weights, u)), expected);
        }

        #[test]
        fn the_tokens_that_matter_make_the_whole_distribution(
            logits in proptest::collection::vec(prop_oneof![8 => -20f32..20.0, 1 => Just(3.0), 1 => Just(f32::NEG_INFINITY)], 1..1500),
            temperature in prop_oneof![Just(1.0), 0.01f64..3.0],
            top_p in prop_oneof![Just(1.0), 0.001f64..1.0],
            top_k in prop_oneof![Just(0), 1..50_u32],
        ) {
            let params = SamplingParams::new(temperature, top_p, top_k).unwrap();
            let Ok(whole) = Distribution::from_logits(&logits, &params) else { return Ok(()) };
            let max = checked_max(&logits).unwrap();
            let mut weights = Vec::new();
            let total = weigh(&logits, max, &params, |some| weights.extend_from_slice(some));
            let least = match top_k {
                0 => params.least_share(logits.len()) * total * 0.999,
                k => least_of_top_k(&weights, &mut Vec::new(), k as usize),
            };
            let given: Vec<u32> = (0..logits.len() as u32).filter(|&id| weights[id as usize] >= least).collect();
            let some: Vec<f32> = given.iter().map(|&id| logits[id as usize]).collect();
            let sums = LogitsSums { max, total, vocabulary: logits.len() };
            let mut processor = LogitsProcessor::default();
            prop_assert_eq!(processor.process_partial(&sums, (&given, &some), &params), &whole);
        }
    }

    #[test]
    fn in_ties_the_lower_id_goes_first() {
        let distribution = Distribution::from_logits(&[0.0; 8], &SamplingParams::new(1.0, 0.5, 0).unwrap()).unwrap();
        assert_eq!(distribution.ids(), [4, 5, 6, 7]);
        let top =
            Distribution::from_logits(&[1.0, 3.0, 3.0, 2.0], &SamplingParams::new(1.0, 1.0, 1).unwrap()).unwrap();
        assert_eq!(top.ids(), [1, 2], "equals of the k-th stay");
    }

    #[test]
    fn greedy_takes_the_lowest_arg_max_and_tiny_temperatures_agree() {
        let logits = [1.0, 7.5, -3.0, 7.5];
        assert_eq!(Distribution::from_logits(&logits, &SamplingParams::GREEDY).unwrap().ids(), [1]);
        let cold =
            Distribution::from_logits(&[1.0, 7.5, 7.4], &SamplingParams::new(1e-300, 1.0, 0).unwrap()).unwrap();
        assert_eq!(cold.ids(), [1]);
    }

    #[test]
    fn draws_differ_by_every_part_of_their_name_and_repeat() {
        let base = SamplingSeed { seed: 7, sample: 0 };
        let u = base.uniform(DrawPurpose::Draft, 5);
        assert_eq!(u.to_bits(), base.uniform(DrawPurpose::Draft, 5).to_bits());
        assert_ne!(u, base.uniform(DrawPurpose::Fallback, 5));
        assert_ne!(u, base.uniform(DrawPurpose::Draft, 6));
        assert_ne!(u, SamplingSeed { seed: 8, sample: 0 }.uniform(DrawPurpose::Draft, 5));
        assert_ne!(u, SamplingSeed { seed: 7, sample: 1 }.uniform(DrawPurpose::Draft, 5));
    }

    #[test]
    fn draws_are_uniform() {
        let count = 100_000;
        let numbers = SamplingSeed { seed: 3407, sample: 2 };
        let mut bins = [0u32; 16];
        for position in 0..count {
            bins[(numbers.uniform(DrawPurpose::Fallback, position) * 16.0) as usize] += 1;
        }
        let expected = f64::from(count) / 16.0;
        let chi_square: f64 = bins.iter().map(|&seen| (f64::from(seen) - expected).powi(2) / expected).sum();
        // 15 degrees of freedom: P(chi-square > 56.5) = 1e-6.
        assert!(chi_square < 56.5, "{chi_square}");
    }
}
