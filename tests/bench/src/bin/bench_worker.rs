//! `tests/bench-worker`: a real worker beside llama.cpp on the same random weights, in interleaved rounds.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use cosec_bench::bandwidth::Bandwidth;
use cosec_bench::checkpoint::{Head, prepare};
use cosec_bench::llama::{Llama, Python};
use cosec_bench::metrics::{Scrape, resident_bytes};
use cosec_bench::report::{Decoded, Engine, Table, median, quantile};
use cosec_bench::shape::{Shape, WeightFormat};
use cosec_bench::worker::Worker;

/// Measures a cosec-worker process over gRPC beside llama.cpp: prefill, decoding at growing batches, first token, gaps
/// between tokens, memory; and both beside the machine's read bandwidth.
#[derive(Debug, Parser)]
#[command(name = "tests/bench-worker")]
struct Arguments {
    /// Shapes of the models [default: llama-1.3b and neox-350m, with --quick llama-30m].
    #[arg(long = "shape", value_name = "NAME", value_parser = Shape::named)]
    shapes: Vec<Shape>,
    /// Formats of the weights [default: bf16, f16, q8_0 and q4_k, with --quick bf16 and q8_0].
    #[arg(long = "format", value_name = "FORMAT", value_enum)]
    formats: Vec<WeightFormat>,
    /// Threads of either side.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A small model and short rounds.
    #[arg(long)]
    quick: bool,
    /// Folder that keeps the checkpoints between runs.
    #[arg(long, value_name = "DIR", default_value = "tests/.bench")]
    work: PathBuf,
    /// A Python that has llama-cpp-python and gguf; without it the worker is measured alone.
    #[arg(long, value_name = "FILE")]
    peer_python: Option<PathBuf>,
}

/// Sequences that decode at a time.
const BATCHES: [usize; 5] = [1, 4, 8, 16, 32];

/// The batch whose steps are taken apart.
const EXAMINED: usize = 16;

const PREFILL_TOKENS: u32 = 512;

/// Tokens that each decoding sequence starts with and grows by at most.
const OPENED_TOKENS: u32 = 16;
const DECODED_TOKENS: u32 = 64;

/// Time of one cell of the table in one round.
const SPAN: Duration = Duration::from_millis(1500);
const QUICK_SPAN: Duration = Duration::from_millis(400);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    cosec_bench::command::run(run(Arguments::parse())).await
}

async fn run(arguments: Arguments) -> Result<()> {
    let named = |names: &[&str]| names.iter().filter_map(|name| Shape::named(name).ok()).collect::<Vec<_>>();
    let shapes = match (arguments.shapes.as_slice(), arguments.quick) {
        ([], false) => named(&["llama-1.3b", "neox-350m"]),
        ([], true) => named(&["llama-30m"]),
        (shapes, _) => shapes.to_vec(),
    };
    let formats = match (arguments.formats.as_slice(), arguments.quick) {
        ([], false) => vec![WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8, WeightFormat::Q4K],
        ([], true) => vec![WeightFormat::Bf16, WeightFormat::Q8],
        (formats, _) => formats.to_vec(),
    };
    let bandwidth = Bandwidth::new(arguments.threads);
    for shape in &shapes {
        let checkpoint = prepare(&arguments.work, shape, Head::Random)?;
        for &format in &formats {
            // A format that one side cannot serve does not keep the others from being measured.
            if let Err(error) = compare(&arguments, shape, format, &checkpoint, &bandwidth).await {
                println!("\n{} {}: {error:#}", shape.name, format.name());
            }
        }
    }
    Ok(())
}

