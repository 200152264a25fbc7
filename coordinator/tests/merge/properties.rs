//! What must hold of the rules for all rows and settings.

use cosec_coordinator::merge::{
    BaseOnly, Cosec, ExpertOnly, Judge, Linear, LogitChanges, MergeRule, ModelEvidence, PositionDistributions,
    Product, RuleSampling,
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

fn judge() -> impl Strategy<Value = Judge> {
    prop_oneof![3 => Just(Judge::Raw), 1 => Just(Judge::Warped)]
}

fn models(base: Vec<f32>, expert: Vec<f32>, sampling: RuleSampling) -> PositionDistributions {
    let row = |row| ModelEvidence { logits: Some(row), ..ModelEvidence::default() };
    let evidence = [row(base), row(expert), ModelEvidence::default()];
    PositionDistributions::new(Box::new(evidence), LogitChanges::default(), sampling)
}

fn laws() -> impl Strategy<Value = PositionDistributions> {
    (logits(), logits(), warp(), warp(), judge(), prop::bool::weighted(0.1)).prop_map(
        |(base, expert, client, of_expert, judge, reference_code)| {
            models(base, expert, RuleSampling::new(client, of_expert, judge, reference_code))
        },
    )
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

    /// The floor of hardening: what a client asks for its sampling changes p and nothing else, so each rule keeps the
    /// mass that the expert has in it.
    #[test]
    fn no_sampling_of_a_client_takes_from_the_expert_s_mass(
        base in logits(), expert in logits(), clients in (warp(), warp()), of_expert in warp(),
        tau in 0.0f64..1.0, lambda in 0.01f64..=1.0,
    ) {
        let of = |client| {
            models(base.clone(), expert.clone(), RuleSampling::new(client, of_expert, Judge::Raw, false))
        };
        let (one, other) = (of(clients.0), of(clients.1));
        let raw = one.raw_distribution().unwrap();
        prop_assert_eq!(raw, other.acceptance_distribution().unwrap());
        let rule = Cosec { tau };
        let (hardened, mixed) = (rule.distribution(&one).unwrap(), Linear { lambda }.distribution(&one).unwrap());
        for (id, q) in one.expert_distribution().unwrap().iter() {
            let accepted = if rule.accepts(raw.probability(id), q) { q } else { 0.0 };
            prop_assert!(hardened.probability(id) >= accepted - 1e-12, "{id}");
            prop_assert!(mixed.probability(id) >= lambda * q - 1e-12, "{id}");
        }
    }

    /// `product` has no such mass, as sampling parameters cut the blend. What it adds to the odds of two tokens stays:
    /// the arg max under any sampling is the blend's.
    #[test]
    fn no_sampling_of_a_client_changes_the_arg_max_of_product(
        base in logits(), expert in logits(), client in warp(), of_expert in warp(), alpha in 0.1f64..3.0,
    ) {
        let of = |client| {
            models(base.clone(), expert.clone(), RuleSampling::new(client, of_expert, Judge::Raw, false))
        };
        let best = |client| Product { alpha }.distribution(&of(client)).unwrap();
        let all = best(SamplingParams::RAW);
        let most = all.probabilities().iter().copied().fold(0.0, f64::max);
        let cut = best(client);
        let most_left = cut.probabilities().iter().copied().fold(0.0, f64::max);
        let kept = cut.iter().any(|(id, p)| p == most_left && (all.probability(id) - most).abs() < 1e-12);
        prop_assert!(kept, "{client:?}");
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
