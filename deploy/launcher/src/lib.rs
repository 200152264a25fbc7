//! Starts a cluster on one machine: coordinator, base worker and expert worker as processes on loopback.
//!
//! If a process dies at start or never becomes ready, the start fails with one message that has the last line of its
//! log, and the other processes are killed. Nothing outlives the [`Cluster`].

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout_at};

/// Flags of a coordinator whose clients may compare rules, the unhardened base alone included.
pub const EVERY_RULE: [&str; 2] = ["--allowed-rules", "cosec,linear,product,base_only,expert_only"];

/// Flags of workers that share a machine.
pub const KV_MEMORY: [&str; 2] = ["--kv-memory-mib", "512"];

/// What to start and where.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Folder of `cosec-coordinator` and `cosec-worker`.
    pub binaries: PathBuf,
    /// Folder that takes `coordinator.log`, `base.log` and `expert.log`.
    pub logs: PathBuf,
    /// Name that clients call the pair by.
    pub model: String,
    /// Hugging Face directory of the base; its tokenizer serves the coordinator.
    pub base: PathBuf,
    /// Hugging Face directory of the expert.
    pub expert: PathBuf,
    /// The coordinator's HTTP address; port 0 takes any.
    pub http: SocketAddr,
    /// The coordinator's gRPC address; port 0 takes any.
    pub grpc: SocketAddr,
    /// Further flags of both workers.
    pub worker_flags: Vec<OsString>,
    /// Further flags of the coordinator.
    pub coordinator_flags: Vec<OsString>,
    /// Time for everything to be ready.
    pub patience: Duration,
}

/// Three running processes; dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    /// `http://…` of the OpenAI-compatible API.
    pub http: String,
    /// `host:port` of the gRPC service.
    pub grpc: String,
    /// `http://…/metrics` of the coordinator.
    pub coordinator_metrics: String,
    /// `http://…/metrics` of the base worker.
    pub base_metrics: String,
    /// `http://…/metrics` of the expert worker.
    pub expert_metrics: String,
    /// `host:port` of the base worker.
    pub base_address: String,
    /// `host:port` of the expert worker.
    pub expert_address: String,
    /// The coordinator.
    pub coordinator: Process,
    /// The base worker.
    pub base: Process,
    /// The expert worker.
    pub expert: Process,
}

impl Cluster {
    /// Starts the workers, then the coordinator, and waits until it says that it can serve.
    ///
    /// `progress` is called with each step in a few words.
    ///
    /// # Errors
    /// [`StartError`]; whatever had been started is killed.
    pub async fn start(config: &ClusterConfig, progress: impl Fn(&str)) -> Result<Self, StartError> {
        let deadline = Instant::now() + config.patience;
        progress("starting the base and the expert worker");
        let mut base = worker(config, "base", &config.base)?;
        let mut expert = worker(config, "expert", &config.expert)?;
        let base_address = base.announced("listening on ", deadline).await?;
        let expert_address = expert.announced("listening on ", deadline).await?;
        let base_metrics = metrics_url(&base.announced("metrics on ", deadline).await?);
        let expert_metrics = metrics_url(&expert.announced("metrics on ", deadline).await?);

        progress("starting the coordinator");
        let mut coordinator = Process::start(
            "coordinator",
            Command::new(config.binaries.join("cosec-coordinator"))
                .args(["--model", &config.model, "--base", &base_address, "--expert", &expert_address])
                .args(["--http-listen", &config.http.to_string(), "--grpc-listen", &config.grpc.to_string()])
                .args(["--metrics-listen", "127.0.0.1:0"])
                .arg("--tokenizer")
                .arg(&config.base)
                .args(&config.coordinator_flags),
            &config.logs,
        )?;
        let http = coordinator.announced("http on ", deadline).await?;
        let grpc = coordinator.announced("grpc on ", deadline).await?;
        let coordinator_metrics = metrics_url(&coordinator.announced("metrics on ", deadline).await?);

        let mut cluster = Self {
            http: format!("http://{http}"),
            grpc,
            coordinator_metrics,
            base_metrics,
            expert_metrics,
            base_address,
            expert_address,
            coordinator,
            base,
            expert,
        };
        cluster.wait_until_ready(deadline, progress).await?;
        Ok(cluster)
    }

