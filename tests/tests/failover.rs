//! A worker that is killed in mid-completion costs the client nothing once a replacement answers at its address.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A long completion: the end token is banned.
async fn complete(http: &str) -> String {
    let body = json!({
        "model": "demo", "prompt": "def f(cur, x):\n    cur.execute(", "max_tokens": 500, "seed": 4,
        "logit_bias": {"0": -100},
    });
    let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(&body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Sum of a metric of the coordinator over its labels.
async fn metric(http: &str, name: &str) -> f64 {
    let text = reqwest::get(format!("{http}/metrics")).await.unwrap().text().await.unwrap();
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    text.lines().filter(of_name).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
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
    let undisturbed = complete(&cluster.http).await;
    let (process, address, model) = match role {
        "base" => (&cluster.base, &cluster.base_address, &config.base),
        _ => (&cluster.expert, &cluster.expert_address, &config.expert),
    };

    let before = metric(&cluster.http, "cosec_tokens_total").await;
    let http = cluster.http.clone();
    let disturbed = tokio::spawn(async move { complete(&http).await });
    let patience = Instant::now() + Duration::from_secs(60);
    while metric(&cluster.http, "cosec_tokens_total").await < before + 20.0 {
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
    assert!(metric(&cluster.http, "cosec_relocations_total").await > 0.0, "the kill came too late to be felt");
}

#[tokio::test]
async fn a_killed_base_changes_no_byte() {
    survives_the_loss_of("base").await;
}

#[tokio::test]
async fn a_killed_expert_changes_no_byte() {
    survives_the_loss_of("expert").await;
}