async fn compare(
    arguments: &Arguments,
    shape: &Shape,
    format: WeightFormat,
    checkpoint: &Path,
    bandwidth: &Bandwidth,
) -> Result<()> {
    let most = BATCHES.into_iter().max().unwrap_or(1);
    let tokens = OPENED_TOKENS + DECODED_TOKENS + 1;
    println!("\n{} {}: loading", shape.name, format.name());
    let logs = tempfile::tempdir()?;
    let mut worker = Worker::start(checkpoint, &worker_flags(arguments, format, most, tokens), logs.path()).await?;
    let mut llama = match &arguments.peer_python {
        None => None,
        Some(python) => {
            let python = Python(python.clone());
            let file = python.convert(checkpoint, format, arguments.threads).await?;
            Some(Llama::start(&python, &file, arguments.threads, most, tokens).await?)
        }
    };
    worker.open(most, OPENED_TOKENS).await?;
    if let Some(llama) = &mut llama {
        llama.open(most, OPENED_TOKENS).await?;
    }
    let span = if arguments.quick { QUICK_SPAN } else { SPAN };
    let mut own = Figures::default();
    let mut peers = Figures::default();
    let mut steps = Vec::new();
    let mut ceiling: f64 = 0.0;
    for round in 1..=arguments.rounds {
        println!("{} {}: round {round} of {}", shape.name, format.name(), arguments.rounds);
        own.prefill(&mut worker).await?;
        if let Some(llama) = &mut llama {
            peers.prefill(llama).await?;
        }
        for (index, sequences) in BATCHES.into_iter().enumerate() {
            ceiling = ceiling.max(bandwidth.measure());
            let before = worker.scrape().await?;
            let decoded = own.decode(&mut worker, index, span).await?;
            if sequences == EXAMINED {
                steps.push(Step::of(&worker.scrape().await?.since(&before), &decoded));
            }
            if let Some(llama) = &mut llama {
                peers.decode(llama, index, span).await?;
            }
        }
    }
    own.resident_bytes = resident_bytes(worker.process()?)? as f64;
    if let Some(llama) = &llama {
        peers.resident_bytes = resident_bytes(llama.process()?)? as f64;
    }
    let streamed = shape.streamed_weights() as f64 * format.bytes();
    println!("\n### {}, {}, {} threads, {} rounds\n", shape.name, format.name(), arguments.threads, arguments.rounds);
    println!("{}", table(&own, llama.is_some().then_some(&peers), streamed, ceiling));
    println!("read bandwidth {:.1} GB/s; a decode step reads {:.0} MB of weights", ceiling / 1e9, streamed / 1e6);
    println!("{}", Step::sentence(&steps));
    if llama.is_some() {
        let equal = own.first_tokens.iter().zip(&peers.first_tokens).filter(|(own, peer)| own == peer).count();
        println!("both sides find the same token most probable behind {equal} of {} prompts", arguments.rounds);
    }
    Ok(())
}

fn worker_flags(arguments: &Arguments, format: WeightFormat, sequences: usize, tokens: u32) -> Vec<OsString> {
    const BLOCK_TOKENS: u32 = 16;
    // The decoding sequences, and a prompt beside them.
    let blocks = sequences as u32 * tokens.div_ceil(BLOCK_TOKENS) + PREFILL_TOKENS / BLOCK_TOKENS + 1;
    let mut flags: Vec<OsString> = format.worker_flags().map(OsString::from).to_vec();
    for (flag, value) in [
        ("--threads", arguments.threads.to_string()),
        ("--block-tokens", BLOCK_TOKENS.to_string()),
        ("--blocks", blocks.to_string()),
        ("--lease-seconds", "3600".to_owned()),
    ] {
        flags.extend([flag.into(), value.into()]);
    }
    flags
}

/// What was measured of one side, a value a round.
#[derive(Debug, Default)]
struct Figures {
    /// The most probable ones: equal on both sides where both compute the same model.
    first_tokens: Vec<u32>,
    first_token_seconds: Vec<f64>,
    /// Tokens per second by index into [`BATCHES`].
    rates: [Vec<f64>; BATCHES.len()],
    /// Seconds between two tokens of a sequence, likewise.
    gaps: [Vec<f64>; BATCHES.len()],
    /// CPU seconds per token, likewise.
    cpu: [Vec<f64>; BATCHES.len()],
    resident_bytes: f64,
}

impl Figures {
    async fn prefill(&mut self, engine: &mut impl Engine) -> Result<()> {
        let (token, elapsed) = engine.prefill(PREFILL_TOKENS).await?;
        self.first_tokens.push(token);
        self.first_token_seconds.push(elapsed.as_secs_f64());
        Ok(())
    }

