//! Faults of real workers in every phase of a session: each must take effect, change no byte that clients get, and
//! leave no session behind.
//!
//! Two bases and two experts stand behind proxies, whose gate holds an operation of the phase in question while the
//! fault is injected: so it certainly falls in that phase. Everything runs in its own network, where packets can be
//! dropped. `cargo test` takes a selection; `tests/faults` runs the whole matrix.

mod case;
mod clients;
mod cluster;

use std::panic::AssertUnwindSafe;

use cosec_proto::WorkerRole;
use cosec_tests::network::{Network, say};
use futures::FutureExt;
use tokio::time::Instant;

use case::{Case, FAULTS, Fault, PHASES, Phase};
use cluster::FaultCluster;

/// Every fault, role and phase at least once.
fn selection() -> Vec<Case> {
    use Fault::{CutOff, CutOffForAWhile, Garbage, Hangs, Killed, OtherModel, Slow};
    use Phase::{Draft, Idle, Prefill, Verify};
    let case = |(fault, role, phase, speculation)| Case { fault, role, phase, speculation };
    [
        (Killed, WorkerRole::Base, Verify, "adaptive"),
        (Killed, WorkerRole::Expert, Draft, "off"),
        (Hangs, WorkerRole::Expert, Prefill, "adaptive"),
        (CutOff, WorkerRole::Base, Draft, "adaptive"),
        (CutOffForAWhile, WorkerRole::Expert, Verify, "off"),
        (Slow, WorkerRole::Base, Idle, "adaptive"),
        (Garbage, WorkerRole::Expert, Draft, "adaptive"),
        (OtherModel, WorkerRole::Base, Prefill, "off"),
        (OtherModel, WorkerRole::Expert, Idle, "adaptive"),
    ]
    .map(case)
    .into()
}

fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    for speculation in ["adaptive", "off"] {
        for fault in FAULTS {
            for role in [WorkerRole::Base, WorkerRole::Expert] {
                cases.extend(PHASES.map(|phase| Case { fault, role, phase, speculation }));
            }
        }
    }
    cases
}

/// Runs all cases, each to its end whatever became of those before it, and prints a table.
async fn run_all(test: &str, cases: Vec<Case>) {
    let Some(network) = Network::own(test) else { return };
    let mut cluster = FaultCluster::start(network).await;
    let mut failed = Vec::new();
    for case in cases {
        let began = Instant::now();
        match AssertUnwindSafe(cluster.run_case(case)).catch_unwind().await {
            Ok(seen) => say(&format!("{case} ok     {:5.1} s  {seen}", began.elapsed().as_secs_f64())),
            Err(_) => {
                say(&format!("{case} FAILED {:5.1} s", began.elapsed().as_secs_f64()));
                failed.push(case.to_string());
                // Its state is unknown.
                let FaultCluster { network, .. } = cluster;
                network.heal();
                cluster = FaultCluster::start(network).await;
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test]
async fn faults_change_no_byte() {
    run_all("faults_change_no_byte", selection()).await;
}

#[tokio::test]
#[ignore = "every fault, role and phase takes a quarter of an hour; tests/faults runs it"]
async fn the_whole_matrix_of_faults_changes_no_byte() {
    run_all("the_whole_matrix_of_faults_changes_no_byte", matrix()).await;
}
