//! `tests/bench-lookahead`: base alone, sequential co-decoding and lookahead side by side on real processes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use cosec_bench::checkpoint::{Head, prepare, temperature_for};
use cosec_bench::cluster::{Coordinator, Lanes, MODEL, Pair};
use cosec_bench::report::{Table, median};
use cosec_bench::shape::{Shape, WeightFormat};
use cosec_bench::streams::{Watched, watch};
use cosec_proto::wire::coordinator::generate_request::Prompt;
use cosec_proto::wire::coordinator::{Cosec, GenerateRequest, TokenIds};

/// Measures tokens/s of the base alone, of sequential co-decoding and of lookahead at several k, on the demo pair and on
/// random weights of real shape whose agreement is planted; the bytes of every transport; and where the time goes.
#[derive(Debug, Parser)]
#[command(name = "tests/bench-lookahead")]
struct Arguments {
    /// demo; codegen (CodeGen-2B, CodeGen-350M), deepseek (DeepSeek-Coder-1.3B, 125M), codellama (CodeLlama-7B, 0.5B) or
    /// small (30M, 5M) of random weights [default: demo and, as memory allows, codegen or deepseek; with --quick demo and
    /// small].
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
    /// How coordinators look ahead (fixed:K, adaptive), each a way to decode beside the base alone and the sequential one.
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

/// Bytes per token do not change with the time.
const WIRE_SPAN: Duration = Duration::from_secs(4);

const TRANSPORTS: [&str; 4] = ["gather", "sample", "nucleus", "full"];

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
    let bench = Bench { arguments, ways, lanes, vocabulary };
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
        let rule = if way == BASE { "base_only" } else { rule };
        let coordinator = &self.lanes.coordinators[way.saturating_sub(1)];
        let requests = (0..streams)
            .map(|stream| self.request(stream, (1000 * round + stream) as u64, planted, rule, "auto"))
            .collect();
        let watched = watch(coordinator, requests, self.span()).await;
        watched.with_context(|| format!("{} at {streams} streams", self.ways[way]))
    }

    async fn compare(&self, rule: &str, planted: Option<f64>) -> Result<()> {
        let counts = &self.arguments.streams;
        let mut seen: Vec<Vec<Vec<Watched>>> = vec![vec![Vec::new(); counts.len()]; self.ways.len()];
        for round in 1..=self.arguments.rounds {
            println!(
                "{rule}, round {round} of {}{}",
                self.arguments.rounds,
                planted.map_or(String::new(), |rate| format!(", planted {rate}"))
            );
            for (column, &streams) in counts.iter().enumerate() {
                for (way, row) in seen.iter_mut().enumerate() {
                    let watched = self.run(rule, way, streams, planted, round).await?;
                    println!("- {streams} streams, {}: {:.1} tokens/s", self.ways[way], watched.rate);
                    row[column].push(watched);
                }
            }
        }
        match planted {
            None => println!("\n### {rule}, agreement as the models have it\n"),
            Some(rate) => println!(
                "\n### {rule}, agreement planted at {rate}: what is written is t + 1 behind t, all layers are computed\n"
            ),
        }
        println!("{}", self.rates(&seen));
        for (column, &streams) in counts.iter().enumerate() {
            self.goals(&seen, column, streams);
        }
        println!(
            "\ntime per token at {} streams, ms; a worker's time counts whole for each of the sessions that share its passes,\nand base and expert may work at the same time\n\n{}",
            counts[0],
            self.split(&seen, 0)
        );
        Ok(())
    }

    /// Tokens per second of every way, beside the base alone in the same round.
    fn rates(&self, seen: &[Vec<Vec<Watched>>]) -> Table {
        let mut columns = vec!["tokens/s (: base alone)".to_owned()];
        columns.extend(self.arguments.streams.iter().map(|streams| format!("{streams} streams")));
        columns.extend(["accepted".to_owned(), "same tokens".to_owned()]);
        let mut table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>());
        for (way, cells) in seen.iter().enumerate() {
            let mut row = vec![self.ways[way].clone()];
            row.extend(
                cells
                    .iter()
                    .zip(&seen[BASE])
                    .map(|(own, base)| (median(&rates_of(own)), ratio(own, base)))
                    // No stream showed a second burst of tokens in the time that was watched.
                    .map(
                        |(rate, ratio)| {
                            if rate.is_nan() { "-".to_owned() } else { format!("{rate:.1} ({ratio:.2})") }
                        },
                    ),
            );
            if way != BASE {
                row.push(format!("{:.3}", acceptance(cells)));
                row.push(same_tokens(cells, &seen[SEQUENTIAL]));
            }
            table.row(row);
        }
        table
    }

    /// Bytes per token of every transport, sequential and adaptive.
    async fn wire(&self, planted: Option<f64>) -> Result<()> {
        let mut table = Table::new(&["payload bytes per token", "to base", "from base", "to expert", "from expert"]);
        let ways = self.ways.iter().skip(SEQUENTIAL).zip(&self.lanes.coordinators);
        for (way, coordinator) in ways.filter(|(way, _)| ["sequential", "adaptive"].contains(&way.as_str())) {
            for transport in TRANSPORTS {
                let bytes = self.bytes(coordinator, planted, transport).await?;
                let cells = bytes.iter().map(|bytes| format!("{bytes:.1}"));
                table.row(std::iter::once(format!("{way}, {transport}")).chain(cells).collect());
                if transport == "gather" {
                    let (base, expert) = (bytes[0] + bytes[1], bytes[2] + bytes[3]);
                    println!(
                        "goal: gather at most 64 bytes per token and model; {way}: base {base:.1}, expert {expert:.1}"
                    );
                }
            }
        }
        println!("\n{table}");
        Ok(())
    }

    async fn bytes(&self, coordinator: &Coordinator, planted: Option<f64>, transport: &str) -> Result<[f64; 4]> {
        let requests = vec![self.request(0, 0, planted, "cosec", transport)];
        let span = self.span().min(WIRE_SPAN);
        // Sessions of this transport find their pace first.
        watch(coordinator, requests.clone(), span).await?;
        let added = watch(coordinator, requests, span).await?.added;
        let tokens = added.sum("cosec_tokens_total", &[]);
        let labels = [("base", "sent"), ("base", "received"), ("expert", "sent"), ("expert", "received")];
        Ok(labels.map(|(role, direction)| {
            let labels = [format!("role=\"{role}\""), format!("direction=\"{direction}\"")];
            added.sum("cosec_wire_bytes_total", &[&labels[0], &labels[1]]) / tokens
        }))
    }

    fn goals(&self, seen: &[Vec<Vec<Watched>>], column: usize, streams: usize) {
        let against_base = |way: usize| ratio(&seen[way][column], &seen[BASE][column]);
        let measured = (SEQUENTIAL + 1..self.ways.len()).filter(|&way| !against_base(way).is_nan());
        if let Some(best) = measured.max_by(|&a, &b| against_base(a).total_cmp(&against_base(b))) {
            println!(
                "{streams} streams: best {} ({:.2} of the base alone); goal at an acceptance of 0.8: 1.5 at one stream, 1.0 at 16; \
                 sequential takes {:.2} times the base's time per token",
                self.ways[best],
                against_base(best),
                1.0 / against_base(SEQUENTIAL),
            );
        }
        if let Some(adaptive) = self.ways.iter().position(|way| way == "adaptive") {
            println!(
                "{streams} streams: adaptive {:.2} of the base alone, {:.2} times as fast as sequential",
                against_base(adaptive),
                ratio(&seen[adaptive][column], &seen[SEQUENTIAL][column]),
            );
        }
    }

    /// Milliseconds per token by role and phase.
    fn split(&self, seen: &[Vec<Vec<Watched>>], column: usize) -> Table {
        const PARTS: [(&str, &str); 6] = [
            ("base", "queue"),
            ("base", "compute"),
            ("base", "wire"),
            ("expert", "queue"),
            ("expert", "compute"),
            ("expert", "wire"),
        ];
        let mut columns = vec!["way".to_owned(), "per token".to_owned()];
        columns.extend(PARTS.map(|(role, phase)| format!("{role} {phase}")));
        let mut table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>());
        for (way, cells) in seen.iter().enumerate() {
            let cells = &cells[column];
            let tokens: f64 = cells.iter().map(|watched| watched.added.sum("cosec_tokens_total", &[])).sum();
            let streams = cells.first().map_or(1, |watched| watched.tokens.len()) as f64;
            let mut row = vec![self.ways[way].clone(), format!("{:.2}", 1e3 * streams / median(&rates_of(cells)))];
            row.extend(PARTS.map(|(role, phase)| {
                let labels = [format!("role=\"{role}\""), format!("phase=\"{phase}\"")];
                let sum = |watched: &Watched| watched.added.sum("cosec_step_seconds_sum", &[&labels[0], &labels[1]]);
                format!("{:.2}", 1e3 * (cells.iter().map(sum).sum::<f64>() / tokens).max(0.0))
            }));
            table.row(row);
        }
        table
    }
}

