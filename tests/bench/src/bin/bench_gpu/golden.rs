//! Every golden checkpoint against its reference, by `cosec-worker check`.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use cosec_bench::worker::binaries;
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::Place;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Checks at the same time.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
}

/// One of every family, two of them stored in another way, and the small ones, in which rounding is lost among few
/// numbers.
const CHECKPOINTS: [&str; 17] = [
    "llama-linear-rope",
    "llama-linear-rope-bf16",
    "llama-gqa-tied",
    "codegen",
    "qwen2",
    "mistral",
    "starcoder2",
    "gpt_neox",
    "gpt_bigcode-mqa",
    "gpt_bigcode-mha",
    "llama-gqa-tied-sharded",
    "codegen-bin",
    "llama-yarn",
    "qwen2-yarn-mscale",
    "qwen2-window",
    "mistral-window",
    "starcoder2-window",
];

/// How many of [`CHECKPOINTS`] are one of every family, and how many are before the small ones.
const FAMILIES: usize = 10;
const LARGER: usize = 12;

const ADAPTERS: [(&str, &str); 2] = [("llama-linear-rope", "llama-lora"), ("codegen", "codegen-lora")];

/// GGUF files with their tolerances.
const FILES: [(&str, &str); 3] = [("llama-q4_k", "4e-2"), ("qwen2-q8_0", "4e-2"), ("starcoder2-f16", "5e-3")];

/// Relative errors of tiny random models, which lose more than trained ones.
const ROUNDED: &str = "3e-2";
const SMALL_ROUNDED: &str = "6e-2";
const Q8: &str = "0.1";
const Q4: &str = "0.7";

struct Case {
    name: String,
    flags: Vec<OsString>,
}

fn cases(root: &Path) -> Vec<Case> {
    let golden = |name: &str| root.join("tests/golden/checkpoints").join(name);
    let mut cases = Vec::new();
    let mut add = |what: &str, model: &str, adapter: Option<(&str, &str)>, others: &[&str]| {
        let mut flags: Vec<OsString> = vec!["--model".into(), golden(model).into()];
        let mut name = model.to_owned();
        if let Some((flag, adapter)) = adapter {
            let directory = golden(adapter).into_os_string();
            let mut value = OsString::from(if flag == "--lora" { "golden=" } else { "" });
            value.push(directory);
            flags.extend([flag.into(), value]);
            name += if flag == "--lora" { " + adapter beside it" } else { " + adapter merged" };
        }
        let expected = golden(adapter.map_or(model, |(_, adapter)| adapter)).join("expected.json");
        flags.extend(["--expected".into(), expected.into()]);
        flags.extend(others.iter().map(OsString::from));
        cases.push(Case { name: format!("{name}, {what}"), flags });
    };
    let bf16 = ["--dtype", "bf16", "--tolerance", ROUNDED];
    for (dtype, flags) in [("f32", &["--dtype", "f32"][..]), ("bf16", &bf16)] {
        for model in &CHECKPOINTS[..LARGER] {
            add(dtype, model, None, flags);
        }
        for (model, adapter) in ADAPTERS {
            for flag in ["--adapter", "--lora"] {
                add(dtype, model, Some((flag, adapter)), flags);
            }
        }
    }
    for model in &CHECKPOINTS[LARGER..] {
        add("f32", model, None, &["--dtype", "f32"]);
        add("bf16", model, None, &["--dtype", "bf16", "--tolerance", SMALL_ROUNDED]);
    }
    for model in &CHECKPOINTS[..FAMILIES] {
        add("q8_0", model, None, &["--quantize", "q8_0", "--tolerance", Q8]);
    }
    for (model, adapter) in ADAPTERS {
        add("q8_0", model, Some(("--lora", adapter)), &["--quantize", "q8_0", "--tolerance", Q8]);
    }
    for model in ["codegen", "llama-gqa-tied"] {
        add("q4_k", model, None, &["--quantize", "q4_k", "--tolerance", Q4]);
    }
    for (kv, tolerance) in [("f16", "2e-3"), ("bf16", "2e-2")] {
        let what = format!("f32, cache in {kv}");
        add(&what, "llama-gqa-tied", None, &["--dtype", "f32", "--kv-dtype", kv, "--tolerance", tolerance]);
    }
    for (name, tolerance) in FILES {
        let folder = root.join("tests/golden/gguf").join(name);
        let paths = [("--model", folder.join("model.gguf")), ("--expected", folder.join("expected.json"))];
        let mut flags: Vec<OsString> =
            paths.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]).collect();
        flags.extend(["--tokenizer".into(), folder.into(), "--tolerance".into(), tolerance.into()]);
        cases.push(Case { name: format!("{name}, GGUF"), flags });
    }
    cases
}

