//! A coordinator dies in mid-stream; another one sends exactly the rest.

use cosec_tests::fleet::{coordinator, signal, worker};
use cosec_tests::stream::{Event, choices, read};
use serde_json::{Value, json};
use tempfile::TempDir;

#[tokio::test]
async fn a_killed_coordinator_costs_the_client_nothing() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let base = worker("base", "base", &[], logs).await;
    let expert = worker("expert", "expert", &[], logs).await;
    let key = logs.join("resume.key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    let config = logs.join("coordinator.toml");
    std::fs::write(&config, format!("[api]\nresume_key_file = {key:?}\n")).unwrap();
    let flags = ["--config", config.to_str().unwrap(), "--base", &base.address, "--expert", &expert.address];
    let survivor = coordinator("survivor", &flags, logs).await;
    survivor.ready().await;

    let request = |more: Value| {
        let mut body = json!({
            "model": "demo", "prompt": "def f(cur, x):\n    cur.execute(", "max_tokens": 200, "stream": true,
            "logit_bias": {"0": -100}, "min_tokens": 60,
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let cases = [
        request(json!({"n": 2, "logprobs": 2, "stream_options": {"include_usage": true}})),
        request(json!({"stop": ["zzzz", "\n\n\n"], "cosec": {"report": true}, "temperature": 1.1})),
    ];
    for (case, body) in cases.iter().enumerate() {
        let victim = coordinator(["first", "second"][case], &flags, logs).await;
        victim.ready().await;
        let seen = read(&victim.http, body, None, 25).await.unwrap();
        signal(&victim.process, "KILL");
        let first = seen[0].chunk().unwrap();
        let rest = read(&survivor.http, body, seen.last().unwrap().id.as_deref(), usize::MAX).await.unwrap();
        let joined = choices(&[seen.as_slice(), &rest].concat());

        // The seed was drawn by the coordinator that died.
        let mut seeded = body.clone();
        seeded["seed"] = first["cosec"]["seed"].clone();
        let undisturbed = read(&survivor.http, &seeded, None, usize::MAX).await.unwrap();
        assert_eq!(joined, choices(&undisturbed), "{body}");
        assert!(undisturbed.len() > 50, "too short to be disturbed: {}", undisturbed.len());
        let names = |event: &Event| {
            let chunk = event.chunk().unwrap();
            (chunk["id"].clone(), chunk["created"].clone(), chunk["cosec"].clone())
        };
        assert_eq!(names(&seen[0]), names(&rest[0]), "the rest is of the same answer");
    }
    assert_eq!(survivor.metric("cosec_http_resumed_streams_total").await, 2.0);
}
