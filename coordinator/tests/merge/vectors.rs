//! The golden vectors of the merge rules.

use std::path::PathBuf;

use cosec_coordinator::merge::{Judge, LogitChanges, ModelEvidence, PositionDistributions, RuleSampling};
use cosec_proto::sampling::SamplingParams;
use serde::Deserialize;

/// One case of the vectors, by the judge that they were computed for.
#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) vocab_size: usize,
    pub(crate) params: Params,
    pub(crate) base_logits: Vec<Option<f32>>,
    pub(crate) expert_logits: Vec<Option<f32>>,
    #[serde(default)]
    published_code_behaviour: bool,
    /// r, where it judges.
    pub(crate) r_base: Option<Vec<f64>>,
    pub(crate) p_base: Vec<f64>,
    pub(crate) p_expert: Vec<f64>,
    pub(crate) accept: Vec<u8>,
    pub(crate) reject_mass: f64,
    pub(crate) merged: Vec<f64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Params {
    pub(crate) tau: f64,
    pub(crate) expert_temperature: f64,
    pub(crate) expert_top_p: f64,
    pub(crate) base_temperature: Option<f64>,
    pub(crate) base_top_p: Option<f64>,
    /// `raw`; p judges where there is none.
    judge: Option<Judge>,
}

#[derive(Deserialize)]
struct Golden {
    format: String,
    cases: Vec<Case>,
}

/// Reads MERGE_GOLDEN, else the vectors of the repository.
pub(crate) fn cases() -> Vec<Case> {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let paths = std::env::var_os("MERGE_GOLDEN").map_or_else(
        || ["merge_golden.json", "merge_golden_raw_judge.json"].map(|name| golden.join(name)).to_vec(),
        |path| vec![PathBuf::from(path)],
    );
    paths.into_iter().flat_map(read).collect()
}

fn read(path: PathBuf) -> Vec<Case> {
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let golden: Golden = serde_json::from_slice(&text).unwrap();
    assert_eq!(golden.format, "cosec-merge-golden/1");
    assert!(!golden.cases.is_empty());
    golden.cases
}

impl Case {
    /// The models' laws as the case warps them.
    pub(crate) fn laws(&self) -> PositionDistributions {
        let params = &self.params;
        let base =
            SamplingParams::new(params.base_temperature.unwrap_or(1.0), params.base_top_p.unwrap_or(1.0), 0).unwrap();
        let expert = SamplingParams::new(params.expert_temperature, params.expert_top_p, 0).unwrap();
        let evidence = |logits: &[Option<f32>]| ModelEvidence {
            logits: Some(logits.iter().map(|logit| logit.unwrap_or(f32::NEG_INFINITY)).collect()),
            ..ModelEvidence::default()
        };
        let evidence = [evidence(&self.base_logits), evidence(&self.expert_logits), ModelEvidence::default()];
        let judge = params.judge.unwrap_or(Judge::Warped);
        let sampling = RuleSampling::new(base, expert, judge, self.published_code_behaviour);
        PositionDistributions::new(Box::new(evidence), LogitChanges::default(), sampling)
    }
}
