//! Puts the rooms together, serves HTTP and gRPC, and winds down in order.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use cosec_proto::log_lines::{self, LogLines};
use cosec_proto::metrics::{MetricError, MetricRegistry};
use cosec_proto::transport;
use cosec_proto::wire::coordinator::coordinator_server::CoordinatorServer;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
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
/// Prints `http on ADDRESS` and `grpc on ADDRESS` to standard output when both are bound.
///
/// # Errors
/// [`RunError`] when it cannot start.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let listeners = ApiListeners::bind(&config.http_listen, &config.grpc_listen).await?;
    let registry = MetricRegistry::default();
    let metrics = CoordinatorMetrics::register(&registry)?;
    LogLines::standard_error().count_dropped(metrics.telemetry.dropped_lines);
    let (texts, tokenizers) = load_texts(&config.models)?;
    let tasks = TaskSpawner::new(TaskTracker::new(), CancellationToken::new());
    let policy = Arc::new(config.operator_policy()?);
    let Config { models, admission, workers, sessions, .. } = config;
    let members = models.iter().flat_map(ModelConfig::members).collect();
    let members = discovery::follow(config.discovery.build(members)?, metrics.discovery, &tasks);
    let source = WorkerSource { members, connect: Arc::new(transport::channel) };
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
    listeners.announce();
    let grace = Duration::from_secs(config.grace_seconds);
    serve(listeners, state, registry, grace, shutdown).await?;
    tasks.shutdown.cancel();
    tasks.tracker.close();
    if timeout(CLOSING, tasks.tracker.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.tracker.len(), "tasks did not end in time");
    }
    Ok(())
}

/// The sockets of HTTP and gRPC.
#[expect(missing_docs, reason = "the field names say it")]
pub struct ApiListeners {
    pub http: TcpListener,
    pub grpc: TcpListener,
}

impl ApiListeners {
    /// Binds both, so that a port in use is known before anything starts.
    ///
    /// # Errors
    /// [`RunError::Bind`] names address and flag.
    pub async fn bind(http: &str, grpc: &str) -> Result<Self, RunError> {
        Ok(Self { http: bind("--http-listen", http).await?, grpc: bind("--grpc-listen", grpc).await? })
    }

    fn announce(&self) {
        let mut lines = String::new();
        for (protocol, listener) in [("http", &self.http), ("grpc", &self.grpc)] {
            let _ = listener.local_addr().map(|address| writeln!(lines, "{protocol} on {address}"));
        }
        log_lines::announce(lines);
    }
}

async fn bind(flag: &'static str, address: &str) -> Result<TcpListener, RunError> {
    let failed = |cause: std::io::Error| RunError::Bind { flag, address: address.to_owned(), cause };
    TcpListener::bind(address).await.map_err(failed)
}

/// Tokenizers and templates by model, and the tokenizers' fingerprints, which its workers must have.
type LoadedTexts = (HashMap<String, Arc<ModelText>>, HashMap<String, KnownTokenizer>);

fn load_texts(models: &[ModelConfig]) -> Result<LoadedTexts, RunError> {
    let load = |model: &ModelConfig| {
        let text = ModelText::load(&model.tokenizer).map_err(|cause| {
            let (model, directory) = (model.name.clone(), model.tokenizer.clone());
            RunError::Text { model, directory, cause }
        })?;
        let owner = TokenizerOwner::Coordinator(model.tokenizer.join("tokenizer.json"));
        let tokenizer = KnownTokenizer { fingerprint: text.fingerprint().to_owned(), owner };
        Ok(((model.name.clone(), Arc::new(text)), (model.name.clone(), tokenizer)))
    };
    models.iter().map(load).collect()
}

/// Serves HTTP and gRPC until `shutdown`, then winds down.
///
/// # Errors
/// [`RunError::Serve`] when one of them breaks.
pub async fn serve(
    listeners: ApiListeners,
    state: Arc<ApiState>,
    registry: MetricRegistry,
    grace: Duration,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let closing = CancellationToken::new();
    let (health, health_service) = tonic_health::server::health_reporter();
    let http = serve_http(listeners.http, routes::router(state.clone(), registry), closing.clone());
    let grpc = serve_grpc(listeners.grpc, health_service, state.clone(), closing.clone());
    let serving = async { tokio::try_join!(http, grpc).map(|_| ()) };
    tokio::pin!(serving);
    tokio::select! {
        broken = &mut serving => return broken,
        () = drain_after(&shutdown, &health, &state, grace) => closing.cancel(),
    }
    // Connections that clients keep open without a request are not waited for.
    timeout(CLOSING, serving).await.unwrap_or(Ok(()))
}

async fn serve_http(listener: TcpListener, routes: Router, closing: CancellationToken) -> Result<(), RunError> {
    let listener = listener.tap_io(|connection| {
        // A token must not wait for the next one to fill a packet.
        if let Err(cause) = connection.set_nodelay(true) {
            tracing::debug!(%cause, "cannot set TCP_NODELAY");
        }
    });
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, routes).with_graceful_shutdown(closing.cancelled_owned()).await;
    served.map_err(|cause| RunError::Serve { protocol: "http", cause: cause.to_string() })
}

async fn serve_grpc(
    listener: TcpListener,
    health: HealthServer<impl Health>,
    state: Arc<ApiState>,
    closing: CancellationToken,
) -> Result<(), RunError> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = transport::server().add_service(health).add_service(grpc::service(state));
    let served = router.serve_with_incoming_shutdown(incoming, closing.cancelled_owned()).await;
    served.map_err(|cause| RunError::Serve { protocol: "grpc", cause: cause.to_string() })
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
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({flag}): {cause}")]
    #[expect(missing_docs, reason = "the field names say it")]
    Bind { flag: &'static str, address: String, cause: std::io::Error },
    /// A model's tokenizer or chat template cannot be used.
    #[error("model {model}: tokenizer directory {}: {cause}", directory.display())]
    #[expect(missing_docs, reason = "the field names say it")]
    Text { model: String, directory: PathBuf, cause: ModelTextError },
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
    /// HTTP or gRPC broke while serving.
    #[error("{protocol}: {cause}")]
    #[expect(missing_docs, reason = "the field names say it")]
    Serve { protocol: &'static str, cause: String },
}
