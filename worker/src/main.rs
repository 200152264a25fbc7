//! `cosec-worker`: serves one model, or checks it against expected logits.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use cosec_proto::log_lines::{self, LogLines};
use cosec_worker::check::{self, CheckArgs};
use cosec_worker::checkpoint::hub::{self, RepoContent};
use cosec_worker::config::WorkerConfig;
use cosec_worker::limits::EngineOptions;
use cosec_worker::model::{self, ModelRunner};
use cosec_worker::server::BoundServer;
use cosec_worker::service::Identity;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Time for the last lines of the log to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Hosts one language model: token ids in, probabilities out.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves a model over gRPC.
    Serve(Box<WorkerConfig>),
    /// Compares a model with expected logits; exits 1 over the tolerance.
    Check(Box<CheckArgs>),
}

fn main() -> ExitCode {
    model::allocator::give_back_large_pieces();
    let matches = Cli::command().get_matches();
    let Cli { command } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let flags = matches.subcommand().map_or(&matches, |(_, flags)| flags);
    let done = match command {
        Command::Serve(_) => serve(flags),
        Command::Check(arguments) => check(&arguments),
    };
    let mut log = LogLines::standard_error();
    let code = done.unwrap_or_else(|error| {
        let _ = log.write_all(format!("error: {error}\n").as_bytes());
        ExitCode::FAILURE
    });
    log.flush(LAST_LINES);
    code
}

fn check(arguments: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = check::run(arguments)?;
    writeln!(std::io::stdout(), "{report}").map_err(|cause| anyhow!("the report cannot be written: {cause}"))?;
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn serve(flags: &ArgMatches) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogLines::standard_error)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
    log_lines::log_panics();
    let config = WorkerConfig::load(flags)?;
    if let Some(cpus) = &config.cpus {
        // Every other thread is started after this, and so keeps to them, too.
        cpus.keep_to().map_err(|cause| anyhow!("cpus is {cpus}; the worker cannot keep to them: {cause}"))?;
        tracing::info!(%cpus, threads = config.threads, "keeps to its CPUs");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|cause| anyhow!("the runtime cannot be started: {cause}"))?;
    let served = runtime.block_on(run(config));
    // Threads that are still at work are not waited for.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn run(config: WorkerConfig) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let unhandled = |cause| anyhow!("signals cannot be handled: {cause}");
    let mut terminate = signal(SignalKind::terminate()).map_err(unhandled)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unhandled)?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.cancel();
    });
    let server = BoundServer::bind(&config.listen_config()).await?;
    let mut lines = format!("listening on {}\n", server.address());
    if let Some(address) = server.metrics_address() {
        lines += &format!("metrics on {address}\n");
    }
    if let Some(address) = server.health_address() {
        lines += &format!("health on {address}\n");
    }
    log_lines::announce(lines);
    tracing::info!(address = %server.address(), model = %config.model()?.display(), "loading");
    let identity = Identity {
        role: config.role()?,
        model: config.name()?,
        zone: config.zone.clone(),
        registration: config.registration.clone(),
    };
    let grace = Duration::from_secs(config.grace_seconds);
    server.run(identity, move || load(&config), grace, shutdown).await?;
    Ok(())
}

fn load(config: &WorkerConfig) -> Result<(ModelRunner, EngineOptions), Box<dyn Error + Send + Sync>> {
    let directory = hub::locate(config.model()?, config.revision.as_deref(), RepoContent::Model)?;
    let model = ModelRunner::load(&directory, &config.load_options())?;
    let engine = EngineOptions {
        blocks: model.blocks(),
        block_tokens: config.block_tokens,
        step_tokens: config.step_tokens(),
        max_sessions: config.max_sessions,
        max_operations: config.max_operations,
        lease: Duration::from_secs(config.lease_seconds),
    };
    Ok((model, engine))
}
