//! `cosec-worker`: serves one model, or checks it against expected logits.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use cosec_worker::check::{self, CheckArgs};
use cosec_worker::checkpoint::hub::{self, Content};
use cosec_worker::config::{Config, Flags};
use cosec_worker::engine::EngineOptions;
use cosec_worker::model::{self, LoadOptions, ModelRunner};
use cosec_worker::server::Server;
use cosec_worker::service::Identity;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

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
    Serve(Box<Flags>),
    /// Compares a model with expected logits; exits 1 over the tolerance.
    Check(Box<CheckArgs>),
}

fn main() -> ExitCode {
    model::allocator::give_back_large_pieces();
    let done = match Cli::parse().command {
        Command::Serve(flags) => serve(&flags),
        Command::Check(arguments) => check(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = check::run(arguments)?;
    println!("{report}");
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn serve(flags: &Flags) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let config = Config::load(flags)?;
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
    runtime.block_on(run(config))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(config: Config) -> anyhow::Result<()> {
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
    let server = Server::bind(&config.listen, config.metrics_listen.as_deref()).await?;
    println!("listening on {}", server.address());
    if let Some(address) = server.metrics_address() {
        println!("metrics on {address}");
    }
    tracing::info!(address = %server.address(), model = %config.model.display(), "loading");
    let identity = Identity {
        role: config.role,
        model: config.name.clone(),
        zone: config.zone.clone(),
        registration: config.registration.clone(),
    };
    let grace = Duration::from_secs(config.grace_seconds);
    server.run(identity, move || load(&config), grace, shutdown).await?;
    Ok(())
}

fn load(config: &Config) -> Result<(ModelRunner, EngineOptions), Box<dyn Error + Send + Sync>> {
    let directory = hub::locate(&config.model, config.revision.as_deref(), Content::Model)?;
    let options = LoadOptions {
        adapter: config.adapter.clone(),
        lora: config.lora.clone(),
        device: config.device,
        dtype: config.dtype,
        tokenizer: config.tokenizer.clone(),
        quantize: config.quantize,
        kv_dtype: config.kv_dtype,
        cache: config.cache,
        block_tokens: config.block_tokens,
        threads: config.threads,
        cpus: config.cpus.clone(),
    };
    let model = ModelRunner::load(&directory, &options)?;
    let engine = EngineOptions {
        blocks: model.blocks(),
        block_tokens: config.block_tokens,
        step_tokens: config.step_tokens,
        max_sessions: config.max_sessions,
        max_operations: config.max_operations,
        lease: Duration::from_secs(config.lease_seconds),
    };
    Ok((model, engine))
}
