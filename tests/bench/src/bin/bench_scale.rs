//! `tests/bench-scale`: one coordinator before many mock workers and under many streams.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use cosec_bench::cluster::MODEL;
use cosec_bench::completions::{Events, client};
use cosec_bench::fleet::{Replica, coordinator, until_up};
use cosec_bench::metrics::{cpu_time, resident_bytes};
use cosec_bench::report::{Table, quantile};
use cosec_bench::worker::PATIENCE;
use cosec_launcher::Process;
use cosec_proto::tokenizer_fingerprint;
use cosec_tests::mock_worker::{MockModel, StepTime, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

/// Measures what a coordinator takes per token and per stream, and how both grow, from a few workers to many. The
/// workers are mocks in one process of their own: they keep the protocol and the time of an engine that batches, and
/// compute next to nothing. Half of them are bases, half experts.
#[derive(Debug, Parser)]
#[command(name = "tests/bench-scale")]
struct Arguments {
    /// Workers and concurrent streams, from small to large.
    #[arg(long, value_delimiter = ',', default_values = ["10x250", "50x1250", "200x5000"])]
    sizes: Vec<Size>,
    /// Milliseconds of a forward pass of a base, and of each row in it.
    #[arg(long, value_delimiter = ',', num_args = 1.., default_values_t = [300.0, 0.1])]
    base_ms: Vec<f64>,
    /// The same of an expert.
    #[arg(long, value_delimiter = ',', num_args = 1.., default_values_t = [30.0, 0.01])]
    expert_ms: Vec<f64>,
    /// New tokens of a completion; each client asks for one after the other.
    #[arg(long, default_value_t = 200)]
    tokens: u32,
    /// Seconds that each size is watched.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Small sizes and short looks.
    #[arg(long)]
    quick: bool,
    /// Serves as many mock workers instead, until it is killed.
    #[arg(long, hide = true)]
    mock_workers: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    workers: usize,
    streams: usize,
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('x').and_then(|(workers, streams)| Some((workers.parse().ok()?, streams.parse().ok()?)));
        match parts {
            Some((workers, streams)) if workers >= 2 && streams >= 1 => Ok(Self { workers, streams }),
            _ => Err(format!("{text:?} is not WORKERSxSTREAMS, such as 10x250, with at least 2 workers")),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} workers, {} streams", self.workers, self.streams)
    }
}

/// Prompts are token ids below this.
const VOCABULARY: u32 = 64;

const PROMPT_TOKENS: u32 = 64;

/// Most operations of a mock worker's forward pass.
const BATCH: usize = 256;

/// Streams that begin in a hundredth of a second.
const BEGIN_AT_ONCE: usize = 20;

/// From the first token of the last stream until it is watched.
const SETTLING: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> ExitCode {
    cosec_bench::command::run(run(Arguments::parse())).await
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if let Some(workers) = arguments.mock_workers {
        return serve_mocks(&arguments, workers).await;
    }
    if arguments.quick {
        arguments.sizes = vec![Size { workers: 4, streams: 50 }, Size { workers: 20, streams: 250 }];
        arguments.seconds = 4.0;
    }
    let mut measured = Vec::new();
    for &size in &arguments.sizes {
        println!("{size}");
        measured.push((size, measure(&arguments, size).await.with_context(|| size.to_string())?));
    }
    println!("\n{}", figures(&measured));
    println!("growth against the first line\n\n{}", growth(&measured));
    Ok(())
}

/// The demo's tokenizer: all ids of the mock models are letters and signs in it.
fn tokenizer() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo-pair/base")
}

// === mock workers ===

async fn serve_mocks(arguments: &Arguments, workers: usize) -> Result<()> {
    let json = std::fs::read(tokenizer().join("tokenizer.json"))?;
    let tokenizer_fingerprint = tokenizer_fingerprint::fingerprint(&json).map_err(|error| anyhow!("{error}"))?;
    let engine = |model: MockModel| MockModel {
        vocabulary: VOCABULARY,
        max_operation_tokens: 512,
        end_token_ids: Vec::new(),
        tokenizer_fingerprint: tokenizer_fingerprint.clone(),
        ..model
    };
    let mut serving = JoinSet::new();
    let fleets = [
        ("bases ", engine(MockModel::base()), step_time(&arguments.base_ms)?, workers / 2),
        ("experts ", engine(MockModel::expert()), step_time(&arguments.expert_ms)?, workers - workers / 2),
    ];
    for (announces, model, time, count) in fleets {
        let mut addresses = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?.to_string());
            serving.spawn(serve(model.clone(), time, listener));
        }
        println!("{announces}{}", addresses.join(","));
    }
    match serving.join_next().await {
        Some(ended) => Ok(ended??),
        None => bail!("no workers were asked for"),
    }
}

