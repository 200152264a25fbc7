//! Workers that are late, gone, wrong or lying, and clients that leave.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cosec_coordinator::merge::{BaseOnly, Cosec, ExpertOnly, Hardening, LogitsTransport, SelectedRule};
use cosec_coordinator::request::{GenerationSettings, SessionEvent};
use cosec_coordinator::session::config::ExpertAbsent;
use cosec_proto::wire::worker;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::{StepResponse, row};
use cosec_proto::{ErrorCode, PROTOCOL_VERSION};
use cosec_tests::mock_worker::{MockModel, MockWorker};
use futures::StreamExt;
use tokio::time::Instant;

use crate::cluster::{Cluster, collect, config, gather, prompt, request, settings, start, until};
use crate::reference::{Models, expected_tokens};

const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });

fn expected(settings: &GenerationSettings, length: u32) -> Vec<u32> {
    let models = Models { base: MockModel::base(), expert: MockModel::expert(), anti_expert: None };
    expected_tokens(&models, &request(settings.clone(), &prompt(length))).into_iter().map(|(id, _)| id).collect()
}

#[tokio::test]
async fn a_dropped_stream_gives_its_caches_back() {
    let cluster = Cluster::start().await;
    cluster.base.set_delay(Duration::from_millis(20));
    for tokens in [0, 1, 5] {
        let settings = GenerationSettings { max_tokens: Some(1000), ..settings(COSEC) };
        let mut stream = cluster.service.open(request(settings, &prompt(30))).unwrap();
        for _ in 0..tokens {
            assert!(matches!(stream.next().await, Some(SessionEvent::Token(_))));
        }
        until("the base holds the session", || cluster.base.sessions() == 1).await;
        drop(stream);
        cluster.released().await;
    }
    until("the choices are counted", || cluster.metrics.sessions.choices.with_label_values(&["closed"]).get() == 3)
        .await;
    cluster.service.open(request(settings(COSEC), &prompt(30))).unwrap().stop();
    cluster.released().await;
    until("a text that came to its end counts as such", || {
        cluster.metrics.sessions.choices.with_label_values(&["stop"]).get() == 1
    })
    .await;
    assert_eq!(cluster.metrics.sessions.choices.with_label_values(&["closed"]).get(), 3);
    assert_eq!(cluster.metrics.sessions.active_sessions.get(), 0);
    assert!(cluster.base.cancelled() + cluster.expert.cancelled() > 0, "an operation under way is withdrawn");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nothing_beyond_its_deadline() {
    let cluster = Cluster::start().await;
    let deadline = Instant::now() + Duration::from_millis(600);
    let settings = GenerationSettings { max_tokens: Some(1500), min_tokens: 1500, deadline, ..settings(COSEC) };
    let stream = cluster.service.open(request(settings, &prompt(30))).unwrap();
    until("the session decodes", || cluster.base.sessions() == 1).await;
    cluster.released().await;
    assert_eq!(gather(stream).await.end.unwrap_err().code, ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn a_worker_that_restarts_in_mid_session_changes_no_token() {
    for kills_expert in [false, true] {
        for transport in [LogitsTransport::Auto, LogitsTransport::Nucleus] {
            let mut cluster = Cluster::start().await;
            let settings = GenerationSettings { transport, ..settings(COSEC) };
            let wanted = expected(&settings, 30);
            assert!(wanted.len() > 12, "seed with an early end");
            let mut stream = cluster.service.open(request(settings, &prompt(30))).unwrap();
            let mut ids = Vec::new();
            cluster.base.set_delay(Duration::from_millis(10));
            while let Some(event) = stream.next().await {
                match event {
                    SessionEvent::Token(token) => ids.push(token.decision.id),
                    SessionEvent::Finished(_) => break,
                    other => panic!("{other:?}"),
                }
                if ids.len() == 5 {
                    let (slot, model) = if kills_expert {
                        (&mut cluster.expert, MockModel::expert())
                    } else {
                        (&mut cluster.base, MockModel::base())
                    };
                    let address = slot.address();
                    // A free port in between, so that the old one is released before it is taken again.
                    *slot = MockWorker::start(model.clone()).unwrap();
                    *slot = restart(model, address).await;
                }
            }
            assert_eq!(ids, wanted, "{transport:?}");
            drop(stream);
            cluster.released().await;
        }
    }
}

async fn restart(model: MockModel, address: std::net::SocketAddr) -> MockWorker {
    for _ in 0..200 {
        match MockWorker::start_on(model.clone(), address) {
            Ok(worker) => return worker,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("{address} stays taken");
}

#[tokio::test]
async fn a_worker_that_loses_its_caches_is_healed() {
    let cluster = Cluster::start().await;
    for transport in [LogitsTransport::Auto, LogitsTransport::Gather, LogitsTransport::Full] {
        let settings = GenerationSettings { transport, ..settings(COSEC) };
        let wanted = expected(&settings, 50);
        let mut stream = cluster.service.open(request(settings, &prompt(50))).unwrap();
        let mut ids = Vec::new();
        while let Some(event) = stream.next().await {
            if let SessionEvent::Token(token) = event {
                ids.push(token.decision.id);
                if ids.len() % 3 == 0 {
                    cluster.base.evict();
                    cluster.expert.evict();
                }
            }
        }
        assert_eq!(ids, wanted, "{transport:?}");
    }
}

#[tokio::test]
async fn a_failing_worker_hands_over_to_another() {
    let second = MockWorker::start(MockModel::expert()).unwrap();
    let address = second.address().to_string();
    let cluster = Cluster::with(MockModel::base(), MockModel::expert(), |config| {
        config.models[0].expert.push(address);
    })
    .await;
    until("both experts are up", || {
        let up = &cluster.metrics.pool.worker_up;
        let at = |worker: &MockWorker| up.with_label_values(&["mock", "expert", &worker.address().to_string()]).get();
        at(&cluster.expert) + at(&second) == 2
    })
    .await;
    let answers = Arc::new(AtomicU32::new(0));
    let first = Arc::new(OnceLock::new());
    // Whichever expert answers first runs out of blocks after some answers, for good.
    for expert in [&cluster.expert, &second] {
        let (counted, first, own) = (Arc::clone(&answers), Arc::clone(&first), expert.address());
        expert.set_fault(Some(Box::new(move |response| {
            if *first.get_or_init(|| own) != own || counted.fetch_add(1, Ordering::SeqCst) < 6 {
                return Some(response);
            }
            let failure = worker::Failure { code: "out_of_blocks".to_owned(), message: "no blocks".to_owned() };
            Some(StepResponse { outcome: Some(Outcome::Failure(failure)), ..response })
        })));
    }
    let settings = settings(COSEC);
    let outcome = collect(&cluster.service, request(settings.clone(), &prompt(30))).await;
    assert_eq!(outcome.ids(), expected(&settings, 30));
    assert!(answers.load(Ordering::SeqCst) >= 7);
    assert!(cluster.expert.operations() > 0 && second.operations() > 0);
    cluster.released().await;
    until("the second gives back", || second.sessions() == 0).await;
}

#[tokio::test]
async fn answers_that_cannot_be_true_are_the_worker_s_fault() {
    type Lie = fn(&mut StepResponse);
    fn contents(response: &mut StepResponse) -> impl Iterator<Item = &mut row::Content> {
        let rows = match &mut response.outcome {
            Some(Outcome::Rows(rows)) => rows.rows.as_mut_slice(),
            _ => &mut [],
        };
        rows.iter_mut().filter_map(|row| row.content.as_mut())
    }
    let lies: [(&str, LogitsTransport, Lie); 14] = [
        ("no outcome", LogitsTransport::Auto, |r| r.outcome = None),
        ("wrong kind", LogitsTransport::Auto, |r| r.outcome = Some(Outcome::Released(worker::Released {}))),
        ("unknown code", LogitsTransport::Auto, |r| r.outcome = Some(Outcome::Failure(worker::Failure::default()))),
        ("prefix too long", LogitsTransport::Auto, |r| {
            r.outcome = Some(Outcome::NeedPrefix(worker::NeedPrefix { have: u32::MAX }));
        }),
        ("no rows", LogitsTransport::Auto, |r| r.outcome = Some(Outcome::Rows(worker::Rows::default()))),
        ("wrong offset", LogitsTransport::Full, |r| {
            if let Some(Outcome::Rows(rows)) = &mut r.outcome {
                rows.rows.iter_mut().for_each(|row| row.offset += 1);
            }
        }),
        ("id out of range", LogitsTransport::Auto, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Sampled(sampled) = content {
                    sampled.id = u32::MAX;
                }
            });
        }),
        ("probability above 1", LogitsTransport::Auto, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Gathered(gathered) = content {
                    gathered.probabilities[0] = 1.5;
                }
            });
        }),
        ("NaN", LogitsTransport::Auto, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Gathered(gathered) = content {
                    gathered.probabilities[0] = f64::NAN;
                }
            });
        }),
        ("no probability", LogitsTransport::Auto, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Gathered(gathered) = content {
                    gathered.probabilities.clear();
                }
            });
        }),
        ("descending nucleus", LogitsTransport::Nucleus, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Nucleus(nucleus) = content {
                    nucleus.ids.reverse();
                    nucleus.ids.push(0);
                }
            });
        }),
        ("nucleus of no mass", LogitsTransport::Nucleus, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Nucleus(nucleus) = content {
                    nucleus.probabilities.iter_mut().for_each(|probability| *probability /= 2.0);
                }
            });
        }),
        ("short row", LogitsTransport::Full, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Full(full) = content {
                    full.logits.pop();
                }
            });
        }),
        ("NaN logits", LogitsTransport::Full, |r| {
            contents(r).for_each(|content| {
                if let row::Content::Full(full) = content {
                    full.logits[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                }
            });
        }),
    ];
    let cluster = Cluster::start().await;
    for (name, transport, lie) in lies {
        cluster.base.set_fault(Some(Box::new(move |mut response| {
            lie(&mut response);
            Some(response)
        })));
        let settings = GenerationSettings { transport, ..settings(COSEC) };
        let outcome = collect(&cluster.service, request(settings.clone(), &prompt(9))).await;
        assert_eq!(outcome.end.unwrap_err().code, ErrorCode::WorkerFault, "{name}");
        cluster.base.set_fault(None);
        let outcome = collect(&cluster.service, request(settings.clone(), &prompt(9))).await;
        assert_eq!(outcome.ids(), expected(&settings, 9), "healthy after: {name}");
    }
}

