//! Coordinators and workers take each other for what their certificates say, and nobody else.

use cosec_proto::WorkerRole;
use cosec_proto::tls::MutualTls;
use cosec_proto::transport::WorkerTransport;
use cosec_proto::wire::worker::DescribeRequest;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_tests::certificates::Pair;
use cosec_tests::fleet::{Worker, coordinator, until, worker};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::identities::{BASE, COORDINATOR, EXPERT, MONITORING, OwnAuthority, let_in};

async fn start(own: &OwnAuthority, role: &str, pair: &Pair, logs: &TempDir) -> Worker {
    let flags = own.worker_flags(pair);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--kv-memory-mib", "64"]).collect();
    worker("worker", role, &flags, logs.path()).await
}

#[tokio::test]
async fn a_worker_lets_in_coordinators_alone() {
    let (own, other, logs) = (OwnAuthority::new(), OwnAuthority::new(), TempDir::new().unwrap());
    let issue = |file, name| own.authority.issue_for(file, &[name]);
    let worker = start(&own, "base", &issue("base", BASE), &logs).await;
    let ca = &own.authority.file;
    let try_with = async |pair: Option<&Pair>| let_in(&worker.address, ca, BASE, pair, "h2").await;
    let admitted = issue("coordinator", COORDINATOR);
    try_with(Some(&admitted)).await.unwrap();
    let refused = [
        ("none", None),
        ("of another authority", Some(other.authority.issue_for("coordinator", &[COORDINATOR]))),
        ("a worker's", Some(issue("expert", EXPERT))),
        ("monitoring's", Some(issue("monitoring", MONITORING))),
        ("for an address", Some(own.authority.issue("address"))),
        ("expired", Some(own.authority.issue_expired("expired", &[COORDINATOR]))),
    ];
    for (what, pair) in refused {
        let answer = try_with(pair.as_ref()).await;
        assert!(answer.is_err(), "let in with a certificate that is {what}");
    }
    // In the clear there is no answer but the end.
    let mut plain = TcpStream::connect(&worker.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.len() < 16, "{answer:?}");
    // Metrics are for those who watch.
    let metrics = worker.metrics.trim_start_matches("http://").trim_end_matches("/metrics");
    let watch = async |pair: &Pair| let_in(metrics, ca, BASE, Some(pair), "http/1.1").await;
    watch(&issue("monitoring", MONITORING)).await.unwrap();
    assert!(watch(&admitted).await.is_err(), "a coordinator reads metrics");
    try_with(Some(&admitted)).await.unwrap();
}

#[tokio::test]
async fn a_coordinator_takes_workers_for_what_their_certificates_say() {
    let (own, other, logs) = (OwnAuthority::new(), OwnAuthority::new(), TempDir::new().unwrap());
    let pair = own.authority.issue_for("coordinator", &[COORDINATOR]);
    let transport = WorkerTransport::Tls(MutualTls {
        authority_file: Some(own.authority.file.clone().into()),
        certificate_file: Some(pair.cert.into()),
        private_key_file: Some(pair.key.into()),
    });
    let describe = async |worker: &Worker, role| {
        let channel = transport.channel(&worker.address, role).unwrap();
        let mut client = WorkerClient::new(channel);
        // Until the model is loaded a worker that lets in says so.
        match client.describe(DescribeRequest {}).await {
            Ok(_) => true,
            Err(status) => status.message().contains("loading"),
        }
    };
    let good = start(&own, "base", &own.authority.issue_for("base", &[BASE]), &logs).await;
    assert!(describe(&good, WorkerRole::Base).await);
    assert!(!describe(&good, WorkerRole::Expert).await, "a base was taken for the expert");
    let expired = start(&own, "base", &own.authority.issue_expired("expired", &[BASE]), &logs).await;
    assert!(!describe(&expired, WorkerRole::Base).await, "an expired certificate was believed");
    let foreign = start(&other, "base", &other.authority.issue_for("base", &[BASE]), &logs).await;
    assert!(!describe(&foreign, WorkerRole::Base).await, "another authority was believed");
    let plain = worker("plain", "base", &["--kv-memory-mib", "64"], logs.path()).await;
    assert!(!describe(&plain, WorkerRole::Base).await, "a worker without TLS was used");
}

#[tokio::test]
async fn an_expert_that_shows_a_bases_certificate_hardens_nothing() {
    let (own, logs) = (OwnAuthority::new(), TempDir::new().unwrap());
    let base = own.authority.issue_for("base", &[BASE]);
    let [worker, impostor] = [start(&own, "base", &base, &logs).await, start(&own, "expert", &base, &logs).await];
    let file = own.coordinator_file(&own.authority.issue_for("coordinator", &[COORDINATOR]), "");
    let flags = ["--config", &file, "--base", &worker.address, "--expert", &impostor.address];
    let coordinator = coordinator("coordinator", &flags, logs.path()).await;
    let ready = format!("{}/health/ready", coordinator.http);
    let why = async || reqwest::get(&ready).await.unwrap().text().await.unwrap();
    until("the base is there and the expert is not", async || why().await.contains("no expert")).await;
    // Long enough for an expert that is let in.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(why().await.contains("no expert"));
}