fn step_time(milliseconds: &[f64]) -> Result<StepTime> {
    match milliseconds {
        &[fixed, per_row] => {
            let time = |ms: f64| Duration::try_from_secs_f64(ms / 1e3);
            Ok(StepTime { fixed: time(fixed)?, per_row: time(per_row)?, batch: BATCH })
        }
        other => bail!("{other:?} are not two times: of a pass, and of a row"),
    }
}

async fn start_mocks(arguments: &Arguments, workers: usize, logs: &Path) -> Result<(Process, [Vec<String>; 2])> {
    let list = |milliseconds: &[f64]| milliseconds.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
    let mut process = Process::start(
        "mock workers",
        Command::new(std::env::current_exe()?).args(["--mock-workers", &workers.to_string()]).args([
            "--base-ms",
            &list(&arguments.base_ms),
            "--expert-ms",
            &list(&arguments.expert_ms),
        ]),
        logs,
    )?;
    let deadline = Instant::now() + PATIENCE;
    let split = |line: String| line.split(',').map(str::to_owned).collect();
    let bases = split(process.announced("bases ", deadline).await?);
    let experts = split(process.announced("experts ", deadline).await?);
    Ok((process, [bases, experts]))
}

// === one size ===

/// What a coordinator did and took while it was watched.
struct Measured {
    tokens_per_second: f64,
    /// Seconds on a core per token, of the coordinator, of the mock workers and of the clients.
    cpu_per_token: [f64; 3],
    /// Cores that the coordinator had on average.
    cores: f64,
    /// Resident, without streams.
    idle_bytes: f64,
    /// Resident beyond that, per stream.
    bytes_per_stream: f64,
    first_token: Vec<f64>,
    between_tokens: Vec<f64>,
}

async fn measure(arguments: &Arguments, size: Size) -> Result<Measured> {
    let logs = tempfile::tempdir()?;
    let (mocks, [bases, experts]) = start_mocks(arguments, size.workers, logs.path()).await?;
    let environment = vec![
        ("COSEC_COORDINATOR_ADMISSION__MAX_SESSIONS", size.streams.to_string()),
        ("COSEC_COORDINATOR_ADMISSION__MAX_QUEUED_SESSIONS", size.streams.to_string()),
    ];
    let program = coordinator(MODEL, &tokenizer(), [&bases, &experts], environment);
    let coordinator = Replica::start(program, "coordinator", logs.path()).await?;
    until_up(&coordinator, size.workers).await?;
    let processes = [coordinator.process()?, mocks.id().context("the mock workers have ended")?, std::process::id()];
    let idle_bytes = resident_bytes(processes[0])? as f64;

    let (sink, arrivals) = mpsc::unbounded_channel();
    let mut clients = Clients { running: JoinSet::new(), arrivals };
    let http = client()?;
    let address: Arc<str> = coordinator.address.as_str().into();
    let mut pace = interval(Duration::from_millis(10));
    for stream in 0..size.streams {
        if stream % BEGIN_AT_ONCE == 0 {
            pace.tick().await;
        }
        let body = body(stream, arguments.tokens);
        clients.running.spawn(ask(http.clone(), Arc::clone(&address), body, sink.clone()));
    }
    drop(sink);
    let first_token = clients.first_tokens(size.streams).await?;
    clients.watch(SETTLING).await?;

    let tokens = async || -> Result<f64> { Ok(coordinator.scrape().await?.sum("cosec_tokens_total", &[])) };
    let cpu = || -> Result<Vec<Duration>> { processes.into_iter().map(cpu_time).collect() };
    let (tokens_before, cpu_before, began) = (tokens().await?, cpu()?, Instant::now());
    let between_tokens = clients.watch(Duration::from_secs_f64(arguments.seconds)).await?;
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), cpu()?);
    let loaded_bytes = resident_bytes(processes[0])? as f64;
    let tokens = tokens().await? - tokens_before;
    let spent = |process: usize| (cpu_after[process] - cpu_before[process]).as_secs_f64();
    Ok(Measured {
        tokens_per_second: tokens / seconds,
        cpu_per_token: [0, 1, 2].map(|process| spent(process) / tokens),
        cores: spent(0) / seconds,
        idle_bytes,
        bytes_per_stream: (loaded_bytes - idle_bytes) / size.streams as f64,
        first_token,
        between_tokens,
    })
}

fn body(stream: usize, tokens: u32) -> Value {
    let prompt: Vec<u32> =
        (0..PROMPT_TOKENS).map(|at| 1 + (stream as u32 * 31 + at * 7) % (VOCABULARY - 1)).collect();
    json!({"model": MODEL, "prompt": prompt, "max_tokens": tokens, "seed": stream, "stream": true})
}

