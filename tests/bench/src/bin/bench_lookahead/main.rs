//! `tests/bench-lookahead`: base alone, sequential co-decoding and lookahead side by side on real processes.

mod comparison;
mod from_cold;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use cosec_bench::checkpoint::{Head, prepare, temperature_for};
use cosec_bench::cluster::{Lanes, MODEL, Pair};
use cosec_bench::shape::{Shape, WeightFormat};
use cosec_bench::streams::{WatchEnd, Watched, watch};
use cosec_proto::wire::coordinator::generate_request::Prompt;
use cosec_proto::wire::coordinator::{Cosec, GenerateRequest, TokenIds};

/// Measures tokens/s of the base alone, of sequential co-decoding and of lookahead at several k, on the demo pair and
/// on random weights of real shape whose agreement is planted; the bytes of every transport; and where the time goes.
#[derive(Debug, Parser)]
#[command(name = "tests/bench-lookahead")]
struct Arguments {
    /// demo; codegen (CodeGen-2B, CodeGen-350M), deepseek (DeepSeek-Coder-1.3B, 125M), codellama (CodeLlama-7B, 0.5B)
    /// or small (30M, 5M) of random weights [default: demo and, as memory allows, codegen or deepseek; with --quick
    /// demo and small].
    #[arg(long = "pair", value_name = "PAIR")]
    pairs: Vec<PairName>,
    /// Rates of agreement planted into the random pairs, above 1/3 and below 1.
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 0.7, 0.8, 0.9], value_parser = agreement)]
    acceptance: Vec<f64>,
    /// Concurrent streams.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    streams: Vec<usize>,
    /// Format of the random pairs' weights.
    #[arg(long, value_enum, default_value_t = WeightFormat::Bf16)]
    format: WeightFormat,
    /// What is held against the base alone: cosec, linear or product.
    #[arg(long = "rule", value_name = "RULE", value_delimiter = ',', default_value = "cosec")]
    rules: Vec<String>,
    /// How coordinators look ahead (fixed:K, adaptive), each a way to decode beside the base alone and the sequential
    /// one.
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_value = "fixed:2,fixed:4,fixed:8,adaptive")]
    lookahead: Vec<String>,
    /// Where both workers run, as their own --device has it.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of each worker; they share the cores.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Memory of each worker's cache.
    #[arg(long, value_name = "MIB", default_value_t = 2400)]
    kv_memory_mib: u64,
    /// Leaves out the bytes of every transport.
    #[arg(long)]
    without_wire: bool,
    /// Instead of the comparison, judges `adaptive`: its first rounds in a new coordinator against sequential decoding,
    /// then its steady state against the best of the other ways.
    #[arg(long)]
    from_cold: bool,
    /// With --from-cold: rounds of each stream from cold.
    #[arg(long, default_value_t = 40)]
    cold_rounds: usize,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Seconds that each way to decode is watched in a round.
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,
    /// Small models and short rounds.
    #[arg(long)]
    quick: bool,
    /// Folder that keeps the checkpoints between runs.
    #[arg(long, value_name = "DIR", default_value = "tests/.bench")]
    work: PathBuf,
}

/// A rate that can be planted: the rest goes to two other tokens, neither of which may be likelier.
fn agreement(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|&rate| rate > 1.0 / 3.0 && rate < 1.0);
    rate.ok_or_else(|| "expected a number above 1/3 and below 1".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PairName {
    Demo,
    Codegen,
    Deepseek,
    Codellama,
    Small,
}

/// What codegen takes with its caches; with less memory at hand deepseek stands in.
const CODEGEN_BYTES: u64 = 11 << 30;

/// Tokens of a completion: more than a stream shows while it is watched, as long as the model is not tiny.
const COMPLETION_TOKENS: u32 = 256;
const PROMPT_TOKENS: u32 = 16;

const DEMO_PROMPTS: [&str; 4] = [
    "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
    "import subprocess\n\ndef ping(host):\n    return subprocess.",
    "def read_page(root, name):\n    path = os.path.join(root, name)\n    with open(",
    "def load_settings(request):\n    data = request.get_data()\n    return ",
];

/// The first ways to decode; both ask the first coordinator, which does not look ahead.
const BASE: usize = 0;
const SEQUENTIAL: usize = 1;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    cosec_bench::command::run(run(Arguments::parse())).await
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.quick {
        arguments.rounds = 1;
        arguments.seconds = 0.7;
        arguments.acceptance = vec![0.5, 0.8];
    }
    for name in pairs(&arguments)? {
        measure(&arguments, name).await?;
    }
    Ok(())
}

fn pairs(arguments: &Arguments) -> Result<Vec<PairName>> {
    if !arguments.pairs.is_empty() {
        return Ok(arguments.pairs.clone());
    }
    if arguments.quick {
        return Ok(vec![PairName::Demo, PairName::Small]);
    }
    let available = cosec_bench::metrics::available_bytes()?;
    let real = if available > CODEGEN_BYTES { PairName::Codegen } else { PairName::Deepseek };
    Ok(vec![PairName::Demo, real])
}

/// A pair under one load.
struct Bench<'a> {
    arguments: &'a Arguments,
    /// Names of the ways to decode.
    ways: Vec<String>,
    /// A coordinator for each way but the base alone.
    lanes: Lanes,
    /// The vocabulary of the random pairs; the demo pair is given text.
    vocabulary: Option<u32>,
}

