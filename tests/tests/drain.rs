//! SIGTERM: sessions move on, new ones go elsewhere, the process exits 0, and no client notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use std::time::Duration;

use cosec_tests::etcd::Etcd;
use cosec_tests::fleet::{Coordinator, body, coordinator, signal, until, worker};
use cosec_tests::stream::{choices, read_from_any};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough to meet every restart.
const TOKENS: u32 = 400;

/// A request whose stream takes longer than a coordinator's grace period.
fn streamed(seed: u64) -> Value {
    let mut body = body(seed, TOKENS);
    body["stream"] = json!(true);
    body["n"] = json!(2);
    body
}

async fn ends(process: &mut cosec_launcher::Process) {
    signal(process, "TERM");
    let status = tokio::time::timeout(Duration::from_secs(60), process.wait()).await;
    assert!(status.expect("it drains in time").unwrap().success());
}

#[tokio::test]
async fn a_rolling_restart_of_every_process_under_load_loses_nothing() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let etcd = Etcd::start(1);
    let endpoints = etcd.endpoints();
    let (key, config) = (logs.join("resume.key"), logs.join("coordinator.toml"));
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::write(&config, format!("[api]\nresume_key_file = {key:?}\n")).unwrap();
    let coordinating = ["--etcd", &endpoints, "--config", config.to_str().unwrap(), "--grace-seconds", "1"];
    let registering = ["--etcd", &endpoints, "--register-model", "demo", "--grace-seconds", "60"];
    let mut coordinators = vec![
        coordinator("coordinator-1", &coordinating, logs).await,
        coordinator("coordinator-2", &coordinating, logs).await,
    ];
    let mut workers = vec![
        ("base", worker("base-1", "base", &registering, logs).await),
        ("base", worker("base-2", "base", &registering, logs).await),
        ("expert", worker("expert-1", "expert", &registering, logs).await),
        ("expert", worker("expert-2", "expert", &registering, logs).await),
    ];
    let members = async |coordinators: &[Coordinator], count: f64| {
        until("the membership follows", async || {
            let mut follow = true;
            for coordinator in coordinators {
                follow &= coordinator.metric("cosec_discovery_members").await == count
                    && coordinator.metric("cosec_worker_up").await == count;
            }
            follow
        })
        .await;
    };
    members(&coordinators, 4.0).await;

    let known = Arc::new(Mutex::new(coordinators.iter().map(|of| of.http.clone()).collect::<Vec<_>>()));
    let mut undisturbed = Vec::new();
    for seed in 0..3 {
        undisturbed.push(choices(&read_from_any(&known, &streamed(seed)).await.0));
    }
    let (completed, resumed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let client = |(seed, undisturbed): (usize, Vec<Vec<Value>>)| {
        let (known, completed, resumed) = (known.clone(), completed.clone(), resumed.clone());
        tokio::spawn(async move {
            loop {
                let (events, again) = read_from_any(&known, &streamed(seed as u64)).await;
                assert!(choices(&events) == undisturbed, "seed {seed}: another answer, resumed {again} times");
                completed.fetch_add(1, Ordering::SeqCst);
                resumed.fetch_add(again, Ordering::SeqCst);
            }
        })
    };
    let clients: Vec<_> = undisturbed.into_iter().enumerate().map(client).collect();
    let goes_on = async |more: usize| {
        let enough = completed.load(Ordering::SeqCst) + more;
        until("the load goes on", async || {
            assert!(clients.iter().all(|client| !client.is_finished()), "a client failed");
            completed.load(Ordering::SeqCst) >= enough
        })
        .await;
    };

    let names = ["base-3", "base-4", "expert-3", "expert-4"];
    let mut relocations = 0.0;
    for (name, (role, mut worker_that_goes)) in names.into_iter().zip(std::mem::take(&mut workers)) {
        workers.push((role, worker(name, role, &registering, logs).await));
        members(&coordinators, 5.0).await;
        ends(&mut worker_that_goes.process).await;
        members(&coordinators, 4.0).await;
    }
    for name in ["coordinator-3", "coordinator-4"] {
        let comes = coordinator(name, &coordinating, logs).await;
        members(std::slice::from_ref(&comes), 4.0).await;
        known.lock().push(comes.http.clone());
        coordinators.push(comes);
        let mut goes = coordinators.remove(0);
        relocations += goes.metric("cosec_relocations_total").await;
        ends(&mut goes.process).await;
        known.lock().remove(0);
        goes_on(2).await;
    }
    goes_on(3).await;
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(relocations >= 2.0, "no session had to move");
    assert!(resumed.load(Ordering::SeqCst) > 0, "no client had to go elsewhere");
}

#[tokio::test]
async fn a_coordinator_that_is_asked_to_end_finishes_what_it_began() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let base = worker("base", "base", &[], logs).await;
    let expert = worker("expert", "expert", &[], logs).await;
    let flags = ["--base", &base.address, "--expert", &expert.address];
    let mut goes = coordinator("goes", &flags, logs).await;
    goes.ready().await;
    let undisturbed = goes.complete(1, TOKENS).await;
    let http = goes.http.clone();
    let running = tokio::spawn(async move {
        let answer =
            reqwest::Client::new().post(format!("{http}/v1/completions")).json(&body(1, TOKENS)).send().await;
        answer.unwrap().json::<Value>().await.unwrap()
    });
    let began = goes.metric("cosec_tokens_total").await;
    until("the completion runs", async || goes.metric("cosec_tokens_total").await > began).await;
    signal(&goes.process, "TERM");
    until("it is not ready", async || !goes.is_ready().await).await;
    if let Some(refused) = refusal(&goes).await {
        assert_eq!(refused, (503, true));
    }
    let answer = running.await.unwrap();
    assert_eq!(answer["choices"][0]["text"], undisturbed.as_str());
    assert!(goes.process.wait().await.unwrap().success());
}

/// Status of a new request and whether it says when to try again; `None` once the coordinator is gone.
async fn refusal(coordinator: &Coordinator) -> Option<(u16, bool)> {
    let request = reqwest::Client::new().post(format!("{}/v1/completions", coordinator.http));
    let answer = request.json(&body(2, 4)).send().await.ok()?;
    Some((answer.status().as_u16(), answer.headers().contains_key("retry-after")))
}
