//! A worker process: ports first, then the model, then service, until the end is asked for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cosec_proto::log_lines::LogLines;
use cosec_proto::metrics::{MetricError, MetricRegistry};
use cosec_proto::registry::Registration;
use cosec_proto::transport;
use cosec_proto::wire::worker::worker_server::WorkerServer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

use crate::engine::{self, EngineHandle, LanguageModel};
use crate::limits::EngineOptions;
use crate::metrics::{self, WorkerMetrics};
use crate::registration::{self, EtcdRegistrar};
use crate::service::{Identity, WorkerService};

/// How often a draining worker checks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Time for peers to read the last messages after the streams have ended.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Bound ports of a worker; nothing is served yet.
#[derive(Debug)]
pub struct BoundServer {
    listener: TcpListener,
    address: SocketAddr,
    metrics_listener: Option<TcpListener>,
    metrics_address: Option<SocketAddr>,
}

impl BoundServer {
    /// Binds the ports before a model is loaded, so that one in use fails early.
    ///
    /// # Errors
    /// [`ServeError::Bind`].
    pub async fn bind(listen: &str, metrics_listen: Option<&str>) -> Result<Self, ServeError> {
        let (listener, address) = bind("listen", listen).await?;
        let (metrics_listener, metrics_address) = match metrics_listen {
            Some(listen) => {
                let (listener, address) = bind("metrics_listen", listen).await?;
                (Some(listener), Some(address))
            }
            None => (None, None),
        };
        Ok(Self { listener, address, metrics_listener, metrics_address })
    }

    /// Where the gRPC service listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
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
        let address = self.address;
        let registry = MetricRegistry::labelled("role", identity.role.name())?;
        let metrics = Arc::new(WorkerMetrics::register(&registry)?);
        LogLines::standard_error().count_dropped(metrics.dropped_lines.clone());
        let tracker = TaskTracker::new();
        let closing = CancellationToken::new();
        let (health, health_service) = health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let presented = identity.clone();
        let service = WorkerService::new(identity, Arc::clone(&metrics), tracker.clone(), closing.clone());

        let router = transport::server().add_service(health_service).add_service(service.clone().into_server());
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let closed = closing.clone().cancelled_owned();
        let mut grpc = tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, closed).await });
        if let Some(listener) = self.metrics_listener {
            let router = metrics::router(registry);
            let closed = closing.clone().cancelled_owned();
            tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(closed).await });
        }

        let started = Instant::now();
        let (model, options) = tokio::select! {
            // The loading thread ends with the process.
            () = shutdown.cancelled() => return Ok(()),
            ended = &mut grpc => return Err(ended_early(ended)),
            loaded = in_thread(load) => loaded?,
        };
        let family = model.description().family.clone();
        let figures = Arc::clone(&metrics);
        let engine = engine::start(model, options, metrics).map_err(ServeError::Thread)?;
        service.set_engine(engine.clone());
        set_health(&health, ServingStatus::Serving).await;
        log_ready(&engine, address, &presented.model, &family, started.elapsed());
        if let Some(registrar) = registrar(presented, &engine, address, &figures) {
            tracker.spawn(registrar.keep(shutdown.clone(), closing.clone()));
        }

        let done = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = &mut grpc => return Err(ended_early(ended)),
            // The process supervisor restarts it.
            () = engine.stopped() => Err(ServeError::EngineStopped),
        };
        set_health(&health, ServingStatus::NotServing).await;
        if done.is_ok() {
            engine.drain();
            tracing::info!(grace_seconds = grace.as_secs(), "shutting down");
            let _ = timeout(grace, drained(&engine, &service)).await;
        }
        closing.cancel();
        tracker.close();
        let _ = timeout(CLOSE_TIME, tracker.wait()).await;
        engine.stop();
        let _ = timeout(CLOSE_TIME, async { tokio::join!(engine.stopped(), grpc) }).await;
        tracing::info!("stopped");
        done
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

/// Binds `HOST:PORT`; if the name has several addresses, the first that is free.
async fn bind(key: &'static str, listen: &str) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |cause| ServeError::Bind { key, address: listen.to_owned(), cause };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    let service = <WorkerServer<WorkerService> as tonic::server::NamedService>::NAME;
    health.set_service_status("", status).await;
    health.set_service_status(service, status).await;
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

fn ended_early(ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>) -> ServeError {
    match ended {
        Ok(Err(cause)) => ServeError::Grpc(cause),
        Ok(Ok(())) | Err(_) => ServeError::GrpcEnded,
    }
}

/// Why a model could not be loaded.
pub type BoxedLoadError = Box<dyn std::error::Error + Send + Sync>;

/// Why a worker does not serve.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum ServeError {
    #[error("{key} is {address}; it cannot be bound: {cause}")]
    Bind { key: &'static str, address: String, cause: io::Error },
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
    #[error("the gRPC service failed: {0}")]
    Grpc(tonic::transport::Error),
    #[error("the gRPC service ended by itself")]
    GrpcEnded,
}
