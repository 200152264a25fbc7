//! Workers that refuse what the coordinator asks of them. It made the operation, so that is never the client's fault,
//! and the client never reads the worker's words.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cosec_coordinator::merge::{Cosec, SelectedRule};
use cosec_coordinator::request::{GenerationSettings, SessionEvent};
use cosec_proto::ErrorCode;
use cosec_proto::wire::worker;
use cosec_proto::wire::worker::StepResponse;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_tests::mock_worker::{MockModel, MockWorker};
use futures::StreamExt;

use crate::cluster::{Cluster, collect, prompt, request, settings, until};
use crate::reference::{Models, expected_tokens};

const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });

fn expected(settings: &GenerationSettings) -> Vec<u32> {
    let models = Models { base: MockModel::base(), expert: MockModel::expert(), anti_expert: None };
    expected_tokens(&models, &request(settings.clone(), &prompt(30))).into_iter().map(|(id, _)| id).collect()
}

/// Refuses every operation but releases after the first `answers`.
fn refuse_after(worker: &MockWorker, answers: u32, code: &'static str) {
    let answered = AtomicU32::new(0);
    worker.set_fault(Some(Box::new(move |response| {
        let is_release = matches!(response.outcome, Some(Outcome::Released(_)));
        if is_release || answered.fetch_add(1, Ordering::SeqCst) < answers {
            return Some(response);
        }
        let message = "<script>alert(1)</script>".repeat(1000);
        let failure = worker::Failure { code: code.to_owned(), message };
        Some(StepResponse { outcome: Some(Outcome::Failure(failure)), ..response })
    })));
}

/// What a worker has no business to say of an operation.
const IMPROPER: [&str; 9] = [
    "invalid_argument",
    "context_length_exceeded",
    "unauthenticated",
    "not_found",
    "payload_too_large",
    "cancelled",
    "expert_unavailable",
    "internal",
    "no such code",
];

#[tokio::test]
async fn what_one_worker_refuses_another_is_asked_for() {
    let second = MockWorker::start(MockModel::base()).unwrap();
    let address = second.address().to_string();
    let cluster = Cluster::with(MockModel::base(), MockModel::expert(), |config| {
        config.models[0].base.push(address);
    })
    .await;
    until("both bases are up", || {
        let up = &cluster.metrics.pool.worker_up;
        let at = |worker: &MockWorker| up.with_label_values(&["mock", "base", &worker.address().to_string()]).get();
        at(&cluster.base) + at(&second) == 2
    })
    .await;
    let settings = settings(COSEC);
    for code in IMPROPER.into_iter().chain(["overloaded", "out_of_blocks", "unavailable", "model_mismatch"]) {
        for answers in [0, 4] {
            for (refusing, other) in [(&cluster.base, &second), (&second, &cluster.base)] {
                other.set_fault(None);
                refuse_after(refusing, answers, code);
                let outcome = collect(&cluster.service, request(settings.clone(), &prompt(30))).await;
                assert_eq!(outcome.ids(), expected(&settings), "{code} after {answers} answers: {:?}", outcome.end);
            }
        }
    }
}

#[tokio::test]
async fn no_client_reads_a_worker_s_words() {
    let cluster = Cluster::start().await;
    for code in IMPROPER {
        refuse_after(&cluster.base, 0, code);
        let error = collect(&cluster.service, request(settings(COSEC), &prompt(30))).await.end.unwrap_err();
        assert_eq!(error.code, ErrorCode::WorkerFault, "{code}");
        assert!(!error.message.contains("script") && error.message.len() < 200, "{}", error.message);
    }
}

#[tokio::test]
async fn where_all_workers_are_busy_a_session_that_has_not_begun_ends() {
    let cluster = Cluster::start().await;
    refuse_after(&cluster.base, 0, "overloaded");
    let error = collect(&cluster.service, request(settings(COSEC), &prompt(30))).await.end.unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::Overloaded, "every base of the model is busy; try again later")
    );
    cluster.released().await;
}

#[tokio::test]
async fn a_session_under_way_waits_until_a_worker_has_room() {
    for code in ["overloaded", "out_of_blocks"] {
        let cluster = Cluster::start().await;
        let settings = settings(COSEC);
        cluster.base.set_delay(Duration::from_millis(10));
        let mut stream = cluster.service.open(request(settings.clone(), &prompt(30))).unwrap();
        let mut ids = Vec::new();
        let relocations = cluster.metrics.sessions.relocations.with_label_values(&["base"]);
        let lifted = Arc::new(AtomicU32::new(0));
        while let Some(event) = stream.next().await {
            match event {
                SessionEvent::Token(token) => ids.push(token.decision.id),
                SessionEvent::Finished(_) => break,
                other => panic!("{other:?}"),
            }
            if ids.len() == 3 && lifted.fetch_add(1, Ordering::SeqCst) == 0 {
                refuse_after(&cluster.base, 0, code);
                // More refusals than failures end a session.
                until("it has asked again and again", || relocations.get() > 5).await;
                cluster.base.set_fault(None);
            }
        }
        assert_eq!(ids, expected(&settings), "{code}");
    }
}
