//! What is drawn from a seed: requests, limits, workers and the first fault.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cosec_coordinator::admission::AdmissionLimits;
use cosec_coordinator::merge::{
    BaseOnly, Cosec, ExpertOnly, Judge, Linear, LogitAdjustments, LogitsTransport, Product, SelectedRule,
};
use cosec_coordinator::models::ModelConfig;
use cosec_coordinator::request::{GenerationSettings, TokenizedRequest};
use cosec_coordinator::session::config::{ExpertAbsent, SessionConfig};
use cosec_coordinator::session::plan::DecodePlan;
use cosec_coordinator::session::service::ServiceConfig;
use cosec_coordinator::speculation::settings::SpeculationMode;
use cosec_coordinator::worker_pool::PoolConfig;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::SamplingParams;
use cosec_tests::mock_worker::MockModel;
use cosec_tests::sim::{Fault, Phase};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::cluster::{anti_expert, prompt, request, settings, tenant};

pub(super) const NAME: &str = "mock";

/// Time in which requests come and faults begin.
pub(super) const OPENING: Duration = Duration::from_millis(1500);

/// Longest time of a request that may wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// Everything that is done in one schedule.
pub(super) struct Schedule {
    pub(super) config: ServiceConfig,
    /// Workers by place.
    pub(super) replicas: [usize; 3],
    pub(super) requests: Vec<ClientRequest>,
    pub(super) faults: usize,
}

/// One choice of a request, and how its client behaves.
#[derive(Clone)]
pub(super) struct ClientRequest {
    pub(super) request: TokenizedRequest,
    pub(super) after: Duration,
    pub(super) patience: Duration,
    /// Leaves after so many tokens.
    pub(super) leaves_after: Option<usize>,
    /// Reads nothing for so long after the first token.
    pub(super) rests: Duration,
}

pub(super) fn model(model: MockModel) -> MockModel {
    MockModel { vocabulary: 32, ..model }
}

pub(super) fn place(role: WorkerRole) -> &'static str {
    role.name()
}

pub(super) fn model_at(place: &str) -> MockModel {
    match place {
        "base" => model(MockModel::base()),
        "expert" => model(MockModel::expert()),
        _ => model(anti_expert()),
    }
}

pub(super) fn random_warp(chance: &mut StdRng) -> SamplingParams {
    let temperature = if chance.random_bool(0.2) { 0.0 } else { chance.random_range(0.3..1.3) };
    let top_p = if chance.random_bool(0.4) { 1.0 } else { chance.random_range(0.4..1.0) };
    let top_k = if chance.random_bool(0.8) { 0 } else { chance.random_range(1..8) };
    SamplingParams::new(temperature, top_p, top_k).unwrap()
}

pub(super) fn random_settings(chance: &mut StdRng) -> GenerationSettings {
    let rule = match chance.random_range(0..10) {
        0..5 => SelectedRule::Cosec(Cosec { tau: *[0.0, 0.3, 0.3, 0.8].choose(chance).unwrap() }),
        5 | 6 => SelectedRule::Linear(Linear { lambda: chance.random_range(0.0..1.0) }),
        7 => SelectedRule::Product(Product { alpha: chance.random_range(-0.5..1.5) }),
        8 => SelectedRule::BaseOnly(BaseOnly),
        _ => SelectedRule::ExpertOnly(ExpertOnly),
    };
    let is_adjusted = chance.random_bool(0.1);
    let is_long = chance.random_bool(0.15);
    let max_tokens = if is_long { chance.random_range(36..48) } else { chance.random_range(1..14) };
    let mut settings = GenerationSettings {
        seed: chance.random(),
        n: *[1, 1, 1, 2, 3].choose(chance).unwrap(),
        max_tokens: Some(max_tokens),
        min_tokens: if is_adjusted { max_tokens / 2 } else { 0 },
        base: random_warp(chance),
        expert: random_warp(chance),
        judge: if chance.random_bool(0.2) { Judge::Warped } else { Judge::Raw },
        reference_code: chance.random_bool(0.1),
        report: chance.random_bool(0.2),
        logprobs: chance.random_bool(0.1).then(|| chance.random_range(0..3)),
        ..settings(rule)
    };
    if is_adjusted {
        let logit_bias = BTreeMap::from([(0, 1.0), (5, -1.0)]);
        settings.adjustments = LogitAdjustments { presence_penalty: 0.5, logit_bias, ..LogitAdjustments::default() };
    }
    let transports = [
        LogitsTransport::Auto,
        LogitsTransport::Gather,
        LogitsTransport::Nucleus,
        LogitsTransport::Sample,
        LogitsTransport::Full,
    ];
    settings.transport = *transports.choose(chance).unwrap();
    if DecodePlan::new(&settings, true).is_err() {
        settings.transport = LogitsTransport::Auto;
    }
    settings
}

