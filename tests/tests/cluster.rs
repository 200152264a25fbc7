//! Real processes on loopback: what starts, what refuses to start, and what HTTP and gRPC return.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use cosec_launcher::{Cluster, ClusterConfig, StartError};
use cosec_proto::transport;
use cosec_proto::wire::coordinator::coordinator_client::CoordinatorClient;
use cosec_proto::wire::coordinator::generate_event::Event;
use cosec_proto::wire::coordinator::generate_request::Prompt;
use cosec_proto::wire::coordinator::{Cosec, GenerateRequest};
use cosec_tests::cluster::demo;
use serde_json::json;
use tempfile::TempDir;

const PROMPT: &str = "def remove(conn, key):\n    cur = conn.cursor()\n    cur.execute(";

async fn generate(grpc: &str, cosec: Cosec, seed: u64) -> (String, u32) {
    let mut client = CoordinatorClient::new(transport::channel(grpc).unwrap());
    let request = GenerateRequest {
        model: "demo".to_owned(),
        prompt: Some(Prompt::Text(PROMPT.to_owned())),
        seed: Some(seed),
        max_tokens: Some(24),
        cosec: Some(cosec),
        ..Default::default()
    };
    let mut events = client.generate(request).await.unwrap().into_inner();
    let (mut text, mut tokens) = (String::new(), 0);
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Delta(delta) => text += &delta.text,
            Event::Finished(finished) => assert!(["stop", "length"].contains(&finished.reason.as_str())),
            Event::Usage(usage) => tokens = usage.completion_tokens,
        }
    }
    (text, tokens)
}

#[tokio::test]
async fn both_doors_give_the_same_text() {
    let logs = TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| {}).await.unwrap();
    for seed in 0..4 {
        let (text, tokens) = generate(&cluster.grpc, Cosec::default(), seed).await;
        assert!(tokens > 0);
        let body = json!({"model": "demo", "prompt": PROMPT, "seed": seed, "max_tokens": 24});
        let answer = reqwest::Client::new().post(format!("{}/v1/completions", cluster.http)).json(&body).send().await;
        let answer: serde_json::Value = answer.unwrap().json().await.unwrap();
        assert_eq!(answer["choices"][0]["text"], text.as_str(), "seed {seed}: {answer}");
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
    }
}

#[tokio::test]
async fn a_restarted_cluster_repeats_itself() {
    let mut texts = Vec::new();
    for _ in 0..2 {
        let logs = TempDir::new().unwrap();
        let cluster = Cluster::start(&demo(logs.path()), |_| {}).await.unwrap();
        texts.push(generate(&cluster.grpc, Cosec::default(), 11).await);
    }
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test]
async fn grpc_errors_name_the_field() {
    let logs = TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| {}).await.unwrap();
    let mut client = CoordinatorClient::new(transport::channel(&cluster.grpc).unwrap());
    let good = GenerateRequest {
        model: "demo".to_owned(),
        prompt: Some(Prompt::Text(PROMPT.to_owned())),
        max_tokens: Some(1),
        ..Default::default()
    };
    let cases = [
        ("prompt", GenerateRequest { prompt: None, ..good.clone() }),
        ("temperature", GenerateRequest { temperature: Some(f64::NAN), ..good.clone() }),
        ("top_p", GenerateRequest { top_p: Some(1.5), ..good.clone() }),
        ("n", GenerateRequest { n: Some(0), ..good.clone() }),
        ("tau", GenerateRequest { cosec: Some(Cosec { tau: Some(f64::NAN), ..Default::default() }), ..good.clone() }),
        (
            "rule",
            GenerateRequest {
                cosec: Some(Cosec { rule: Some("none".to_owned()), ..Default::default() }),
                ..good.clone()
            },
        ),
    ];
    for (field, request) in cases {
        let refused = client.generate(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{field}: {refused}");
        assert!(refused.message().contains(field), "{field} is not named: {refused}");
    }
    client.generate(good).await.unwrap();
}

#[tokio::test]
async fn a_missing_model_is_named() {
    let logs = TempDir::new().unwrap();
    let missing = ClusterConfig { expert: logs.path().join("nowhere"), ..demo(logs.path()) };
    let error = Cluster::start(&missing, |_| {}).await.unwrap_err();
    assert!(matches!(error, StartError::MissingModel { role: "expert", .. }), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let logs = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Cluster::start(&ClusterConfig { http: address, ..demo(logs.path()) }, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_worker_that_dies_at_start_says_why() {
    let logs = TempDir::new().unwrap();
    let broken = logs.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("config.json"), "{\"model_type\": \"abacus\"}").unwrap();
    let error = Cluster::start(&ClusterConfig { expert: broken, ..demo(logs.path()) }, |_| {}).await.unwrap_err();
    assert!(matches!(error, StartError::Ended { name: "expert", .. }), "{error}");
    assert!(error.to_string().contains("abacus"), "{error}");
}

#[tokio::test]
async fn nothing_outlives_the_cluster() {
    let logs = TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| {}).await.unwrap();
    let ids: Vec<u32> =
        [&cluster.coordinator, &cluster.base, &cluster.expert].iter().filter_map(|process| process.id()).collect();
    assert_eq!(ids.len(), 3);
    drop(cluster);
    for id in ids {
        let stat = PathBuf::from(format!("/proc/{id}/stat"));
        for _ in 0..200 {
            // A killed child stays as a zombie (state Z) until the runtime reaps it.
            let state = std::fs::read_to_string(&stat).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let state = std::fs::read_to_string(&stat).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "process {id} runs on: {state}");
    }
}
