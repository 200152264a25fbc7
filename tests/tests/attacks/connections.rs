//! Connections that only stay, and heads that never end.

use std::path::Path;
use std::time::Duration;

use cosec_tests::fleet::{Coordinator, complete, coordinator, until, worker};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::observation::{Bystander, in_full, peak_memory_mib, report};

/// A cluster of the demo pair whose coordinator has `settings`.
async fn start(settings: &str, logs: &Path) -> (Coordinator, [cosec_tests::fleet::Worker; 2]) {
    let flags = ["--kv-memory-mib", "256"];
    let workers = [worker("base", "base", &flags, logs).await, worker("expert", "expert", &flags, logs).await];
    let file = logs.join("coordinator.toml");
    std::fs::write(&file, settings).unwrap();
    let file = file.to_str().unwrap();
    let flags = ["--config", file, "--base", &workers[0].address, "--expert", &workers[1].address];
    let coordinator = coordinator("coordinator", &flags, logs).await;
    coordinator.ready().await;
    (coordinator, workers)
}

/// Whether the other side has ended the connection; what it says before is read.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 1024];
    loop {
        match timeout(Duration::from_millis(1), stream.read(&mut bytes)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_) => return false,
        }
    }
}

/// Heads of requests that arrive byte by byte.
#[tokio::test]
async fn half_heads() {
    let (logs, clients) = (TempDir::new().unwrap(), if in_full() { 2000 } else { 300 });
    let (coordinator, _workers) = start("[connections]\nhead_timeout_seconds = 2", logs.path()).await;
    let address = coordinator.http.trim_start_matches("http://").to_owned();
    let undisturbed = Bystander::undisturbed(&coordinator.http, None, Duration::from_secs(2)).await;
    let bystander = Bystander::start(&coordinator.http, None);
    let mut held = Vec::new();
    for _ in 0..clients {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        held.push(stream);
    }
    let began = Instant::now();
    until("every half head is given up", async || {
        let mut open = Vec::new();
        for mut stream in held.drain(..) {
            // One byte more keeps no connection.
            let _ = stream.write_all(b"x").await;
            if !is_closed(&mut stream).await {
                open.push(stream);
            }
        }
        held = open;
        held.is_empty()
    })
    .await;
    let gone = began.elapsed();
    let seen = bystander.stop().await;
    let memory = peak_memory_mib(&coordinator.process);
    report(
        "B13",
        &format!("{clients} half heads, a byte now and then"),
        &format!(
            "all closed after {:.1} s, {seen} (before {undisturbed}), coordinator {memory} MiB",
            gone.as_secs_f64()
        ),
    );
}

/// More connections than the process may open files: who comes later is served all the same, and so are probes.
#[tokio::test]
async fn more_connections_than_files() {
    let logs = TempDir::new().unwrap();
    let (coordinator, _workers) = start("[connections]\nidle_timeout_seconds = 3600", logs.path()).await;
    let (health, limited) = limited_to(1024, &coordinator, logs.path()).await;
    drop(coordinator);
    let address = limited.http.trim_start_matches("http://").to_owned();
    let mut idle = Vec::new();
    for _ in 0..1100 {
        // The backlog takes those that wait for a place.
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    let began = Instant::now();
    let live = reqwest::get(format!("http://{health}/health/live")).await.unwrap();
    assert_eq!(live.status(), 200);
    let probed = began.elapsed();
    let text = timeout(Duration::from_secs(60), complete(&limited.http, 1, 8)).await.expect("nobody else is served");
    let served = began.elapsed();
    assert!(!text.is_empty());
    let mut open = 0;
    for stream in &mut idle {
        open += usize::from(!is_closed(stream).await);
    }
    assert!(open > 100, "all were closed, though there was room for most");
    report(
        "B13",
        "1,100 idle connections, 1,024 files",
        &format!("probe {probed:.0?}, a new client {served:.0?}, {open} of them still open"),
    );
}

/// Another coordinator of the same workers that may open `files` files, with the address of its probes.
async fn limited_to(files: u32, of: &Coordinator, logs: &Path) -> (String, Coordinator) {
    let id = of.process.id().unwrap();
    let command_line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap();
    let arguments: Vec<&str> = command_line.trim_end_matches('\0').split('\0').collect();
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]).args(&arguments);
    command.args(["--health-listen", "127.0.0.1:0"]);
    let mut process = cosec_launcher::Process::start("limited", &mut command, logs).unwrap();
    let deadline = Instant::now() + cosec_tests::fleet::PATIENCE;
    let mut announced = async |name: &str| process.announced(&format!("{name} on "), deadline).await.unwrap();
    let (http, grpc) = (format!("http://{}", announced("http").await), announced("grpc").await);
    let (health, metrics) = (announced("health").await, format!("http://{}/metrics", announced("metrics").await));
    let limited = Coordinator { http, grpc, metrics, process };
    limited.ready().await;
    (health, limited)
}
