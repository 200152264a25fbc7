//! Puts the rooms together, serves HTTP and gRPC, and winds down in order.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use cosec_proto::log_lines::{self, LogLines};
use cosec_proto::metrics::{MetricError, MetricRegistry};
use cosec_proto::secret_file::warn_if_loose;
use cosec_proto::serving::{
    ConnectionLimits, ConnectionTable, Exposure, ListenError, Protocol, ServedPort, bind, pages,
};
use cosec_proto::tls::{InvalidTls, PeerRole, ServerIdentity};
use cosec_proto::transport::WorkerTransport;
use cosec_proto::wire::coordinator::coordinator_server::CoordinatorServer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::auth::{InvalidAuth, RequestAuth};
use crate::api::grpc::{self, GrpcService};
use crate::api::openai::resume::ResumeKey;
use crate::api::openai::routes;
use crate::api::state::{ApiState, seconds_now};
use crate::config::Config;
use crate::discovery::{self, InvalidDiscovery};
use crate::generation::GenerationService;
use crate::generation::model_text::{ModelText, ModelTextError};
use crate::metrics::CoordinatorMetrics;
use crate::models::ModelConfig;
use crate::policy::PolicyViolation;
use crate::session::service::{ServiceConfig, SessionService};
use crate::shared_key::{InvalidSharedKey, SharedKey};
use crate::tasks::TaskSpawner;
use crate::worker_pool::WorkerSource;
use crate::worker_pool::tokenizers::{KnownTokenizer, TokenizerOwner};

/// Time for connections to close and tasks to end when nothing is in flight any more.
const CLOSING: Duration = Duration::from_secs(5);

/// Pause between two updates of the gRPC health service.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Serves until `shutdown`, then refuses new requests, finishes those in flight within the grace period, and returns.
///
/// Prints `http on ADDRESS`, `grpc on ADDRESS` and, where they are set, `health on ADDRESS` and `metrics on ADDRESS` to
/// standard output when all are bound.
///
/// # Errors
/// [`RunError`] when it cannot start.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let ports = Ports::bind(&config).await?;
    let registry = MetricRegistry::default();
    let metrics = CoordinatorMetrics::register(&registry)?;
    LogLines::standard_error().count_dropped(metrics.telemetry.dropped_lines);
    let (texts, tokenizers) = load_texts(&config.models)?;
    let tasks = TaskSpawner::new(TaskTracker::new(), CancellationToken::new());
    let policy = Arc::new(config.operator_policy()?);
    let transport = worker_transport(&config);
    let Config { models, admission, workers, sessions, .. } = config;
    let members = models.iter().flat_map(ModelConfig::members).collect();
    let names = models.iter().map(|model| model.name.clone()).collect();
    let members = discovery::follow(config.discovery.build(members)?, names, metrics.discovery, &tasks);
    let connect = Arc::new(move |address: &str, role| transport.channel(address, role));
    let source = WorkerSource { members, connect };
    let service = ServiceConfig { models, admission, workers, sessions };
    let service = SessionService::start(service, tokenizers, source, metrics.service, tasks.clone());
    let secret = config.api.resume_key_file.as_deref().map_or_else(|| Ok(SharedKey::random()), SharedKey::read)?;
    let auth = RequestAuth::start(&config.api, &secret, Arc::clone(&policy), &metrics.tenants, &tasks)?;
    let state = Arc::new(ApiState {
        generation: GenerationService::new(service, texts, config.api.clone(), policy),
        auth,
        resume_key: ResumeKey::new(&secret),
        config: config.api,
        metrics: metrics.api,
        started: seconds_now(),
    });
    ports.announce();
    let grace = Duration::from_secs(config.grace_seconds);
    serve(ports, config.connections, state, registry, grace, shutdown).await;
    tasks.shutdown.cancel();
    tasks.tracker.close();
    if timeout(CLOSING, tasks.tracker.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.tracker.len(), "tasks did not end in time");
    }
    Ok(())
}

fn worker_transport(config: &Config) -> WorkerTransport {
    match &config.workers.tls {
        tls if tls.is_set() => WorkerTransport::Tls(tls.clone()),
        _ if config.insecure => WorkerTransport::Insecure,
        _ => WorkerTransport::Loopback,
    }
}