    async fn decode(&mut self, engine: &mut impl Engine, index: usize, span: Duration) -> Result<Decoded> {
        let decoded = engine.decode(BATCHES[index], span, DECODED_TOKENS).await?;
        self.rates[index].push(decoded.rate());
        self.gaps[index].extend(decoded.gaps.iter().map(Duration::as_secs_f64));
        self.cpu[index].push(decoded.cpu.as_secs_f64() / decoded.tokens as f64);
        Ok(decoded)
    }
}

/// Where the time of a decode step at [`EXAMINED`] sequences goes.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Forward passes per token of a sequence: 1 when all sequences ride together.
    passes: f64,
    /// Share of the wall time outside the model's forward passes.
    beyond: f64,
}

impl Step {
    fn of(added: &Scrape, decoded: &Decoded) -> Self {
        let seconds =
            added.sum("cosec_worker_step_seconds_sum", &[]) - added.sum("cosec_worker_logits_seconds_sum", &[]);
        let passes = added.sum("cosec_worker_step_seconds_count", &[]);
        Self {
            passes: passes * EXAMINED as f64 / decoded.tokens as f64,
            beyond: 1.0 - seconds / decoded.elapsed.as_secs_f64(),
        }
    }

    fn sentence(steps: &[Self]) -> String {
        let of = |part: fn(&Self) -> f64| median(&steps.iter().map(part).collect::<Vec<_>>());
        format!(
            "at {EXAMINED} sequences {:.1}% of the worker's time is beyond the forward pass (scheduler, rows, gRPC), with {:.2} \
             forward passes per token of a sequence",
            100.0 * of(|step| step.beyond),
            of(|step| step.passes),
        )
    }
}

fn table(own: &Figures, peers: Option<&Figures>, streamed: f64, ceiling: f64) -> Table {
    let mut table = Table::new(&["", "worker", "llama.cpp", "worker : llama.cpp"]);
    let sides = || std::iter::once(own).chain(peers);
    // The first of a side's figures is compared.
    let mut row = |name: String, figures: &dyn Fn(&Figures) -> Vec<f64>, digits: usize| {
        let text = |side: &Figures| {
            let shown: Vec<String> = figures(side).iter().map(|value| format!("{value:.digits$}")).collect();
            shown.join(" / ")
        };
        let mut cells = vec![name];
        cells.extend(sides().map(text));
        cells.extend(peers.map(|peers| format!("{:.2}", figures(own)[0] / figures(peers)[0])));
        table.row(cells);
    };
    let first_token = |side: &Figures| median(&side.first_token_seconds);
    row(
        format!("prefill of {PREFILL_TOKENS}, tokens/s"),
        &|side| vec![f64::from(PREFILL_TOKENS) / first_token(side)],
        1,
    );
    for (index, sequences) in BATCHES.into_iter().enumerate() {
        row(format!("decode, {sequences} sequences, tokens/s"), &|side| vec![median(&side.rates[index])], 1);
    }
    row(format!("first token behind {PREFILL_TOKENS}, ms"), &|side| vec![1e3 * first_token(side)], 0);
    for (index, sequences) in BATCHES.into_iter().enumerate() {
        let gaps = move |side: &Figures| [0.5, 0.99].map(|share| 1e3 * quantile(&side.gaps[index], share)).to_vec();
        row(format!("between tokens at {sequences}, p50 / p99, ms"), &gaps, 1);
    }
    for (index, sequences) in BATCHES.into_iter().enumerate() {
        row(format!("CPU time per token at {sequences}, ms"), &|side| vec![1e3 * median(&side.cpu[index])], 1);
    }
    row("resident memory, MiB".to_owned(), &|side| vec![side.resident_bytes / f64::from(1 << 20)], 0);
    let share = |side: &Figures| vec![streamed * median(&side.rates[0]) / ceiling];
    row("share of the read bandwidth at 1".to_owned(), &share, 2);
    table
}