async fn measure(arguments: &Arguments, name: PairName) -> Result<()> {
    let shapes = match name {
        PairName::Demo => None,
        PairName::Codegen => Some(("codegen-2b", "codegen-350m")),
        PairName::Deepseek => Some(("llama-1.3b", "llama-125m")),
        PairName::Codellama => Some(("llama-7b", "llama-0.5b")),
        PairName::Small => Some(("llama-30m", "llama-5m")),
    };
    let (threads, memory) = (arguments.threads.to_string(), arguments.kv_memory_mib.to_string());
    let mut flags: Vec<OsString> = ["--device", &arguments.device, "--threads", &threads, "--kv-memory-mib", &memory]
        .map(OsString::from)
        .to_vec();
    let (pair, vocabulary) = match shapes {
        None => (Pair::demo(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")), None),
        Some((base, expert)) => {
            let (base, expert) = (named(base)?, named(expert)?);
            flags.extend(arguments.format.worker_flags().map(OsString::from));
            let pair = Pair {
                name: format!("{} with {}, {}", base.name, expert.name, arguments.format.name()),
                base: prepare(&arguments.work, &base, Head::Planted)?,
                expert: prepare(&arguments.work, &expert, Head::PlantedWithRivals)?,
            };
            (pair, Some(u32::try_from(base.vocabulary)?))
        }
    };
    let device = &arguments.device;
    println!("\n## {}, {device}\n\nstarting the workers, {threads} threads each, on the same cores", pair.name);
    let logs = cosec_bench::command::logs()?;
    let speculations: Vec<&str> =
        std::iter::once("off").chain(arguments.lookahead.iter().map(String::as_str)).collect();
    let lanes = Lanes::start(&pair, &speculations, &flags, logs.path()).await?;
    let mut ways = vec!["base alone".to_owned(), "sequential".to_owned()];
    ways.extend(arguments.lookahead.iter().map(|how| way_name(how)));
    let mut bench = Bench { arguments, ways, lanes, vocabulary };
    let rates: Vec<Option<f64>> = match vocabulary {
        None => vec![None],
        Some(_) => arguments.acceptance.iter().copied().map(Some).collect(),
    };
    // Touches the memory of the caches, so that the first round is as the others.
    let most = arguments.streams.iter().copied().max().unwrap_or(1);
    let first_rule = arguments.rules.first().map_or("cosec", String::as_str);
    for rule in ["base_only", first_rule] {
        bench.run(rule, SEQUENTIAL, most, rates[0], 0).await?;
    }
    if arguments.from_cold {
        return bench.judge_from_cold(first_rule, &rates).await;
    }
    for rule in &arguments.rules {
        for rate in &rates {
            bench.compare(rule, *rate).await?;
        }
    }
    if arguments.without_wire {
        return Ok(());
    }
    bench.wire(rates.last().copied().flatten()).await
}

fn way_name(lookahead: &str) -> String {
    lookahead.strip_prefix("fixed:").map_or_else(|| lookahead.to_owned(), |k| format!("lookahead k={k}"))
}

fn named(name: &str) -> Result<Shape> {
    Shape::named(name).map_err(anyhow::Error::msg)
}

impl Bench<'_> {
    fn span(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.seconds)
    }

    fn request(
        &self,
        stream: usize,
        seed: u64,
        planted: Option<f64>,
        rule: &str,
        transport: &str,
    ) -> GenerateRequest {
        let (prompt, temperature) = match self.vocabulary {
            None => (Prompt::Text(DEMO_PROMPTS[stream % DEMO_PROMPTS.len()].to_owned()), None),
            Some(vocabulary) => {
                let first = stream as u32 * 997;
                let ids = (0..PROMPT_TOKENS).map(|position| (first + position) % vocabulary).collect();
                (Prompt::TokenIds(TokenIds { ids }), Some(1.0))
            }
        };
        // The base alone has no expert to set a temperature of.
        let planted = planted.filter(|_| rule != "base_only");
        GenerateRequest {
            model: MODEL.to_owned(),
            prompt: Some(prompt),
            seed: Some(seed),
            max_tokens: Some(COMPLETION_TOKENS),
            temperature,
            cosec: Some(Cosec {
                rule: Some(rule.to_owned()),
                transport: Some(transport.to_owned()),
                expert_temperature: planted.map(temperature_for),
                expert_top_p: planted.map(|_| 1.0),
                ..Cosec::default()
            }),
            ..GenerateRequest::default()
        }
    }

    /// Other rounds draw other random numbers.
    async fn run(
        &self,
        rule: &str,
        way: usize,
        streams: usize,
        planted: Option<f64>,
        round: usize,
    ) -> Result<Watched> {
        self.watch(rule, way, streams, planted, round, WatchEnd::After(self.span())).await
    }

    async fn watch(
        &self,
        rule: &str,
        way: usize,
        streams: usize,
        planted: Option<f64>,
        round: usize,
        end: WatchEnd,
    ) -> Result<Watched> {
        let rule = if way == BASE { "base_only" } else { rule };
        let coordinator = &self.lanes.coordinators[way.saturating_sub(1)];
        let requests = (0..streams)
            .map(|stream| self.request(stream, (1000 * round + stream) as u64, planted, rule, "auto"))
            .collect();
        let watched = watch(coordinator, requests, end).await;
        watched.with_context(|| format!("{} at {streams} streams", self.ways[way]))
    }
}
