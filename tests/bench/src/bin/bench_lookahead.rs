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
use cosec_proto::coordinator::generate_request::Prompt;
use cosec_proto::coordinator::{Cosec, GenerateRequest, TokenIds};

/// Measures tokens/s of the base alone, of sequential co-decoding and of lookahead at several k, on the demo pair and on
/// random weights of real shape whose agreement is planted; the bytes of every transport; and where the time goes.
#[derive(Debug, Parser)]
#[command(name = "tests/bench-lookahead")]
struct Arguments {
    /// demo; codegen (CodeGen-2B, CodeGen-350M), deepseek (DeepSeek-Coder-1.3B, 125M) or small (30M, 5M) of random weights
    /// [default: demo and, as memory allows, codegen or deepseek; with --quick demo and small].
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
    /// Threads of each worker; they share the cores.
    #[arg(long, default_value_t = 2)]
    threads: usize,
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
    Small,
}

/// What codegen takes with its caches; with less memory at hand deepseek stands in.
const CODEGEN_BYTES: u64 = 11 << 30;

const KV_MEMORY_MIB: &str = "2400";

/// Tokens of a completion: more than a stream shows while it is watched, as long as the model is not tiny.
const COMPLETION_TOKENS: u32 = 256;
const PROMPT_TOKENS: u32 = 16;

const DEMO_PROMPTS: [&str; 4] = [
    "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
    "import subprocess\n\ndef ping(host):\n    return subprocess.",
    "def read_page(root, name):\n    path = os.path.join(root, name)\n    with open(",
    "def load_settings(request):\n    data = request.get_data()\n    return ",
];

/// The ways to decode; the base alone asks the first coordinator.
const SPECULATIONS: [&str; 5] = ["off", "fixed:2", "fixed:4", "fixed:8", "adaptive"];
const WAYS: [&str; 6] = ["base alone", "sequential", "lookahead k=2", "lookahead k=4", "lookahead k=8", "adaptive"];
const BASE: usize = 0;
const SEQUENTIAL: usize = 1;
const ADAPTIVE: usize = 5;

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
    lanes: Lanes,
    /// The vocabulary of the random pairs; the demo pair is given text.
    vocabulary: Option<u32>,
}

