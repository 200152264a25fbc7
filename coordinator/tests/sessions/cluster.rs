//! A session service with one mock base and one mock expert.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cosec_coordinator::discovery::{self, DiscoveryConfig, DiscoveryMetrics};
use cosec_coordinator::merge::{Judge, LogitAdjustments, LogitsTransport, SelectedRule};
use cosec_coordinator::models::{ModelConfig, ModelInfo};
use cosec_coordinator::request::{
    FinishReason, GenerationSettings, SessionError, SessionEvent, TokenEvent, TokenizedRequest,
};
use cosec_coordinator::session::plan::DecodePlan;
use cosec_coordinator::session::service::{ServiceConfig, ServiceMetrics, SessionService, SessionStream};
use cosec_coordinator::tasks::TaskSpawner;
use cosec_coordinator::tenant::{ShareKey, Tenant};
use cosec_coordinator::worker_pool::{PoolConfig, WorkerSource};
use cosec_proto::metrics::MetricRegistry;
use cosec_proto::sampling::SamplingParams;
use cosec_proto::{ErrorCode, SequenceName, WorkerRole, transport};
use cosec_tests::mock_worker::{MockModel, MockWorker};
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest wait for anything that should happen soon.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) base: MockWorker,
    pub(crate) expert: MockWorker,
    pub(crate) anti_expert: MockWorker,
    pub(crate) service: Service,
    pub(crate) metrics: ServiceMetrics,
    pub(crate) shutdown: CancellationToken,
}

pub(crate) fn anti_expert() -> MockModel {
    MockModel { salt: 3, fingerprint: "anti".to_owned(), ..MockModel::expert() }
}

pub(crate) fn config(base: &[&MockWorker], expert: &[&MockWorker]) -> ServiceConfig {
    let addresses = |workers: &[&MockWorker]| workers.iter().map(|worker| worker.address().to_string()).collect();
    let model = ModelConfig {
        name: "mock".to_owned(),
        tokenizer: "no such directory".into(),
        base: addresses(base),
        expert: addresses(expert),
        ..ModelConfig::default()
    };
    let workers = PoolConfig { describe_interval_ms: 100, step_deadline_ms: 5_000, ..PoolConfig::default() };
    ServiceConfig { models: vec![model], workers, ..ServiceConfig::default() }
}

/// The service, asked as the API asks it.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<SessionService>);

impl Service {
    pub(crate) fn open(&self, request: TokenizedRequest) -> Result<SessionStream, SessionError> {
        let unknown = || SessionError::new(ErrorCode::NotFound, format!("there is no model {:?}", request.model));
        let model = self.0.model(&request.model).ok_or_else(unknown)?;
        let plan = DecodePlan::new(&request.settings, model.readiness.anti_expert.is_some())
            .map_err(|error| SessionError::new(ErrorCode::InvalidArgument, error.to_string()))?;
        let tokens = request.prompt.len() as u64 + u64::from(request.max_new_tokens);
        let permit = self.0.enter(&model, &plan, &request.tenant, tokens)?;
        self.0.open(request, plan, permit)
    }

    pub(crate) fn ready(&self) -> Result<(), String> {
        let of = |model: &ModelInfo, role| model.readiness.of(role).map_err(|error| error.message.clone());
        let ready = |model: ModelInfo| WorkerRole::ALL.into_iter().try_for_each(|role| of(&model, role));
        self.0.models().try_for_each(ready)
    }

    pub(crate) fn has_base(&self) -> bool {
        self.0.models().all(|model| model.readiness.facts.is_ok())
    }
}

