//! Holds the draws of every rule against the law that the rule states, by chi-square.

use crate::vectors::cases;
use cosec_coordinator::merge::{
    BaseOnly, Cosec, ExpertOnly, Hardening, Judge, Linear, LogitAdjuster, LogitAdjustments, LogitChanges, MergeRule,
    ModelEvidence, PositionDistributions, Product, RuleSampling, TokenQuestions, next_token,
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
    let warps = RuleSampling::new(SamplingParams::RAW, SamplingParams::RAW, Judge::Raw, false);
    let laws = PositionDistributions::new(Box::new(evidence), LogitChanges::default(), warps);
    assert!(laws.logits(WorkerRole::AntiExpert).unwrap().is_some());
    let law = Product { alpha: 2.0 }.distribution(&laws).unwrap();
    // Blended logits: 0 + 2 (1 - 0.5) = 1, 1 + 2 (0 - 0) = 1, ruled out, ruled out.
    assert_eq!(law.ids(), [0, 1]);
    assert_eq!(law.probabilities(), [0.5, 0.5]);
    check(&[("product", Box::new(Product { alpha: 2.0 }))], "anti-expert", &laws, 1);
}

fn rows(rows: [&[f32]; 2]) -> Box<[ModelEvidence; 3]> {
    let row = |row: &[f32]| ModelEvidence { logits: Some(row.to_vec()), ..ModelEvidence::default() };
    Box::new([row(rows[0]), row(rows[1]), ModelEvidence::default()])
}

fn draws(position: u32) -> PositionRandom {
    PositionRandom { seed: SamplingSeed { seed: 1, sample: 0 }, position }
}

#[test]
fn a_greedy_base_judges_by_its_raw_softmax_and_falls_back_to_its_arg_max() {
    // The expert's arg max has 0.25 of the base's raw mass.
    let base = [2f32.ln(), 0.0, 0.0];
    for judge in [Judge::Raw, Judge::Warped] {
        let sampling = RuleSampling::new(SamplingParams::GREEDY, SamplingParams::GREEDY, judge, false);
        let decide = |tau: f64| {
            let laws = PositionDistributions::new(rows([&base, &[0.0, 1.0, 2.0]]), LogitChanges::default(), sampling);
            Cosec { tau }.decide(&laws, &draws(9)).unwrap().id
        };
        assert_eq!(decide(0.2), 2);
        assert_eq!(decide(0.3), 0);
    }
}

#[test]
fn what_a_client_asks_to_change_is_drawn_from_and_never_judges() {
    let (base, expert) = ([2f32.ln(), 0.0, 0.0, -1.0], [0.0, 1.0, 3.0, 2.0]);
    let logit_bias = [(0, 9.0), (2, -4.0)].into();
    let adjuster = LogitAdjuster::new(LogitAdjustments { logit_bias, ..LogitAdjustments::default() }, vec![3], 1);
    let client = SamplingParams::new(0.3, 0.9, 2).unwrap();
    let of_expert = SamplingParams::new(0.7, 1.0, 0).unwrap();
    let laws = |judge| {
        let sampling = RuleSampling::new(client, of_expert, judge, false);
        PositionDistributions::new(rows([&base, &expert]), adjuster.changes(), sampling)
    };
    let law = |row: &[f32], params: &SamplingParams| Distribution::from_logits(row, params).unwrap();
    let (changed_base, changed_expert) =
        ([2f32.ln() + 9.0, 0.0, -4.0, f32::NEG_INFINITY], [9.0, 1.0, -1.0, f32::NEG_INFINITY]);
    let raw = laws(Judge::Raw);
    assert_eq!(raw.acceptance_distribution().unwrap(), &law(&base, &SamplingParams::RAW));
    assert_eq!(raw.raw_distribution().unwrap(), &law(&base, &SamplingParams::RAW));
    assert_eq!(raw.fallback_distribution().unwrap(), &law(&changed_base, &client));
    assert_eq!(raw.expert_distribution().unwrap(), &law(&changed_expert, &of_expert));
    assert_eq!(laws(Judge::Warped).acceptance_distribution().unwrap(), &law(&changed_base, &client));
    // A token that is banned is never drawn, by whatever rule.
    let rules: [Box<dyn MergeRule>; 5] = [
        Box::new(Cosec { tau: 0.0 }),
        Box::new(Linear { lambda: 0.5 }),
        Box::new(Product { alpha: 1.0 }),
        Box::new(BaseOnly),
        Box::new(ExpertOnly),
    ];
    for rule in rules {
        assert_eq!(rule.distribution(&raw).unwrap().probability(3), 0.0, "{rule:?}");
    }
}

