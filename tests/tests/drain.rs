//! SIGTERM: sessions move on, new ones go elsewhere, the process exits 0, and no client notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cosec_tests::etcd::Etcd;
use cosec_tests::fleet::{Coordinator, body, coordinator, signal, until, worker};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough that every restart meets it.
const TOKENS: u32 = 400;

#[tokio::test]
async fn a_rolling_restart_of_all_workers_under_load_loses_nothing() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let etcd = Etcd::start(1);
    let endpoints = etcd.endpoints();
    let coordinator = Arc::new(coordinator("coordinator", &["--etcd", &endpoints], logs).await);
    let registering = ["--etcd", &endpoints, "--register-model", "demo", "--grace-seconds", "60"];
    let mut old = vec![
        ("base", worker("base-1", "base", &registering, logs).await),
        ("base", worker("base-2", "base", &registering, logs).await),
        ("expert", worker("expert-1", "expert", &registering, logs).await),
        ("expert", worker("expert-2", "expert", &registering, logs).await),
    ];
    let members = async |count: f64| {
        until("the membership follows", async || {
            coordinator.metric("cosec_discovery_members").await == count
                && coordinator.metric("cosec_worker_up").await == count
        })
        .await;
    };
    members(4.0).await;
    let undisturbed =
        Arc::new(futures::future::join_all((0..3).map(|seed| coordinator.complete(seed, TOKENS))).await);

    let completed = Arc::new(AtomicUsize::new(0));
    let clients = (0..3).map(|seed| {
        let (coordinator, undisturbed, completed) = (coordinator.clone(), undisturbed.clone(), completed.clone());
        tokio::spawn(async move {
            loop {
                assert_eq!(coordinator.complete(seed, TOKENS).await, undisturbed[seed as usize]);
                completed.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let names = ["base-3", "base-4", "expert-3", "expert-4"];
    let mut new = Vec::new();
    for (name, (role, mut worker_that_goes)) in names.into_iter().zip(old.drain(..)) {
        new.push(worker(name, role, &registering, logs).await);
        members(5.0).await;
        signal(&worker_that_goes.process, "TERM");
        let status = tokio::time::timeout(Duration::from_secs(60), worker_that_goes.process.wait()).await;
        assert!(status.expect("it drains in time").unwrap().success());
        members(4.0).await;
    }
    let enough = completed.load(Ordering::SeqCst) + 3;
    until("the load goes on", async || {
        assert!(clients.iter().all(|client| !client.is_finished()), "a client failed");
        completed.load(Ordering::SeqCst) >= enough
    })
    .await;
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(coordinator.metric("cosec_relocations_total").await >= 2.0, "no session had to move");
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
