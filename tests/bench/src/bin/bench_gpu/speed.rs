//! Prefill, decoding and memory of one worker, next to what its device could do.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cosec_bench::bandwidth::Bandwidth;
use cosec_bench::checkpoint::{Head, prepare};
use cosec_bench::gpu::{self, Limits};
use cosec_bench::metrics::{Scrape, resident_bytes};
use cosec_bench::report::{Engine, median};
use cosec_bench::shape::{Shape, WeightFormat};
use cosec_bench::worker::Worker;

use crate::Place;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Shape of the model.
    #[arg(long, value_parser = Shape::named)]
    shape: Shape,
    /// Format of its weights.
    #[arg(long, value_enum, default_value_t = WeightFormat::Bf16)]
    format: WeightFormat,
    /// Lengths of prompts.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 4096])]
    prefill: Vec<u32>,
    /// Sequences that decode at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128])]
    batches: Vec<usize>,
    /// Seconds of each batch.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Shows the lines of the worker's log that hold this text.
    #[arg(long, value_name = "TEXT")]
    log_lines: Option<String>,
}

/// Tokens of a block of the cache.
const BLOCK_TOKENS: u32 = 16;

/// Tokens that each decoding sequence starts with and grows by at most.
const OPENED_TOKENS: u32 = 128;
const DECODED_TOKENS: u32 = 128;

/// Prompts of each length after the first, which is not counted.
const PREFILLS: usize = 3;

/// Bytes of a number in the cache, which holds bf16 here.
const KV_BYTES: usize = 2;

const MIB: f64 = (1u64 << 20) as f64;

/// Two tables, and the memory in between.
pub(crate) async fn run(place: &Place, arguments: &Arguments) -> Result<()> {
    let Arguments { shape, format, .. } = arguments;
    let checkpoint = prepare(&place.work, shape, Head::Planted)?;
    println!("\n### {}, {}, {}\n", shape.name, format.name(), place.device);
    let limits = limits(place)?;
    let used_before = used_mib(place, None)?;
    let logs = cosec_bench::command::logs()?;
    let started = Instant::now();
    let mut worker = Worker::start(&checkpoint, &worker_flags(place, arguments), logs.path()).await?;
    println!("- loaded in {:.1} s", started.elapsed().as_secs_f64());
    println!("- planned: {}", planned(logs.path())?);
    let process = worker.process()?;
    println!("- in use after loading: {:.0} MiB more than before", used_mib(place, Some(process))? - used_before);
    prefill(arguments, &mut worker, limits).await?;
    decode(arguments, &mut worker, limits).await?;
    println!("\n- in use after all of it: {:.0} MiB more than before", used_mib(place, Some(process))? - used_before);
    if let Some(text) = &arguments.log_lines {
        println!("- lines of the worker's log with {text:?}:\n\n```");
        logged(logs.path(), text)?.iter().for_each(|line| println!("{line}"));
        println!("```");
    }
    Ok(())
}

/// By the data sheet of a GPU, or measured.
fn limits(place: &Place) -> Result<Option<Limits>> {
    let Some(number) = gpu::number(&place.device) else {
        let bandwidth = Bandwidth::new(std::thread::available_parallelism()?.get()).measure();
        println!("- read bandwidth of this machine {:.1} GB/s, measured", bandwidth / 1e9);
        return Ok(Some(Limits { bandwidth, arithmetic: f64::NAN }));
    };
    let name = gpu::query(number, "name")?;
    let limits = Limits::of(&name);
    match limits {
        Some(Limits { bandwidth, arithmetic }) => println!(
            "- {name}: {:.2} TB/s and {:.0} TFLOP/s (dense bf16) by its data sheet",
            bandwidth / 1e12,
            arithmetic / 1e12
        ),
        None => println!("- {name}: its limits are not known here"),
    }
    Ok(limits)
}

/// Of the GPU, or of the process where there is none.
fn used_mib(place: &Place, process: Option<u32>) -> Result<f64> {
    match (gpu::number(&place.device), process) {
        (Some(number), _) => gpu::query(number, "memory.used")?.parse().context("no number of MiB"),
        (None, Some(process)) => Ok(resident_bytes(process)? as f64 / MIB),
        (None, None) => Ok(0.0),
    }
}

