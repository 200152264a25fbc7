//! Lookahead changes time, never tokens: any draft plan, transport, order of events and mishap against plain decoding.

use std::time::Duration;

use cosec_coordinator::merge::{
    BaseOnly, Cosec, ExpertOnly, Judge, Linear, LogitAdjustments, LogitsTransport, Product, SelectedRule,
};
use cosec_coordinator::request::{GenerationSettings, TokenizedRequest};
use cosec_coordinator::speculation::controller::DraftPlan;
use cosec_coordinator::speculation::settings::SpeculationMode;
use cosec_proto::sampling::{Distribution, SamplingParams};
use cosec_tests::mock_worker::MockModel;
use proptest::prelude::*;
use statrs::distribution::{ChiSquared, ContinuousCDF};
use tokio::time::Instant;

use crate::cluster::{Cluster, anti_expert, collect, prompt, request, settings};
use crate::harness::{HarnessOptions, SessionHarness, decode, decode_plainly};
use crate::reference::{Models, are_as_expected, expected_tokens, without_hardening};

fn rule() -> impl Strategy<Value = SelectedRule> {
    prop_oneof![
        4 => prop_oneof![Just(0.0), Just(0.3), Just(1.0), 0.0f64..1.2].prop_map(|tau| SelectedRule::Cosec(Cosec { tau })),
        2 => (0.0f64..=1.0).prop_map(|lambda| SelectedRule::Linear(Linear { lambda })),
        2 => (-1.0f64..2.0).prop_map(|alpha| SelectedRule::Product(Product { alpha })),
        1 => Just(SelectedRule::BaseOnly(BaseOnly)),
        1 => Just(SelectedRule::ExpertOnly(ExpertOnly)),
    ]
}

fn warp() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![1 => Just(0.0), 4 => 0.2f64..1.5];
    let top_p = prop_oneof![Just(1.0), 0.3f64..1.0];
    let top_k = prop_oneof![3 => Just(0), 1 => 1u32..8];
    (temperature, top_p, top_k).prop_map(|(t, p, k)| SamplingParams::new(t, p, k).unwrap())
}

/// What the rule allows, and needs.
fn transport(rule: SelectedRule, needs_rows: bool, choice: usize) -> LogitsTransport {
    use LogitsTransport::{Auto, Full, Gather, Nucleus, Sample};
    let allowed: &[LogitsTransport] = match rule {
        _ if needs_rows => &[Auto, Full],
        SelectedRule::Cosec(_) => &[Auto, Gather, Nucleus, Sample, Full],
        SelectedRule::Linear(_) => &[Auto, Nucleus, Full],
        SelectedRule::Product(_) => &[Auto, Full],
        SelectedRule::BaseOnly(BaseOnly) | SelectedRule::ExpertOnly(ExpertOnly) => &[Auto, Nucleus, Sample, Full],
    };
    allowed[choice % allowed.len()]
}

#[derive(Clone, Debug)]
struct Case {
    models: Models,
    request: TokenizedRequest,
    options: HarnessOptions,
}

prop_compose! {
    fn any_settings()(
        rule in rule(), base in warp(), expert in warp(), reference_code in prop::bool::weighted(0.1),
        judge in prop_oneof![2 => Just(Judge::Raw), 1 => Just(Judge::Warped)], report in prop::bool::weighted(0.3),
        adjusted in prop::bool::weighted(0.1), logprobs in proptest::option::weighted(0.15, 0u32..3),
        choice in 0usize..10, seed in any::<u64>(), max_tokens in 1u32..40,
    ) -> GenerationSettings {
        let logit_bias = if adjusted { [(0, 2.0), (3, -1.0)].into() } else { Default::default() };
        let presence_penalty = if adjusted { 0.5 } else { 0.0 };
        GenerationSettings {
            base, expert, judge, reference_code, report, seed, logprobs,
            adjustments: LogitAdjustments { presence_penalty, logit_bias, ..LogitAdjustments::default() },
            min_tokens: if adjusted { max_tokens / 3 } else { 0 },
            max_tokens: Some(max_tokens),
            transport: transport(rule, adjusted || logprobs.is_some(), choice),
            ..settings(rule)
        }
    }
}

