//! Stands between a coordinator and a worker: holds operations at a [`Gate`], answers late or falsely, hangs, or is
//! gone.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cosec_proto::wire::worker;
use cosec_proto::wire::worker::step_request::Operation as Wire;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::worker_server::{Worker, WorkerServer};
use cosec_proto::{WorkerRole, transport};
use futures::{Stream, StreamExt};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::grpc_server;

/// Operations on their way.
const QUEUE: usize = 1024;

/// What an operation is to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Feeds the prompt from its beginning.
    Prefill,
    /// Has the worker draw tokens after what it has.
    Draft,
    /// Reads logits after what the worker has.
    Verify,
    /// Feeds more.
    Feed,
    /// Gives the cache back.
    Release,
    /// Withdraws another operation.
    Cancel,
    /// Asks for the tokens of a sequence.
    Recall,
}

impl Kind {
    fn of(request: &worker::StepRequest) -> Option<Self> {
        Some(match request.operation.as_ref()? {
            Wire::Extend(extend) if extend.at == 0 => Self::Prefill,
            Wire::Extend(extend) if extend.rows.is_empty() => Self::Feed,
            Wire::Extend(_) => Self::Verify,
            Wire::Draft(draft) if draft.at == 0 => Self::Prefill,
            Wire::Draft(_) => Self::Draft,
            Wire::Release(_) => Self::Release,
            Wire::Cancel(_) => Self::Cancel,
            Wire::Recall(_) => Self::Recall,
        })
    }
}

/// What the gate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bar {
    Open,
    /// Closes at the next operation of this kind in this role, when `skip` others have passed.
    Waits {
        role: WorkerRole,
        kind: Kind,
        skip: u32,
    },
    /// Holds an operation on its way to the worker at this address, and all that come after it to the role.
    Closed {
        role: WorkerRole,
        address: SocketAddr,
    },
}

/// Holds the operations of a role from a certain one on, so that whatever is done meanwhile is done in its midst.
/// Proxies share it.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<Bar>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Bar::Open)))
    }
}

impl Gate {
    /// Will hold the next operation of this kind after `skip` others, and what comes after it to the role.
    pub fn close(&self, role: WorkerRole, kind: Kind, skip: u32) {
        self.0.send_replace(Bar::Waits { role, kind, skip });
    }

    /// Waits until an operation is held, and says at which proxy.
    pub async fn held(&self) -> SocketAddr {
        let mut bar = self.0.subscribe();
        let closed = bar.wait_for(|bar| matches!(bar, Bar::Closed { .. })).await.map(|bar| *bar);
        match closed {
            Ok(Bar::Closed { address, .. }) => address,
            Ok(Bar::Open | Bar::Waits { .. }) | Err(_) => unreachable!("the gate is there and waited for"),
        }
    }

    /// Lets pass what is held, and everything else.
    pub fn open(&self) {
        self.0.send_replace(Bar::Open);
    }

    async fn pass(&self, address: SocketAddr, own: WorkerRole, operation: Kind) {
        let mut bar = self.0.subscribe();
        let closes = |bar: &mut Bar| match bar {
            Bar::Waits { role, kind, skip } if (*role, *kind) == (own, operation) => {
                match skip.checked_sub(1) {
                    Some(left) => *skip = left,
                    None => *bar = Bar::Closed { role: own, address },
                }
                true
            }
            Bar::Open | Bar::Waits { .. } | Bar::Closed { .. } => false,
        };
        self.0.send_if_modified(closes);
        // The gate is there for as long as its proxies.
        let _ = bar.wait_for(|bar| !matches!(bar, Bar::Closed { role, .. } if *role == own)).await;
    }
}

/// What becomes of a worker's answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// Nothing.
    #[default]
    True,
    /// Each takes so much longer.
    Late(Duration),
    /// Each says what cannot be true, in one way after the other.
    False,
}

/// A proxy on a thread of its own; dropping it closes its connections and its port.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    role: WorkerRole,
    gate: Gate,
    upstream: Channel,
    answers: Mutex<Answers>,
    tampered: AtomicU64,
    received: Mutex<Vec<Kind>>,
    gone: Notify,
    freeze: Notify,
    is_frozen: AtomicBool,
    /// Whether the thread stands still, once it has noticed.
    frozen: Mutex<bool>,
    thawed: Condvar,
}

