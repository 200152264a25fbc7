//! Whole models, teacher-forced: worker's logits and coordinator's rule together against laws computed elsewhere.

use std::path::{Path, PathBuf};

use cosec_coordinator::merge::{
    Cosec, Judge, LogitChanges, MergeRule, ModelEvidence, PositionDistributions, RuleSampling,
};
use cosec_proto::sampling::SamplingParams;
use cosec_worker::model::{BatchItem, CacheSize, DeviceChoice, DtypeChoice, KvDtype, LoadOptions, ModelRunner};
use serde::Deserialize;

/// The expert's temperature magnifies differences of logits of 1e-5.
const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Golden {
    format: String,
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
    expert_temperature: f64,
    expert_top_p: f64,
    base_temperature: Option<f64>,
    base_top_p: Option<f64>,
    /// `raw`; p judges where there is none.
    judge: Option<Judge>,
}

#[derive(Deserialize)]
struct Step {
    forced_next: u32,
    accept_tokens: Vec<u32>,
    merged: Vec<f64>,
}

/// A model with the cache of one sequence.
struct Cached {
    model: ModelRunner,
    tokens: usize,
}

impl Cached {
    fn load(directory: &Path, adapter: Option<PathBuf>) -> Self {
        let options = LoadOptions {
            device: DeviceChoice::Cpu,
            adapter,
            lora: Vec::new(),
            dtype: DtypeChoice::F32,
            tokenizer: None,
            quantize: None,
            kv_dtype: KvDtype::Auto,
            cache: CacheSize::Blocks(16),
            block_tokens: 4,
            threads: 1,
            cpus: None,
        };
        let model = ModelRunner::load(directory, &options).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
        Self { model, tokens: 0 }
    }

    /// Feeds tokens and returns what is known of the next one.
    fn feed(&mut self, tokens: &[u32]) -> ModelEvidence {
        let blocks: Vec<u32> = (0..16).collect();
        let item = BatchItem {
            tokens,
            start: self.tokens,
            blocks: &blocks,
            rows: tokens.len() - 1..tokens.len(),
            adapter: None,
        };
        let row = self.model.forward(&[item]).unwrap().row(0).to_vec();
        self.tokens += tokens.len();
        ModelEvidence { logits: Some(row), ..ModelEvidence::default() }
    }
}

fn golden_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// CODECODING_TRACE names another file; checkpoints next to it are preferred to those of the repository.
fn open() -> (Golden, PathBuf) {
    let ours = golden_directory().join("codecoding_trace.json");
    let path = std::env::var_os("CODECODING_TRACE").map_or(ours, PathBuf::from);
    let golden: Golden = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(golden.format, "cosec-trace-golden/1");
    let beside = path.with_file_name("checkpoints");
    let checkpoints = if beside.is_dir() { beside } else { golden_directory().join("checkpoints") };
    (golden, checkpoints)
}

fn check(trace: &Trace, checkpoints: &Path) {
    let directory = checkpoints.join(&trace.base);
    let mut base = Cached::load(&directory, None);
    let mut expert = Cached::load(&directory, Some(checkpoints.join(&trace.expert_adapter)));
    let params = &trace.params;
    let of_base =
        SamplingParams::new(params.base_temperature.unwrap_or(1.0), params.base_top_p.unwrap_or(1.0), 0).unwrap();
    let of_expert = SamplingParams::new(params.expert_temperature, params.expert_top_p, 0).unwrap();
    let sampling = RuleSampling::new(of_base, of_expert, params.judge.unwrap_or(Judge::Warped), false);
    let rule = Cosec { tau: params.tau };
    let mut fed = trace.prompt.clone();
    for (index, step) in trace.steps.iter().enumerate() {
        let evidence = [base.feed(&fed), expert.feed(&fed), ModelEvidence::default()];
        let laws = PositionDistributions::new(Box::new(evidence), LogitChanges::default(), sampling);
        let law = rule.distribution(&laws).unwrap();
        for (id, &wanted) in (0u32..).zip(&step.merged) {
            let got = law.probability(id);
            assert!(
                (got - wanted).abs() <= TOLERANCE,
                "{} with {}, step {index}: P({id}) is {got}, expected {wanted}",
                trace.base,
                trace.expert_adapter
            );
        }
        let (judged, proposed) = (laws.acceptance_distribution().unwrap(), laws.expert_distribution().unwrap());
        let accepted = proposed.iter().filter(|&(id, q)| rule.accepts(judged.probability(id), q));
        assert_eq!(accepted.map(|(id, _)| id).collect::<Vec<_>>(), step.accept_tokens, "step {index}");
        fed = vec![step.forced_next];
    }
}

#[test]
fn teacher_forced_traces_agree() {
    let (golden, checkpoints) = open();
    assert!(!golden.traces.is_empty());
    for trace in &golden.traces {
        assert!(!trace.steps.is_empty());
        check(trace, &checkpoints);
    }
}
