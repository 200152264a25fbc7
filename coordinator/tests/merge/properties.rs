//! What must hold of the rules for all rows and settings.

use cosec_coordinator::merge::{
    BaseOnly, Cosec, ExpertOnly, Linear, MergeRule, ModelEvidence, PositionDistributions, Product, RuleSampling,
};
use cosec_proto::sampling::PositionRandom;
use cosec_proto::sampling::{SamplingParams, SamplingSeed};
use proptest::prelude::*;

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![6 => -30.0f32..30.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(1.5f32)];
    (proptest::collection::vec(logit, 1..40), any::<prop::sample::Index>(), -5.0f32..5.0).prop_map(
        |(mut row, finite, value)| {
            // The common first token keeps blends possible.
            row[0] = value;
            let at = finite.index(row.len());
            row[at] = value;
            row
        },
    )
}

fn warp() -> impl Strategy<Value = SamplingParams> {
    (prop_oneof![Just(0.0), Just(1.0), 0.05f64..3.0], prop_oneof![Just(1.0), 0.01f64..1.0], 0u32..6)
        .prop_map(|(temperature, top_p, top_k)| SamplingParams::new(temperature, top_p, top_k).unwrap())
}

fn laws() -> impl Strategy<Value = PositionDistributions> {
    (logits(), logits(), warp(), warp()).prop_map(|(base, expert, fallback, of_expert)| {
        let row = |row| ModelEvidence { logits: Some(row), ..ModelEvidence::default() };
        let judged = if fallback.temperature() == 0.0 { SamplingParams::RAW } else { fallback };
        let warps = RuleSampling { acceptance: judged, fallback, expert: of_expert };
        PositionDistributions::new(Box::new([row(base), row(expert), ModelEvidence::default()]), warps)
    })
}

fn rules(tau: f64, lambda: f64, alpha: f64) -> [Box<dyn MergeRule>; 5] {
    [
        Box::new(Cosec { tau }),
        Box::new(Linear { lambda }),
        Box::new(Product { alpha }),
        Box::new(BaseOnly),
        Box::new(ExpertOnly),
    ]
}

proptest! {
    #[test]
    fn laws_sum_to_one_and_only_tokens_with_mass_are_drawn(
        laws in laws(), tau in 0.0f64..1.2, lambda in 0.0f64..=1.0, alpha in -2.0f64..2.0, seed in any::<u64>(),
    ) {
        for rule in rules(tau, lambda, alpha) {
            let law = rule.distribution(&laws).unwrap();
            let mass: f64 = law.probabilities().iter().sum();
            prop_assert!((mass - 1.0).abs() < 1e-9, "mass {mass}");
            for position in 0..20 {
                let draws = PositionRandom { seed: SamplingSeed { seed, sample: 3 }, position };
                let id = rule.decide(&laws, &draws).unwrap().id;
                prop_assert!(law.probability(id) > 0.0, "drew {id}");
            }
        }
    }

    #[test]
    fn from_tau_one_on_the_law_is_the_base_s(laws in laws(), tau in 1.0f64..3.0) {
        let law = Cosec { tau }.distribution(&laws).unwrap();
        let base = laws.fallback_distribution().unwrap();
        prop_assert_eq!(law.ids(), base.ids());
        for (id, p) in base.iter() {
            prop_assert!((law.probability(id) - p).abs() < 1e-12);
        }
    }

    #[test]
    fn at_tau_zero_every_proposal_that_the_base_gives_mass_keeps_it(laws in laws()) {
        let law = Cosec { tau: 0.0 }.distribution(&laws).unwrap();
        for (id, q) in laws.expert_distribution().unwrap().iter() {
            // Ratios below the smallest number count as zero.
            if laws.acceptance_distribution().unwrap().probability(id) / q > 0.0 {
                prop_assert!(law.probability(id) >= q - 1e-12);
            }
        }
    }

    #[test]
    fn the_ends_of_linear_are_base_and_expert(laws in laws()) {
        let base = Linear { lambda: 0.0 }.distribution(&laws).unwrap();
        prop_assert_eq!(base.ids(), laws.fallback_distribution().unwrap().ids());
        let expert = Linear { lambda: 1.0 }.distribution(&laws).unwrap();
        prop_assert_eq!(expert.probabilities(), laws.expert_distribution().unwrap().probabilities());
    }

    #[test]
    fn product_without_weight_is_the_base(laws in laws()) {
        let law = Product { alpha: 0.0 }.distribution(&laws).unwrap();
        prop_assert_eq!(&law, laws.fallback_distribution().unwrap());
    }
}
