//! A coordinator dies in mid-stream; another one sends exactly the rest, and decodes nothing that the client has.

use std::path::PathBuf;

use cosec_tests::fleet::{Coordinator, Worker, coordinator, metric_where, signal, until, worker, worker_at};
use cosec_tests::stream::{Event, choices, read};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A worker of each role, and what coordinators before them are started with.
struct Fleet {
    base: Worker,
    expert: Worker,
    config: PathBuf,
    logs: TempDir,
}

impl Fleet {
    async fn start() -> Self {
        let logs = TempDir::new().unwrap();
        let base = worker("base", "base", &[], logs.path()).await;
        let expert = worker("expert", "expert", &[], logs.path()).await;
        let (key, config) = (logs.path().join("resume.key"), logs.path().join("coordinator.toml"));
        std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
        std::fs::write(&config, format!("[api]\nresume_key_file = {key:?}\n")).unwrap();
        Self { base, expert, config, logs }
    }

    async fn coordinator(&self, name: &'static str) -> Coordinator {
        let config = self.config.to_str().unwrap();
        let flags = ["--config", config, "--base", &self.base.address, "--expert", &self.expert.address];
        let coordinator = coordinator(name, &flags, self.logs.path()).await;
        coordinator.ready().await;
        coordinator
    }

    /// Kills the worker of a role and starts another one at its address, which knows nothing.
    async fn replace(&mut self, role: &str, survivor: &Coordinator) {
        let worker = if role == "base" { &mut self.base } else { &mut self.expert };
        signal(&worker.process, "KILL");
        worker.process.wait().await.unwrap();
        until("the loss is noticed", async || survivor.metric("cosec_worker_up").await == 1.0).await;
        *worker = worker_at(&worker.address, "replacement", role, &[], self.logs.path()).await;
        until("it is up again", async || survivor.metric("cosec_worker_up").await == 2.0).await;
    }
}

