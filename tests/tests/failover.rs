//! A worker that is killed or hangs in mid-completion costs the client nothing: another one, or a replacement at its
//! address, goes on.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cosec_launcher::Cluster;
use cosec_proto::WorkerRole;
use cosec_tests::cluster::demo;
use cosec_tests::fleet::{complete, coordinator, metric, model, signal, until, worker, worker_of};
use cosec_tests::proxy::{Gate, Kind, Proxy};
use tempfile::TempDir;

/// Long enough for a fault in its midst.
const TOKENS: u32 = 500;

/// Counted by the coordinator whose `/metrics` these are.
async fn tokens_so_far(metrics: &str) -> f64 {
    metric(metrics, "cosec_tokens_total").await
}

/// A replacement that ends with the test.
struct Replacement(Child);

impl Drop for Replacement {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn survives_the_loss_of(role: &str) {
    let logs = TempDir::new().unwrap();
    let config = demo(logs.path());
    let cluster = Cluster::start(&config, |_| {}).await.unwrap();
    let undisturbed = complete(&cluster.http, 4, TOKENS).await;
    let (process, address, model) = match role {
        "base" => (&cluster.base, &cluster.base_address, &config.base),
        _ => (&cluster.expert, &cluster.expert_address, &config.expert),
    };

    let before = tokens_so_far(&cluster.coordinator_metrics).await;
    let http = cluster.http.clone();
    let disturbed = tokio::spawn(async move { complete(&http, 4, TOKENS).await });
    let patience = Instant::now() + Duration::from_secs(60);
    while tokens_so_far(&cluster.coordinator_metrics).await < before + 20.0 {
        assert!(Instant::now() < patience, "the completion did not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let killed = Command::new("kill").args(["-9", &process.id().unwrap().to_string()]).status().unwrap();
    assert!(killed.success());
    // The port is free only once the process is gone.
    while TcpStream::connect(address.as_str()).is_ok() {
        assert!(Instant::now() < patience, "the {role} worker outlived its kill");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _replacement = Replacement(
        Command::new(config.binaries.join("cosec-worker"))
            .args(["serve", "--role", role, "--listen", address, "--model"])
            .arg(model)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );

    assert_eq!(disturbed.await.unwrap(), undisturbed);
    let relocations = metric(&cluster.coordinator_metrics, "cosec_relocations_total").await;
    assert!(relocations > 0.0, "the kill came too late to be felt");
}

#[tokio::test]
async fn a_killed_base_changes_no_byte() {
    survives_the_loss_of("base").await;
}

#[tokio::test]
async fn a_killed_expert_changes_no_byte() {
    survives_the_loss_of("expert").await;
}

#[tokio::test]
async fn a_hanging_base_changes_no_byte() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let bases = [worker("base-1", "base", &[], logs).await, worker("base-2", "base", &[], logs).await];
    let expert = worker("expert", "expert", &[], logs).await;
    let addresses = format!("{},{}", bases[0].address, bases[1].address);
    let coordinator = coordinator("coordinator", &["--base", &addresses, "--expert", &expert.address], logs).await;
    until("all are up", async || coordinator.metric("cosec_worker_up").await == 3.0).await;
    let undisturbed = coordinator.complete(4, TOKENS).await;

    let before = tokens_so_far(&coordinator.metrics).await;
    let http = coordinator.http.clone();
    let disturbed = tokio::spawn(async move { complete(&http, 4, TOKENS).await });
    until("the completion runs", async || tokens_so_far(&coordinator.metrics).await >= before + 20.0).await;
    let mut stopped = 0;
    for base in &bases {
        if metric(&base.metrics, "cosec_worker_sessions").await > 0.0 {
            signal(&base.process, "STOP");
            stopped += 1;
        }
    }
    assert_eq!(stopped, 1, "one base has the session");
    assert_eq!(disturbed.await.unwrap(), undisturbed);
    assert!(coordinator.metric("cosec_relocations_total").await > 0.0, "the hang came too late to be felt");
}

#[tokio::test]
async fn a_session_waits_for_its_own_model_and_takes_no_other() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let base = worker("base", "base", &[], logs).await;
    let mut expert = worker("expert", "expert", &[], logs).await;
    let gate = Gate::default();
    let proxy = Proxy::start(([127, 0, 0, 1], 0).into(), WorkerRole::Expert, &expert.address, &gate);
    let address = proxy.address();
    let config = logs.join("coordinator.toml");
    std::fs::write(&config, "[sessions]\nexpert_absent = \"wait\"\n").unwrap();
    let (config, at) = (config.to_str().unwrap(), address.to_string());
    let flags = ["--config", config, "--base", &base.address, "--expert", &at];
    let coordinator = coordinator("coordinator", &flags, logs).await;
    coordinator.ready().await;
    let undisturbed = coordinator.complete(4, 60).await;
    let up = async |count: f64| {
        until("it is noticed", async || coordinator.metric("cosec_worker_up").await == count).await;
    };

    gate.close(WorkerRole::Expert, Kind::Verify, 10);
    let http = coordinator.http.clone();
    let disturbed = tokio::spawn(async move { complete(&http, 4, 60).await });
    gate.held().await;
    signal(&expert.process, "KILL");
    drop(proxy);
    up(1.0).await;
    gate.open();
    expert = worker_of("expert", "expert", &model("base"), &[], logs).await;
    let proxy = Proxy::start(address, WorkerRole::Expert, &expert.address, &gate);
    up(2.0).await;
    until("the session looks for a worker", async || coordinator.metric("cosec_relocations_total").await > 0.0).await;
    assert!(!disturbed.is_finished());
    assert_eq!(proxy.received(), [], "the session went to another model");
    drop(proxy);
    up(1.0).await;
    expert = worker("expert", "expert", &[], logs).await;
    let _proxy = Proxy::start(address, WorkerRole::Expert, &expert.address, &gate);
    assert_eq!(disturbed.await.unwrap(), undisturbed);
}
