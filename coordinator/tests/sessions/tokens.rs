//! Which tokens a session gives.

use cosec_coordinator::merge::{
    BaseOnly, Cosec, ExpertOnly, Hardening, Judge, Linear, LogitAdjustments, LogitsTransport, Product, SelectedRule,
    TokenScore,
};
use cosec_coordinator::request::{FinishReason, GenerationSettings, SessionEvent, TokenEvent, TokenizedRequest};
use cosec_proto::ErrorCode;
use cosec_proto::sampling::{Distribution, SamplingParams};
use cosec_tests::mock_worker::MockModel;
use futures::StreamExt;
use futures::future::join_all;

use crate::cluster::{Cluster, anti_expert, collect, prompt, request, settings};
use crate::reference::{Models, are_as_expected, expected_tokens, without_hardening};

const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });

const RULES: [SelectedRule; 5] = [
    COSEC,
    SelectedRule::Linear(Linear { lambda: 0.4 }),
    SelectedRule::Product(Product { alpha: 0.7 }),
    SelectedRule::BaseOnly(BaseOnly),
    SelectedRule::ExpertOnly(ExpertOnly),
];

const TRANSPORTS: [LogitsTransport; 5] = [
    LogitsTransport::Auto,
    LogitsTransport::Gather,
    LogitsTransport::Nucleus,
    LogitsTransport::Sample,
    LogitsTransport::Full,
];

fn models() -> Models {
    Models { base: MockModel::base(), expert: MockModel::expert(), anti_expert: None }
}

async fn check(cluster: &Cluster, models: &Models, request: TokenizedRequest) {
    let expected = expected_tokens(models, &request);
    let settings = request.settings.clone();
    let length = request.max_new_tokens as usize;
    let outcome = collect(&cluster.service, request).await;
    let is_told = |token: &TokenEvent| token.decision.hardening.is_some();
    assert!(!settings.report || outcome.tokens.iter().all(is_told), "{settings:?}");
    assert!(
        are_as_expected(&outcome.tokens, &expected),
        "{settings:?}: {:?}, {:?} and not {expected:?}",
        outcome.end,
        outcome.tokens
    );
    let end = if expected.len() == length { FinishReason::Length } else { FinishReason::Stop };
    assert_eq!(outcome.end, Ok(end), "{settings:?}");
}

fn allowed(rule: SelectedRule, transport: LogitsTransport) -> bool {
    match (rule, transport) {
        (_, LogitsTransport::Auto | LogitsTransport::Full) | (SelectedRule::Cosec(_), _) => true,
        (SelectedRule::Linear(_), transport) => transport == LogitsTransport::Nucleus,
        (SelectedRule::Product(_), _) => false,
        (SelectedRule::BaseOnly(BaseOnly) | SelectedRule::ExpertOnly(ExpertOnly), transport) => {
            transport != LogitsTransport::Gather
        }
    }
}

#[tokio::test]
async fn every_rule_on_every_transport_gives_the_tokens_of_the_simulation() {
    let cluster = Cluster::start().await;
    for rule in RULES {
        for transport in TRANSPORTS {
            // 1 token, 1 operation, several operations.
            for length in [1, 9, 53] {
                let settings = GenerationSettings { transport, report: length == 9, ..settings(rule) };
                let request = request(settings, &prompt(length));
                if allowed(rule, transport) {
                    check(&cluster, &models(), request).await;
                } else {
                    let error = cluster.service.open(request).err().unwrap();
                    assert_eq!(error.code, ErrorCode::InvalidArgument);
                    assert!(error.message.contains("cosec.transport is"), "{}", error.message);
                }
            }
        }
    }
    cluster.released().await;
}

