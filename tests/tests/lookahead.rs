//! On real processes with the demo pair: whatever the operator sets `speculation` to, clients get the same answers.

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROMPT: &str = "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(";

/// Requests of every rule, transport and way to end.
fn requests() -> Vec<Value> {
    let of = |more: Value| {
        let mut request = json!({"model": "demo", "prompt": PROMPT, "max_tokens": 40, "seed": 11});
        for (key, value) in more.as_object().unwrap() {
            request[key] = value.clone();
        }
        request["cosec"]["report"] = true.into();
        request
    };
    let mut requests: Vec<Value> = ["auto", "gather", "nucleus", "sample", "full"]
        .into_iter()
        .map(|transport| of(json!({"cosec": {"transport": transport}})))
        .collect();
    requests.extend([
        of(json!({"cosec": {"rule": "linear", "lambda": 0.6}})),
        of(json!({"cosec": {"rule": "linear", "transport": "full"}})),
        of(json!({"cosec": {"rule": "product", "alpha": 1.5}})),
        of(json!({"cosec": {"rule": "expert_only"}})),
        of(json!({"cosec": {"tau": 0.0}})),
        of(json!({"cosec": {"tau": 0.2}})),
        of(json!({"temperature": 0})),
        of(json!({"n": 3, "max_tokens": 17})),
        of(json!({"stop": ["\n", ")"]})),
        of(json!({"logprobs": 2, "echo": true, "max_tokens": 12})),
        of(json!({"presence_penalty": 0.5, "min_tokens": 5})),
        of(json!({"max_tokens": 1})),
        // An end token among the drafts.
        of(json!({"prompt": "x = 1\n", "max_tokens": 300, "n": 2})),
    ]);
    requests
}

/// The choices that a server gives for a request.
async fn ask(http: &str, request: Value) -> Value {
    let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(&request).send().await.unwrap();
    let mut answer: Value = answer.json().await.unwrap();
    assert!(answer["choices"].is_array(), "{answer}");
    answer["choices"].take()
}

/// The choices of every request.
async fn answers(speculation: &str) -> Vec<Value> {
    let logs = TempDir::new().unwrap();
    let mut config = demo(logs.path());
    config.coordinator_flags.extend(["--speculation".into(), speculation.into()]);
    let cluster = Cluster::start(&config, |_| {}).await.unwrap();
    // One after the other, then all at once: neither draft length nor batch mates change anything.
    let mut alone = Vec::new();
    for request in requests() {
        alone.push(ask(&cluster.http, request).await);
    }
    let together = futures::future::join_all(requests().into_iter().map(|request| ask(&cluster.http, request))).await;
    assert_eq!(alone, together, "{speculation}");
    alone
}

#[tokio::test]
async fn every_setting_of_speculation_gives_the_same_answers() {
    let plain = answers("off").await;
    let text = |choices: &Value| choices[0]["text"].as_str().unwrap().to_owned();
    assert!(plain.iter().all(|choices| !text(choices).is_empty()));
    // The five transports.
    assert!(plain[..5].iter().all(|choices| *choices == plain[0]));
    for speculation in ["fixed:1", "fixed:2", "fixed:7", "adaptive"] {
        let looked_ahead = answers(speculation).await;
        for ((looked_ahead, plain), request) in looked_ahead.iter().zip(&plain).zip(requests()) {
            assert_eq!(looked_ahead, plain, "{speculation}: {request}");
        }
    }
}
