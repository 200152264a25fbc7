//! `tests/bench-load`: a cluster of real processes at 1x and 4x of its capacity, and while its processes are killed.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use cosec_bench::completions::client;
use cosec_bench::difference::Difference;
use cosec_bench::fleet::{Replica, coordinator, until_up, worker};
use cosec_bench::load::{Clients, Seen};
use cosec_bench::report::{Table, median, quantile};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Measures streamed completions of the demo pair through the HTTP door: as many at a time as are admitted, four times
/// as many as that, and while workers and a coordinator are killed (SIGKILL) and started again. Every stream is held
/// against what the same request gave undisturbed. Ends with an error if a token was lost, repeated or changed, or a
/// request failed other than by an admission answer.
#[derive(Debug, Parser)]
#[command(name = "tests/bench-load")]
struct Arguments {
    /// Streams that a coordinator admits at a time: 1x.
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// Workers of each role.
    #[arg(long, default_value_t = 2)]
    replicas: usize,
    /// Different requests.
    #[arg(long, default_value_t = 48)]
    requests: usize,
    /// New tokens of a request.
    #[arg(long, default_value_t = 96)]
    tokens: u32,
    /// Rounds of 1x and 4x in turn.
    #[arg(long, default_value_t = 2)]
    rounds: u64,
    /// Seconds of a load in a round.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Workers killed, by turns base and expert.
    #[arg(long, default_value_t = 6)]
    kills: usize,
    /// A few requests and short rounds.
    #[arg(long)]
    quick: bool,
}

const MODEL: &str = "demo";

const PROMPTS: [&str; 4] = [
    "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
    "import subprocess\n\ndef ping(host):\n    return subprocess.",
    "def read_page(root, name):\n    path = os.path.join(root, name)\n    with open(",
    "def load_settings(request):\n    data = request.get_data()\n    return ",
];

/// Overload asks so many times as often as 1x is served.
const OVERLOAD: f64 = 4.0;

/// Time for the streams of a load to begin, which its rates leave out.
const WARM_UP: Duration = Duration::from_secs(1);

/// Between two kills, beyond the time until the worker is up again.
const KILL_PAUSE: Duration = Duration::from_millis(1500);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    cosec_bench::command::run(run(Arguments::parse())).await
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.quick {
        (arguments.streams, arguments.requests, arguments.tokens) = (8, 12, 48);
        (arguments.rounds, arguments.seconds, arguments.kills) = (1, 4.0, 2);
    }
    let logs = tempfile::tempdir()?;
    println!(
        "starting {} base and {} expert workers and 2 coordinators that admit {} streams each",
        arguments.replicas, arguments.replicas, arguments.streams
    );
    let mut fleet = Fleet::start(&arguments, logs.path()).await?;
    println!("{} requests of {} tokens, undisturbed", arguments.requests, arguments.tokens);
    let addresses: Vec<String> = fleet.coordinators.iter().map(|replica| replica.address.clone()).collect();
    let bodies = bodies(&arguments);
    let clients = Clients::learn(client()?, addresses, bodies, arguments.streams).await?;
    let mut report = Report::new();

    let ratio = steady_and_overload(&arguments, &clients, &mut report).await?;
    println!("{} kills of workers at 1x", arguments.kills);
    let before = fleet.relocations().await?;
    let (seen, losses) = clients.closed(arguments.streams, fleet.kill_workers(arguments.kills)).await?;
    let relocations = fleet.relocations().await? - before;
    report.load("1x, workers killed", &seen, &losses);
    println!("a kill of the coordinator at 1x");
    let (seen, losses) = clients.closed(arguments.streams, fleet.kill_coordinator()).await?;
    let resumed = seen.resumed();
    report.load("1x, coordinator killed", &seen, &losses);

    println!("\n{}\n", report.table);
    println!("admitted at 4x: {ratio:.2} of the tokens/s at 1x (goal 0.9)");
    println!(
        "{relocations} moves of a session to another worker or back, {resumed} streams taken up again elsewhere"
    );
    report.judge()
}

fn bodies(arguments: &Arguments) -> Vec<Value> {
    let body = |index: usize| {
        json!({
            "model": MODEL, "prompt": PROMPTS[index % PROMPTS.len()], "max_tokens": arguments.tokens, "seed": index,
            "stream": true, "cosec": {"report": true},
        })
    };
    (0..arguments.requests).map(body).collect()
}

/// 1x and 4x in turn; the median over the rounds of the tokens per second at 4x over those at 1x.
async fn steady_and_overload(arguments: &Arguments, clients: &Clients, report: &mut Report) -> Result<f64> {
    let span = Duration::from_secs_f64(arguments.seconds);
    let (mut steady, mut overload): (Vec<Seen>, Vec<Seen>) = (Vec::new(), Vec::new());
    let mut ratios = Vec::new();
    for round in 1..=arguments.rounds {
        println!("round {round} of {}: 1x, 4x", arguments.rounds);
        let lasts = async {
            sleep(span).await;
            Ok(())
        };
        let (seen, ()) = clients.closed(arguments.streams, lasts).await?;
        let (requests, tokens) = seen.rates(WARM_UP);
        steady.push(seen);
        let seen = clients.open(OVERLOAD * requests, span, round).await?;
        ratios.push(seen.rates(WARM_UP).1 / tokens);
        overload.push(seen);
    }
    report.rounds("1x", steady);
    report.rounds("4x", overload);
    Ok(median(&ratios))
}

/// The processes.
struct Fleet {
    workers: Vec<Replica>,
    coordinators: Vec<Replica>,
}

