//! `cosec-coordinator`: serves models that an expert hardens.

use std::io::Write;

use anyhow::Context;
use clap::Parser;
use cosec_coordinator::config::{Config, Flags};
use cosec_coordinator::server;
use cosec_coordinator::telemetry::Telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run(&Flags::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(flags: &Flags) -> anyhow::Result<()> {
    let config = Config::load(flags)?;
    let telemetry = Telemetry::start(config.log_format, &config.telemetry)?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    let served = server::run(config, shutdown).await;
    telemetry.stop().await;
    Ok(served?)
}
