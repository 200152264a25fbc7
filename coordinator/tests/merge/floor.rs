//! The operator's policy as a floor: no request within its bounds decodes as the base where the operator's own values do
//! not.

use cosec_coordinator::merge::{
    BaseOnly, Judge, LogitAdjuster, LogitAdjustments, LogitChanges, MergeRule, ModelEvidence, PositionDistributions,
    RuleParameters, RuleSampling,
};
use cosec_coordinator::policy::{DefaultSettings, OperatorPolicy, PolicyConfig, TenantPolicy, rule_named};
use cosec_proto::sampling::{Distribution, SamplingParams};
use proptest::prelude::*;

/// Logits of 12 tokens, no two of them the same.
fn row() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-8.0f32..8.0, 12)
}

/// What clients may ask for of the base, with what once switched hardening off.
fn client() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![Just(0.0), Just(1.0), Just(1e-6), 0.05f64..3.0];
    let top_p = prop_oneof![2 => Just(1.0), 1 => Just(1e-9), 2 => 0.01f64..1.0];
    (temperature, top_p, 0u32..4)
        .prop_map(|(temperature, top_p, top_k)| SamplingParams::new(temperature, top_p, top_k).unwrap())
}

/// A bias for a few tokens.
fn changes() -> impl Strategy<Value = LogitChanges> {
    let biases = prop::collection::btree_map(0u32..12, -100.0f64..100.0, 0..3);
    prop_oneof![3 => Just(LogitChanges::default()), 1 => biases.prop_map(|logit_bias| {
        let adjustments = LogitAdjustments { logit_bias, ..LogitAdjustments::default() };
        LogitAdjuster::new(adjustments, Vec::new(), 0).changes()
    })]
}

/// The parameter of a rule: the operator's value, and one that a client may name.
fn parameter() -> impl Strategy<Value = (&'static str, &'static str, f64, f64)> {
    let tau =
        (0.0f64..1.0, prop_oneof![0.0f64..1.5, Just(0.999_999_9)]).prop_map(|(own, of)| ("cosec", "tau", own, of));
    let lambda =
        (0.01f64..1.0, prop_oneof![0.0f64..=1.0, Just(1e-12)]).prop_map(|(own, of)| ("linear", "lambda", own, of));
    let alpha = (0.01f64..4.0, prop_oneof![-1.0f64..8.0, Just(1e-12), Just(1000.0)])
        .prop_map(|(own, of)| ("product", "alpha", own, of));
    prop_oneof![tau, lambda, alpha]
}

/// Half the sum of what differs.
fn distance(a: &Distribution, b: &Distribution) -> f64 {
    (0..12).map(|id| (a.probability(id) - b.probability(id)).abs()).sum::<f64>() / 2.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_legal_request_decodes_as_the_base_where_the_operator_s_own_values_do_not(
        rows in (row(), row(), row()), compares in any::<bool>(), client in client(), changes in changes(),
        judge in prop_oneof![3 => Just(Judge::Raw), 1 => Just(Judge::Warped)],
        (rule, name, own, asked) in parameter(),
    ) {
        let parameters = |value| RuleParameters([(name.to_owned(), value)].into());
        let defaults = DefaultSettings { rule_parameters: parameters(own), ..DefaultSettings::default() };
        let operator = OperatorPolicy::new(defaults, PolicyConfig::default(), []).unwrap();
        let nobody = TenantPolicy::default();
        let named = |value| rule_named("cosec.rule", rule, &parameters(value)).unwrap();
        // What is beyond a bound is refused, and nothing that is within it.
        let served = operator.of("any", &nobody).check_rule(&named(asked), &parameters(asked)).is_ok();
        prop_assert_eq!(served, if name == "tau" { asked <= own } else { asked >= own });
        if !served {
            return Ok(());
        }

        let expert = if client.temperature() == 0.0 { SamplingParams::GREEDY } else { SamplingParams::new(0.4, 0.95, 0).unwrap() };
        let evidence = |row| ModelEvidence { logits: Some(row), ..ModelEvidence::default() };
        let (base, of_expert, anti) = rows;
        let anti = if compares { evidence(anti) } else { ModelEvidence::default() };
        let models = PositionDistributions::new(
            Box::new([evidence(base), evidence(of_expert), anti]),
            changes,
            RuleSampling::new(client, expert, judge, false),
        );
        let base = BaseOnly.distribution(&models).unwrap();
        let of_operator = distance(&named(own).distribution(&models).unwrap(), &base);
        let of_client = distance(&named(asked).distribution(&models).unwrap(), &base);
        if of_operator > 1e-6 {
            prop_assert!(of_client > 0.0, "the operator's values move {of_operator} of the mass, the client's none");
        }
    }
}
