//! Workers that are not what they should be: a fake under several names, the base as its own expert, another model where
//! one is pinned.

use std::path::Path;

use cosec_proto::transport;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::{DescribeRequest, DescribeResponse};
use cosec_tests::fleet::{Coordinator, Worker, configured_coordinator, coordinator, model, until, worker, worker_of};
use cosec_tests::mock_worker::{MockModel, MockWorker};
use tempfile::TempDir;

use crate::observation::report;

/// What a worker says of itself, once its model is loaded.
async fn described(address: &str) -> DescribeResponse {
    let mut worker = WorkerClient::new(transport::channel(address).unwrap());
    let mut described = None;
    until("the model is loaded", async || {
        described = worker.describe(DescribeRequest {}).await.ok();
        described.is_some()
    })
    .await;
    described.unwrap().into_inner()
}

/// A worker with the demo's tokenizer and a model of its own.
async fn fake(like: &Worker) -> MockWorker {
    let described = described(&like.address).await;
    let model = MockModel {
        vocabulary: described.vocabulary,
        context_tokens: described.context_tokens,
        tokenizer_fingerprint: described.tokenizer_fingerprint,
        // Sorts before whatever the true one has.
        fingerprint: "0".repeat(64),
        ..MockModel::expert()
    };
    MockWorker::start(model).unwrap()
}

async fn says(coordinator: &Coordinator, ready: bool, part: &str) {
    until(&format!("ready is {ready} and the text says {part}"), async || {
        let (is_ready, text) = coordinator.readiness().await;
        is_ready == ready && text.contains(part)
    })
    .await;
}

#[tokio::test]
async fn one_fake_under_many_names_does_not_outvote_the_expert() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let base = worker("base", "base", &[], logs).await;
    let experts = [worker("expert-1", "expert", &[], logs).await, worker("expert-2", "expert", &[], logs).await];
    let fake = fake(&experts[0]).await;
    let port = fake.address().port();
    let truth = format!("{},{}", experts[0].address, experts[1].address);
    let crowd = format!("{truth},127.0.0.1:{port},localhost:{port},127.1:{port},[::ffff:127.0.0.1]:{port}");
    let among_themselves = coordinator("coordinator", &["--base", &base.address, "--expert", &truth], logs).await;
    among_themselves.ready().await;
    let expected = among_themselves.complete(5, 40).await;
    let attacked = coordinator("attacked", &["--base", &base.address, "--expert", &crowd], logs).await;
    says(&attacked, true, &format!("localhost:{port}: it hosts another model than most")).await;
    assert_eq!(attacked.complete(5, 40).await, expected);
    assert_eq!(fake.sessions(), 0);
    report("B10", "one fake expert under four names, beside two true ones", "left out and named; text identical");
}

#[tokio::test]
async fn the_base_is_no_expert() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let base = worker("base", "base", &[], logs).await;
    let twin = worker_of("twin", "expert", &model("base"), &[], logs).await;
    let flags = ["--base", &base.address, "--expert", &twin.address];
    let coordinator = coordinator("coordinator", &flags, logs).await;
    says(&coordinator, false, "it computes with the very model of the base").await;
    report("B10", "the base's model served as the expert", "refused and named");
}

fn pinned(base: &str, expert: &str, fingerprint: &str, tokenizer: &Path) -> String {
    format!(
        "[[models]]\nname = 'demo'\ntokenizer = {tokenizer:?}\nbase = ['{base}']\nexpert = ['{expert}']\n\
         expert_fingerprint = '{fingerprint}'\n"
    )
}

#[tokio::test]
async fn a_worker_that_is_not_the_pinned_one_is_left_out() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let base = worker("base", "base", &[], logs).await;
    let expert = worker("expert", "expert", &[], logs).await;
    let fake = fake(&expert).await;
    let fingerprint = described(&expert.address).await.fingerprint;
    let of = |expert: &str| pinned(&base.address, expert, &fingerprint, &model("base"));
    let refusing = configured_coordinator("refusing", &of(&fake.address().to_string()), logs).await;
    says(&refusing, false, &format!("its fingerprint is {}; the configuration pins {fingerprint}", "0".repeat(64)))
        .await;
    let serving = configured_coordinator("serving", &of(&expert.address), logs).await;
    serving.ready().await;
    report("B10", "another expert than the pinned one", "left out and named");
}