prop_compose! {
    fn case()(
        settings in any_settings(), sample in 0u32..3, length in 1u32..50, vocabulary in 6u32..64,
        agreement in 0f32..12.0, operations in (1u32..24, 1u32..24), compares in any::<bool>(), ends in 0u32..3,
        seed in any::<u64>(), num_draft_tokens in 1u32..=16, pipelined in any::<bool>(), plan_varies in any::<bool>(),
        faults in prop_oneof![Just(0u8), Just(4u8)],
    ) -> Case {
        let model = |model: MockModel, max_operation_tokens| MockModel {
            vocabulary, agreement, max_operation_tokens, end_token_ids: (0..ends).collect(), ..model
        };
        let models = Models {
            base: model(MockModel::base(), operations.0),
            expert: model(MockModel::expert(), operations.1),
            anti_expert: compares.then(|| model(anti_expert(), operations.1)),
        };
        let prompt: Vec<u32> = prompt(length).into_iter().map(|id| id % vocabulary).collect();
        let request = TokenizedRequest { sample, ..request(settings, &prompt) };
        let draft_plan = DraftPlan { num_draft_tokens, pipelined: pipelined && num_draft_tokens > 1 };
        Case { models, request, options: HarnessOptions { seed, faults, draft_plan, plan_varies } }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_draft_plan_transport_and_mishap_gives_the_tokens_of_plain_decoding(case in case()) {
        let Case { models, request, options } = &case;
        let plain = decode_plainly(models, request);
        let expected = expected_tokens(models, request);
        prop_assert!(are_as_expected(&plain.0, &expected), "{:?} and not {expected:?}", plain.0);
        // p, q, what was rejected, scores, the report: all of it.
        let looked_ahead = decode(models, request, *options);
        prop_assert!(are_as_expected(&looked_ahead.0, &expected));
        if request.settings.report {
            prop_assert_eq!(&looked_ahead.0, &plain.0);
            prop_assert!(plain.0.iter().all(|token| token.decision.hardening.is_some()));
        }
        prop_assert_eq!(without_hardening(&looked_ahead.0), without_hardening(&plain.0));
        prop_assert_eq!(looked_ahead.1.is_ok(), plain.1.is_ok());
        prop_assert_eq!(looked_ahead.1, plain.1);
    }
}

#[test]
fn a_round_of_k_drafts_feeds_the_base_k_tokens() {
    let models = Models { base: MockModel::base(), expert: MockModel::expert(), anti_expert: None };
    // Whatever the base gives mass is accepted, and it gives mass to everything.
    let rule = SelectedRule::Cosec(Cosec { tau: 0.0 });
    let settings =
        GenerationSettings { base: SamplingParams::RAW, min_tokens: 0, max_tokens: Some(60), ..settings(rule) };
    let base = MockModel { end_token_ids: Vec::new(), ..models.base.clone() };
    let models = Models { base, ..models };
    for k in [2, 4, 5] {
        let draft_plan = DraftPlan { num_draft_tokens: k, pipelined: true };
        let options = HarnessOptions { seed: 1, faults: 0, draft_plan, plan_varies: false };
        let mut harness = SessionHarness::new(&models, &request(settings.clone(), &prompt(10)), options);
        let (tokens, _) = harness.run();
        assert_eq!(tokens.len(), 60);
        // Prompt and new tokens but the last one, which nobody needs to be fed.
        assert_eq!(harness.base_tokens, 10 + 60 - 1);
        assert_eq!(harness.withdrawn, 0);
    }
}

/// Of a false alarm in all tests of this file together.
const FALSE_ALARM: f64 = 1e-7;

/// Models whose every position has the same rows: each token of each sample is a draw from one law.
#[test]
fn samples_under_lookahead_follow_the_closed_form_of_every_rule() {
    let still = |model: MockModel| MockModel {
        remembers: false,
        vocabulary: 12,
        agreement: 2.0,
        end_token_ids: Vec::new(),
        ..model
    };
    let models = Models { base: still(MockModel::base()), expert: still(MockModel::expert()), anti_expert: None };
    let rules = [
        SelectedRule::Cosec(Cosec { tau: 0.8 }),
        SelectedRule::Linear(Linear { lambda: 0.6 }),
        SelectedRule::Product(Product { alpha: 1.5 }),
        SelectedRule::BaseOnly(BaseOnly),
        SelectedRule::ExpertOnly(ExpertOnly),
    ];
    for rule in rules {
        let settings = GenerationSettings {
            base: SamplingParams::new(1.2, 1.0, 0).unwrap(),
            expert: SamplingParams::new(0.7, 0.9, 0).unwrap(),
            max_tokens: Some(200),
            // However busy the machine is.
            deadline: Instant::now() + Duration::from_secs(3600),
            ..settings(rule)
        };
        let law = closed_form(&models, &settings);
        let mut counts = vec![0u32; law.len()];
        for sample in 0..150 {
            let request = TokenizedRequest { sample, ..request(settings.clone(), &[5, 0, 11]) };
            let draft_plan =
                DraftPlan { num_draft_tokens: 1 + sample % 8, pipelined: sample % 2 == 1 && sample % 8 > 0 };
            let options = HarnessOptions { seed: u64::from(sample), faults: 0, draft_plan, plan_varies: false };
            for token in decode(&models, &request, options).0 {
                counts[token.decision.id as usize] += 1;
            }
        }
        let total = f64::from(counts.iter().sum::<u32>());
        assert_eq!(total, 30_000.0);
        let (mut statistic, mut bins) = (0.0, 0);
        for (&count, &probability) in counts.iter().zip(&law) {
            if probability == 0.0 {
                assert_eq!(count, 0, "{rule:?} drew what has no mass");
                continue;
            }
            let expected = total * probability;
            assert!(expected >= 5.0, "{rule:?}: a bin too small for chi-square");
            statistic += (f64::from(count) - expected).powi(2) / expected;
            bins += 1;
        }
        let p = ChiSquared::new(f64::from(bins - 1)).unwrap().sf(statistic);
        assert!(p > FALSE_ALARM / rules.len() as f64, "{rule:?}: chi-square {statistic}, p-value {p:e}");
    }
}

/// The law of a token, written out from the rows.
fn closed_form(models: &Models, settings: &GenerationSettings) -> Vec<f64> {
    let (base, expert) = (models.base.row(&[]), models.expert.row(&[]));
    let p = Distribution::from_logits(&base, &settings.base).unwrap();
    let q = Distribution::from_logits(&expert, &settings.expert).unwrap();
    let r = Distribution::from_logits(&base, &SamplingParams::RAW).unwrap();
    let ids = 0..models.base.vocabulary;
    match settings.rule {
        SelectedRule::Cosec(Cosec { tau }) => {
            let accepted = |x: u32| q.probability(x) > 0.0 && (r.probability(x) / q.probability(x)).min(1.0) > tau;
            let rejected: f64 = ids.clone().filter(|&x| !accepted(x)).map(|x| q.probability(x)).sum();
            assert!(rejected > 0.05 && rejected < 0.95, "{rejected} is rejected: no test of both ways");
            let of = |x| f64::from(u8::from(accepted(x))) * q.probability(x) + rejected * p.probability(x);
            ids.map(of).collect()
        }
        SelectedRule::Linear(Linear { lambda }) => {
            ids.map(|x| lambda * q.probability(x) + (1.0 - lambda) * p.probability(x)).collect()
        }
        SelectedRule::Product(Product { alpha }) => {
            let logit = |x: usize| (f64::from(base[x]) + alpha * f64::from(expert[x])) / settings.base.temperature();
            let weights: Vec<f64> = ids.map(|x| logit(x as usize).exp()).collect();
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / total).collect()
        }
        SelectedRule::BaseOnly(BaseOnly) => ids.map(|x| p.probability(x)).collect(),
        SelectedRule::ExpertOnly(ExpertOnly) => ids.map(|x| q.probability(x)).collect(),
    }
}

