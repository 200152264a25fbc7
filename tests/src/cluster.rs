//! The demo cluster for tests: built binaries, any ports, logs in a folder of the test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cosec_launcher::{ClusterConfig, EVERY_RULE, KV_MEMORY};

/// Describes the cluster that `deploy/demo` starts, on ports that the system chooses.
#[must_use]
pub fn demo(logs: &Path) -> ClusterConfig {
    let pair = root().join("deploy/demo-pair");
    let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    ClusterConfig {
        binaries: binaries(),
        logs: logs.to_owned(),
        model: "demo".to_owned(),
        base: pair.join("base"),
        expert: pair.join("expert"),
        http: any_port,
        grpc: any_port,
        worker_flags: KV_MEMORY.map(Into::into).to_vec(),
        coordinator_flags: EVERY_RULE.map(Into::into).to_vec(),
        patience: Duration::from_secs(120),
    }
}

/// Folder of the built programs.
#[must_use]
pub fn binaries() -> PathBuf {
    // Test programs stand in target/release/deps, the binaries one folder up.
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().to_owned()
}

/// The project's top folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