#[tokio::test]
async fn warps_of_all_kinds_give_the_tokens_of_the_simulation() {
    let cluster = Cluster::start().await;
    let warps = [
        SamplingParams::GREEDY,
        SamplingParams::RAW,
        SamplingParams::new(0.4, 0.95, 0).unwrap(),
        SamplingParams::new(1.3, 1.0, 3).unwrap(),
    ];
    for rule in [COSEC, SelectedRule::Linear(Linear { lambda: 0.5 }), SelectedRule::BaseOnly(BaseOnly)] {
        for transport in TRANSPORTS.into_iter().filter(|&transport| allowed(rule, transport)) {
            for base in warps {
                for expert in warps {
                    for (judge, reference_code) in [(Judge::Raw, false), (Judge::Warped, false), (Judge::Raw, true)] {
                        let settings = GenerationSettings {
                            transport,
                            base,
                            expert,
                            judge,
                            reference_code,
                            report: expert == SamplingParams::RAW,
                            max_tokens: Some(12),
                            ..settings(rule)
                        };
                        check(&cluster, &models(), request(settings, &prompt(5))).await;
                    }
                }
            }
        }
    }
    cluster.released().await;
}

#[tokio::test]
async fn a_capped_nucleus_is_read_again_in_full() {
    let (base, expert) = (MockModel::base(), MockModel::expert());
    let large = |model: MockModel| MockModel { vocabulary: 6000, ..model };
    let models = Models { base: large(base), expert: large(expert), anti_expert: None };
    let cluster = Cluster::with(models.base.clone(), models.expert.clone(), |_| {}).await;
    for rule in [COSEC, SelectedRule::Linear(Linear { lambda: 0.5 })] {
        let raw = GenerationSettings {
            transport: LogitsTransport::Nucleus,
            base: SamplingParams::RAW,
            expert: SamplingParams::RAW,
            max_tokens: Some(8),
            ..settings(rule)
        };
        check(&cluster, &models, request(raw, &prompt(5))).await;
    }
}

#[tokio::test]
async fn sixteen_at_once_give_the_tokens_of_each_alone() {
    let cluster = Cluster::start().await;
    let requests = (0..16u32).map(|i| {
        let transport = TRANSPORTS[i as usize % 5];
        let settings = GenerationSettings { seed: u64::from(i / 8), transport, ..settings(COSEC) };
        TokenizedRequest { sample: i % 8, ..request(settings, &prompt(3 + 5 * i)) }
    });
    let models = &models();
    join_all(requests.map(|request| check(&cluster, models, request))).await;
    cluster.released().await;
}

#[tokio::test]
async fn samples_and_seeds_differ() {
    let cluster = Cluster::start().await;
    let of = |seed, sample| {
        let request = request(GenerationSettings { seed, ..settings(COSEC) }, &prompt(5));
        TokenizedRequest { sample, ..request }
    };
    let one = collect(&cluster.service, of(1, 0)).await.ids();
    assert_ne!(one, collect(&cluster.service, of(1, 1)).await.ids());
    assert_ne!(one, collect(&cluster.service, of(2, 0)).await.ids());
}

#[tokio::test]
async fn adjustments_and_min_tokens_apply_to_both_models() {
    let anti = anti_expert();
    let cluster = Cluster::with(MockModel::base(), MockModel::expert(), |config| {
        config.models[0].anti_expert = vec!["to be replaced".to_owned()];
    })
    .await;
    let models = Models { anti_expert: Some(anti), ..models() };
    let adjustments = LogitAdjustments {
        frequency_penalty: 0.7,
        presence_penalty: -0.4,
        logit_bias: [(0, 4.0), (7, 1.5), (9, -100.0)].into(),
    };
    for rule in RULES {
        for judge in [Judge::Raw, Judge::Warped] {
            let adjustments = adjustments.clone();
            let settings = GenerationSettings { adjustments, min_tokens: 6, judge, report: true, ..settings(rule) };
            let request = request(settings, &prompt(11));
            // The bias makes the end token likely: the ban is felt.
            let tokens = expected_tokens(&models, &request).len();
            assert!(tokens >= 6, "{tokens}");
            check(&cluster, &models, request).await;
        }
    }
    cluster.released().await;
}

