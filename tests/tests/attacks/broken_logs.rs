//! Logs that nobody can take, and spans that no collector takes: a full disk, a pipe that nobody reads, one that is closed.
//! Processes start, serve and end all the same.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use cosec_tests::fleet::{binaries, complete, metric, model, until};
use tokio::process::{Child, Command};

use crate::observation::{in_full, report};

/// What a process has in place of standard output and standard error.
#[derive(Clone, Copy, Debug)]
enum BrokenLog {
    /// Every write fails, as on a full disk.
    FullDisk,
    /// Every write waits for ever: both are one pipe that is full, and nobody reads it.
    UnreadPipe,
    /// Every write fails, as when `head` has ended: both are a pipe without a reader.
    ClosedPipe,
}

impl BrokenLog {
    /// Standard output and standard error, and what must be kept for as long as they are broken.
    fn outputs(self) -> (Stdio, Stdio, Option<std::io::PipeReader>) {
        let device = || OpenOptions::new().write(true).open("/dev/full").unwrap().into();
        let (reader, mut writer) = std::io::pipe().unwrap();
        match self {
            Self::FullDisk => (device(), device(), None),
            Self::ClosedPipe => (writer.try_clone().unwrap().into(), writer.into(), None),
            Self::UnreadPipe => {
                // As much as a pipe of Linux holds.
                writer.write_all(&[b'\n'; 65536]).unwrap();
                (writer.try_clone().unwrap().into(), writer.into(), Some(reader))
            }
        }
    }
}

/// A process that cannot say anything.
struct MuteProcess {
    child: Child,
    _reader: Option<std::io::PipeReader>,
}

impl MuteProcess {
    /// Spans of a coordinator go to `collector`.
    fn start(program: &str, arguments: &[&str], log: BrokenLog, collector: &str) -> Self {
        let (stdout, stderr, reader) = log.outputs();
        let mut command = Command::new(binaries().join(program));
        command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true);
        // Says much about each operation.
        command.env("RUST_LOG", "trace").env("COSEC_COORDINATOR_TELEMETRY__OTLP_ENDPOINT", collector);
        let child = command.spawn().unwrap();
        Self { child, _reader: reader }
    }

    /// Ends it by SIGTERM.
    async fn end(mut self) {
        let id = self.child.id().expect("it lives").to_string();
        assert!(std::process::Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        let status = ended.expect("it ends after SIGTERM").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// An address that nobody listens on: what these processes announce cannot be read.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn serve_with(log: BrokenLog) {
    // It takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = format!("http://{}", silent.local_addr().unwrap());
    let [base, expert, base_metrics, expert_metrics, http, grpc, metrics] = std::array::from_fn(|_| free_address());
    let worker = |role: &str, listen: &str, metrics: &str| {
        let (directory, threads) = (model(role), ["--threads", "1", "--kv-memory-mib", "256"]);
        let mut arguments = vec!["serve", "--role", role, "--listen", listen, "--metrics-listen", metrics];
        arguments.extend(["--model", directory.to_str().unwrap()]);
        arguments.extend(threads);
        MuteProcess::start("cosec-worker", &arguments, log, &collector)
    };
    let workers = [worker("base", &base, &base_metrics), worker("expert", &expert, &expert_metrics)];
    let tokenizer = model("base");
    let mut arguments = vec!["--model", "demo", "--base", &base, "--expert", &expert];
    arguments.extend(["--http-listen", &http, "--grpc-listen", &grpc, "--metrics-listen", &metrics]);
    arguments.extend(["--tokenizer", tokenizer.to_str().unwrap()]);
    let coordinator = MuteProcess::start("cosec-coordinator", &arguments, log, &collector);
    let http = format!("http://{http}");
    until("the coordinator is ready", async || {
        let answer = reqwest::get(format!("{http}/health/ready")).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
    let requests = if in_full() { 400 } else { 20 };
    let first = complete(&http, 1, 20).await;
    for _ in 1..requests {
        assert_eq!(complete(&http, 1, 20).await, first);
    }
    let dropped = [
        metric(&format!("http://{metrics}/metrics"), "cosec_log_lines_dropped_total").await,
        metric(&format!("http://{base_metrics}/metrics"), "cosec_worker_log_lines_dropped_total").await,
        metric(&format!("http://{expert_metrics}/metrics"), "cosec_worker_log_lines_dropped_total").await,
    ];
    coordinator.end().await;
    for worker in workers {
        worker.end().await;
    }
    let seen = format!("{requests} requests served, lines dropped by coordinator, base, expert: {dropped:?}");
    report("B11", &format!("standard output and error are broken: {log:?}"), &seen);
    if !matches!(log, BrokenLog::UnreadPipe) {
        assert!(dropped.iter().all(|&lines| lines > 0.0), "{dropped:?}");
    }
}

#[tokio::test]
async fn a_full_disk_stops_nobody() {
    serve_with(BrokenLog::FullDisk).await;
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_stops_nobody() {
    serve_with(BrokenLog::UnreadPipe).await;
}

#[tokio::test]
async fn a_closed_pipe_stops_nobody() {
    serve_with(BrokenLog::ClosedPipe).await;
}
