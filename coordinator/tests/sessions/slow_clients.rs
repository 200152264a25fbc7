//! Clients that do not read what they are sent, and clients that take more than their part.

use std::time::Duration;

use cosec_coordinator::merge::{Cosec, SelectedRule};
use cosec_coordinator::request::{GenerationSettings, SessionEvent, TokenizedRequest};
use cosec_coordinator::session::config::SessionConfig;
use cosec_proto::ErrorCode;
use cosec_tests::mock_worker::MockModel;
use futures::StreamExt;

use crate::cluster::{Cluster, collect, gather, prompt, request, settings, tenant, until};
use crate::reference::{Models, expected_tokens};

/// More tokens than a client may lag behind.
fn long() -> GenerationSettings {
    let rule = SelectedRule::Cosec(Cosec { tau: 0.3 });
    GenerationSettings { max_tokens: Some(150), min_tokens: 150, ..settings(rule) }
}

fn expected(settings: &GenerationSettings, length: u32) -> Vec<u32> {
    let models = Models { base: MockModel::base(), expert: MockModel::expert(), anti_expert: None };
    expected_tokens(&models, &request(settings.clone(), &prompt(length))).into_iter().map(|(id, _)| id).collect()
}

/// One session at a time; the times are those of turn, caches and end.
async fn cluster([slow_client_turn_ms, slow_client_cache_ms, write_timeout_ms]: [u64; 3]) -> Cluster {
    Cluster::with(MockModel::base(), MockModel::expert(), |config| {
        config.admission.max_sessions = 1;
        config.sessions =
            SessionConfig { slow_client_turn_ms, slow_client_cache_ms, write_timeout_ms, ..config.sessions };
    })
    .await
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_nobody_waiting_and_goes_on_where_it_was() {
    for cache_ms in [60, 60_000] {
        let cluster = cluster([30, cache_ms, 60_000]).await;
        let mut slow = cluster.service.open(request(long(), &prompt(30))).unwrap();
        let mut ids = Vec::new();
        let mut read = async |upto: usize| {
            while ids.len() < upto {
                match slow.next().await {
                    Some(SessionEvent::Token(token)) => ids.push(token.decision.id),
                    other => panic!("{other:?} after {} tokens", ids.len()),
                }
            }
            ids.clone()
        };
        read(5).await;
        let given_back = cluster.metrics.admission.turns_given_back.with_label_values(&["slow_client"]);
        until("it gives its turn back", || given_back.get() == 1).await;
        assert_eq!(cluster.metrics.sessions.active_sessions.get(), 0);
        assert_eq!(cluster.metrics.admission.stalled_sessions.get(), 1);
        let others = long();
        let other = collect(&cluster.service, request(others.clone(), &prompt(20))).await;
        assert_eq!(other.ids(), expected(&others, 20));
        if cache_ms == 60 {
            cluster.released().await;
        } else {
            assert!(cluster.base.sessions() >= 1, "its cache is kept for a while");
        }
        assert_eq!(read(150).await, expected(&long(), 30));
        assert!(matches!(slow.next().await, Some(SessionEvent::Finished(_))));
        assert!(slow.next().await.is_none());
        cluster.released().await;
        assert_eq!(cluster.metrics.sessions.active_sessions.get(), 0);
        assert_eq!(cluster.metrics.admission.stalled_sessions.get(), 0);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_for_long_is_given_up() {
    let cluster = cluster([10, 20, 50]).await;
    let slow = cluster.service.open(request(long(), &prompt(30))).unwrap();
    until("the session ends", || {
        cluster.metrics.sessions.choices.with_label_values(&["deadline_exceeded"]).get() == 1
    })
    .await;
    cluster.released().await;
    let outcome = gather(slow).await;
    let error = outcome.end.clone().unwrap_err();
    assert_eq!((error.code, error.message.contains("did not read")), (ErrorCode::DeadlineExceeded, true));
    assert_eq!(outcome.ids(), expected(&long(), 30)[..outcome.tokens.len()], "what it has is right");
}

#[tokio::test]
async fn a_place_without_a_reader_goes_to_a_client_that_reads() {
    let cluster = Cluster::with(MockModel::base(), MockModel::expert(), |config| {
        (config.admission.max_sessions, config.admission.max_queued_sessions) = (1, 1);
        config.sessions = SessionConfig { slow_client_turn_ms: 10, ..config.sessions };
    })
    .await;
    let slow = [1, 2].map(|_| cluster.service.open(request(long(), &prompt(30))).unwrap());
    until("both stall", || cluster.metrics.admission.stalled_sessions.get() == 2).await;
    assert!(collect(&cluster.service, request(long(), &prompt(20))).await.end.is_ok());
    let mut ends = Vec::new();
    for slow in slow {
        ends.push(gather(slow).await.end);
    }
    let given_up = ends.iter().filter(|end| end.as_ref().is_err_and(|error| error.message.contains("place"))).count();
    assert_eq!(given_up, 1, "{ends:?}");
    cluster.released().await;
}

#[tokio::test]
async fn a_client_with_all_turns_gives_one_to_another_and_no_token_changes() {
    let cluster =
        Cluster::with(MockModel::base(), MockModel::expert(), |config| config.admission.max_sessions = 4).await;
    cluster.base.set_delay(Duration::from_millis(5));
    let of = |name: &str, settings: GenerationSettings, prompt: &[u32]| TokenizedRequest {
        tenant: tenant(name),
        ..request(settings, prompt)
    };
    let greedy: Vec<_> = (0..8).map(|_| cluster.service.open(of("greedy", long(), &prompt(30))).unwrap()).collect();
    let greedy = tokio::spawn(futures::future::join_all(greedy.into_iter().map(gather)));
    until("it has all turns", || cluster.metrics.sessions.active_sessions.get() == 4).await;
    let other = collect(&cluster.service, of("modest", long(), &prompt(20))).await;
    assert_eq!(other.ids(), expected(&long(), 20));
    assert!(!greedy.is_finished(), "nobody had to end for that");
    assert_eq!(cluster.metrics.admission.turns_given_back.with_label_values(&["fairness"]).get(), 1);
    for outcome in greedy.await.unwrap() {
        assert_eq!(outcome.ids(), expected(&long(), 30));
    }
    cluster.released().await;
}