#[tokio::test]
async fn a_ban_of_everything_is_the_client_s_fault() {
    let cluster = Cluster::start().await;
    let everything = (1..64).map(|id| (id, f64::NEG_INFINITY)).collect();
    let adjustments = LogitAdjustments { logit_bias: everything, ..LogitAdjustments::default() };
    let settings = GenerationSettings { adjustments, min_tokens: 2, ..settings(COSEC) };
    let outcome = collect(&cluster.service, request(settings, &prompt(4))).await;
    assert_eq!(outcome.end.unwrap_err().code, ErrorCode::InvalidArgument);
}

/// Whatever the rule reads, and whatever the client asks to change in the logits.
#[tokio::test]
async fn scores_are_those_of_the_base_s_raw_distribution() {
    let cluster = Cluster::start().await;
    for rule in RULES {
        let logit_bias = [(0, -100.0), (7, 2.0)].into();
        let adjustments = LogitAdjustments { logit_bias, ..LogitAdjustments::default() };
        let settings = GenerationSettings {
            logprobs: Some(3),
            echo: true,
            report: true,
            max_tokens: Some(5),
            adjustments,
            ..settings(rule)
        };
        let request = request(settings, &prompt(40));
        let expected = expected_tokens(&models(), &request);
        let mut history = request.prompt.to_vec();
        let mut stream = cluster.service.open(request).unwrap();

        let Some(SessionEvent::Prompt(scores)) = stream.next().await else { panic!("the prompt's scores are first") };
        assert_eq!(scores.len(), history.len());
        assert_eq!(scores[0], None);
        for (position, score) in scores.iter().enumerate().skip(1) {
            check_score(score.as_ref().unwrap(), &history[..position], history[position]);
        }
        for (id, hardening) in expected {
            let Some(SessionEvent::Token(token)) = stream.next().await else { panic!("a token") };
            assert_eq!((token.decision.id, token.decision.hardening), (id, Some(hardening)));
            assert!(token.decision.law.is_some_and(|law| law > 0.0 && law <= 1.0), "{token:?}");
            check_score(&token.score.unwrap(), &history, id);
            history.push(id);
        }
        assert!(matches!(stream.next().await, Some(SessionEvent::Finished(_))));
        assert!(stream.next().await.is_none());
    }
    cluster.released().await;
}

fn check_score(score: &TokenScore, history: &[u32], id: u32) {
    let raw = Distribution::from_logits(&MockModel::base().row(history), &SamplingParams::RAW).unwrap();
    assert_eq!(score.log_probability, raw.probability(id).ln());
    let mut best: Vec<f64> = raw.probabilities().iter().map(|p| p.ln()).collect();
    best.sort_by(|a, b| b.total_cmp(a));
    let alternatives: Vec<f64> = score.alternatives.iter().map(|&(_, log_probability)| log_probability).collect();
    assert_eq!(alternatives, best[..3]);
}

#[tokio::test]
async fn a_prompt_can_be_scored_alone() {
    let cluster = Cluster::start().await;
    for length in [1, 70] {
        let settings = GenerationSettings { logprobs: Some(0), echo: true, max_tokens: Some(0), ..settings(COSEC) };
        let mut stream = cluster.service.open(request(settings, &prompt(length))).unwrap();
        let Some(SessionEvent::Prompt(scores)) = stream.next().await else { panic!("scores") };
        assert_eq!(scores.iter().flatten().count() as u32, length - 1);
        assert!(matches!(stream.next().await, Some(SessionEvent::Finished(FinishReason::Length))));
    }
    cluster.released().await;
    assert_eq!(cluster.expert.operations(), 0);
}

