//! A worker that is killed or hangs in mid-completion costs the client nothing: another one, or a replacement at its
//! address, goes on.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use cosec_tests::fleet::{complete, coordinator, metric, signal, until, worker};
use tempfile::TempDir;

/// Long enough for a fault in its midst.
const TOKENS: u32 = 500;

async fn tokens_so_far(http: &str) -> f64 {
    metric(&format!("{http}/metrics"), "cosec_tokens_total").await
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

    let before = tokens_so_far(&cluster.http).await;
    let http = cluster.http.clone();
    let disturbed = tokio::spawn(async move { complete(&http, 4, TOKENS).await });
    let patience = Instant::now() + Duration::from_secs(60);
    while tokens_so_far(&cluster.http).await < before + 20.0 {
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
    let relocations = metric(&format!("{}/metrics", cluster.http), "cosec_relocations_total").await;
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

    let before = tokens_so_far(&coordinator.http).await;
    let http = coordinator.http.clone();
    let disturbed = tokio::spawn(async move { complete(&http, 4, TOKENS).await });
    until("the completion runs", async || tokens_so_far(&coordinator.http).await >= before + 20.0).await;
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
