//! What is refused, and when.

use cosec_coordinator::admission::AdmissionLimits;
use cosec_coordinator::config::Config;
use cosec_coordinator::merge::{Cosec, SelectedRule};
use cosec_coordinator::models::ModelConfig;
use cosec_coordinator::request::GenerationSettings;
use cosec_coordinator::session::config::SessionConfig;
use cosec_proto::ErrorCode;
use cosec_tests::mock_worker::MockModel;
use std::time::Duration;
use tokio::time::Instant;

use crate::cluster::{Cluster, gather, prompt, request, settings, until};

const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_the_admitted_finish() {
    let cluster = Cluster::with(MockModel::base(), MockModel::expert(), |config| {
        (config.admission.max_sessions, config.admission.max_queued_sessions) = (1, 2);
    })
    .await;
    let open = || cluster.service.open(request(settings(COSEC), &prompt(9)));
    cluster.base.set_delay(Duration::from_millis(5));
    let admitted = [open().unwrap(), open().unwrap(), open().unwrap()];
    assert_eq!(open().err().unwrap().code, ErrorCode::Overloaded);
    let outcomes = futures::future::join_all(admitted.map(gather)).await;
    assert!(outcomes.iter().all(|outcome| outcome.end.is_ok() && outcome.tokens == outcomes[0].tokens));
    // A place is free again as soon as the session's task has ended.
    until("the sessions are counted", || cluster.metrics.sessions.choices.with_label_values(&["length"]).get() >= 3)
        .await;
    let reopened = tokio::time::timeout(Duration::from_secs(20), async {
        while open().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(reopened.await.is_ok());
}

#[tokio::test]
async fn a_session_that_waits_too_long_for_its_turn_misses_its_deadline() {
    let cluster =
        Cluster::with(MockModel::base(), MockModel::expert(), |config| config.admission.max_sessions = 1).await;
    cluster.base.set_delay(Duration::from_millis(200));
    let first = cluster.service.open(request(settings(COSEC), &prompt(9))).unwrap();
    let hasty = GenerationSettings { deadline: Instant::now() + Duration::from_millis(50), ..settings(COSEC) };
    let second = cluster.service.open(request(hasty, &prompt(9))).unwrap();
    let error = gather(second).await.end.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(error.message.contains("turn"), "{}", error.message);
    drop(first);
    cluster.released().await;
}

#[test]
fn a_configuration_that_makes_no_sense_names_the_field() {
    let check = |config: Config, what: &str| {
        let error = config.check().unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    };
    let model = || ModelConfig {
        name: "m".to_owned(),
        tokenizer: "none".into(),
        base: vec!["127.0.0.1:1".to_owned()],
        expert: vec!["127.0.0.1:2".to_owned()],
        ..ModelConfig::default()
    };
    let of = |models| Config { models, ..Config::default() };
    check(of(Vec::new()), "models is empty");
    check(of(vec![model(), model()]), "models[1].name");
    check(of(vec![ModelConfig { base: Vec::new(), ..model() }]), "models[0].base");
    check(of(vec![ModelConfig { expert: Vec::new(), ..model() }]), "models[0].expert");
    check(of(vec![ModelConfig { expert: vec!["a b".to_owned()], ..model() }]), "models[0].expert[0]");
    check(of(vec![ModelConfig { expert_adapter: Some(String::new()), ..model() }]), "models[0].expert_adapter");
    let sessions = SessionConfig { max_draft: 65, ..SessionConfig::default() };
    check(Config { sessions, ..of(vec![model()]) }, "max_draft");
    let admission = AdmissionLimits { max_sessions: 0, ..AdmissionLimits::default() };
    check(Config { admission, ..of(vec![model()]) }, "max_sessions");
}