fn rates_of(cells: &[Watched]) -> Vec<f64> {
    cells.iter().map(|watched| watched.rate).collect()
}

/// Median over the rounds of `own` over `base`.
fn ratio(own: &[Watched], base: &[Watched]) -> f64 {
    median(&own.iter().zip(base).map(|(own, base)| own.rate / base.rate).collect::<Vec<_>>())
}

/// Share of the expert's proposals that passed, as the coordinators counted them.
fn acceptance(cells: &[Vec<Watched>]) -> f64 {
    let sum = |outcome: &str| -> f64 {
        cells.iter().flatten().map(|watched| watched.added.sum("cosec_draft_tokens_total", &[outcome])).sum()
    };
    let accepted = sum("outcome=\"accepted\"");
    accepted / (accepted + sum("outcome=\"rejected\""))
}

/// How many streams wrote what they wrote sequentially, as far as both came.
fn same_tokens(own: &[Vec<Watched>], sequential: &[Vec<Watched>]) -> String {
    let streams = |cells: &[Vec<Watched>]| -> Vec<Vec<u32>> {
        cells.iter().flatten().flat_map(|watched| watched.tokens.clone()).collect()
    };
    let (own, sequential) = (streams(own), streams(sequential));
    let same = own.iter().zip(&sequential).filter(|(a, b)| a.iter().zip(b.iter()).all(|(a, b)| a == b)).count();
    format!("{same} of {}", own.len())
}
