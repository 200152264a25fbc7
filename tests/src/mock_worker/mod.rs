//! A worker whose model is a hash: the protocol of the real one over a real socket, with faults on demand.
//!
//! Its logits depend on the whole history, so a lost, repeated or foreign token changes every later row.

mod batching;
mod behaviour;
mod grpc_service;
mod model;
mod session_cache;
mod views;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::wire::worker::worker_server::WorkerServer;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub use behaviour::{Answers, Fault, InjectedFaults, StepTime, WorkerBehaviour};
pub use grpc_service::Service;
pub use model::MockModel;
pub use session_cache::MockEngine;

/// A running mock worker. Dropping it is a kill: every connection breaks.
pub struct MockWorker {
    address: SocketAddr,
    service: Service<InjectedFaults>,
    health: tonic_health::server::HealthReporter,
    runtime: Option<Runtime>,
}

impl MockWorker {
    /// Serves `model` on a free port.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(model: MockModel) -> std::io::Result<Self> {
        Self::start_on(model, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Serves `model` on `address`, such as that of a worker that was killed.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start_on(model: MockModel, address: SocketAddr) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        // Only now: a runtime must not be dropped where its caller may be asynchronous.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let service = Service::new(model, InjectedFaults::default());
        let (health, health_service) = tonic_health::server::health_reporter();
        let (serving, reporter) = (service.clone(), health.clone());
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            reporter.set_serving::<WorkerServer<Service<InjectedFaults>>>().await;
            if let Err(error) = serving.serve(health_service, listener).await {
                eprintln!("mock worker: {error}");
            }
        });
        Ok(Self { address, service, health, runtime: Some(runtime) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sessions that hold a cache.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.service.engine().sessions()
    }

    /// Operations that it has performed, whether or not their answers were sent.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.service.behaviour().operations.load(Ordering::SeqCst)
    }

    /// Operations that were withdrawn in time.
    #[must_use]
    pub fn cancelled(&self) -> u64 {
        self.service.0.cancelled.load(Ordering::SeqCst)
    }

    /// Distorts every response from now on.
    pub fn set_fault(&self, fault: Option<Box<Fault>>) {
        *self.service.behaviour().fault.lock() = fault;
    }

    /// Every pass takes this long from now on, and holds one operation.
    pub fn set_delay(&self, delay: Duration) {
        *self.service.behaviour().time.lock() = StepTime { fixed: delay, ..StepTime::default() };
    }

    /// What the health service says.
    pub async fn set_serving(&self, serving: bool) {
        if serving {
            self.health.set_serving::<WorkerServer<Service<InjectedFaults>>>().await;
        } else {
            self.health.set_not_serving::<WorkerServer<Service<InjectedFaults>>>().await;
        }
    }

    /// Forgets all caches, as a worker short of blocks may.
    pub fn evict(&self) {
        self.service.engine().evict();
    }
}

impl Drop for MockWorker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves `model` on `listener` for as long as it is polled: for fleets of mock workers on one runtime, none of which
/// is ever killed.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(model: MockModel, time: StepTime, listener: TcpListener) -> Result<(), tonic::transport::Error> {
    let service = Service::new(model, InjectedFaults { time: Mutex::new(time), ..InjectedFaults::default() });
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<WorkerServer<Service<InjectedFaults>>>().await;
    service.serve(health_service, listener).await
}