impl Fleet {
    async fn start(arguments: &Arguments, logs: &Path) -> Result<Self> {
        let pair = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo-pair");
        let mut workers = Vec::new();
        for index in 0..arguments.replicas {
            for role in ["base", "expert"] {
                let program = worker(role, &pair.join(role), &["--threads", "1", "--kv-memory-mib", "64"]);
                workers.push(Replica::start(program, &format!("{role}-{index}"), logs).await?);
            }
        }
        let of_role = |role: &str| -> Vec<String> {
            let of_role = workers.iter().filter(|worker| worker.name() == role);
            of_role.map(|worker| worker.address.clone()).collect()
        };
        let addresses = [&of_role("base")[..], &of_role("expert")[..]];
        let key = logs.join("resume.key");
        std::fs::write(&key, "a key of this run, which no other coordinator has\n")?;
        let mut coordinators = Vec::new();
        for index in 0..2 {
            let environment = vec![
                ("COSEC_COORDINATOR_API__RESUME_KEY_FILE", key.display().to_string()),
                ("COSEC_COORDINATOR_ADMISSION__MAX_SESSIONS", arguments.streams.to_string()),
                ("COSEC_COORDINATOR_ADMISSION__MAX_QUEUED_SESSIONS", arguments.streams.div_ceil(2).to_string()),
            ];
            let program = coordinator(MODEL, &pair.join("base"), addresses, environment);
            coordinators.push(Replica::start(program, &format!("coordinator-{index}"), logs).await?);
        }
        let fleet = Self { workers, coordinators };
        fleet.until_up().await?;
        Ok(fleet)
    }

    async fn until_up(&self) -> Result<()> {
        for coordinator in &self.coordinators {
            until_up(coordinator, self.workers.len()).await?;
        }
        Ok(())
    }

    /// Kills workers one after the other and starts each again at its address; says when.
    async fn kill_workers(&mut self, kills: usize) -> Result<Vec<Instant>> {
        let mut losses = Vec::new();
        for kill in 0..kills {
            sleep(KILL_PAUSE).await;
            let victim = kill % self.workers.len();
            losses.push(Instant::now());
            self.workers[victim].kill().await?;
            self.workers[victim].restart().await?;
            self.until_up().await?;
        }
        sleep(KILL_PAUSE).await;
        Ok(losses)
    }

    /// Kills the coordinator that is asked first and starts it again.
    async fn kill_coordinator(&mut self) -> Result<Vec<Instant>> {
        sleep(KILL_PAUSE).await;
        let loss = Instant::now();
        let victim = self.coordinators.first_mut().context("no coordinator")?;
        victim.kill().await?;
        sleep(KILL_PAUSE).await;
        victim.restart().await?;
        self.until_up().await?;
        sleep(KILL_PAUSE).await;
        Ok(vec![loss])
    }

    /// Counted by the coordinator that is asked first.
    async fn relocations(&self) -> Result<f64> {
        let first = self.coordinators.first().context("no coordinator")?;
        Ok(first.scrape().await?.sum("cosec_relocations_total", &[]))
    }
}

/// What is told, and what must not have been.
struct Report {
    table: Table,
    difference: Difference,
    errors: Vec<String>,
}

impl Report {
    fn new() -> Self {
        let columns = [
            "load",
            "requests",
            "completed",
            "refused",
            "errors",
            "tokens",
            "tokens/s",
            "lost",
            "repeated",
            "changed",
            "first token p50",
            "p99",
            "between p50",
            "p99",
            "refusal p99",
            "recovery p50",
            "p99",
        ];
        Self { table: Table::new(&columns), difference: Difference::default(), errors: Vec::new() }
    }

    /// The rounds of one load; its rate is their median.
    fn rounds(&mut self, name: &str, rounds: Vec<Seen>) {
        let rates: Vec<f64> = rounds.iter().map(|seen| seen.rates(WARM_UP).1).collect();
        let together = rounds.into_iter().reduce(|mut sum, seen| {
            sum.append(seen);
            sum
        });
        if let Some(seen) = together {
            self.row(name, &seen, median(&rates), &[]);
        }
    }

    fn load(&mut self, name: &str, seen: &Seen, losses: &[Instant]) {
        self.row(name, seen, seen.rates(WARM_UP).1, losses);
    }

    fn row(&mut self, name: &str, seen: &Seen, rate: f64, losses: &[Instant]) {
        let (difference, errors) = (seen.difference(), seen.errors());
        let refusals = seen.refusals();
        let mut cells = vec![name.to_owned()];
        let counts = [seen.requests(), seen.completed(), refusals.len(), errors.len(), seen.tokens()];
        cells.extend(counts.map(|count| count.to_string()));
        cells.push(format!("{rate:.0}"));
        cells.extend([difference.lost, difference.repeated, difference.changed].map(|count| count.to_string()));
        let quantiles = [
            (seen.first_tokens(), 0.5),
            (seen.first_tokens(), 0.99),
            (seen.between_tokens(), 0.5),
            (seen.between_tokens(), 0.99),
            (refusals, 0.99),
            (seen.recoveries(losses), 0.5),
            (seen.recoveries(losses), 0.99),
        ];
        cells.extend(quantiles.map(|(seconds, share)| milliseconds(quantile(&seconds, share))));
        self.table.row(cells);
        self.difference += difference;
        self.errors.extend(errors);
    }

    fn judge(&self) -> Result<()> {
        if let Some(first) = self.errors.first() {
            bail!("{} requests failed other than by an admission answer; the first: {first}", self.errors.len());
        }
        if self.difference.total() > 0 {
            bail!("tokens were lost, repeated or changed: {:?}", self.difference);
        }
        Ok(())
    }
}

fn milliseconds(seconds: f64) -> String {
    if seconds.is_nan() { "-".to_owned() } else { format!("{:.1} ms", 1e3 * seconds) }
}
