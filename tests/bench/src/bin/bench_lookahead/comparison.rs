//! Every way to decode beside the base alone: tokens per second, where the time goes, and the bytes of every transport.

use std::time::Duration;

use anyhow::Result;
use cosec_bench::cluster::Coordinator;
use cosec_bench::report::{Table, median};
use cosec_bench::streams::{WatchEnd, Watched, watch};

use crate::{BASE, Bench, SEQUENTIAL};

/// Bytes per token do not change with the time.
const WIRE_SPAN: Duration = Duration::from_secs(4);

const TRANSPORTS: [&str; 4] = ["gather", "sample", "nucleus", "full"];

impl Bench<'_> {
    pub(crate) async fn compare(&self, rule: &str, planted: Option<f64>) -> Result<()> {
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
    pub(crate) async fn wire(&self, planted: Option<f64>) -> Result<()> {
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
        watch(coordinator, requests.clone(), WatchEnd::After(span)).await?;
        let added = watch(coordinator, requests, WatchEnd::After(span)).await?.added;
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
    let sum = |name: &str| -> f64 { cells.iter().flatten().map(|watched| watched.added.sum(name, &[])).sum() };
    let accepted = sum("cosec_spec_decode_accepted_tokens_total");
    accepted / (accepted + sum("cosec_spec_decode_rejected_tokens_total"))
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