    async fn wait_until_ready(&mut self, deadline: Instant, progress: impl Fn(&str)) -> Result<(), StartError> {
        let client = reqwest::Client::new();
        let url = format!("{}/health/ready", self.http);
        loop {
            for process in [&mut self.base, &mut self.expert, &mut self.coordinator] {
                process.check_alive()?;
            }
            let waits_for = match client.get(&url).timeout(Duration::from_secs(2)).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(cause) => cause.to_string(),
            };
            if Instant::now() > deadline {
                return Err(StartError::NotReady { waits_for });
            }
            progress(&format!("waiting until ready: {}", one_line(&waits_for)));
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The first process that has ended, if any.
    pub fn first_dead(&mut self) -> Option<StartError> {
        [&mut self.base, &mut self.expert, &mut self.coordinator]
            .into_iter()
            .find_map(|process| process.check_alive().err())
    }
}

fn metrics_url(address: &str) -> String {
    format!("http://{address}/metrics")
}

fn worker(config: &ClusterConfig, role: &'static str, model: &Path) -> Result<Process, StartError> {
    if !model.join("config.json").is_file() {
        return Err(StartError::MissingModel { role, path: model.join("config.json") });
    }
    Process::start(
        role,
        Command::new(config.binaries.join("cosec-worker"))
            .args(["serve", "--role", role, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .arg("--model")
            .arg(model)
            .args(&config.worker_flags),
        &config.logs,
    )
}

/// A child whose standard error goes to a log file; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    announcements: Vec<String>,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; `logs/name.log` takes its standard error.
    ///
    /// # Errors
    /// When the log cannot be written or the program not be started.
    pub fn start(name: &'static str, command: &mut Command, logs: &Path) -> Result<Self, StartError> {
        let log = logs.join(format!("{name}.log"));
        let program = PathBuf::from(command.as_std().get_program());
        let log_file = match File::create(&log) {
            Ok(file) => file,
            Err(cause) => return Err(StartError::Log { path: log, cause }),
        };
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file).kill_on_drop(true).spawn();
        let mut child = spawned.map_err(|cause| StartError::Spawn { name, program, cause })?;
        let stdout = child.stdout.take().ok_or(StartError::NoOutput { name })?;
        Ok(Self { name, child, stdout: BufReader::new(stdout).lines(), announcements: Vec::new(), log })
    }

    /// The rest of the line of standard output that starts with `prefix`.
    ///
    /// # Errors
    /// When the process ends or `deadline` passes first.
    pub async fn announced(&mut self, prefix: &str, deadline: Instant) -> Result<String, StartError> {
        loop {
            if let Some(found) = self.announcements.iter().find_map(|line| line.strip_prefix(prefix)) {
                return Ok(found.to_owned());
            }
            match timeout_at(deadline, self.stdout.next_line()).await {
                Ok(Ok(Some(line))) => self.announcements.push(line),
                Ok(Ok(None) | Err(_)) => {
                    // Standard output closes a moment before the exit status is there.
                    let _ = timeout_at(deadline, self.child.wait()).await;
                    return Err(self.ended());
                }
                Err(_) => return Err(StartError::Silent { name: self.name, awaited: prefix.trim().to_owned() }),
            }
        }
    }

    /// The operating system's number of the process, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills the process (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    /// Waits until the process ends.
    ///
    /// # Errors
    /// When the system cannot say how it ended.
    pub async fn wait(&mut self) -> std::io::Result<std::process::ExitStatus> {
        self.child.wait().await
    }

    /// Checks that the process runs.
    ///
    /// # Errors
    /// [`StartError::Ended`] with the last line of its log.
    pub fn check_alive(&mut self) -> Result<(), StartError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(self.ended()),
        }
    }

    fn ended(&self) -> StartError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last_words = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(it said nothing)");
        let last_words = last_words.trim_start_matches("error: ").to_owned();
        StartError::Ended { name: self.name, last_words, log: self.log.clone() }
    }
}

fn one_line(text: &str) -> String {
    let message = serde_json::from_str::<serde_json::Value>(text)
        .ok()
        .and_then(|value| Some(value.pointer("/error/message")?.as_str()?.to_owned()));
    message.unwrap_or_else(|| text.to_owned()).replace('\n', " ")
}

/// Why a cluster did not come up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the field names say it")]
pub enum StartError {
    /// A model directory has no config.
    #[error("the {role} model is missing: there is no {}", path.display())]
    MissingModel { role: &'static str, path: PathBuf },
    /// A log file could not be written.
    #[error("cannot write the log {}: {cause}", path.display())]
    Log { path: PathBuf, cause: std::io::Error },
    /// A program could not be started.
    #[error("cannot start the {name} ({}): {cause}", program.display())]
    Spawn { name: &'static str, program: PathBuf, cause: std::io::Error },
    /// A child has no standard output.
    #[error("the {name} has no standard output")]
    NoOutput { name: &'static str },
    /// A process ended.
    #[error("the {name} ended: {last_words}\n(log: {})", log.display())]
    Ended { name: &'static str, last_words: String, log: PathBuf },
    /// A process did not say in time where it listens.
    #[error("the {name} did not announce \"{awaited}\" in time")]
    Silent { name: &'static str, awaited: String },
    /// The coordinator cannot serve yet.
    #[error("the cluster was not ready in time: {waits_for}")]
    NotReady { waits_for: String },
}