fn worker_flags(place: &Place, arguments: &Arguments) -> Vec<OsString> {
    let most = arguments.batches.iter().copied().max().unwrap_or(1) as u32;
    let longest = arguments.prefill.iter().copied().max().unwrap_or(0);
    // The decoding sequences, and a prompt beside them.
    let blocks = most * (OPENED_TOKENS + DECODED_TOKENS + 1).div_ceil(BLOCK_TOKENS) + longest / BLOCK_TOKENS + 2;
    let mut flags: Vec<OsString> = arguments.format.worker_flags().map(OsString::from).to_vec();
    for (flag, value) in [
        ("--device", place.device.clone()),
        ("--kv-dtype", "bf16".to_owned()),
        ("--block-tokens", BLOCK_TOKENS.to_string()),
        ("--blocks", blocks.to_string()),
        ("--lease-seconds", "3600".to_owned()),
    ] {
        flags.extend([flag.into(), value.into()]);
    }
    flags
}

/// What the worker logged of its memory.
fn planned(logs: &Path) -> Result<String> {
    let lines = logged(logs, "weights_mib=")?;
    let plan = lines.first().and_then(|line| line.split_once("weights_mib=")).map(|(_, rest)| rest);
    Ok(plan.map_or_else(|| "(not logged)".to_owned(), |plan| format!("weights_mib={plan}")))
}

/// Lines of the worker's log with `text` in them.
fn logged(logs: &Path, text: &str) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(logs.join("worker.log"))?;
    Ok(log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect())
}

fn percent(share: Option<f64>) -> String {
    share.filter(|share| share.is_finite()).map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", 100.0 * share))
}

async fn prefill(arguments: &Arguments, worker: &mut Worker, limits: Option<Limits>) -> Result<()> {
    println!("\n| prefill | tokens/s | ms to the first token | of the arithmetic limit |\n|---|---|---|---|");
    let shape = &arguments.shape;
    for &tokens in &arguments.prefill {
        let mut seconds = Vec::new();
        for round in 0..=PREFILLS {
            let (_, elapsed) = worker.prefill(tokens).await?;
            if round > 0 {
                seconds.push(elapsed.as_secs_f64());
            }
        }
        let seconds = median(&seconds);
        // The head is multiplied with one row.
        let products = shape.layer_weights() as f64 * f64::from(tokens) + shape.head_weights() as f64;
        let share = limits.map(|limits| 2.0 * products / seconds / limits.arithmetic);
        println!("| {tokens} | {:.0} | {:.1} | {} |", f64::from(tokens) / seconds, 1e3 * seconds, percent(share));
    }
    Ok(())
}

async fn decode(arguments: &Arguments, worker: &mut Worker, limits: Option<Limits>) -> Result<()> {
    let Arguments { shape, format, batches, .. } = arguments;
    worker.open(batches.iter().copied().max().unwrap_or(0), OPENED_TOKENS).await?;
    println!(
        "\n| decode | tokens/s | ms a step | passes a step | of it forward, ms | rows, ms | beyond the worker's step, ms | \
         of the bandwidth | of the arithmetic limit |\n|---|---|---|---|---|---|---|---|---|"
    );
    for &sequences in batches {
        let span = Duration::from_secs_f64(arguments.seconds);
        // The first steps of a size may compile or allocate.
        worker.decode(sequences, span / 10, 4).await?;
        let before = worker.scrape().await?;
        let decoded = worker.decode(sequences, span, DECODED_TOKENS).await?;
        let steps = decoded.tokens as f64 / sequences as f64;
        let parts = Parts::of(&worker.scrape().await?.since(&before), steps);
        let step = decoded.elapsed.as_secs_f64() / steps;
        let context = f64::from(OPENED_TOKENS) + steps / 2.0;
        let cached = context * (2 * shape.layers * shape.hidden * KV_BYTES) as f64;
        let bytes = shape.streamed_weights() as f64 * format.bytes() + sequences as f64 * cached;
        let products = shape.streamed_weights() as f64 * sequences as f64;
        println!(
            "| {sequences} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
            decoded.rate(),
            1e3 * step,
            parts.passes,
            1e3 * parts.forward,
            1e3 * parts.rows,
            1e3 * (step - parts.forward - parts.rows),
            percent(limits.map(|limits| bytes / step / limits.bandwidth)),
            percent(limits.map(|limits| 2.0 * products / step / limits.arithmetic)),
        );
    }
    Ok(())
}

/// Seconds of one step of all sequences, as the worker counted them.
struct Parts {
    /// Forward passes: 1 when all sequences ride together.
    passes: f64,
    forward: f64,
    rows: f64,
}

impl Parts {
    fn of(added: &Scrape, steps: f64) -> Self {
        let sum = |name: &str| added.sum(name, &[]) / steps;
        let rows = sum("cosec_worker_logits_seconds_sum");
        Self {
            passes: sum("cosec_worker_step_seconds_count"),
            forward: sum("cosec_worker_step_seconds_sum") - rows,
            rows,
        }
    }
}