#[tokio::test]
async fn over_sockets_every_setting_gives_the_same_tokens_on_every_transport() {
    let speculations = [
        SpeculationMode::Off,
        SpeculationMode::Fixed(1),
        SpeculationMode::Fixed(2),
        SpeculationMode::Fixed(5),
        SpeculationMode::Fixed(16),
        SpeculationMode::Adaptive,
    ];
    let rules = [
        SelectedRule::Cosec(Cosec { tau: 0.3 }),
        SelectedRule::Linear(Linear { lambda: 0.4 }),
        SelectedRule::Product(Product { alpha: 0.7 }),
        SelectedRule::ExpertOnly(ExpertOnly),
    ];
    let models = Models { base: MockModel::base(), expert: MockModel::expert(), anti_expert: None };
    for speculation in speculations {
        let cluster = Cluster::with(models.base.clone(), models.expert.clone(), |config| {
            config.sessions.speculation = speculation;
        })
        .await;
        if speculation == SpeculationMode::Adaptive {
            // Drafts are worth while where the base's passes take much longer than the expert's.
            cluster.base.set_delay(Duration::from_millis(4));
        }
        for rule in rules {
            for choice in 0..5 {
                let settings = GenerationSettings { transport: transport(rule, false, choice), ..settings(rule) };
                let request = TokenizedRequest { sample: choice as u32, ..request(settings, &prompt(20)) };
                let plain = decode_plainly(&models, &request);
                let outcome = collect(&cluster.service, request.clone()).await;
                assert_eq!(without_hardening(&outcome.tokens), without_hardening(&plain.0), "{speculation}");
                assert!(are_as_expected(&outcome.tokens, &expected_tokens(&models, &request)), "{speculation}");
                assert_eq!(outcome.end, plain.1, "{speculation}");
            }
        }
        cluster.released().await;
        let metrics = &cluster.metrics.speculation;
        let counters =
            [&metrics.draft_tokens, &metrics.accepted_tokens, &metrics.rejected_tokens, &metrics.rollbacks];
        let [drafted, accepted, rejected, rollbacks] =
            counters.map(|counter| counter.with_label_values(&["mock", "cosec"]).get());
        assert!(accepted > 0 && rejected > 0 && drafted >= accepted + rejected, "{drafted} {accepted} {rejected}");
        let looks_ahead = !matches!(speculation, SpeculationMode::Off | SpeculationMode::Fixed(1));
        assert_eq!(rollbacks > 0, looks_ahead, "{speculation}: {rollbacks} rollbacks");
    }
}

