//! From the port to the exit: loading, leases, a dead engine, shutdown, figures.

use std::time::Duration;

use cosec_proto::SessionId;
use cosec_proto::wire::worker::{DescribeRequest, StepRequest};
use cosec_worker::limits::EngineOptions;
use cosec_worker::server::BoundServer;
use tokio::time::sleep;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::fake_model::{PANIC_TOKEN, logits};
use crate::harness::{Harness, PAUSE, draft, extend, failure, full_rows, listening, options, release};

#[tokio::test]
async fn nothing_is_served_before_the_model_is_loaded() {
    let (loaded, wait) = std::sync::mpsc::channel::<()>();
    let harness = Harness::start_loading(options(), move || wait.recv().unwrap()).await;
    harness.reaches_health(ServingStatus::NotServing).await;
    let refused = harness.client().describe(DescribeRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.message().contains("loading"), "{refused}");
    loaded.send(()).unwrap();
    harness.reaches_health(ServingStatus::Serving).await;
    assert_eq!(harness.describe().await.sessions, 0);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let harness = Harness::start(options()).await;
    let error = BoundServer::bind(&listening(&harness.address.to_string(), None)).await.unwrap_err().to_string();
    assert!(error.contains(&format!("listen is {}", harness.address)), "{error}");
    let taken = harness.metrics_address.to_string();
    let error = BoundServer::bind(&listening("localhost:0", Some(&taken))).await.unwrap_err().to_string();
    assert!(error.contains(&format!("metrics_listen is {}", harness.metrics_address)), "{error}");
}

#[tokio::test]
async fn a_session_without_a_lease_is_released() {
    let harness = Harness::start(EngineOptions { lease: Duration::from_millis(300), ..options() }).await;
    let mut wire = harness.wire().await;
    let (heard, silent) = (SessionId::random(), SessionId::random());
    wire.rows(silent, 0, &[1; 30], &[]).await;
    wire.rows(heard, 0, &[2; 30], &[]).await;
    // An operation without effect renews the lease of one of them until the other is gone.
    while harness.describe().await.sessions == 2 {
        wire.run(extend(heard, 30, &[], &[])).await;
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(wire.rows(heard, 30, &[3], &[]).await, Vec::<Vec<f32>>::new());
    harness.describes(|described| described.sessions == 0 && described.free_blocks == 512).await;
}

#[tokio::test]
async fn a_dead_engine_answers_unavailable_and_ends_the_server() {
    let mut harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    harness.gate.close();
    let deadly = wire.send(extend(SessionId::random(), 0, &[PANIC_TOKEN], &[]), 0).await;
    let queued = wire.send(extend(SessionId::random(), 0, &[1], &[]), 0).await;
    harness.gate.reached(1).await;
    harness.gate.open();
    for op in [deadly, queued] {
        assert_eq!(failure(wire.answer(op).await).0, "unavailable");
    }
    let ended = (&mut harness.server).await.unwrap().unwrap_err();
    assert!(ended.to_string().contains("engine"), "{ended}");
}

#[tokio::test]
async fn a_coordinator_of_another_protocol_version_is_refused() {
    let harness = Harness::start(options()).await;
    let refused = harness.client().step(tokio_stream::empty::<StepRequest>()).await.unwrap_err();
    let versions = format!(
        "the coordinator speaks protocol version 0 and this worker version {}",
        cosec_proto::PROTOCOL_VERSION
    );
    assert_eq!((refused.code(), refused.message()), (tonic::Code::FailedPrecondition, versions.as_str()));
}

#[tokio::test]
async fn shutdown_finishes_what_runs_and_opens_nothing() {
    let mut harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    wire.rows(session, 0, &[1], &[]).await;
    harness.gate.close();
    let running = wire.send(extend(session, 1, &[2; 100], &[100]), 0).await;
    harness.gate.reached(2).await;
    harness.shutdown.cancel();
    harness.reaches_health(ServingStatus::NotServing).await;
    harness.describes(|described| described.draining).await;
    let opening = wire.send(extend(SessionId::random(), 0, &[1], &[]), 0).await;
    sleep(PAUSE).await;
    harness.gate.open();
    assert_eq!(full_rows(&wire.answer(running).await), Some(vec![logits(&[vec![1], vec![2; 100]].concat())]));
    let (code, message) = failure(wire.answer(opening).await);
    assert_eq!(code, "unavailable");
    assert!(message.contains("shutting down"), "{message}");
    // A session that is open goes on until it is released.
    assert!(!wire.rows(session, 101, &[3], &[1]).await.is_empty());
    wire.run(release(session)).await;
    (&mut harness.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn figures_are_scraped() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    wire.rows(session, 0, &[1; 100], &[1, 100]).await;
    wire.run(draft(session, 100, &[2], 3)).await;
    wire.run(extend(session, 500, &[1], &[])).await;
    wire.run(None).await;
    let text = harness.metrics().await;
    let expected = [
        "cosec_worker_operations_total{kind=\"extend\",outcome=\"rows\",role=\"expert\"} 1",
        "cosec_worker_operations_total{kind=\"extend\",outcome=\"need_prefix\",role=\"expert\"} 1",
        "cosec_worker_operations_total{kind=\"draft\",outcome=\"drafted\",role=\"expert\"} 1",
        "cosec_worker_operations_total{kind=\"unknown\",outcome=\"invalid_argument\",role=\"expert\"} 1",
        "cosec_worker_step_seconds_count{phase=\"prefill\",role=\"expert\"} 2",
        "cosec_worker_step_seconds_count{phase=\"decode\",role=\"expert\"} 3",
        "cosec_worker_step_tokens_sum{role=\"expert\"} 103",
        "cosec_worker_sessions{role=\"expert\"} 1",
        "cosec_worker_streams{role=\"expert\"} 1",
        "cosec_worker_blocks{role=\"expert\"} 512",
        "cosec_worker_blocks_free{role=\"expert\"} 486",
        "cosec_worker_queued_tokens{role=\"expert\"} 0",
        "cosec_worker_queue_seconds_count{role=\"expert\"} 3",
        "cosec_worker_logits_bytes_total{view=\"full\",role=\"expert\"} 24",
    ];
    for line in expected {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
}