/// A table with a row for each check.
pub(crate) async fn run(place: &Place, arguments: &Arguments) -> Result<()> {
    let turns = Arc::new(Semaphore::new(arguments.jobs));
    let program = binaries()?.join("cosec-worker");
    let mut running = Vec::new();
    for Case { name, flags } in cases(&place.root) {
        let (turns, program, device) = (Arc::clone(&turns), program.clone(), place.device.clone());
        let check = async move {
            let _turn = turns.acquire().await?;
            let mut command = Command::new(program);
            command.args(["check", "--threads", "2", "--device", &device]).args(flags).kill_on_drop(true);
            anyhow::Ok(command.output().await?)
        };
        running.push((name, tokio::spawn(check)));
    }
    println!("| checkpoint | worst error | of | greedy tokens equal | tolerance | |\n|---|---|---|---|---|---|");
    let (mut passed, checks) = (0, running.len());
    for (name, check) in running {
        let output = check.await??;
        passed += usize::from(output.status.success());
        match Found::read(&String::from_utf8_lossy(&output.stdout)) {
            Some(found) => println!("| {name} | {found} |"),
            None => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(it said nothing)");
                println!("| {name} | {last} ({}) | | | | FAILED |", output.status);
            }
        }
    }
    println!("\n{passed} of {checks} checks passed on {}", place.device);
    if passed < checks {
        bail!("{} of {checks} checks failed", checks - passed);
    }
    Ok(())
}

/// What `check` printed, in one line.
struct Found {
    worst: f64,
    measure: String,
    greedy: [usize; 2],
    tolerance: String,
    verdict: String,
}

impl Found {
    fn read(report: &str) -> Option<Self> {
        let (prompts, verdict) = report.trim_end().rsplit_once('\n')?;
        let (verdict, tolerance) = verdict.split_once(": tolerance ")?;
        let (tolerance, measure) = tolerance.split_once(' ')?;
        let mut found = Self {
            worst: 0.0,
            measure: measure.to_owned(),
            greedy: [0; 2],
            tolerance: tolerance.to_owned(),
            verdict: verdict.to_owned(),
        };
        for line in prompts.lines() {
            let (errors, greedy) = line.split_once("; greedy ")?;
            let numbers = errors.split([' ', ',']).filter_map(|word| word.parse::<f64>().ok());
            // The first one is the length of the prompt.
            found.worst = numbers.skip(1).fold(found.worst, f64::max);
            let mut counts = greedy.split(' ').filter_map(|word| word.parse::<usize>().ok());
            for sum in &mut found.greedy {
                *sum += counts.next()?;
            }
        }
        Some(found)
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { worst, measure, greedy: [equal, expected], tolerance, verdict } = self;
        write!(f, "{worst:.2e} | {measure} | {equal} of {expected} | {tolerance} | {verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_a_row() {
        let report = "prompt of 9 tokens: absolute error 1.50e-6 in the last row, 2.00e-6 in all rows; greedy 16 of 16 tokens equal\n\
                      prompt of 30 tokens: absolute error 9.00e-7 in the last row; greedy 15 of 16 tokens equal\n\
                      FAILED: tolerance 1.0e-4 absolute\n";
        let row = Found::read(report).unwrap().to_string();
        assert_eq!(row, "2.00e-6 | absolute | 31 of 32 | 1.0e-4 | FAILED");
        assert!(Found::read("error: no such device\n").is_none());
    }
}
