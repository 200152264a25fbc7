//! Membership on a real etcd: workers register and come back, coordinators follow, and nobody stops serving while etcd
//! is away, empty or without a majority.

use std::time::Duration;

use cosec_tests::certificates::Authority;
use cosec_tests::etcd::Etcd;
use cosec_tests::fleet::{Worker, coordinator, metric, signal, until, worker};
use tempfile::TempDir;

const KEYS: [&str; 3] = ["get", "--prefix", "/cosec/v1/workers/"];

/// Keys of the workers' entries.
fn entries(etcd: &Etcd) -> Vec<String> {
    let keys = etcd.ctl(&[KEYS.as_slice(), &["--keys-only"]].concat());
    keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

async fn registered(worker: &Worker) -> bool {
    metric(&worker.metrics, "cosec_worker_registered").await == 1.0
}

#[tokio::test]
async fn a_cluster_outlives_its_etcd() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let mut etcd = Etcd::new(1, "http", &[]);
    let endpoints = etcd.endpoints();
    let mut coordinator = coordinator("coordinator", &["--etcd", &endpoints], logs).await;
    let registering = ["--etcd", &endpoints, "--register-model", "demo", "--zone", "here"];
    let mut base = worker("base", "base", &registering, logs).await;
    let expert = worker("expert", "expert", &registering, logs).await;
    until("the models are loaded", async || {
        // Only a worker that has its model begins to register.
        std::fs::read_to_string(logs.join("base.log")).unwrap().contains("not registered with etcd")
    })
    .await;
    assert!(!coordinator.is_ready().await);
    assert_eq!(coordinator.metric("cosec_discovery_up").await, 0.0);

    etcd.start_member(0);
    coordinator.ready().await;
    let entry: serde_json::Value = {
        let key = format!("/cosec/v1/workers/{}", base.address);
        serde_json::from_str(&etcd.ctl(&["get", "--print-value-only", &key])).unwrap()
    };
    for (field, value) in [("role", "base"), ("zone", "here"), ("endpoint", base.address.as_str())] {
        assert_eq!(entry[field], value, "{entry}");
    }
    assert_eq!((entry["models"][0].as_str(), entry["draining"].as_bool()), (Some("demo"), Some(false)));
    assert!(entry["fingerprint"].as_str().unwrap().len() == 64 && entry["capacity_tokens"].as_u64() > Some(0));
    let undisturbed = coordinator.complete(5, 30).await;
    let serves = async || assert_eq!(coordinator.complete(5, 30).await, undisturbed);

    // Its memory is lost while it runs: entries deleted, a lease ended.
    assert_eq!(etcd.ctl(&["del", "--prefix", "/cosec/"]).trim(), "2");
    serves().await;
    until("the entries are back", async || entries(&etcd).len() == 2).await;
    let leases = etcd.ctl(&["lease", "list"]);
    let lease = leases.lines().last().unwrap();
    assert!(etcd.ctl(&["lease", "revoke", lease]).contains("revoked"));
    assert_eq!(entries(&etcd).len(), 1);
    serves().await;
    until("the worker has a new lease", async || entries(&etcd).len() == 2).await;

    // It is away, and comes back empty.
    etcd.kill(0);
    until("the loss shows", async || {
        coordinator.metric("cosec_discovery_up").await == 0.0
            && !registered(&base).await
            && !registered(&expert).await
    })
    .await;
    serves().await;
    assert_eq!(coordinator.metric("cosec_discovery_members").await, 2.0);
    etcd.wipe(0);
    etcd.start_member(0);
    until("all are back", async || {
        coordinator.metric("cosec_discovery_up").await == 1.0 && registered(&base).await && registered(&expert).await
    })
    .await;
    assert_eq!(entries(&etcd).len(), 2);
    serves().await;

    // A worker that is asked to end leaves.
    signal(&base.process, "TERM");
    assert!(base.process.wait().await.unwrap().success());
    assert_eq!(entries(&etcd).len(), 1);
    until("the base is missed", async || !coordinator.is_ready().await).await;
    signal(&coordinator.process, "TERM");
    assert!(coordinator.process.wait().await.unwrap().success());
}

