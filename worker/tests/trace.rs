//! Whole models, teacher-forced through the paged cache, against merged distributions computed elsewhere.
//!
//! `CODECODING_TRACE` names another file of traces; the checkpoints lie in the `checkpoints` folder beside it.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::path::{Path, PathBuf};

use cosec_proto::draw::{Distribution, Warp};
use cosec_worker::model_runner::{BatchItem, DtypeChoice, LoadOptions, ModelRunner};
use serde::Deserialize;

const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct File {
    traces: Vec<Trace>,
}

#[derive(Deserialize)]
struct Trace {
    base: String,
    expert_adapter: String,
    prompt: Vec<u32>,
    params: Params,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Params {
    tau: f64,
    expert_temperature: Option<f64>,
    expert_top_p: Option<f64>,
    base_temperature: Option<f64>,
    base_top_p: Option<f64>,
}

#[derive(Deserialize)]
struct Step {
    forced_next: u32,
    reject_mass: f64,
    accept_tokens: Vec<u32>,
    merged: Vec<f64>,
}

#[test]
fn merged_distributions_agree() {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/codecoding_trace.json");
    let path = std::env::var_os("CODECODING_TRACE").map_or(default, PathBuf::from);
    let file: File = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(!file.traces.is_empty());
    for trace in &file.traces {
        check(trace, &path.parent().unwrap().join("checkpoints"));
    }
}

fn check(trace: &Trace, checkpoints: &Path) {
    let load = |adapter: Option<&str>| {
        let adapter = adapter.map(|name| checkpoints.join(name));
        let options = LoadOptions { adapter, dtype: DtypeChoice::Auto, blocks: 64, block_tokens: 8, threads: 1 };
        ModelRunner::load(&checkpoints.join(&trace.base), &options).unwrap()
    };
    let (mut base, mut expert) = (load(None), load(Some(&trace.expert_adapter)));
    let warp = |temperature: Option<f64>, top_p: Option<f64>| {
        Warp::new(temperature.unwrap_or(1.0), top_p.unwrap_or(1.0), 0).unwrap()
    };
    let base_warp = warp(trace.params.base_temperature, trace.params.base_top_p);
    let expert_warp = warp(trace.params.expert_temperature, trace.params.expert_top_p);
    let (mut start, mut tokens) = (0, trace.prompt.clone());
    for (index, step) in trace.steps.iter().enumerate() {
        let p = next(&mut base, &tokens, start, &base_warp);
        let q = next(&mut expert, &tokens, start, &expert_warp);
        let accepted = |id: u32, q: f64| (p.probability(id) / q).min(1.0) > trace.params.tau;
        let accepted_ids: Vec<u32> = q.iter().filter(|&(id, q)| accepted(id, q)).map(|(id, _)| id).collect();
        let rejected: f64 = q.iter().filter(|&(id, q)| !accepted(id, q)).map(|(_, q)| q).sum();
        let at = format!("{} with {}, step {index}", trace.base, trace.expert_adapter);
        assert_eq!(accepted_ids, step.accept_tokens, "{at}");
        assert!((rejected - step.reject_mass).abs() < TOLERANCE, "{at}: {rejected}, not {}", step.reject_mass);
        for (id, &expected) in (0..).zip(&step.merged) {
            let kept = if accepted_ids.contains(&id) { q.probability(id) } else { 0.0 };
            let merged = kept + rejected * p.probability(id);
            assert!((merged - expected).abs() < TOLERANCE, "{at}, token {id}: {merged}, not {expected}");
        }
        start += tokens.len();
        tokens = vec![step.forced_next];
    }
}

fn next(model: &mut ModelRunner, tokens: &[u32], start: usize, warp: &Warp) -> Distribution {
    let blocks: Vec<u32> = (0..64).rev().collect();
    let item = BatchItem { tokens, start, blocks: &blocks, rows: tokens.len() - 1..tokens.len() };
    Distribution::warped(model.forward(&[item]).unwrap().row(0), warp).unwrap()
}
