//! `cosec-demo`: starts the cluster with the demo pair, hardens three prompts, keeps serving.

mod showcase;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use console::style;
use cosec_launcher::{Cluster, ClusterConfig, EVERY_RULE, KV_MEMORY};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

/// Starts a coordinator, a base worker and an expert worker on this machine and shows what hardening does.
#[derive(Debug, Parser)]
#[command(name = "deploy/demo", version)]
struct DemoArguments {
    /// Exit after the prompts instead of serving on.
    #[arg(long)]
    exit: bool,
    /// Port of the OpenAI-compatible API on 127.0.0.1 (0: any).
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Port of the gRPC API on 127.0.0.1 (0: any).
    #[arg(long, default_value_t = 8001)]
    grpc_port: u16,
    /// Folder with the models `base` and `expert`.
    #[arg(long, default_value = "deploy/demo-pair")]
    pair: PathBuf,
}

#[tokio::main]
async fn main() {
    if let Err(error) = demo(DemoArguments::parse()).await {
        eprintln!("{} {error:#}", style("error:").red().bold());
        std::process::exit(1);
    }
}

async fn demo(arguments: DemoArguments) -> Result<()> {
    let logs =
        tempfile::Builder::new().prefix("cosec-demo-").tempdir().context("cannot make a folder for the logs")?;
    let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let config = ClusterConfig {
        binaries: binaries()?,
        logs: logs.path().to_owned(),
        model: "demo".to_owned(),
        base: arguments.pair.join("base"),
        expert: arguments.pair.join("expert"),
        http: local(arguments.port),
        grpc: local(arguments.grpc_port),
        worker_flags: KV_MEMORY.map(Into::into).to_vec(),
        coordinator_flags: EVERY_RULE.map(Into::into).to_vec(),
        patience: Duration::from_secs(120),
    };
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let started = tokio::select! {
        () = &mut stop => return Ok(()),
        started = start(&config) => started,
    };
    let mut cluster = match started {
        Ok(cluster) => cluster,
        Err(error) => {
            // The message names a log, which must outlive this program.
            let _ = logs.keep();
            return Err(error);
        }
    };
    tokio::select! {
        () = &mut stop => return Ok(()),
        shown = showcase::run(&cluster.http, &config.model) => shown?,
    }
    if arguments.exit {
        return Ok(());
    }
    print_how_to_use(&cluster, &config);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(500)) => {
                if let Some(dead) = cluster.first_dead() {
                    let _ = logs.keep();
                    return Err(dead.into());
                }
            }
        }
    }
}

async fn start(config: &ClusterConfig) -> Result<Cluster> {
    let spinner = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let said = std::cell::RefCell::new(String::new());
    let started = Cluster::start(config, |step| {
        // Without a terminal the spinner is silent, so each new step is a line.
        if spinner.is_hidden() && *said.borrow() != step {
            println!("{step}");
        }
        said.replace(step.to_owned());
        spinner.set_message(step.to_owned());
    })
    .await;
    spinner.finish_and_clear();
    let cluster = started?;
    println!(
        "{} {} (base {}, expert {})",
        style("ready:").green().bold(),
        cluster.http,
        config.base.display(),
        config.expert.display()
    );
    Ok(cluster)
}

fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own folder")?;
    let folder = own.parent().context("this program is in no folder")?;
    for name in ["cosec-coordinator", "cosec-worker"] {
        let path = folder.join(name);
        anyhow::ensure!(path.is_file(), "{} is missing; build it with deploy/demo", path.display());
    }
    Ok(folder.to_owned())
}

/// Ends when the user or the system asks the demo to stop.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

fn print_how_to_use(cluster: &Cluster, config: &ClusterConfig) {
    let body = serde_json::json!({
        "model": config.model,
        "prompt": "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
        "max_tokens": 48,
        "cosec": { "report": true },
    });
    println!("\n{} {}/v1   gRPC {}", style("serving:").green().bold(), cluster.http, cluster.grpc);
    println!("\ncurl {}/v1/completions -H 'content-type: application/json' -d '{}'\n", cluster.http, body);
    println!(
        "metrics: coordinator {}  base {}  expert {}",
        cluster.coordinator_metrics, cluster.base_metrics, cluster.expert_metrics
    );
    println!("logs: {}", config.logs.display());
    println!("stop: Ctrl-C");
}