pub(crate) fn start(config: ServiceConfig) -> (Service, ServiceMetrics, CancellationToken) {
    let registry = MetricRegistry::default();
    let metrics = ServiceMetrics::register(&registry).unwrap();
    let shutdown = CancellationToken::new();
    let members = config.models.iter().flat_map(ModelConfig::members).collect();
    let discovery = DiscoveryConfig::Static.build(members).unwrap();
    let tasks = TaskSpawner::new(TaskTracker::new(), shutdown.clone());
    let names = config.models.iter().map(|model| model.name.clone()).collect();
    let members = discovery::follow(discovery, names, DiscoveryMetrics::register(&registry).unwrap(), &tasks);
    let source = WorkerSource { members, connect: Arc::new(|address: &str, _| transport::channel(address)) };
    let service = SessionService::start(config, HashMap::new(), source, metrics.clone(), tasks);
    (Service(service), metrics, shutdown)
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::with(MockModel::base(), MockModel::expert(), |_| {}).await
    }

    pub(crate) async fn with(base: MockModel, expert: MockModel, adapt: impl FnOnce(&mut ServiceConfig)) -> Self {
        let (base, expert) = (MockWorker::start(base).unwrap(), MockWorker::start(expert).unwrap());
        let anti_expert = MockWorker::start(anti_expert()).unwrap();
        let mut config = config(&[&base], &[&expert]);
        adapt(&mut config);
        if !config.models[0].anti_expert.is_empty() {
            config.models[0].anti_expert = vec![anti_expert.address().to_string()];
        }
        let (service, metrics, shutdown) = start(config);
        until("the service is ready", || service.ready().is_ok()).await;
        Self { base, expert, anti_expert, service, metrics, shutdown }
    }

    pub(crate) async fn released(&self) {
        until("all caches are given back", || {
            self.base.sessions() + self.expert.sessions() + self.anti_expert.sessions() == 0
        })
        .await;
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn settings(rule: SelectedRule) -> GenerationSettings {
    GenerationSettings {
        n: 1,
        seed: 3407,
        max_tokens: Some(40),
        min_tokens: 0,
        stop: Vec::new(),
        base: SamplingParams::new(0.8, 0.95, 0).unwrap(),
        expert: SamplingParams::new(0.6, 0.9, 0).unwrap(),
        judge: Judge::Raw,
        reference_code: false,
        rule,
        adjustments: LogitAdjustments::default(),
        transport: LogitsTransport::Auto,
        logprobs: None,
        echo: false,
        report: false,
        deadline: Instant::now() + PATIENCE,
    }
}

pub(crate) fn request(settings: GenerationSettings, prompt: &[u32]) -> TokenizedRequest {
    let max_new_tokens = settings.max_tokens.unwrap_or(40);
    TokenizedRequest {
        model: "mock".to_owned(),
        tenant: Arc::default(),
        prompt: prompt.into(),
        sample: 0,
        choices: 1,
        max_new_tokens,
        sequence: SequenceName::random(),
        received: None,
        settings: Arc::new(settings),
    }
}

/// A client of its own.
pub(crate) fn tenant(name: &str) -> Arc<Tenant> {
    let mut tenant = Tenant::default();
    (tenant.name, tenant.share) = (name.to_owned(), ShareKey::Tenant(name.to_owned()));
    Arc::new(tenant)
}

/// A prompt of `length` tokens.
pub(crate) fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|i| 1 + (i * 7 + i * i) % 60).collect()
}

/// How a session went.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<TokenEvent>,
    pub(crate) degraded: bool,
    pub(crate) end: Result<FinishReason, SessionError>,
}

impl Outcome {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.decision.id).collect()
    }
}

pub(crate) async fn collect(service: &Service, request: TokenizedRequest) -> Outcome {
    let stream = service.open(request).unwrap();
    tokio::time::timeout(2 * PATIENCE, gather(stream)).await.expect("the session ends")
}

pub(crate) async fn gather(mut stream: SessionStream) -> Outcome {
    let mut outcome = Outcome { tokens: Vec::new(), degraded: false, end: Ok(FinishReason::Stop) };
    while let Some(event) = stream.next().await {
        match event {
            SessionEvent::Prompt(_) | SessionEvent::TakenOver(_) => {}
            SessionEvent::Token(token) => outcome.tokens.push(token),
            SessionEvent::Degraded => outcome.degraded = true,
            SessionEvent::Finished(reason) => outcome.end = Ok(reason),
            SessionEvent::Failed(error) => outcome.end = Err(error),
        }
    }
    outcome
}
