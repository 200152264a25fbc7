//! Holds the draws of every rule against the law that the rule states, by chi-square.

use crate::vectors::cases;
use cosec_coordinator::merge::{
    BaseOnly, Cosec, ExpertOnly, Linear, MergeRule, ModelEvidence, PositionDistributions, Product, RuleSampling,
};
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;
use cosec_proto::sampling::{Distribution, SamplingParams, SamplingSeed};
use statrs::distribution::{ChiSquared, ContinuousCDF};

const SAMPLES: u32 = 200_000;
const SEED: u64 = 3407;
/// Of a false alarm over all cases of a test together.
const FALSE_ALARM: f64 = 1e-7;

/// Draws as production does and returns the chi-square p-value against `law`.
fn p_value(name: &str, rule: &dyn MergeRule, laws: &PositionDistributions, law: &Distribution) -> f64 {
    let mut counts = vec![0u32; law.ids().len()];
    for position in 0..SAMPLES {
        let draws = PositionRandom { seed: SamplingSeed { seed: SEED, sample: 0 }, position };
        let id = rule.decide(laws, &draws).unwrap().id;
        let at = law.ids().binary_search(&id);
        counts[at.unwrap_or_else(|_| panic!("{name}: drew {id}, which has no mass"))] += 1;
    }
    let expected = |probability: f64| probability * f64::from(SAMPLES);
    let mut bins = Vec::new();
    let mut pooled = (0.0, 0.0);
    for ((_, probability), &count) in law.iter().zip(&counts) {
        if expected(probability) < 5.0 {
            pooled = (pooled.0 + expected(probability), pooled.1 + f64::from(count));
        } else {
            bins.push((expected(probability), f64::from(count)));
        }
    }
    if pooled.0 >= 5.0 {
        bins.push(pooled);
    } else if let Some(last) = bins.last_mut() {
        *last = (last.0 + pooled.0, last.1 + pooled.1);
    }
    if bins.len() < 2 {
        return 1.0;
    }
    let statistic: f64 = bins.iter().map(|(wanted, got)| (got - wanted).powi(2) / wanted).sum();
    ChiSquared::new((bins.len() - 1) as f64).unwrap().sf(statistic)
}

fn check(rules: &[(&str, Box<dyn MergeRule>)], name: &str, laws: &PositionDistributions, of: usize) {
    for (rule_name, rule) in rules {
        let law = rule.distribution(laws).unwrap();
        let mass: f64 = law.probabilities().iter().sum();
        assert!((mass - 1.0).abs() < 1e-9, "{name}: the law of {rule_name} has mass {mass}");
        let p = p_value(name, rule.as_ref(), laws, &law);
        assert!(p > FALSE_ALARM / of as f64, "{name}, {rule_name}, seed {SEED}: chi-square p-value {p:e}");
    }
}

#[test]
fn cosec_draws_its_law_in_every_golden_case() {
    let cases = cases();
    for case in &cases {
        let rule: Box<dyn MergeRule> = Box::new(Cosec { tau: case.params.tau });
        check(&[("cosec", rule)], &case.name, &case.laws(), cases.len());
    }
}

#[test]
fn the_other_rules_draw_their_laws_in_every_small_golden_case() {
    let cases: Vec<_> = cases().into_iter().filter(|case| case.vocab_size <= 128).collect();
    for case in &cases {
        let rules: [(&str, Box<dyn MergeRule>); 4] = [
            ("linear", Box::new(Linear { lambda: 0.3 })),
            ("product", Box::new(Product { alpha: 0.5 })),
            ("base_only", Box::new(BaseOnly)),
            ("expert_only", Box::new(ExpertOnly)),
        ];
        // The blend of a case with one-sided -inf can rule everything out; cases keep a common token.
        check(&rules, &case.name, &case.laws(), 4 * cases.len());
    }
}

#[test]
fn product_subtracts_the_anti_expert() {
    let row = |logits: [f32; 4]| ModelEvidence { logits: Some(logits.to_vec()), ..ModelEvidence::default() };
    let evidence = [
        row([0.0, 1.0, 2.0, f32::NEG_INFINITY]),
        row([1.0, 0.0, f32::NEG_INFINITY, 5.0]),
        row([0.5, f32::NEG_INFINITY, 0.0, 0.0]),
    ];
    let warps =
        RuleSampling { acceptance: SamplingParams::RAW, fallback: SamplingParams::RAW, expert: SamplingParams::RAW };
    let laws = PositionDistributions::new(Box::new(evidence), warps);
    assert!(laws.logits(WorkerRole::AntiExpert).is_some());
    let law = Product { alpha: 2.0 }.distribution(&laws).unwrap();
    // Blended logits: 0 + 2 (1 - 0.5) = 1, 1 + 2 (0 - 0) = 1, ruled out, ruled out.
    assert_eq!(law.ids(), [0, 1]);
    assert_eq!(law.probabilities(), [0.5, 0.5]);
    check(&[("product", Box::new(Product { alpha: 2.0 }))], "anti-expert", &laws, 1);
}

#[test]
fn a_greedy_base_judges_by_its_raw_softmax_and_falls_back_to_its_arg_max() {
    let row = |logits: [f32; 3]| ModelEvidence { logits: Some(logits.to_vec()), ..ModelEvidence::default() };
    let warps = RuleSampling {
        acceptance: SamplingParams::RAW,
        fallback: SamplingParams::GREEDY,
        expert: SamplingParams::GREEDY,
    };
    let decide = |tau: f64, base: [f32; 3]| {
        let laws =
            PositionDistributions::new(Box::new([row(base), row([0.0, 1.0, 2.0]), ModelEvidence::default()]), warps);
        let draws = PositionRandom { seed: SamplingSeed { seed: 1, sample: 0 }, position: 9 };
        Cosec { tau }.decide(&laws, &draws).unwrap()
    };
    // The expert's arg max has 0.25 of the base's raw mass.
    let base = [2f32.ln(), 0.0, 0.0];
    assert_eq!(decide(0.2, base).id, 2);
    assert_eq!(decide(0.3, base).id, 0);
}