impl Proxy {
    /// Serves on `listen` (port 0 takes any) what the worker at `upstream` serves.
    ///
    /// # Panics
    /// When the port is taken.
    #[must_use]
    pub fn start(listen: SocketAddr, role: WorkerRole, upstream: &str, gate: &Gate) -> Self {
        let listener = std::net::TcpListener::bind(listen).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let upstream = {
            let _entered = runtime.enter();
            transport::channel(upstream).unwrap()
        };
        let shared = Arc::new(Shared {
            address,
            role,
            gate: gate.clone(),
            upstream,
            answers: Mutex::default(),
            tampered: AtomicU64::new(0),
            received: Mutex::default(),
            gone: Notify::new(),
            freeze: Notify::new(),
            is_frozen: AtomicBool::new(false),
            frozen: Mutex::new(false),
            thawed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            // Dropping the runtime closes every connection.
            runtime.block_on(serve(listener, serving));
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What becomes of the answers from now on.
    pub fn set_answers(&self, answers: Answers) {
        *self.shared.answers.lock() = answers;
    }

    /// Answers that were late or false.
    #[must_use]
    pub fn tampered(&self) -> u64 {
        self.shared.tampered.load(Ordering::SeqCst)
    }

    /// The operations that came, in their order, whether they were held or not.
    #[must_use]
    pub fn received(&self) -> Vec<Kind> {
        self.shared.received.lock().clone()
    }

    /// Stands still, as a stopped process does: connections stay and nothing is answered, not even pings.
    pub async fn freeze(&self) {
        *self.shared.frozen.lock() = true;
        self.shared.freeze.notify_one();
        while !self.shared.is_frozen.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Goes on.
    pub fn thaw(&self) {
        *self.shared.frozen.lock() = false;
        self.shared.thawed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.thaw();
        self.shared.gone.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let service = WorkerServer::new(Service(Arc::clone(&shared)))
        .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(transport::MAX_MESSAGE_BYTES);
    let server =
        grpc_server::server().add_service(HealthServer::new(Service(Arc::clone(&shared)))).add_service(service);
    tokio::spawn(stand_still(Arc::clone(&shared)));
    tokio::select! {
        served = server.serve_with_incoming(TcpListenerStream::new(listener)) => served.unwrap(),
        () = shared.gone.notified() => {}
    }
}

/// Blocks the thread, and with it all that the proxy does, while it is frozen.
async fn stand_still(shared: Arc<Shared>) {
    loop {
        shared.freeze.notified().await;
        let mut frozen = shared.frozen.lock();
        while *frozen {
            shared.is_frozen.store(true, Ordering::SeqCst);
            shared.thawed.wait(&mut frozen);
        }
        shared.is_frozen.store(false, Ordering::SeqCst);
    }
}

struct Service(Arc<Shared>);

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn upstream(&self) -> WorkerClient<Channel> {
        WorkerClient::new(self.0.upstream.clone())
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(transport::MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        HealthClient::new(self.0.upstream.clone()).check(request.into_inner()).await
    }

    type WatchStream = Answer<HealthCheckResponse>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watched = HealthClient::new(self.0.upstream.clone()).watch(request.into_inner()).await?;
        Ok(Response::new(watched.into_inner().boxed()))
    }
}

#[tonic::async_trait]
impl Worker for Service {
    async fn describe(
        &self,
        request: Request<worker::DescribeRequest>,
    ) -> Result<Response<worker::DescribeResponse>, Status> {
        self.upstream().describe(request.into_inner()).await
    }

    type TokenizerStream = Answer<worker::TokenizerResponse>;

    async fn tokenizer(
        &self,
        request: Request<worker::TokenizerRequest>,
    ) -> Result<Response<Self::TokenizerStream>, Status> {
        let pieces = self.upstream().tokenizer(request.into_inner()).await?;
        Ok(Response::new(pieces.into_inner().boxed()))
    }

    type StepStream = Answer<worker::StepResponse>;

    async fn step(
        &self,
        request: Request<Streaming<worker::StepRequest>>,
    ) -> Result<Response<Self::StepStream>, Status> {
        let (forward, forwarded) = mpsc::channel(QUEUE);
        let answers = self
            .upstream()
            .step(transport::with_protocol_version(ReceiverStream::new(forwarded)))
            .await?
            .into_inner();
        let (enqueue, mut queue) = mpsc::channel(QUEUE);
        let (receiving, passing, answering) = (Arc::clone(&self.0), Arc::clone(&self.0), Arc::clone(&self.0));
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                receiving.received.lock().extend(Kind::of(&request));
                if enqueue.send(request).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(request) = queue.recv().await {
                if let Some(kind) = Kind::of(&request) {
                    passing.gate.pass(passing.address, passing.role, kind).await;
                }
                if forward.send(request).await.is_err() {
                    return;
                }
            }
        });
        let answers = answers.then(move |answer| {
            let shared = Arc::clone(&answering);
            async move { Ok(shared.tamper(answer?).await) }
        });
        Ok(Response::new(answers.boxed()))
    }
}

impl Shared {
    async fn tamper(&self, mut answer: worker::StepResponse) -> worker::StepResponse {
        let answers = *self.answers.lock();
        let touch = || self.tampered.fetch_add(1, Ordering::SeqCst);
        match answers {
            Answers::True => {}
            Answers::Late(delay) => {
                touch();
                tokio::time::sleep(delay).await;
            }
            Answers::False => falsify(&mut answer, touch()),
        }
        answer
    }
}

/// Makes an answer one that cannot be true: the `number`-th of the ways, as far as the answer has such a part.
fn falsify(answer: &mut worker::StepResponse, number: u64) {
    let nonsense = || worker::Failure { code: "nonsense".to_owned(), message: String::new() };
    match (number % 5, &mut answer.outcome) {
        (0, outcome) => *outcome = None,
        (1, Some(Outcome::Rows(rows))) => rows.length += 1,
        (1, Some(Outcome::Drafted(drafted))) => drafted.length += 1,
        (2, Some(Outcome::Drafted(drafted))) => drafted.probabilities.fill(f64::NAN),
        (3, Some(Outcome::Drafted(drafted))) => drafted.ids.fill(u32::MAX),
        (2 | 3, Some(Outcome::Rows(rows))) if !rows.rows.is_empty() => {
            rows.rows.pop();
        }
        (4, outcome) => *outcome = Some(Outcome::Released(worker::Released {})),
        (_, outcome) => *outcome = Some(Outcome::Failure(nonsense())),
    }
}