pub(super) fn random_schedule(chance: &mut StdRng) -> Schedule {
    let replicas = [chance.random_range(1..=3), chance.random_range(1..=3), chance.random_range(0..=1)];
    let speculation = match chance.random_range(0..3) {
        0 => SpeculationMode::Off,
        1 => SpeculationMode::Fixed(chance.random_range(2..=6)),
        _ => SpeculationMode::Adaptive,
    };
    let absences = [ExpertAbsent::FailClosed, ExpertAbsent::FailClosed, ExpertAbsent::Wait, ExpertAbsent::Degrade];
    let mut requests = Vec::new();
    for number in 0..chance.random_range(2..=4) {
        let settings = random_settings(chance);
        let prompt: Vec<u32> = prompt(chance.random_range(1..60)).into_iter().map(|id| 1 + id % 31).collect();
        let mut tenant = (*tenant(&format!("tenant {}", number % 2))).clone();
        tenant.id = number % 2;
        let tenant = Arc::new(tenant);
        let after = OPENING.mul_f64(chance.random_range(0.0..1.0));
        let patience = match chance.random_bool(0.1) {
            true => Duration::from_millis(chance.random_range(20..3000)),
            false => PATIENCE,
        };
        let rests = match settings.max_tokens > Some(35) {
            true => Duration::from_millis(chance.random_range(500..4000)),
            false => Duration::from_millis(chance.random_range(0..5)),
        };
        let leaves_after = chance.random_bool(0.15).then(|| chance.random_range(0..10));
        for sample in 0..settings.n {
            let mut request = TokenizedRequest { sample, ..request(settings.clone(), &prompt) };
            request.tenant = Arc::clone(&tenant);
            requests.push(ClientRequest { request, after, patience, leaves_after, rests });
        }
    }
    let addresses = |role: WorkerRole| (0..replicas[role.index()]).map(|_| "host:9000".to_owned()).collect();
    let config = ServiceConfig {
        models: vec![ModelConfig {
            name: NAME.to_owned(),
            tokenizer: "no such directory".into(),
            base: addresses(WorkerRole::Base),
            expert: addresses(WorkerRole::Expert),
            ..ModelConfig::default()
        }],
        admission: AdmissionLimits {
            max_sessions: chance.random_range(2..8),
            max_queued_sessions: chance.random_range(2..8),
            max_queued_tokens: if chance.random_bool(0.2) { 150 } else { 1_000_000 },
        },
        workers: PoolConfig {
            step_deadline_ms: *[500, 2_000, 5_000].choose(chance).unwrap(),
            describe_interval_ms: *[2_000, 5_000].choose(chance).unwrap(),
            ..PoolConfig::default()
        },
        sessions: SessionConfig {
            expert_absent: *absences.choose(chance).unwrap(),
            speculation,
            max_draft: chance.random_range(1..=6),
            // Less than the clients that rest do.
            slow_client_turn_ms: 300,
            slow_client_cache_ms: 900,
            ..SessionConfig::default()
        },
    };
    Schedule { config, replicas, requests, faults: chance.random_range(1..=4) }
}

/// Every fault in every phase at every place comes first in one of so many schedules; those after it are drawn.
pub(super) fn first_fault(seed: u64) -> (Fault, &'static str, Phase) {
    let cells = || {
        Fault::ALL.into_iter().flat_map(|fault| {
            Phase::ALL.into_iter().flat_map(move |phase| ["base", "expert"].map(|place| (fault, place, phase)))
        })
    };
    cells().nth(seed as usize % cells().count()).unwrap()
}
