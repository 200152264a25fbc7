//! Certificates are renewed while everything goes on.

use std::time::Duration;

use cosec_tests::certificates::Authority;
use cosec_tests::fleet::{complete, coordinator, until, worker_at};
use tempfile::TempDir;

use crate::identities::{BASE, COORDINATOR, EXPERT, OwnAuthority, let_in};

/// Long enough for a rotation in its midst.
const TOKENS: u32 = 700;

/// Puts certificates of `authority` in the place of all, and lets both authorities count.
fn rotate(own: &OwnAuthority, new: &Authority) {
    let bundle = [&own.authority.file, &new.file].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&own.authority.file, bundle).unwrap();
    for (file, name) in [("base", BASE), ("expert", EXPERT), ("coordinator", COORDINATOR)] {
        let pair = new.issue_for(file, &[name]);
        let place = |kind: &str| own.folder.path().join(format!("{file}.{kind}"));
        // As a Secret changes: not both at the same time.
        std::fs::copy(&pair.cert, place("pem")).unwrap();
        std::fs::copy(&pair.key, place("key")).unwrap();
    }
}

#[tokio::test]
async fn streams_live_through_a_rotation_and_new_connections_have_the_new_certificates() {
    let (own, logs, next) = (OwnAuthority::new(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let issue = |file, name| own.authority.issue_for(file, &[name]);
    let flags = |pair| own.worker_flags(&pair).into_iter().chain(["--kv-memory-mib".to_owned(), "256".to_owned()]);
    let [base_flags, expert_flags]: [Vec<String>; 2] =
        [flags(issue("base", BASE)).collect(), flags(issue("expert", EXPERT)).collect()];
    let any = "127.0.0.1:0";
    let mut base = worker_at(any, "base", "base", &base_flags, logs.path()).await;
    let expert = worker_at(any, "expert", "expert", &expert_flags, logs.path()).await;
    let pair = issue("coordinator", COORDINATOR);
    let file = own.coordinator_file(&pair, "");
    let coordinator_flags = ["--config", &file, "--base", &base.address, "--expert", &expert.address];
    let coordinator = coordinator("coordinator", &coordinator_flags, logs.path()).await;
    coordinator.ready().await;
    let undisturbed = [complete(&coordinator.http, 1, TOKENS).await, complete(&coordinator.http, 2, TOKENS).await];

    let running = [1, 2].map(|seed| {
        let http = coordinator.http.clone();
        tokio::spawn(async move { complete(&http, seed, TOKENS).await })
    });
    let new = Authority::new(next.path());
    rotate(&own, &new);
    // A worker shows the new certificate as soon as it has looked.
    until("the new certificate is shown", async || {
        let_in(&base.address, &new.file, BASE, Some(&pair), "h2").await.is_ok()
    })
    .await;
    // Now a connection that is made with the new certificates must take the streams up.
    let address = base.address.clone();
    base.process.kill().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _again = worker_at(&address, "again", "base", &base_flags, logs.path()).await;
    for (text, expected) in running.into_iter().zip(undisturbed) {
        assert_eq!(text.await.unwrap(), expected);
    }
}
