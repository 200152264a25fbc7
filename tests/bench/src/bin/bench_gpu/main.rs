//! The parts of `tests/gpu` that need more than a shell.
//!
//! Every line is printed as soon as it is known, so that a run that is cut off has told what it had found.

mod batch;
mod failover;
mod golden;
mod speed;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use cosec_bench::checkpoint::{Head, prepare};
use cosec_bench::shape::Shape;
use cosec_proto::wire::coordinator::generate_request::Prompt;
use cosec_proto::wire::coordinator::{Cosec, GenerateRequest};

/// Checks and measures a device: the golden checkpoints, texts beside the CPU's, streams in company and through a kill,
/// speeds beside what the hardware could do.
#[derive(Debug, Parser)]
#[command(name = "cosec-bench-gpu")]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    part: Part,
}

/// Where things are.
#[derive(Clone, Debug, clap::Args)]
struct Place {
    /// The device, as the worker's own --device has it.
    #[arg(long, default_value = "cuda", global = true)]
    device: String,
    /// Folder of the repository.
    #[arg(long, value_name = "DIR", default_value = ".", global = true)]
    root: PathBuf,
    /// Folder that keeps the checkpoints of random weights between runs.
    #[arg(long, value_name = "DIR", default_value = "tests/.bench", global = true)]
    work: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Golden checkpoints against their references.
    Golden(golden::Arguments),
    /// Completions of the demo pair beside the CPU's.
    Text,
    /// Completions of the demo pair alone and in company, sequentially and with lookahead.
    Batch,
    /// Completions of the demo pair while one of two base workers is killed.
    Failover,
    /// Writes checkpoints of random weights.
    Weights {
        /// Shapes of bases.
        #[arg(long = "base", value_name = "SHAPE", value_parser = Shape::named)]
        bases: Vec<Shape>,
        /// Shapes of experts.
        #[arg(long = "expert", value_name = "SHAPE", value_parser = Shape::named)]
        experts: Vec<Shape>,
    },
    /// Prefill, decoding and memory of one worker.
    Speed(speed::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    cosec_bench::command::run(run(Arguments::parse())).await
}

async fn run(Arguments { place, part }: Arguments) -> Result<()> {
    match part {
        Part::Golden(arguments) => golden::run(&place, &arguments).await,
        Part::Text => text::run(&place).await,
        Part::Batch => batch::run(&place).await,
        Part::Failover => failover::run(&place).await,
        Part::Weights { bases, experts } => {
            for (shapes, head) in [(bases, Head::Planted), (experts, Head::PlantedWithRivals)] {
                for shape in &shapes {
                    let started = std::time::Instant::now();
                    let path = prepare(&place.work, shape, head)?;
                    println!("- {}: {:.1} s", path.display(), started.elapsed().as_secs_f64());
                }
            }
            Ok(())
        }
        Part::Speed(arguments) => speed::run(&place, &arguments).await,
    }
}

const PROMPTS: [&str; 4] = [
    "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
    "import subprocess\n\ndef ping(host):\n    return subprocess.",
    "def read_page(root, name):\n    path = os.path.join(root, name)\n    with open(",
    "def load_settings(request):\n    data = request.get_data()\n    return ",
];

/// A completion of one of [`PROMPTS`] by the demo pair.
fn request(index: usize, rule: &str, tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: cosec_bench::cluster::MODEL.to_owned(),
        prompt: Some(Prompt::Text(PROMPTS[index % PROMPTS.len()].to_owned())),
        seed: Some(7 + index as u64),
        max_tokens: Some(tokens),
        cosec: Some(Cosec { rule: Some(rule.to_owned()), ..Cosec::default() }),
        ..GenerateRequest::default()
    }
}

/// Where `found` departs from `expected`; `None` where both are the same.
fn first_difference(expected: &[u32], found: &[u32]) -> Option<usize> {
    (expected != found).then(|| expected.iter().zip(found).take_while(|(a, b)| a == b).count())
}

/// Whether completions are what they should be, how many, and where the first that is not departs.
fn agreement(expected: &[Vec<u32>], found: &[Vec<u32>]) -> (bool, String) {
    let pairs = expected.iter().zip(found);
    let differences: Vec<Option<usize>> = pairs.map(|(expected, found)| first_difference(expected, found)).collect();
    let equal = differences.iter().filter(|difference| difference.is_none()).count();
    let mut text = format!("{equal} of {} equal", differences.len());
    if let Some((index, at)) = differences.iter().enumerate().find_map(|(index, at)| Some((index, (*at)?))) {
        text += &format!("; number {index} differs from token {at} on");
    }
    (equal == differences.len(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told() {
        let all = [vec![1, 2], vec![3, 4, 5]];
        assert_eq!(agreement(&all, &all), (true, "2 of 2 equal".to_owned()));
        let told = agreement(&all, &[vec![1, 2], vec![3, 4]]);
        assert_eq!(told, (false, "1 of 2 equal; number 1 differs from token 2 on".to_owned()));
    }
}
