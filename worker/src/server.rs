//! A worker process: ports first, then the model, then service, until the end is asked for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use cosec_proto::log_lines::LogLines;
use cosec_proto::metrics::{MetricError, MetricRegistry};
use cosec_proto::registry::Registration;
use cosec_proto::secret_file::warn_if_loose;
use cosec_proto::serving::{
    ConnectionLimits, ConnectionTable, Exposure, ListenError, Protocol, ServedPort, bind, pages,
};
use cosec_proto::tls::{InvalidTls, MutualTls, PeerRole, ServerIdentity};
use cosec_proto::wire::worker::worker_server::WorkerServer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::engine::{self, EngineHandle, LanguageModel};
use crate::limits::EngineOptions;
use crate::metrics::WorkerMetrics;
use crate::registration::{self, EtcdRegistrar};
use crate::service::{Identity, WorkerService};

/// How often a draining worker checks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Time for a message to arrive, unless its stream has been answered before.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for peers to read the last messages after the streams have ended.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Where a worker listens, and who may come there.
#[derive(Clone, Debug, Default)]
pub struct ListenConfig {
    /// Of the gRPC service, as `HOST:PORT`.
    pub listen: String,
    /// Of `/metrics`.
    pub metrics_listen: Option<String>,
    /// Of the pages for probes.
    pub health_listen: Option<String>,
    /// Who the worker is and whom it lets in.
    pub tls: MutualTls,
    /// Whether ports that other machines reach may be in the clear.
    pub insecure: bool,
    /// How much of the process its clients may hold.
    pub connections: ConnectionLimits,
}

/// A bound port and what it presents over TLS.
#[derive(Debug)]
struct BoundPort {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<ServerIdentity>>,
}

/// Bound ports of a worker; nothing is served yet.
#[derive(Debug)]
pub struct BoundServer {
    grpc: BoundPort,
    metrics: Option<BoundPort>,
    health: Option<BoundPort>,
    connections: ConnectionLimits,
}

impl BoundServer {
    /// Binds the ports before a model is loaded, so that one in use fails early; certificates likewise.
    ///
    /// # Errors
    /// [`ServeError::Listen`] and [`ServeError::Tls`].
    pub async fn bind(config: &ListenConfig) -> Result<Self, ServeError> {
        config.tls.private_key_file.iter().for_each(|file| warn_if_loose("tls.private_key_file", file));
        let of_peers = |role, protocols| ServerIdentity::of_peers(&config.tls, role, protocols);
        let coordinators = of_peers(PeerRole::Coordinator, &["h2"])?;
        let monitoring = of_peers(PeerRole::Monitoring, &["h2", "http/1.1"])?;
        let remedy = "tls.authority_file, tls.certificate_file and tls.private_key_file";
        let exposure = Exposure::of(config.tls.is_set(), config.insecure, remedy);
        let grpc = bind_port("listen", &config.listen, coordinators, exposure).await?;
        let metrics = match &config.metrics_listen {
            Some(listen) => Some(bind_port("metrics_listen", listen, monitoring, exposure).await?),
            None => None,
        };
        let health = match &config.health_listen {
            // It tells nothing but whether the process is well, and probes have no certificate.
            Some(listen) => Some(bind_port("health_listen", listen, None, Exposure::Anywhere).await?),
            None => None,
        };
        Ok(Self { grpc, metrics, health, connections: config.connections.clone() })
    }

