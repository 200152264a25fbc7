//! Judges the speculation controller: from cold against sequential decoding, then in its steady state against every
//! other way.

use std::time::Duration;

use anyhow::{Context, Result};
use cosec_bench::report::{Table, median};
use cosec_bench::streams::WatchEnd;

use crate::{Bench, SEQUENTIAL};

/// Least shares of sequential decoding from cold, and of the best other way in the steady state.
const GOALS: (f64, f64) = (0.93, 0.95);

/// Longest time for the rounds from cold.
const COLD_SPAN: Duration = Duration::from_secs(120);

/// Tokens per second of one load, a run each.
#[derive(Default)]
struct LoadRates {
    /// The first rounds over sequential decoding just before and just after.
    cold: Vec<f64>,
    cold_seconds: Vec<f64>,
    /// By way to decode.
    steady: Vec<Vec<f64>>,
}

impl Bench<'_> {
    /// For every planted rate and number of streams, as often as there are rounds: a new coordinator decodes adaptively
    /// from cold between two spans of sequential decoding, then takes turns with the other ways.
    pub(crate) async fn judge_from_cold(&mut self, rule: &str, rates: &[Option<f64>]) -> Result<()> {
        let adaptive = self.ways.iter().position(|way| way == "adaptive").context("--lookahead lacks adaptive")?;
        let cells: Vec<(Option<f64>, usize)> = rates
            .iter()
            .flat_map(|&rate| self.arguments.streams.iter().map(move |&streams| (rate, streams)))
            .collect();
        let mut seen: Vec<LoadRates> = cells.iter().map(|_| LoadRates::default()).collect();
        for run in 1..=self.arguments.rounds {
            for (&(rate, streams), load) in cells.iter().zip(&mut seen) {
                self.lanes.restart(adaptive - SEQUENTIAL).await?;
                self.run_from_cold(rule, (rate, streams), adaptive, run, load).await?;
            }
        }
        println!("\n{}", self.cold_table(&cells, &seen, adaptive));
        Ok(())
    }

    async fn run_from_cold(
        &self,
        rule: &str,
        (rate, streams): (Option<f64>, usize),
        adaptive: usize,
        run: usize,
        load: &mut LoadRates,
    ) -> Result<()> {
        let sequential = || self.run(rule, SEQUENTIAL, streams, rate, run);
        let before = sequential().await?.rate;
        let rounds = self.arguments.cold_rounds * streams;
        let end = WatchEnd::Rounds { rounds, most: COLD_SPAN };
        let cold = self.watch(rule, adaptive, streams, rate, run, end).await?;
        let after = sequential().await?.rate;
        load.cold.push(2.0 * cold.rate / (before + after));
        load.cold_seconds.push(cold.seconds);
        println!(
            "run {run}, planted {}, {streams} streams: {:.1} tokens/s from cold in {:.1} s; sequential {before:.1} and {after:.1}",
            planted(rate),
            cold.rate,
            cold.seconds
        );
        load.steady.resize(self.ways.len(), Vec::new());
        for way in SEQUENTIAL..self.ways.len() {
            let watched = self.run(rule, way, streams, rate, run).await?;
            println!("- {}: {:.1} tokens/s", self.ways[way], watched.rate);
            load.steady[way].push(watched.rate);
        }
        Ok(())
    }

    fn cold_table(&self, cells: &[(Option<f64>, usize)], seen: &[LoadRates], adaptive: usize) -> Table {
        let mut columns = vec!["planted".to_owned(), "streams".to_owned(), "cold : sequential".to_owned()];
        columns.push("cold seconds".to_owned());
        columns.extend(self.ways[SEQUENTIAL..].iter().map(|way| format!("{way}, tokens/s")));
        columns.extend(["adaptive : best other".to_owned(), "goals".to_owned()]);
        let mut table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>());
        for (&(rate, streams), load) in cells.iter().zip(seen) {
            let cold = median(&load.cold);
            let steady: Vec<f64> = load.steady[SEQUENTIAL..].iter().map(|rates| median(rates)).collect();
            let others = steady.iter().enumerate().filter(|(way, _)| way + SEQUENTIAL != adaptive);
            let best = others.map(|(_, &rate)| rate).fold(0.0, f64::max);
            let share = steady[adaptive - SEQUENTIAL] / best;
            let verdict = if cold >= GOALS.0 && share >= GOALS.1 { "met" } else { "missed" };
            let mut row = vec![planted(rate), streams.to_string(), format!("{cold:.2}")];
            row.push(format!("{:.1}", median(&load.cold_seconds)));
            // No token came in a span that is shorter than a round.
            row.extend(steady.iter().map(|rate| if rate.is_nan() { "-".to_owned() } else { format!("{rate:.1}") }));
            row.extend([format!("{share:.2}"), verdict.to_owned()]);
            table.row(row);
        }
        table
    }
}

/// An agreement as the output spells it.
fn planted(rate: Option<f64>) -> String {
    rate.map_or_else(|| "as it is".to_owned(), |rate| rate.to_string())
}