#[tokio::test]
async fn the_report_is_filled_where_the_rule_looked_and_the_same_on_every_transport() {
    let cluster = Cluster::start().await;
    let mut first = None;
    for transport in TRANSPORTS {
        let outcome = |report| {
            let settings = GenerationSettings { transport, report, ..settings(COSEC) };
            collect(&cluster.service, request(settings, &prompt(8)))
        };
        let (outcome, unreported) = (outcome(true).await, outcome(false).await);
        for token in outcome.tokens.iter().map(|token| token.decision) {
            assert!(token.p.is_some_and(|p| p > 0.0), "{token:?}");
            assert_eq!(token.q.is_some(), token.rejected.is_none());
            assert_eq!(token.hardening == Some(Hardening::Base), token.rejected.is_some(), "{token:?}");
        }
        let some = |what| outcome.tokens.iter().any(|token| token.decision.hardening == Some(what));
        assert!(some(Hardening::Agreed) && some(Hardening::Expert) && some(Hardening::Base));
        assert_eq!(without_hardening(&outcome.tokens), without_hardening(&unreported.tokens), "{transport:?}");
        match &first {
            None => first = Some(outcome),
            Some(first) => assert_eq!(*first, outcome, "{transport:?}"),
        }
    }
}

/// The counters say what hardening did: of all tokens where that costs nothing, else of a sample of the positions.
#[tokio::test]
async fn what_hardening_did_is_counted() {
    for (transport, is_whole) in [(LogitsTransport::Auto, true), (LogitsTransport::Gather, false)] {
        let cluster = Cluster::start().await;
        let mut seen = [0; 4];
        for sample in 0..12 {
            let settings = GenerationSettings { transport, report: false, ..settings(COSEC) };
            let request = TokenizedRequest { sample, ..request(settings, &prompt(8)) };
            let expected = expected_tokens(&models(), &request);
            let outcome = collect(&cluster.service, request).await;
            assert!(are_as_expected(&outcome.tokens, &expected));
            for token in &outcome.tokens {
                let at = token.decision.hardening.map_or(3, |hardening| hardening as usize);
                seen[at] += 1;
            }
        }
        let metrics = &cluster.metrics.sessions;
        let count = |hardening| metrics.tokens.with_label_values(&["mock", hardening]).get();
        assert_eq!(["agreed", "expert", "base", "unknown"].map(count), seen);
        assert_eq!(metrics.changed_tokens.with_label_values(&["mock"]).get(), seen[1]);
        let total: u64 = seen.iter().sum();
        let known = total - seen[3];
        if is_whole {
            assert!(known == total && seen[..3].iter().all(|&count| count > 0), "{seen:?}");
        } else {
            assert!(known > 0 && known * 4 < total, "{seen:?}");
        }
    }
}

#[tokio::test]
async fn models_with_rows_of_different_length_decode_together() {
    let base = MockModel { vocabulary: 70, ..MockModel::base() };
    let models = Models { base: base.clone(), expert: MockModel::expert(), anti_expert: None };
    // Padding that is never drawn, as in trained models: the base's first 64 logits are those of the simulation.
    let cluster = Cluster::with(base, MockModel::expert(), |_| {}).await;
    let bias = (64..70).map(|id| (id, -100.0)).collect();
    for rule in [COSEC, SelectedRule::Linear(Linear { lambda: 0.4 }), SelectedRule::BaseOnly(BaseOnly)] {
        let adjustments =
            LogitAdjustments { logit_bias: std::collections::BTreeMap::clone(&bias), ..LogitAdjustments::default() };
        check(&cluster, &models, request(GenerationSettings { adjustments, ..settings(rule) }, &prompt(9))).await;
    }
    // The expert's proposals beyond the base's rows are rejected.
    let expert = MockModel { vocabulary: 90, ..MockModel::expert() };
    let models = Models { expert: expert.clone(), ..self::models() };
    let cluster = Cluster::with(MockModel::base(), expert, |_| {}).await;
    for transport in TRANSPORTS {
        check(&cluster, &models, request(GenerationSettings { transport, ..settings(COSEC) }, &prompt(9))).await;
    }
}