#[tokio::test]
async fn three_members_may_lose_one_and_then_the_majority_under_load() {
    let logs = TempDir::new().unwrap();
    let logs = logs.path();
    let mut etcd = Etcd::start(3);
    let endpoints = etcd.endpoints();
    let coordinator = coordinator("coordinator", &["--etcd", &endpoints], logs).await;
    let registering = ["--etcd", &endpoints, "--register-model", "demo"];
    let _base = worker("base", "base", &registering, logs).await;
    let expert = worker("expert", "expert", &registering, logs).await;
    coordinator.ready().await;
    let undisturbed = coordinator.complete(5, 60).await;

    let load = async {
        loop {
            assert_eq!(coordinator.complete(5, 60).await, undisturbed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let faults = async {
        etcd.kill(0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Two of three still accept a registration.
        let second = worker("second", "base", &registering, logs).await;
        until("the second base is a member", async || coordinator.metric("cosec_discovery_members").await == 3.0)
            .await;
        etcd.kill(1);
        until("the majority is missed", async || {
            coordinator.metric("cosec_discovery_up").await == 0.0 && !registered(&expert).await
        })
        .await;
        assert_eq!(coordinator.metric("cosec_discovery_members").await, 3.0);
        etcd.start_member(0);
        etcd.start_member(1);
        until("all are registered again", async || {
            coordinator.metric("cosec_discovery_up").await == 1.0
                && registered(&expert).await
                && registered(&second).await
        })
        .await;
    };
    tokio::select! {
        () = load => unreachable!("the load does not end"),
        () = faults => {}
    }
    assert_eq!(entries(&etcd).len(), 3);
}

#[tokio::test]
async fn etcd_may_ask_for_a_certificate_and_a_password() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path();
    let authority = Authority::new(logs);
    let (server, client) = (authority.issue("etcd"), authority.issue("cosec"));
    let flags = [
        "--client-cert-auth",
        "--trusted-ca-file",
        &authority.file,
        "--cert-file",
        &server.cert,
        "--key-file",
        &server.key,
    ];
    let mut etcd = Etcd::new(1, "https", &flags.map(str::to_owned));
    let tls = ["--cacert", &authority.file, "--cert", &client.cert, "--key", &client.key];
    etcd.start_member(0);
    etcd.wait_until_healthy(&tls);
    let run = |command: &[&str]| etcd.ctl(&[tls.as_slice(), command].concat());
    for command in [
        ["user", "add", "root:root-secret"].as_slice(),
        &["user", "grant-role", "root", "root"],
        &["role", "add", "fleet"],
        &["role", "grant-permission", "fleet", "--prefix=true", "readwrite", "/cosec/"],
        &["user", "add", "fleet:fleet-secret"],
        &["user", "grant-role", "fleet", "fleet"],
        &["auth", "enable"],
    ] {
        let _ = run(command);
    }
    let password = logs.join("password").to_str().unwrap().to_owned();
    std::fs::write(&password, "fleet-secret\n").unwrap();
    let endpoints = etcd.endpoints();
    let trusted = ["--etcd", &endpoints, "--register-model", "demo", "--etcd-ca", &authority.file];
    let identified = ["--etcd-cert", &client.cert, "--etcd-key", &client.key];
    let named = ["--etcd-user", "fleet", "--etcd-password-file", &password];
    let known = [trusted.as_slice(), &identified, &named].concat();
    let base = worker("base", "base", &known, logs).await;
    let _expert = worker("expert", "expert", &known, logs).await;
    let stranger = worker("stranger", "base", &[trusted.as_slice(), &named].concat(), logs).await;
    let nameless = worker("nameless", "base", &[trusted.as_slice(), &identified].concat(), logs).await;

    let config = logs.join("coordinator.toml");
    let toml = format!(
        "[discovery]\nkind = \"etcd\"\nendpoints = [{endpoints:?}]\nuser = \"fleet\"\npassword_file = {password:?}\n\
         ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}\n",
        authority.file, client.cert, client.key
    );
    std::fs::write(&config, toml).unwrap();
    let coordinator = coordinator("coordinator", &["--config", config.to_str().unwrap()], logs).await;
    coordinator.ready().await;
    assert_eq!(coordinator.complete(5, 10).await, coordinator.complete(5, 10).await);
    assert!(registered(&base).await);
    until("the others were refused", async || {
        let refused =
            |name: &str| std::fs::read_to_string(logs.join(name)).unwrap().contains("not registered with etcd");
        refused("stranger.log") && refused("nameless.log")
    })
    .await;
    assert!(!registered(&stranger).await && !registered(&nameless).await);
    assert_eq!(coordinator.metric("cosec_discovery_members").await, 2.0);
}