async fn measure(arguments: &Arguments, name: PairName) -> Result<()> {
    let shapes = match name {
        PairName::Demo => None,
        PairName::Codegen => Some(("codegen-2b", "codegen-350m")),
        PairName::Deepseek => Some(("llama-1.3b", "llama-125m")),
        PairName::Small => Some(("llama-30m", "llama-5m")),
    };
    let threads = arguments.threads.to_string();
    let mut flags: Vec<OsString> =
        ["--threads", &threads, "--kv-memory-mib", KV_MEMORY_MIB].map(OsString::from).to_vec();
    let (pair, vocabulary) = match shapes {
        None => (demo(), None),
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
    println!("\n## {}\n\nstarting the workers, {threads} threads each, on the same cores", pair.name);
    let logs = tempfile::tempdir()?;
    let lanes = Lanes::start(&pair, &SPECULATIONS, &flags, logs.path()).await?;
    let bench = Bench { arguments, lanes, vocabulary };
    let rates: Vec<Option<f64>> = match vocabulary {
        None => vec![None],
        Some(_) => arguments.acceptance.iter().copied().map(Some).collect(),
    };
    // Touches the memory of the caches, so that the first round is as the others.
    for way in [BASE, SEQUENTIAL] {
        bench.run(way, arguments.streams.iter().copied().max().unwrap_or(1), rates[0], 0).await?;
    }
    for rate in &rates {
        bench.compare(*rate).await?;
    }
    bench.wire(rates.last().copied().flatten()).await
}

fn named(name: &str) -> Result<Shape> {
    Shape::named(name).map_err(anyhow::Error::msg)
}

fn demo() -> Pair {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo-pair");
    Pair { name: "demo pair".to_owned(), base: folder.join("base"), expert: folder.join("expert") }
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
        let planted = planted.filter(|_| rule == "cosec");
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
    async fn run(&self, way: usize, streams: usize, planted: Option<f64>, round: usize) -> Result<Watched> {
        let rule = if way == BASE { "base_only" } else { "cosec" };
        let coordinator = &self.lanes.coordinators[way.saturating_sub(1)];
        let requests = (0..streams)
            .map(|stream| self.request(stream, (1000 * round + stream) as u64, planted, rule, "auto"))
            .collect();
        watch(coordinator, requests, self.span()).await.with_context(|| format!("{} at {streams} streams", WAYS[way]))
    }

    async fn compare(&self, planted: Option<f64>) -> Result<()> {
        let counts = &self.arguments.streams;
        let mut seen: Vec<Vec<Vec<Watched>>> = vec![vec![Vec::new(); counts.len()]; WAYS.len()];
        for round in 1..=self.arguments.rounds {
            println!(
                "round {round} of {}{}",
                self.arguments.rounds,
                planted.map_or(String::new(), |rate| format!(", planted {rate}"))
            );
            for (column, &streams) in counts.iter().enumerate() {
                for (way, row) in seen.iter_mut().enumerate() {
                    row[column].push(self.run(way, streams, planted, round).await?);
                }
            }
        }
        match planted {
            None => println!("\n### agreement as the models have it\n"),
            Some(rate) => println!(
                "\n### agreement planted at {rate}: what is written is t + 1 behind t, all layers are computed\n"
            ),
        }
        println!("{}", self.rates(&seen));
        for (column, &streams) in counts.iter().enumerate() {
            goals(&seen, column, streams);
        }
        println!(
            "\ntime per token at {} streams, ms; a worker's time counts whole for each of the sessions that share its passes,\nand base and expert may work at the same time\n\n{}",
            counts[0],
            split(&seen, 0)
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
            let mut row = vec![WAYS[way].to_owned()];
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
        let sequential = &self.lanes.coordinators[SEQUENTIAL - 1];
        let adaptive = &self.lanes.coordinators[ADAPTIVE - 1];
        for (way, coordinator) in [("sequential", sequential), ("adaptive", adaptive)] {
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
}

fn rates_of(cells: &[Watched]) -> Vec<f64> {
    cells.iter().map(|watched| watched.rate).collect()
}

/// Median over the rounds of `own` over `base`.
fn ratio(own: &[Watched], base: &[Watched]) -> f64 {
    median(&own.iter().zip(base).map(|(own, base)| own.rate / base.rate).collect::<Vec<_>>())
}

/// Share of the tokens that the expert chose, as the coordinators counted them.
fn acceptance(cells: &[Vec<Watched>]) -> f64 {
    let sum = |labels: &[&str]| -> f64 {
        cells.iter().flatten().map(|watched| watched.added.sum("cosec_tokens_total", labels)).sum()
    };
    sum(&["chosen_by=\"expert\""]) / sum(&[])
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

fn goals(seen: &[Vec<Vec<Watched>>], column: usize, streams: usize) {
    let against_base = |way: usize| ratio(&seen[way][column], &seen[BASE][column]);
    let measured = (SEQUENTIAL + 1..WAYS.len()).filter(|&way| !against_base(way).is_nan());
    let best = measured.max_by(|&a, &b| against_base(a).total_cmp(&against_base(b))).unwrap_or(ADAPTIVE);
    println!(
        "{streams} streams: adaptive {:.2} of the base alone, best {} ({:.2}); goal at an acceptance of 0.8: 1.5 at one stream, 1.0 at 16; \
         sequential takes {:.2} times the base's time per token; adaptive is {:.2} times as fast as sequential",
        against_base(ADAPTIVE),
        WAYS[best],
        against_base(best),
        1.0 / against_base(SEQUENTIAL),
        ratio(&seen[ADAPTIVE][column], &seen[SEQUENTIAL][column]),
    );
}

/// Milliseconds per token by role and phase.
fn split(seen: &[Vec<Vec<Watched>>], column: usize) -> Table {
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
        let mut row = vec![WAYS[way].to_owned(), format!("{:.2}", 1e3 * streams / median(&rates_of(cells)))];
        row.extend(PARTS.map(|(role, phase)| {
            let labels = [format!("role=\"{role}\""), format!("phase=\"{phase}\"")];
            let sum = |watched: &Watched| watched.added.sum("cosec_step_seconds_sum", &[&labels[0], &labels[1]]);
            format!("{:.2}", 1e3 * (cells.iter().map(sum).sum::<f64>() / tokens).max(0.0))
        }));
        table.row(row);
    }
    table
}
