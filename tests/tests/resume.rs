//! A coordinator dies in mid-stream; another one sends exactly the rest.

use cosec_tests::fleet::{Coordinator, coordinator, signal, worker};
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

/// An event of a stream.
#[derive(Clone, Debug)]
struct Event {
    id: Option<String>,
    data: String,
}

/// Reads events from `coordinator` until the end, or until `enough` events have come.
async fn read(coordinator: &Coordinator, body: &Value, last_event_id: Option<&str>, enough: usize) -> Vec<Event> {
    let url = format!("{}/v1/completions", coordinator.http);
    let mut request = reqwest::Client::new().post(url).json(body);
    if let Some(id) = last_event_id {
        request = request.header("Last-Event-ID", id);
    }
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    let mut bytes = answer.bytes_stream();
    let (mut events, mut text) = (Vec::new(), String::new());
    while let Some(Ok(piece)) = bytes.next().await {
        text += std::str::from_utf8(&piece).unwrap();
        while let Some((frame, rest)) = text.split_once("\n\n") {
            let line = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            events.push(Event { id: line("id: "), data: line("data: ").unwrap() });
            text = rest.to_owned();
            if events.len() == enough {
                return events;
            }
        }
    }
    events
}

/// The choices in the chunks, by number, without what names the request, and whether the stream came to its end.
fn choices(events: &[Event]) -> (Vec<Vec<Value>>, bool) {
    let mut choices = vec![Vec::new(); 3];
    for event in events.iter().filter(|event| event.data != "[DONE]") {
        let chunk: Value = serde_json::from_str(&event.data).unwrap();
        let number = chunk["choices"][0]["index"].as_u64().map_or(2, |index| index as usize);
        choices[number].push(json!([chunk["choices"], chunk["usage"]]));
    }
    (choices, events.last().is_some_and(|event| event.data == "[DONE]"))
}

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
            "logit_bias": {"0": -100},
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
        let seen = read(&victim, body, None, 25).await;
        signal(&victim.process, "KILL");
        let first: Value = serde_json::from_str(&seen[0].data).unwrap();
        let rest = read(&survivor, body, seen.last().unwrap().id.as_deref(), usize::MAX).await;
        let (joined, ended) = choices(&[seen.as_slice(), &rest].concat());
        assert!(ended);

        // The seed was drawn by the coordinator that died.
        let mut seeded = body.clone();
        seeded["seed"] = first["cosec"]["seed"].clone();
        let undisturbed = read(&survivor, &seeded, None, usize::MAX).await;
        assert_eq!(joined, choices(&undisturbed).0, "{body}");
        assert!(undisturbed.len() > 50, "too short to be disturbed: {}", undisturbed.len());
        let names = |event: &Event| {
            let chunk: Value = serde_json::from_str(&event.data).unwrap();
            (chunk["id"].clone(), chunk["created"].clone(), chunk["cosec"].clone())
        };
        assert_eq!(names(&seen[0]), names(&rest[0]), "the rest is of the same answer");
    }
    assert_eq!(survivor.metric("cosec_door_resumed_streams_total").await, 2.0);
}