#[tokio::test]
async fn a_hung_worker_is_noticed_by_the_step_deadline() {
    let cluster =
        Cluster::with(MockModel::base(), MockModel::expert(), |config| config.workers.step_deadline_ms = 100).await;
    let swallowed = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&swallowed);
    cluster.base.set_fault(Some(Box::new(move |response| {
        // One answer is lost; the session asks again.
        (count.fetch_add(1, Ordering::SeqCst) != 4).then_some(response)
    })));
    let settings = settings(COSEC);
    let outcome = collect(&cluster.service, request(settings.clone(), &prompt(9))).await;
    assert_eq!(outcome.ids(), expected(&settings, 9));

    cluster.base.set_fault(Some(Box::new(|_| None)));
    let outcome = collect(&cluster.service, request(settings, &prompt(9))).await;
    assert_eq!(outcome.end.unwrap_err().code, ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn without_an_expert_nothing_hardened_is_served() {
    let base = MockWorker::start(MockModel::base()).unwrap();
    let expert = MockWorker::start(MockModel::expert()).unwrap();
    let config = config(&[&base], &[&expert]);
    drop(expert);
    let (service, _, _shutdown) = start(config);
    until("the base is up", || service.has_base()).await;
    assert!(service.ready().unwrap_err().contains("no expert"));
    let error = service.open(request(settings(COSEC), &prompt(5))).err().unwrap();
    assert_eq!(error.code, ErrorCode::ExpertUnavailable);
    let outcome = collect(&service, request(settings(SelectedRule::BaseOnly(BaseOnly)), &prompt(5))).await;
    assert!(outcome.end.is_ok());
}

#[tokio::test]
async fn an_operator_may_let_the_base_go_on_alone() {
    let base = MockWorker::start(MockModel::base()).unwrap();
    let expert = MockWorker::start(MockModel::expert()).unwrap();
    let mut config = config(&[&base], &[&expert]);
    config.sessions.expert_absent = ExpertAbsent::Degrade;
    drop(expert);
    let (service, metrics, _shutdown) = start(config);
    until("the base is up", || service.has_base()).await;
    let alone = collect(&service, request(settings(COSEC), &prompt(5))).await;
    assert!(alone.degraded && alone.end.is_ok());
    assert!(alone.tokens.iter().all(|token| token.decision.hardening == Some(Hardening::Base)));
    assert_eq!(alone.ids(), expected(&settings(SelectedRule::BaseOnly(BaseOnly)), 5));
    assert_eq!(metrics.sessions.degraded_sessions.get(), 1);
    let outcome = collect(&service, request(settings(SelectedRule::ExpertOnly(ExpertOnly)), &prompt(5))).await;
    assert_eq!(outcome.end.unwrap_err().code, ErrorCode::ExpertUnavailable);
}

#[tokio::test]
async fn a_session_may_wait_for_its_expert() {
    let base = MockWorker::start(MockModel::base()).unwrap();
    let expert = MockWorker::start(MockModel::expert()).unwrap();
    let address = expert.address();
    let mut config = config(&[&base], &[&expert]);
    config.sessions.expert_absent = ExpertAbsent::Wait;
    drop(expert);
    let (service, _, _shutdown) = start(config);
    until("the base is up", || service.has_base()).await;
    let hasty = GenerationSettings { deadline: Instant::now() + Duration::from_millis(100), ..settings(COSEC) };
    assert_eq!(
        collect(&service, request(hasty, &prompt(5))).await.end.unwrap_err().code,
        ErrorCode::DeadlineExceeded
    );
    let waiting = service.open(request(settings(COSEC), &prompt(5))).unwrap();
    let _expert = restart(MockModel::expert(), address).await;
    assert_eq!(gather(waiting).await.ids(), expected(&settings(COSEC), 5));
}

#[tokio::test]
async fn workers_that_do_not_belong_together_serve_nothing() {
    let cases = [
        ("tokenizer", MockModel { tokenizer_fingerprint: "another".to_owned(), ..MockModel::expert() }),
        ("configured as expert", MockModel { role: cosec_proto::WorkerRole::Base, ..MockModel::expert() }),
    ];
    for (what, expert) in cases {
        let (base, expert) = (MockWorker::start(MockModel::base()).unwrap(), MockWorker::start(expert).unwrap());
        let (service, _, _shutdown) = start(config(&[&base], &[&expert]));
        until("the mismatch is known", || service.ready().is_err_and(|why| why.contains(what))).await;
        let error = service.open(request(settings(COSEC), &prompt(5))).err().unwrap();
        assert_eq!(error.code, ErrorCode::ModelMismatch, "{error}");
        assert!(error.message.contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_worker_of_another_protocol_version_is_left_out_and_named() {
    let old = MockModel { protocol_version: PROTOCOL_VERSION - 1, ..MockModel::expert() };
    let (base, expert) = (MockWorker::start(MockModel::base()).unwrap(), MockWorker::start(old).unwrap());
    let (service, _, _shutdown) = start(config(&[&base], &[&expert]));
    let named = format!(
        "{}: it speaks protocol version {} and this coordinator version {PROTOCOL_VERSION}",
        expert.address(),
        PROTOCOL_VERSION - 1
    );
    until("the worker is left out", || service.ready().is_err_and(|why| why.contains(&named))).await;
    let error = service.open(request(settings(COSEC), &prompt(5))).err().unwrap();
    assert_eq!(error.code, ErrorCode::ExpertUnavailable, "{error}");
}

#[tokio::test]
async fn a_worker_that_does_not_serve_is_not_chosen() {
    let cluster = Cluster::start().await;
    cluster.expert.set_serving(false).await;
    until("it is noticed", || cluster.service.ready().is_err()).await;
    let error = cluster.service.open(request(settings(COSEC), &prompt(5))).err().unwrap();
    assert_eq!(error.code, ErrorCode::ExpertUnavailable);
    cluster.expert.set_serving(true).await;
    until("it is noticed", || cluster.service.ready().is_ok()).await;
}

#[tokio::test]
async fn shutdown_ends_sessions_with_an_error_and_gives_their_caches_back() {
    let cluster = Cluster::start().await;
    cluster.base.set_delay(Duration::from_millis(10));
    let settings = GenerationSettings { max_tokens: Some(1000), min_tokens: 1000, ..settings(COSEC) };
    let mut stream = cluster.service.open(request(settings.clone(), &prompt(9))).unwrap();
    assert!(matches!(stream.next().await, Some(SessionEvent::Token(_))));
    cluster.shutdown.cancel();
    assert_eq!(gather(stream).await.end.unwrap_err().code, ErrorCode::Unavailable);
    cluster.released().await;
    assert_eq!(cluster.service.open(request(settings, &prompt(9))).err().unwrap().code, ErrorCode::Unavailable);
}