    /// Where the gRPC service listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.grpc.address
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|port| port.address)
    }

    /// Where probes ask.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().map(|port| port.address)
    }

    /// Serves until `shutdown`; health says NOT_SERVING until `load` has returned a model.
    ///
    /// On shutdown no session is opened any more; sessions get `grace` to end, then all streams are closed.
    ///
    /// # Errors
    /// [`ServeError`] when the model cannot be loaded or the ports cannot be served.
    pub async fn run<M, F>(
        self,
        identity: Identity,
        load: F,
        grace: Duration,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError>
    where
        M: LanguageModel,
        F: FnOnce() -> Result<(M, EngineOptions), BoxedLoadError> + Send + 'static,
    {
        let address = self.address();
        let registry = MetricRegistry::labelled("role", identity.role.name())?;
        let metrics = Arc::new(WorkerMetrics::register(&registry)?);
        LogLines::standard_error().count_dropped(metrics.dropped_lines.clone());
        let tracker = TaskTracker::new();
        let closing = CancellationToken::new();
        let (health, health_service) = WorkerHealth::new();
        health.set(ServingStatus::NotServing).await;
        let presented = identity.clone();
        let service = WorkerService::new(identity, Arc::clone(&metrics), tracker.clone(), closing.clone());
        let routes = Routes::new(health_service).add_service(service.clone().into_server());
        let mut served = self.serve(routes, health.pages(), registry, &closing);

        let started = Instant::now();
        let (model, options) = tokio::select! {
            // The loading thread ends with the process.
            () = shutdown.cancelled() => return Ok(()),
            _ = &mut served => return Err(ServeError::GrpcEnded),
            loaded = in_thread(load) => loaded?,
        };
        let family = model.description().family.clone();
        let figures = Arc::clone(&metrics);
        let engine = engine::start(model, options, metrics).map_err(ServeError::Thread)?;
        service.set_engine(engine.clone());
        health.set(ServingStatus::Serving).await;
        log_ready(&engine, address, &presented.model, &family, started.elapsed());
        if let Some(registrar) = registrar(presented, &engine, address, &figures) {
            tracker.spawn(registrar.keep(shutdown.clone(), closing.clone()));
        }

        let done = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            _ = &mut served => return Err(ServeError::GrpcEnded),
            // The process supervisor restarts it.
            () = engine.stopped() => Err(ServeError::EngineStopped),
        };
        health.set(ServingStatus::NotServing).await;
        if done.is_ok() {
            engine.drain();
            tracing::info!(grace_seconds = grace.as_secs(), "shutting down");
            let _ = timeout(grace, drained(&engine, &service)).await;
        }
        closing.cancel();
        tracker.close();
        let _ = timeout(CLOSE_TIME, tracker.wait()).await;
        engine.stop();
        let _ = timeout(CLOSE_TIME, async { tokio::join!(engine.stopped(), served) }).await;
        tracing::info!("stopped");
        done
    }

    /// Serves every port in a task of its own until `closing`; the first one's ends when its streams have.
    fn serve(
        self,
        routes: Routes,
        pages: Router,
        registry: MetricRegistry,
        closing: &CancellationToken,
    ) -> JoinHandle<()> {
        let serve = |port: BoundPort, routes, protocol, table: &Arc<ConnectionTable>| {
            let BoundPort { listener, tls, .. } = port;
            let port = ServedPort { listener, routes, protocol, tls, table: Arc::clone(table) };
            tokio::spawn(port.serve(closing.clone()))
        };
        let probes = ConnectionTable::start(ConnectionLimits::of_probes());
        if let Some(port) = self.metrics {
            serve(port, pages::metrics(registry), Protocol::Http, &probes);
        }
        if let Some(port) = self.health {
            serve(port, pages, Protocol::Http, &probes);
        }
        let grpc = Protocol::Grpc { message_timeout: MESSAGE_TIMEOUT };
        serve(self.grpc, routes.into_axum_router(), grpc, &ConnectionTable::start(self.connections))
    }
}

async fn bind_port(
    setting: &'static str,
    listen: &str,
    tls: Option<Arc<ServerIdentity>>,
    exposure: Exposure,
) -> Result<BoundPort, ServeError> {
    let listener = bind(setting, listen, exposure).await?;
    let cause = |cause| ListenError::Bind { setting, address: listen.to_owned(), cause };
    let address = listener.local_addr().map_err(cause)?;
    Ok(BoundPort { listener, address, tls })
}