fn body(more: Value) -> Value {
    let mut body = json!({
        "model": "demo", "prompt": "def f(cur, x):\n    cur.execute(", "max_tokens": 200, "stream": true,
        "logit_bias": {"0": -100}, "stream_options": {"include_usage": true},
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Tokens decoded by a coordinator.
async fn decoded(coordinator: &Coordinator) -> f64 {
    coordinator.metric("cosec_tokens_total").await
}

/// Choices that a coordinator took over, and those that it decoded anew.
async fn resumed(coordinator: &Coordinator) -> [f64; 2] {
    let of = async |how: &str| metric_where(&coordinator.metrics, "cosec_resumed_choices_total", how).await;
    [of("taken_over").await, of("decoded_anew").await]
}

/// What names the answer in every chunk.
fn names(event: &Event) -> Value {
    let chunk = event.chunk().unwrap();
    json!([chunk["id"], chunk["created"], chunk["cosec"]["seed"], chunk["cosec"]["rule"]])
}

/// Tokens in the reports of these events.
fn tokens(events: &[Event]) -> usize {
    let reports = events.iter().filter_map(Event::chunk);
    reports.map(|chunk| chunk["choices"][0]["cosec"]["report"].as_array().map_or(0, Vec::len)).sum()
}

/// A request without a bias, so that the expert drafts ahead, for a text that is long by itself.
async fn long_draft(coordinator: &Coordinator) -> Value {
    for seed in 1..40 {
        let body = json!({
            "model": "demo", "prompt": "import os\n", "max_tokens": 200, "stream": true, "seed": seed,
            "temperature": 1.2, "stream_options": {"include_usage": true}, "cosec": {"report": true},
        });
        if read(&coordinator.http, &body, None, usize::MAX).await.unwrap().len() > 80 {
            return body;
        }
    }
    panic!("all texts are short");
}

/// What the events say of each choice, and of all. What hardening did to tokens is counted where they were decoded.
fn comparable(events: &[Event]) -> Vec<Vec<Value>> {
    let mut choices = choices(events);
    for content in choices.iter_mut().flatten() {
        if let Some(usage) = content[1].as_object_mut() {
            usage.remove("hardening");
        }
    }
    choices
}

#[tokio::test]
async fn a_killed_coordinator_costs_the_client_nothing() {
    let fleet = Fleet::start().await;
    let survivor = fleet.coordinator("survivor").await;
    let cases = [
        body(json!({"n": 4, "logprobs": 2, "max_tokens": 60, "echo": true, "cosec": {"report": true}})),
        body(json!({"stop": ["zzzz", "\n\n\n"], "cosec": {"report": true}, "temperature": 1.1, "min_tokens": 60})),
        long_draft(&survivor).await,
    ];
    for (case, body) in cases.iter().enumerate() {
        let victim = fleet.coordinator(["first", "second", "third"][case]).await;
        let seen = read(&victim.http, body, None, 40).await.unwrap();
        signal(&victim.process, "KILL");
        let (before, resumes) = (decoded(&survivor).await, resumed(&survivor).await);
        let rest = read(&survivor.http, body, seen.last().unwrap().id.as_deref(), usize::MAX).await.unwrap();
        let (again, resumes_after) = (decoded(&survivor).await - before, resumed(&survivor).await);
        let joined = comparable(&[seen.as_slice(), &rest].concat());

        // The seed was drawn by the coordinator that died.
        let mut seeded = body.clone();
        seeded["seed"] = seen[0].chunk().unwrap()["cosec"]["seed"].clone();
        let undisturbed = read(&survivor.http, &seeded, None, usize::MAX).await.unwrap();
        assert_eq!(joined, comparable(&undisturbed), "{body}");
        assert!(undisturbed.len() > 50, "too short to be disturbed: {}", undisturbed.len());
        assert_eq!(names(&seen[0]), names(&rest[0]), "the rest is of the same answer");
        let whole = decoded(&survivor).await - before - again;
        let received = tokens(&seen) as f64;
        // A session may be some events ahead of the text in which a stop string ends it.
        let ahead = if body.get("stop").is_some() { 33.0 } else { 0.0 };
        assert!(
            (again - (whole - received)).abs() <= ahead,
            "{again} tokens decoded of {whole}, {received} received"
        );
        assert_eq!(resumes_after[1], resumes[1], "nothing was decoded anew");
        assert!(resumes_after[0] > resumes[0]);
        let longest = seen.iter().filter_map(|event| event.id.as_ref()).map(String::len).max().unwrap();
        assert!(longest < if case == 0 { 300 } else { 200 }, "ids have {longest} bytes");
    }
    assert_eq!(survivor.metric("cosec_http_resumed_streams_total").await, 3.0);
}

#[tokio::test]
async fn what_one_side_lost_is_fed_to_it_and_what_both_lost_is_decoded_anew() {
    let mut fleet = Fleet::start().await;
    let survivor = fleet.coordinator("survivor").await;
    let body = body(json!({"n": 4, "seed": 5, "max_tokens": 60, "cosec": {"report": true}}));
    let undisturbed = read(&survivor.http, &body, None, usize::MAX).await.unwrap();
    let whole = decoded(&survivor).await;
    for lost in [&["base"][..], &["expert"], &["base", "expert"]] {
        let victim = fleet.coordinator("victim").await;
        let seen = read(&victim.http, &body, None, 160).await.unwrap();
        signal(&victim.process, "KILL");
        for role in lost {
            fleet.replace(role, &survivor).await;
        }
        let (before, resumes) = (decoded(&survivor).await, resumed(&survivor).await);
        let rest = read(&survivor.http, &body, seen.last().unwrap().id.as_deref(), usize::MAX).await.unwrap();
        assert_eq!(comparable(&[seen.as_slice(), &rest].concat()), comparable(&undisturbed), "without {lost:?}");
        let (again, now) = (decoded(&survivor).await - before, resumed(&survivor).await);
        let (taken, anew) = (now[0] - resumes[0], now[1] - resumes[1]);
        if lost.len() == 2 {
            assert_eq!((again, taken, anew), (whole, 0.0, 4.0));
        } else {
            assert_eq!((again, taken, anew), (whole - tokens(&seen) as f64, 4.0, 0.0), "without {lost:?}");
        }
    }
}
