//! Sources of membership that name far more workers than there are.

use std::fmt::Write;
use std::path::Path;

use cosec_tests::etcd::Etcd;
use cosec_tests::fleet::{Coordinator, coordinator, until, worker};
use serde_json::json;
use tempfile::TempDir;

use crate::observation::{in_full, open_files, peak_memory_mib, report};

/// Connections to every member that is allowed of one role, and to spare; without bounds there were as many as entries.
const MOST_FILES: usize = 450;

/// An address where nobody listens.
fn nowhere(number: usize) -> String {
    format!("127.{}.{}.1:9", 1 + number / 256, number % 256)
}

/// Serves as before, with bounded descriptors and memory.
async fn holds(coordinator: &Coordinator, expected: &str, what: &str) {
    for seed in 5..8 {
        assert!(coordinator.is_ready().await, "{what}");
        let text = coordinator.complete(seed, 30).await;
        assert!(seed != 5 || text == expected, "{what}: {text:?}");
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    }
    let (files, memory) = (open_files(&coordinator.process), peak_memory_mib(&coordinator.process));
    assert!(files < MOST_FILES, "{what}: {files} descriptors");
    assert!(memory < 120, "{what}: {memory} MiB");
    report("B8", what, &format!("ready, text identical, {files} descriptors, {memory} MiB"));
}

fn write(path: &Path, members: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, members).unwrap();
    std::fs::rename(beside, path).unwrap();
}

#[tokio::test]
async fn a_members_file_that_names_too_many() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let base = worker("base", "base", &[], logs).await;
    let expert = worker("expert", "expert", &[], logs).await;
    let (members, config) = (logs.join("members.toml"), logs.join("coordinator.toml"));
    let entry = |model: &str, role: &str, address: &str| {
        format!("[[members]]\nmodel = '{model}'\nrole = '{role}'\naddress = '{address}'\n")
    };
    let truth = entry("demo", "base", &base.address) + &entry("demo", "expert", &expert.address);
    write(&members, &truth);
    std::fs::write(&config, format!("discovery = {{ kind = 'file', path = {members:?} }}\n")).unwrap();
    let coordinator = coordinator("coordinator", &["--config", config.to_str().unwrap()], logs).await;
    coordinator.ready().await;
    let expected = coordinator.complete(5, 30).await;
    let many = |count: usize, of: &dyn Fn(usize) -> String| {
        (0..count).fold(truth.clone(), |mut text, number| {
            write!(text, "{}", of(number)).unwrap();
            text
        })
    };
    write(&members, &many(20_000, &|number| entry(&format!("m{number}"), "base", &nowhere(number))));
    holds(&coordinator, &expected, "a members file with 20,000 models").await;
    write(&members, &many(3_000, &|number| entry("demo", "expert", &nowhere(number))));
    until("the flood is noticed", async || coordinator.metric("cosec_discovery_members_left_out").await > 0.0).await;
    holds(&coordinator, &expected, "a members file with 3,000 dead experts").await;
}

#[tokio::test]
async fn etcd_entries_that_name_too_many() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let etcd = Etcd::start(1);
    let endpoints = etcd.endpoints();
    let registering = ["--etcd", &endpoints, "--register-model", "demo"];
    let _base = worker("base", "base", &registering, logs).await;
    let _expert = worker("expert", "expert", &registering, logs).await;
    let running = coordinator("running", &["--etcd", &endpoints], logs).await;
    running.ready().await;
    let expected = running.complete(5, 30).await;
    let put = |number: usize, models: &[String]| {
        let entry = json!({
            "endpoint": nowhere(number), "models": models, "role": "expert", "fingerprint": "", "tokenizer_fingerprint": "",
            "capacity_tokens": 1, "version": "", "zone": "", "draining": false,
        });
        etcd.put(&format!("/cosec/v1/workers/a{number}"), &entry.to_string());
    };
    let names: Vec<String> = (0..20_000).map(|number| format!("model-{number}")).collect();
    put(0, &names);
    holds(&running, &expected, "an entry in etcd with 20,000 models").await;
    // Each is a process of etcdctl.
    let entries = if in_full() { 3_000 } else { 40 };
    (1..entries).for_each(|number| put(number, &["demo".to_owned()]));
    holds(&running, &expected, &format!("{entries} dead experts in etcd")).await;
    // One that starts now reads all of it page by page.
    let starting = coordinator("starting", &["--etcd", &endpoints], logs).await;
    starting.ready().await;
    holds(&starting, &expected, &format!("a coordinator that starts with {entries} dead experts in etcd")).await;
}
