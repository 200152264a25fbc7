//! Workers and coordinators of any number, each of which can be killed and started again at its address.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cosec_launcher::Process;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::metrics::Scrape;
use crate::worker::{PATIENCE, binaries};

/// What a replica runs.
#[derive(Clone, Debug)]
pub struct Program {
    /// In messages.
    pub name: &'static str,
    /// The file, in this one's folder.
    pub file: &'static str,
    /// All but the address.
    pub arguments: Vec<OsString>,
    /// Set for it alone.
    pub environment: Vec<(&'static str, String)>,
    /// Takes the address.
    pub listen_flag: &'static str,
    /// Begins the line that says where it listens.
    pub announces: &'static str,
    /// Takes the address of the metrics, where they are on a port of their own.
    pub metrics_flag: Option<&'static str>,
}

/// A process that can be killed and started again where it was. Dropping it kills it.
pub struct Replica {
    program: Program,
    logs: PathBuf,
    process: Process,
    /// `host:port` that it listens on.
    pub address: String,
    /// `http://…/metrics`, where it has them.
    metrics: Option<String>,
}

impl Replica {
    /// Starts `program` on a free port; its log goes to a folder `name` in `logs`.
    ///
    /// # Errors
    /// What it died of.
    pub async fn start(program: Program, name: &str, logs: &Path) -> Result<Self> {
        let logs = logs.join(name);
        std::fs::create_dir_all(&logs)?;
        let (process, address, metrics) = launch(&program, "127.0.0.1:0", &logs).await?;
        Ok(Self { program, logs, process, address, metrics })
    }

    /// What it is.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.program.name
    }

    /// The system's number of the process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn process(&self) -> Result<u32> {
        self.process.id().with_context(|| format!("the {} has ended", self.program.name))
    }

    /// Kills it (SIGKILL), so that its port is free.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await.with_context(|| format!("the {} had ended by itself", self.program.name))
    }

    /// Waits until it ends by itself; what it died of.
    pub async fn ended(&mut self) -> anyhow::Error {
        // Its last words are in the log whatever the status.
        let _ = self.process.wait().await;
        match self.process.check_alive() {
            Err(ended) => ended.into(),
            Ok(()) => anyhow::anyhow!("the {} has ended", self.program.name),
        }
    }

    /// Starts it again at its address.
    ///
    /// # Errors
    /// What it died of.
    pub async fn restart(&mut self) -> Result<()> {
        (self.process, self.address, self.metrics) = launch(&self.program, &self.address, &self.logs).await?;
        Ok(())
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When it does not answer, or has no metrics.
    pub async fn scrape(&self) -> Result<Scrape> {
        let url = self.metrics.as_deref().with_context(|| format!("the {} has no metrics", self.program.name))?;
        Scrape::of(url).await
    }
}

async fn launch(program: &Program, address: &str, logs: &Path) -> Result<(Process, String, Option<String>)> {
    let mut command = Command::new(binaries()?.join(program.file));
    command.args(&program.arguments).arg(program.listen_flag).arg(address).envs(program.environment.clone());
    if let Some(flag) = program.metrics_flag {
        command.args([flag, "127.0.0.1:0"]);
    }
    let mut process = Process::start(program.name, &mut command, logs)?;
    let deadline = Instant::now() + PATIENCE;
    let announced = process.announced(program.announces, deadline).await?;
    let metrics = match program.metrics_flag {
        Some(_) => Some(format!("http://{}/metrics", process.announced("metrics on ", deadline).await?)),
        None => None,
    };
    // Behind the address may stand more.
    let address = announced.split_whitespace().next().context("no address was announced")?.to_owned();
    Ok((process, address, metrics))
}

/// A worker of the model in `directory`.
#[must_use]
pub fn worker(role: &'static str, directory: &Path, flags: &[&str]) -> Program {
    let mut arguments: Vec<OsString> = ["serve", "--role", role, "--model"].map(OsString::from).to_vec();
    arguments.push(directory.into());
    arguments.extend(flags.iter().map(OsString::from));
    Program {
        name: role,
        file: "cosec-worker",
        arguments,
        environment: Vec::new(),
        listen_flag: "--listen",
        announces: "listening on ",
        metrics_flag: None,
    }
}

/// A coordinator of one model named `model`; `environment` are settings beyond the flags.
#[must_use]
pub fn coordinator(
    model: &str,
    tokenizer: &Path,
    [base, expert]: [&[String]; 2],
    environment: Vec<(&'static str, String)>,
) -> Program {
    let mut arguments: Vec<OsString> =
        ["--grpc-listen", "127.0.0.1:0", "--model", model, "--base", &base.join(",")].map(OsString::from).to_vec();
    arguments.extend(["--expert", &expert.join(","), "--tokenizer"].map(OsString::from));
    arguments.push(tokenizer.into());
    Program {
        name: "coordinator",
        file: "cosec-coordinator",
        arguments,
        environment,
        listen_flag: "--http-listen",
        announces: "http on ",
        metrics_flag: Some("--metrics-listen"),
    }
}

/// Waits until `coordinator` has `workers` that serve.
///
/// # Errors
/// When that takes unreasonably long.
pub async fn until_up(coordinator: &Replica, workers: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let up = coordinator.scrape().await.map_or(0.0, |scrape| scrape.sum("cosec_worker_up", &[]));
        if up >= workers as f64 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{up} of {workers} workers came up in time");
        }
        sleep(Duration::from_millis(50)).await;
    }
}