/// A bound port and what it presents over TLS.
pub struct BoundPort {
    /// The port.
    pub listener: TcpListener,
    /// In the clear without.
    pub tls: Option<Arc<ServerIdentity>>,
}

/// The ports of a coordinator.
pub struct Ports {
    /// OpenAI's API.
    pub http: BoundPort,
    /// The gRPC service.
    pub grpc: BoundPort,
    /// For probes.
    pub health: Option<BoundPort>,
    /// For Prometheus.
    pub metrics: Option<BoundPort>,
}

impl Ports {
    /// Binds all and reads certificates, so that what is wrong with them is known before anything starts.
    ///
    /// # Errors
    /// [`RunError::Listen`] and [`RunError::Tls`] name the setting.
    pub async fn bind(config: &Config) -> Result<Self, RunError> {
        for (setting, file) in [
            ("tls.private_key_file", &config.tls.private_key_file),
            ("workers.tls.private_key_file", &config.workers.tls.private_key_file),
        ] {
            file.iter().for_each(|file| warn_if_loose(setting, file));
        }
        let unusable = |section| move |cause| RunError::Tls { section, cause };
        let http = ServerIdentity::of_clients(&config.tls, &["h2", "http/1.1"]).map_err(unusable("tls"))?;
        let grpc = ServerIdentity::of_clients(&config.tls, &["h2"]).map_err(unusable("tls"))?;
        let monitoring = PeerRole::Monitoring;
        let peers = ServerIdentity::of_peers(&config.workers.tls, monitoring, &["h2", "http/1.1"]);
        let peers = peers.map_err(unusable("workers.tls"))?;
        let bound = async |setting, address: &str, tls: Option<Arc<ServerIdentity>>, remedy| {
            let exposure = Exposure::of(tls.is_some(), config.insecure, remedy);
            Ok::<_, RunError>(BoundPort { listener: bind(setting, address, exposure).await?, tls })
        };
        let files = "tls.certificate_file and tls.private_key_file";
        let health = match &config.health_listen {
            // It tells nothing but whether the process is well, and probes have no certificate.
            Some(address) => {
                Some(BoundPort { listener: bind("health_listen", address, Exposure::Anywhere).await?, tls: None })
            }
            None => None,
        };
        let metrics = match &config.metrics_listen {
            Some(address) => Some(bound("metrics_listen", address, peers, "workers.tls").await?),
            None => None,
        };
        Ok(Self {
            http: bound("http_listen", &config.http_listen, http, files).await?,
            grpc: bound("grpc_listen", &config.grpc_listen, grpc, files).await?,
            health,
            metrics,
        })
    }

    fn announce(&self) {
        let ports = [
            ("http", Some(&self.http)),
            ("grpc", Some(&self.grpc)),
            ("health", self.health.as_ref()),
            ("metrics", self.metrics.as_ref()),
        ];
        let mut lines = String::new();
        for (name, port) in ports {
            let _ = port.map(|port| port.listener.local_addr().map(|address| writeln!(lines, "{name} on {address}")));
        }
        log_lines::announce(lines);
    }
}

/// Tokenizers and templates by model, and the tokenizers' fingerprints, which its workers must have.
type LoadedTexts = (HashMap<String, Arc<ModelText>>, HashMap<String, KnownTokenizer>);

fn load_texts(models: &[ModelConfig]) -> Result<LoadedTexts, RunError> {
    let load = |model: &ModelConfig| {
        let text = ModelText::load(&model.tokenizer).map_err(|cause| {
            let (model, directory) = (model.name.clone(), model.tokenizer.clone());
            RunError::Text { model, directory, cause }
        })?;
        let (own, pinned) = (text.fingerprint().to_owned(), model.tokenizer_fingerprint.clone());
        if let Some(pinned) = pinned.filter(|pinned| *pinned != own) {
            let (model, directory) = (model.name.clone(), model.tokenizer.clone());
            return Err(RunError::Tokenizer { model, directory, own, pinned });
        }
        let owner = TokenizerOwner::Coordinator(model.tokenizer.join("tokenizer.json"));
        let tokenizer = KnownTokenizer { fingerprint: own, owner };
        Ok(((model.name.clone(), Arc::new(text)), (model.name.clone(), tokenizer)))
    };
    models.iter().map(load).collect()
}

