//! Attacks on real processes: each makes again what once went round hardening or stopped the service, on loopback alone,
//! bounded, and prints a line of what it cost.
//!
//! `cargo test` makes them short, `tests/attacks` in full.

mod broken_logs;
mod bypass;
mod connections;
mod fake_expert;
mod floods;
mod full_workers;
mod greedy_clients;
mod json_floods;
mod logprobs_memory;
mod long_prompts;
mod members_flood;
mod observation;
mod prefix_oracle;
mod resume_after_kill;
mod slow_readers;
mod worker_port;

use std::time::Duration;

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use observation::{Bystander, in_full, peak_memory_mib, report};

/// What the others are compared with.
#[tokio::test]
async fn nobody_attacks() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let span = Duration::from_secs(if in_full() { 10 } else { 2 });
    let seen = Bystander::undisturbed(&cluster.http, None, span).await;
    let memory = peak_memory_mib(&cluster.coordinator);
    assert!(seen.tokens > 1, "{seen:?}");
    report("-", "nobody attacks", &format!("{seen}, coordinator {memory} MiB"));
}