#[tokio::test]
async fn a_rejection_cancels_the_draft_on_the_worker() {
    let cluster = Cluster::with(MockModel::base(), MockModel::expert(), |config| {
        config.sessions.speculation = SpeculationMode::Fixed(2);
    })
    .await;
    // Computing side by side pays, and the expert is still at the next block when the base has judged this one.
    cluster.base.set_delay(Duration::from_millis(20));
    cluster.expert.set_delay(Duration::from_millis(15));
    let models = Models { base: MockModel::base(), expert: MockModel::expert(), anti_expert: None };
    for sample in 0..4 {
        let request = request(settings(SelectedRule::Cosec(Cosec { tau: 0.3 })), &prompt(20));
        let request = TokenizedRequest { sample, ..request };
        let plain = decode_plainly(&models, &request);
        let tokens = collect(&cluster.service, request).await.tokens;
        assert_eq!(without_hardening(&tokens), without_hardening(&plain.0));
    }
    assert!(cluster.expert.cancelled() > 0);
    assert!(cluster.metrics.speculation.withdrawn_operations.with_label_values(&["mock", "cosec"]).get() > 0);
    cluster.released().await;
}

#[tokio::test]
async fn gather_takes_at_most_64_bytes_per_token_and_model() {
    // Models that agree well: with many rejections a token takes more.
    let agreeing = |model: MockModel| MockModel { agreement: 30.0, end_token_ids: Vec::new(), ..model };
    let (base, expert) = (agreeing(MockModel::base()), agreeing(MockModel::expert()));
    let cluster = Cluster::with(base, expert, |config| config.sessions.speculation = SpeculationMode::Fixed(6)).await;
    let mut tokens = 0;
    for sample in 0..4 {
        let settings = GenerationSettings {
            transport: LogitsTransport::Gather,
            max_tokens: Some(200),
            ..settings(SelectedRule::Cosec(Cosec { tau: 0.3 }))
        };
        let request = TokenizedRequest { sample, ..request(settings, &prompt(9)) };
        tokens += collect(&cluster.service, request).await.tokens.len();
    }
    assert_eq!(tokens, 800);
    let metrics = &cluster.metrics.speculation;
    let counters = [&metrics.accepted_tokens, &metrics.rejected_tokens];
    let [accepted, rejected] = counters.map(|counter| counter.with_label_values(&["mock", "cosec"]).get() as f64);
    let acceptance = accepted / (accepted + rejected);
    for role in ["base", "expert"] {
        let bytes = |direction, view| {
            cluster.metrics.pool.wire_bytes.with_label_values(&["mock", role, direction, view]).get() as f64
        };
        let views = ["gather", "sample", "draft", "none"];
        let all: f64 = views.iter().map(|view| bytes("sent", view) + bytes("received", view)).sum();
        let per_token = all / tokens as f64;
        println!("{role}: {per_token:.1} bytes per token at an acceptance of {acceptance:.2}");
        assert!(per_token <= 64.0, "{role}: {per_token:.1} bytes per token at an acceptance of {acceptance:.2}");
    }
}