/// Seconds since the event before, or since the request.
enum Arrival {
    First(f64),
    Next(f64),
}

/// Asks for one completion after the other.
async fn ask(
    http: reqwest::Client,
    address: Arc<str>,
    mut body: Value,
    sink: mpsc::UnboundedSender<Arrival>,
) -> Result<()> {
    for round in 1.. {
        let mut before = Instant::now();
        let mut is_first = round == 1;
        let mut events =
            Events::open(&http, &address, &body, "").await.map_err(|why| anyhow!("no stream: {why:?}"))?;
        while let Some(event) = events.next().await? {
            if !event.data.starts_with(r#"{"choices""#) {
                match event.data.as_str() {
                    "[DONE]" => break,
                    other => bail!("an event says {other}"),
                }
            }
            let now = Instant::now();
            let seconds = (now - std::mem::replace(&mut before, now)).as_secs_f64();
            let arrival =
                if std::mem::take(&mut is_first) { Arrival::First(seconds) } else { Arrival::Next(seconds) };
            if sink.send(arrival).is_err() {
                return Ok(());
            }
        }
        body["seed"] = (body["seed"].as_u64().unwrap_or(0) + 1_000_000 * round).into();
    }
    Ok(())
}

struct Clients {
    running: JoinSet<Result<()>>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
}

impl Clients {
    /// Waits until every stream has shown a token.
    async fn first_tokens(&mut self, streams: usize) -> Result<Vec<f64>> {
        let deadline = Instant::now() + PATIENCE;
        let mut seconds = Vec::new();
        while seconds.len() < streams {
            if let Arrival::First(first) = self.next(deadline).await?.context("a stream showed no token in time")? {
                seconds.push(first);
            }
        }
        Ok(seconds)
    }

    /// Seconds between two events of the streams during `span`.
    async fn watch(&mut self, span: Duration) -> Result<Vec<f64>> {
        let deadline = Instant::now() + span;
        let mut seconds = Vec::new();
        while let Some(arrival) = self.next(deadline).await? {
            if let Arrival::Next(gap) = arrival {
                seconds.push(gap);
            }
        }
        Ok(seconds)
    }

    /// `None` at `deadline`.
    async fn next(&mut self, deadline: Instant) -> Result<Option<Arrival>> {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline) => Ok(None),
            arrival = self.arrivals.recv() => arrival.map(Some).context("all streams ended"),
            Some(ended) = self.running.join_next() => match ended? {
                Ok(()) => bail!("a stream ended"),
                Err(error) => Err(error),
            },
        }
    }
}

// === report ===

fn figures(measured: &[(Size, Measured)]) -> Table {
    let columns = [
        "",
        "tokens/s",
        "tokens/s per core",
        "cores",
        "CPU per token",
        "workers' CPU",
        "clients' CPU",
        "idle",
        "per stream",
        "first token p50",
        "p99",
        "between p50",
        "p99",
    ];
    let mut table = Table::new(&columns);
    for (size, seen) in measured {
        let mut cells = vec![size.to_string(), format!("{:.0}", seen.tokens_per_second)];
        cells.push(format!("{:.0}", 1.0 / seen.cpu_per_token[0]));
        cells.push(format!("{:.2}", seen.cores));
        cells.extend(seen.cpu_per_token.map(|seconds| format!("{:.1} us", 1e6 * seconds)));
        cells.push(format!("{:.1} MiB", seen.idle_bytes / f64::from(1 << 20)));
        cells.push(format!("{:.1} KiB", seen.bytes_per_stream / 1024.0));
        for seconds in [&seen.first_token, &seen.between_tokens] {
            cells.extend([0.5, 0.99].map(|share| format!("{:.0} ms", 1e3 * quantile(seconds, share))));
        }
        table.row(cells);
    }
    table
}

fn growth(measured: &[(Size, Measured)]) -> Table {
    let mut table = Table::new(&["", "streams", "tokens/s", "CPU per token", "memory per stream"]);
    let Some((first_size, first)) = measured.first() else { return table };
    for (size, seen) in measured {
        let ratios = [
            size.streams as f64 / first_size.streams as f64,
            seen.tokens_per_second / first.tokens_per_second,
            seen.cpu_per_token[0] / first.cpu_per_token[0],
            seen.bytes_per_stream / first.bytes_per_stream,
        ];
        let cells = ratios.map(|ratio| format!("{ratio:.2}"));
        table.row(std::iter::once(size.to_string()).chain(cells).collect());
    }
    table
}
