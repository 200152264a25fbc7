//! How the commands begin and end.

use std::process::ExitCode;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a command to its end or until it is told to stop. The processes that it started are killed with it; an error is
/// one line.
pub async fn run(command: impl Future<Output = Result<()>>) -> ExitCode {
    match until_stopped(command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_stopped(command: impl Future<Output = Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        done = command => done,
        _ = terminate.recv() => anyhow::bail!("stopped by SIGTERM"),
        _ = interrupt.recv() => anyhow::bail!("stopped by SIGINT"),
    }
}

/// A folder for the logs of processes, which goes when it is dropped, or stays where `BENCH_LOGS` names one to keep it
/// in.
///
/// # Errors
/// When it cannot be made.
pub fn logs() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    let folder = match std::env::var_os("BENCH_LOGS") {
        Some(kept) => builder.disable_cleanup(true).tempdir_in(kept),
        None => builder.tempdir(),
    };
    folder.context("cannot make a folder for the logs")
}
