//! Holds the rule `cosec` against vectors that were computed elsewhere, in f64, from the paper and its published code.

use crate::vectors::{Case, cases};
use cosec_coordinator::merge::{Cosec, MergeRule};
use cosec_proto::sampling::Distribution;

const TOLERANCE: f64 = 1e-9;

fn check(case: &Case, what: &str, law: &Distribution, expected: &[f64]) {
    assert_eq!(expected.len(), case.vocab_size, "{}: {what}", case.name);
    for (id, &wanted) in (0u32..).zip(expected) {
        let got = law.probability(id);
        assert!((got - wanted).abs() <= TOLERANCE, "{}: {what}[{id}] is {got}, expected {wanted}", case.name);
        assert_eq!(got > 0.0, wanted > 0.0, "{}: support of {what} at {id}", case.name);
    }
}

#[test]
fn every_vector_agrees() {
    for case in &cases() {
        let laws = case.laws();
        let rule = Cosec { tau: case.params.tau };
        check(case, "p_base", laws.fallback_distribution().unwrap(), &case.p_base);
        let judge = case.r_base.as_ref().unwrap_or(&case.p_base);
        check(case, "r_base", laws.acceptance_distribution().unwrap(), judge);
        check(case, "p_expert", laws.expert_distribution().unwrap(), &case.p_expert);
        check(case, "merged", &rule.distribution(&laws).unwrap(), &case.merged);

        let mut rejected = 0.0;
        for (id, &wanted) in (0u32..).zip(&case.accept) {
            let q = laws.expert_distribution().unwrap().probability(id);
            let accepted = rule.accepts(laws.acceptance_distribution().unwrap().probability(id), q);
            assert_eq!(u8::from(accepted), wanted, "{}: accept[{id}]", case.name);
            rejected += if accepted { 0.0 } else { q };
        }
        assert!((rejected - case.reject_mass).abs() <= TOLERANCE, "{}: reject_mass {rejected}", case.name);
    }
}
