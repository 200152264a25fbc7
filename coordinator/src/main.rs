//! `cosec-coordinator`: serves models that an expert hardens.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cosec_coordinator::config::{Config, Flags};
use cosec_coordinator::server;
use cosec_coordinator::telemetry::Telemetry;
use cosec_proto::log_lines::LogLines;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Time for the last lines of the log to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let served = serve(&Flags::parse());
    let mut log = LogLines::standard_error();
    if let Err(error) = &served {
        let _ = log.write_all(format!("error: {error:#}\n").as_bytes());
    }
    log.flush(LAST_LINES);
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn serve(flags: &Flags) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("the runtime cannot be started")?;
    let served = runtime.block_on(run(flags));
    // Threads that compute for requests which are gone are not waited for.
    runtime.shutdown_background();
    served
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