/// Whether the worker serves, as gRPC and as a page tell it.
struct WorkerHealth {
    reporter: HealthReporter,
    is_serving: Arc<AtomicBool>,
}

impl WorkerHealth {
    fn new() -> (Self, HealthServer<impl Health>) {
        let (reporter, service) = health_reporter();
        (Self { reporter, is_serving: Arc::default() }, service)
    }

    async fn set(&self, status: ServingStatus) {
        self.is_serving.store(status == ServingStatus::Serving, Ordering::Release);
        let service = <WorkerServer<WorkerService> as tonic::server::NamedService>::NAME;
        self.reporter.set_service_status("", status).await;
        self.reporter.set_service_status(service, status).await;
    }

    fn pages(&self) -> Router {
        let is_serving = Arc::clone(&self.is_serving);
        pages::health(move || is_serving.load(Ordering::Acquire))
    }
}

/// The registrar of a worker that is ready, if it is to register.
fn registrar(
    identity: Identity,
    engine: &EngineHandle,
    address: SocketAddr,
    figures: &WorkerMetrics,
) -> Option<EtcdRegistrar> {
    if !identity.registration.is_wanted() {
        return None;
    }
    let (description, options) = (engine.description(), engine.options());
    let registration::RegistrationConfig { etcd, advertise, models } = identity.registration;
    let entry = Registration {
        endpoint: advertise.unwrap_or_else(|| address.to_string()),
        models,
        role: identity.role,
        fingerprint: description.fingerprint.clone(),
        tokenizer_fingerprint: description.tokenizer_fingerprint.clone(),
        capacity_tokens: (options.blocks * options.block_tokens) as u64,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        zone: identity.zone,
        draining: false,
    };
    Some(EtcdRegistrar { etcd, entry, registered: figures.registered.clone() })
}

/// Runs `load` on a thread of its own, which does not delay the end of the process.
async fn in_thread<T: Send + 'static>(
    load: impl FnOnce() -> Result<T, BoxedLoadError> + Send + 'static,
) -> Result<T, ServeError> {
    let (sender, loaded) = oneshot::channel();
    let thread = thread::Builder::new().name("load".to_owned());
    thread.spawn(move || sender.send(load())).map_err(ServeError::Thread)?;
    loaded.await.map_err(|_| ServeError::LoadPanicked)?.map_err(ServeError::Load)
}

/// Waits until no operation runs and no stream could continue a session.
async fn drained(engine: &EngineHandle, service: &WorkerService) {
    let status = engine.status();
    while status.operations() > 0 || (status.sessions() > 0 && service.open_streams() > 0) {
        sleep(DRAIN_POLL).await;
    }
}

fn log_ready(engine: &EngineHandle, address: SocketAddr, model: &str, family: &str, elapsed: Duration) {
    let (description, options) = (engine.description(), engine.options());
    let cache_bytes = options.blocks * options.block_tokens * description.kv_bytes_per_token;
    tracing::info!(
        %address,
        model,
        family,
        parameters = description.parameters,
        vocabulary = description.vocabulary,
        context_tokens = engine.limits().context_tokens,
        blocks = options.blocks,
        cache_mib = cache_bytes >> 20,
        load_seconds = elapsed.as_secs_f64(),
        fingerprint = description.fingerprint,
        "ready"
    );
}

/// Why a model could not be loaded.
pub type BoxedLoadError = Box<dyn std::error::Error + Send + Sync>;

/// Why a worker does not serve.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum ServeError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("tls.{0}")]
    Tls(#[from] InvalidTls),
    #[error("the model cannot be loaded: {0}")]
    Load(BoxedLoadError),
    #[error("the model cannot be loaded: the loader panicked")]
    LoadPanicked,
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
    #[error("the metrics cannot be registered: {0}")]
    Metrics(#[from] MetricError),
    /// A panic in it: a defect.
    #[error("the engine's thread has ended by itself; the worker serves no more")]
    EngineStopped,
    #[error("the gRPC service ended by itself")]
    GrpcEnded,
}
