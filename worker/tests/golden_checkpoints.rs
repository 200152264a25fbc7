//! Tiny checkpoints of every family against logits that transformers computed.

use std::path::{Path, PathBuf};

use cosec_worker::check::{self, CheckArgs};
use cosec_worker::model_runner::DtypeChoice;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

fn args(model: &str, adapter: Option<&str>) -> CheckArgs {
    CheckArgs {
        model: golden(model),
        adapter: adapter.map(golden),
        dtype: DtypeChoice::Auto,
        expected: golden(adapter.unwrap_or(model)).join("expected.json"),
        tolerance: None,
        threads: 2,
    }
}

fn check(args: &CheckArgs) {
    let report = check::run(args).unwrap();
    assert!(report.prompts.len() == 3 && report.prompts.iter().all(|prompt| prompt.greedy_expected == 16));
    println!("{}\n{report}", args.model.display());
    assert!(report.passed(), "{args:?}\n{report}");
}

#[test]
fn llama() {
    check(&args("llama-linear-rope", None));
    check(&args("llama-gqa-tied", None));
}

#[test]
fn llama_in_shards() {
    check(&args("llama-gqa-tied-sharded", None));
}

#[test]
fn llama_stored_as_bfloat16() {
    check(&args("llama-linear-rope-bf16", None));
}

#[test]
fn codegen() {
    check(&args("codegen", None));
}

#[test]
fn adapters() {
    check(&args("llama-linear-rope", Some("llama-lora")));
    check(&args("codegen", Some("codegen-lora")));
}

#[test]
fn rounded_weights_stay_close() {
    for dtype in [DtypeChoice::Bf16, DtypeChoice::F16] {
        check(&CheckArgs { dtype, ..args("llama-linear-rope", Some("llama-lora")) });
        check(&CheckArgs { dtype, ..args("codegen", None) });
    }
}

#[test]
fn a_wrong_expectation_fails() {
    let report = check::run(&CheckArgs { expected: golden("llama-lora/expected.json"), ..args("llama-linear-rope", None) });
    assert!(!report.unwrap().passed());
}