/// Serves until `shutdown`, then winds down.
pub async fn serve(
    ports: Ports,
    limits: ConnectionLimits,
    state: Arc<ApiState>,
    registry: MetricRegistry,
    grace: Duration,
    shutdown: CancellationToken,
) {
    let (health, health_service) = tonic_health::server::health_reporter();
    let grpc = Routes::new(health_service).into_axum_router().merge(grpc::routes(Arc::clone(&state)));
    let ready = Arc::clone(&state);
    let pages = pages::health(move || ready.generation.ready().is_ok());
    let message_timeout = Duration::from_secs(state.config.body_timeout_seconds);
    let (clients, probes) = (ConnectionTable::start(limits), ConnectionTable::start(ConnectionLimits::of_probes()));
    let served = |port: BoundPort, routes: Router, protocol, table: &Arc<ConnectionTable>| {
        let BoundPort { listener, tls } = port;
        ServedPort { listener, routes, protocol, tls, table: Arc::clone(table) }
    };
    let served = [
        Some(served(ports.http, routes::router(Arc::clone(&state)), Protocol::Http, &clients)),
        Some(served(ports.grpc, grpc, Protocol::Grpc { message_timeout }, &clients)),
        ports.health.map(|port| served(port, pages, Protocol::Http, &probes)),
        ports.metrics.map(|port| served(port, pages::metrics(registry), Protocol::Http, &probes)),
    ];
    let closing = CancellationToken::new();
    let mut serving: JoinSet<()> = served.into_iter().flatten().map(|port| port.serve(closing.clone())).collect();
    drain_after(&shutdown, &health, &state, grace).await;
    closing.cancel();
    // Connections that clients keep open without a request are not waited for.
    let _ = timeout(CLOSING, async { while serving.join_next().await.is_some() {} }).await;
}

/// Reports health until `shutdown`, then waits for the requests in flight, for `grace` at most.
async fn drain_after(shutdown: &CancellationToken, health: &HealthReporter, state: &ApiState, grace: Duration) {
    let reporting = async {
        loop {
            report_health(health, state).await;
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = reporting => {}
    }
    tracing::info!(grace_s = grace.as_secs(), "draining");
    health.set_not_serving::<CoordinatorServer<GrpcService>>().await;
    health.set_service_status("", ServingStatus::NotServing).await;
    state.generation.drain(grace).await;
}

async fn report_health(health: &HealthReporter, state: &ApiState) {
    let status = if state.generation.ready().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status("", status).await;
    health.set_service_status(<CoordinatorServer<GrpcService>>::NAME, status).await;
}

/// Why a coordinator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port cannot be bound, or would be in the clear.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Certificates cannot be used.
    #[error("{section}: {cause}")]
    #[expect(missing_docs, reason = "the field names say it")]
    Tls { section: &'static str, cause: InvalidTls },
    /// A model's tokenizer or chat template cannot be used.
    #[error("model {model}: tokenizer directory {}: {cause}", directory.display())]
    #[expect(missing_docs, reason = "the field names say it")]
    Text { model: String, directory: PathBuf, cause: ModelTextError },
    /// A model's tokenizer is another one than its configuration pins.
    #[error(
        "model {model}: tokenizer directory {}: the fingerprint is {own}; the configuration pins {pinned}",
        directory.display()
    )]
    #[expect(missing_docs, reason = "the field names say it")]
    Tokenizer { model: String, directory: PathBuf, own: String, pinned: String },
    /// Discovery is configured in a way that makes no sense.
    #[error(transparent)]
    Discovery(#[from] InvalidDiscovery),
    /// The key that coordinators share cannot be used.
    #[error(transparent)]
    SharedKey(#[from] InvalidSharedKey),
    /// What says who may ask cannot be used.
    #[error(transparent)]
    Auth(#[from] InvalidAuth),
    /// A model's policy makes no sense.
    #[error("configuration: {0}")]
    Policy(#[from] PolicyViolation),
    /// Two metrics have the same name.
    #[error("metrics: {0}")]
    Metrics(#[from] MetricError),
}