/// The expert prefers token 1, which the base's raw softmax lets pass; each client's sampling leaves the base but its
/// arg max, token 0.
#[test]
fn no_sampling_of_a_client_keeps_an_accepted_proposal_out() {
    let clients = [(1.0, 1.0, 1), (1.0, 1e-9, 0), (1e-6, 1.0, 0), (0.0, 1.0, 0)];
    for (temperature, top_p, top_k) in clients {
        let client = SamplingParams::new(temperature, top_p, top_k).unwrap();
        let law = |judge, rule: &dyn MergeRule| {
            let sampling = RuleSampling::new(client, SamplingParams::RAW, judge, false);
            let evidence = rows([&[1.0, 0.9], &[-3.0, 3.0]]);
            let models = PositionDistributions::new(evidence, LogitChanges::default(), sampling);
            rule.distribution(&models).unwrap().probability(1)
        };
        let q = 1.0 / (1.0 + (-6f64).exp());
        assert!((law(Judge::Raw, &Cosec { tau: 0.3 }) - q).abs() < 1e-9, "{client:?}");
        if temperature > 0.0 {
            assert_eq!(law(Judge::Warped, &Cosec { tau: 0.3 }), 0.0, "{client:?}");
        }
        assert!(law(Judge::Raw, &Linear { lambda: 0.5 }) >= 0.5 * q, "{client:?}");
        // Sampling parameters apply to the blend, whose arg max is the expert's.
        assert!(law(Judge::Raw, &Product { alpha: 1.0 }) > 0.9, "{client:?}");
        assert_eq!(law(Judge::Raw, &BaseOnly), 0.0, "{client:?}");
    }
}

#[test]
fn hardening_is_what_the_base_s_own_draw_says() {
    let sampling = RuleSampling::new(SamplingParams::RAW, SamplingParams::RAW, Judge::Raw, false);
    let of = |rule: &dyn MergeRule| {
        let mut counts = [0; 3];
        for position in 0..2000 {
            let evidence = rows([&[1.0, 0.5, 0.0], &[0.0, 2.0, -1.0]]);
            let models = PositionDistributions::new(evidence, LogitChanges::default(), sampling);
            let asked = TokenQuestions { hardening: true, law: true, alternatives: Some(1) };
            let (decision, score) = next_token(rule, &models, &draws(position), asked).unwrap();
            let own = BaseOnly.decide(&models, &draws(position)).unwrap().id;
            let refused = decision.rejected.is_some();
            let at = match decision.hardening.unwrap() {
                Hardening::Agreed => (decision.id == own && !refused, 0),
                Hardening::Expert => (decision.id != own, 1),
                Hardening::Base => (decision.id == own, 2),
            };
            assert!(at.0, "{decision:?}, own {own}");
            counts[at.1] += 1;
            assert_eq!(decision.law, Some(rule.distribution(&models).unwrap().probability(decision.id)));
            let raw = models.raw_distribution().unwrap().probability(decision.id);
            assert_eq!(score.unwrap().log_probability, raw.ln());
        }
        counts
    };
    assert_eq!(of(&BaseOnly), [0, 0, 2000]);
    assert!(of(&Cosec { tau: 0.5 }).iter().all(|&count| count > 100));
    let [agreed, expert, base] = of(&ExpertOnly);
    assert!(agreed > 100 && expert > 100 && base == 0);
    let [agreed, expert, _] = of(&Linear { lambda: 0.5 });
    assert!(agreed > 100 && expert > 100);
    let [agreed, expert, _] = of(&Product { alpha: 1.0 });
    assert!(agreed > 100 && expert > 100);
    assert_eq!(of(&Cosec { tau: 1.0 }), [0, 0, 2000]);
}
