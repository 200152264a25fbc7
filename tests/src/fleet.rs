//! Single processes of the demo pair, for fleets of any shape, and what clients see of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cosec_launcher::Process;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::Instant;

use crate::cluster::root;

/// Far longer than anything takes; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where cargo put the programs.
#[must_use]
pub fn binaries() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}

/// The directory of the demo's model for `role`.
#[must_use]
pub fn model(role: &str) -> PathBuf {
    root().join("deploy/demo-pair").join(role)
}

/// A worker on a port of its own.
pub struct Worker {
    /// `host:port` of its gRPC service.
    pub address: String,
    /// `http://…/metrics`.
    pub metrics: String,
    /// The process.
    pub process: Process,
}

/// Starts a worker that serves the demo's model for `role`; its log is `NAME.log` in `logs`.
pub async fn worker(name: &'static str, role: &str, flags: &[&str], logs: &Path) -> Worker {
    worker_of(name, role, &model(role), flags, logs).await
}

/// Starts a worker that serves the model in `directory` as `role`.
pub async fn worker_of(name: &'static str, role: &str, directory: &Path, flags: &[&str], logs: &Path) -> Worker {
    launch(name, "127.0.0.1:0", role, directory, flags, logs).await
}

/// Starts a worker that serves the demo's model for `role` at `listen`.
pub async fn worker_at(listen: &str, name: &'static str, role: &str, flags: &[String], logs: &Path) -> Worker {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    launch(name, listen, role, &model(role), &flags, logs).await
}

async fn launch(
    name: &'static str,
    listen: &str,
    role: &str,
    directory: &Path,
    flags: &[&str],
    logs: &Path,
) -> Worker {
    let mut command = Command::new(binaries().join("cosec-worker"));
    command.args(["serve", "--role", role, "--listen", listen, "--metrics-listen", "127.0.0.1:0"]);
    command.args(["--threads", "1", "--model"]).arg(directory).args(flags);
    let mut process = Process::start(name, &mut command, logs).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let address = process.announced("listening on ", deadline).await.unwrap();
    let metrics = process.announced("metrics on ", deadline).await.unwrap();
    Worker { address, metrics: format!("http://{metrics}/metrics"), process }
}

/// A coordinator on ports of its own.
pub struct Coordinator {
    /// `http://…` of the API.
    pub http: String,
    /// `host:port` of its gRPC service.
    pub grpc: String,
    /// `http://…/metrics`.
    pub metrics: String,
    /// The process.
    pub process: Process,
}

/// Starts a coordinator of the model `demo`; its log is `NAME.log` in `logs`.
pub async fn coordinator(name: &'static str, flags: &[&str], logs: &Path) -> Coordinator {
    let tokenizer = model("base");
    let own = ["--model", "demo", "--tokenizer", tokenizer.to_str().unwrap()];
    coordinator_of(name, &[&own, flags].concat(), logs).await
}

/// Starts a coordinator of the models in `config`, a TOML table for each; its log is `NAME.log` in `logs`.
pub async fn configured_coordinator(name: &'static str, config: &str, logs: &Path) -> Coordinator {
    let file = logs.join(format!("{name}.toml"));
    std::fs::write(&file, config).unwrap();
    coordinator_of(name, &["--config", file.to_str().unwrap()], logs).await
}

async fn coordinator_of(name: &'static str, flags: &[&str], logs: &Path) -> Coordinator {
    let mut command = Command::new(binaries().join("cosec-coordinator"));
    command.args(["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    command.args(flags);
    let mut process = Process::start(name, &mut command, logs).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let http = process.announced("http on ", deadline).await.unwrap();
    let grpc = process.announced("grpc on ", deadline).await.unwrap();
    let metrics = process.announced("metrics on ", deadline).await.unwrap();
    Coordinator { http: format!("http://{http}"), grpc, metrics: format!("http://{metrics}/metrics"), process }
}

impl Coordinator {
    /// Waits until it can serve.
    pub async fn ready(&self) {
        until("the coordinator is ready", async || self.is_ready().await).await;
    }

    /// Whether it says that it can serve.
    pub async fn is_ready(&self) -> bool {
        self.readiness().await.0
    }

    /// Whether it says that it can serve, and what else it says then.
    pub async fn readiness(&self) -> (bool, String) {
        match reqwest::get(format!("{}/health/ready", self.http)).await {
            Ok(answer) => (answer.status().is_success(), answer.text().await.unwrap_or_default()),
            Err(error) => (false, error.to_string()),
        }
    }

    /// Text of a completion of `tokens` tokens; the end token is banned.
    pub async fn complete(&self, seed: u64, tokens: u32) -> String {
        complete(&self.http, seed, tokens).await
    }

    /// Sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        metric(&self.metrics, name).await
    }
}

/// Text of a completion of `tokens` tokens by the coordinator at `http`; the end token is banned.
pub async fn complete(http: &str, seed: u64, tokens: u32) -> String {
    let request = reqwest::Client::new().post(format!("{http}/v1/completions"));
    let answer: Value = request.json(&body(seed, tokens)).send().await.unwrap().json().await.unwrap();
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// A request for a long completion.
#[must_use]
pub fn body(seed: u64, tokens: u32) -> Value {
    json!({
        "model": "demo", "prompt": "def f(cur, x):\n    cur.execute(", "max_tokens": tokens, "seed": seed,
        "logit_bias": {"0": -100},
    })
}

/// Sum of a metric over its labels, as `url` exposes it.
pub async fn metric(url: &str, name: &str) -> f64 {
    metric_where(url, name, "").await
}

/// Sum of a metric over the label sets that contain `label` (`role="base"`).
pub async fn metric_where(url: &str, name: &str, label: &str) -> f64 {
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let of_name = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
    };
    text.lines().filter(of_name).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Waits for something that should happen soon.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends a signal to a process.
pub fn signal(process: &Process, name: &str) {
    let id = process.id().expect("the process runs").to_string();
    assert!(std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}
