//! A worker whose model is a hash: the protocol of the real one over a real socket, with faults on demand.
//!
//! Its logits depend on the whole history, so a lost, repeated or foreign token changes every later row.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cosec_proto::draw::{Distribution, Purpose, Randomness, Warp};
use cosec_proto::worker::worker_server::WorkerServer;
use cosec_proto::worker::{self, step_request, step_response};
use cosec_proto::{ErrorCode, row_runs, transport};
use futures::Stream;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_server::{Health, HealthServer};

/// The model and the manners of a mock worker.
#[derive(Clone, Debug)]
pub struct MockModel {
    /// What it says it hosts.
    pub role: worker::Role,
    /// Length of a row.
    pub vocabulary: u32,
    /// Keeps its rows apart from other models'.
    pub salt: u64,
    /// Largest logit of the part that all models share; the part of its own goes to 1.
    pub agreement: f32,
    /// In tokens.
    pub context_tokens: u32,
    /// In tokens.
    pub max_operation_tokens: u32,
    /// Ids that end a generation.
    pub end_token_ids: Vec<u32>,
    /// As described.
    pub fingerprint: String,
    /// As described.
    pub tokenizer_fingerprint: String,
    /// Whether rows depend on what was generated; else every position has the same.
    pub remembers: bool,
}

impl MockModel {
    /// A base of 64 tokens.
    #[must_use]
    pub fn base() -> Self {
        Self {
            role: worker::Role::Base,
            vocabulary: 64,
            salt: 1,
            agreement: 3.0,
            context_tokens: 2048,
            max_operation_tokens: 16,
            end_token_ids: vec![0],
            fingerprint: "base".to_owned(),
            tokenizer_fingerprint: "tokenizer".to_owned(),
            remembers: true,
        }
    }

    /// An expert that agrees with [`Self::base`] now and then.
    #[must_use]
    pub fn expert() -> Self {
        let (role, fingerprint) = (worker::Role::Expert, "expert".to_owned());
        Self { role, salt: 2, fingerprint, max_operation_tokens: 24, ..Self::base() }
    }

    /// Logits behind `history`.
    #[must_use]
    pub fn row(&self, history: &[u32]) -> Vec<f32> {
        let history = if self.remembers { history } else { &[] };
        let state = history.iter().fold(0x9e37_79b9, |state, &token| mix(state ^ u64::from(token)));
        let noise =
            |salt: u64, id: u32| (mix(state ^ mix(salt ^ u64::from(id) << 32)) >> 40) as f32 / (1 << 24) as f32;
        (0..self.vocabulary).map(|id| self.agreement * noise(0, id) + noise(self.salt, id)).collect()
    }
}

/// The finaliser of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Changes a response before it is sent; `None` is never sent.
pub type Fault = dyn Fn(worker::StepResponse) -> Option<worker::StepResponse> + Send + Sync;

/// How a worker goes about its operations: how long they take, what becomes of answers, who watches.
pub trait Conduct: Send + Sync + 'static {
    /// A stream of operations begins; answers may be sent on it at any time.
    fn opened(&self, _: &Answers) {}

    /// What it says of itself in place of the truth.
    fn describe(
        &self,
        truth: worker::DescribeResponse,
    ) -> impl Future<Output = Result<worker::DescribeResponse, Status>> + Send {
        std::future::ready(Ok(truth))
    }

    /// How long its forward passes take.
    fn time(&self) -> StepTime {
        StepTime::default()
    }

    /// Passes before an operation joins a forward pass; its outcome is handed to [`Self::answer`].
    fn begin(&self, request: &worker::StepRequest) -> impl Future<Output = u64> + Send;

    /// What is sent in place of an answer.
    fn answer(&self, begun: u64, answer: worker::StepResponse) -> Vec<worker::StepResponse>;
}

/// Where answers go.
pub type Answers = mpsc::Sender<Result<worker::StepResponse, Status>>;

/// A running mock worker. Dropping it is a kill: every connection breaks.
pub struct MockWorker {
    address: SocketAddr,
    service: Service<Disturbances>,
    health: tonic_health::server::HealthReporter,
    runtime: Option<Runtime>,
}

/// The caches and the manners of a worker, without its socket.
#[derive(Debug)]
pub struct MockEngine {
    model: MockModel,
    sessions: Mutex<HashMap<Vec<u8>, Cache>>,
}

/// How long forward passes take, and how many operations share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// Of every pass: the weights are read.
    pub fixed: Duration,
    /// Of every row in it.
    pub per_row: Duration,
    /// Most operations of one pass.
    pub batch: usize,
}

impl Default for StepTime {
    /// At once, one operation behind the other.
    fn default() -> Self {
        Self { fixed: Duration::ZERO, per_row: Duration::ZERO, batch: 1 }
    }
}

/// What a test does to a worker.
#[derive(Default)]
pub struct Disturbances {
    fault: Mutex<Option<Box<Fault>>>,
    time: Mutex<StepTime>,
    operations: AtomicU64,
}

impl Conduct for Disturbances {
    fn time(&self) -> StepTime {
        *self.time.lock()
    }

    async fn begin(&self, _: &worker::StepRequest) -> u64 {
        0
    }

    fn answer(&self, _: u64, answer: worker::StepResponse) -> Vec<worker::StepResponse> {
        self.operations.fetch_add(1, Ordering::SeqCst);
        match &*self.fault.lock() {
            Some(fault) => fault(answer).into_iter().collect(),
            None => vec![answer],
        }
    }
}

#[derive(Debug)]
struct Cache {
    tokens: Vec<u32>,
    /// When something was fed.
    heard: Instant,
    /// Whether the row behind the last token is kept.
    kept: bool,
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
        let service = Service::new(model, Disturbances::default());
        let (health, health_service) = tonic_health::server::health_reporter();
        let (serving, reporter) = (service.clone(), health.clone());
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            reporter.set_serving::<WorkerServer<Service<Disturbances>>>().await;
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

    /// Operations answered or in vain.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.service.conduct().operations.load(Ordering::SeqCst)
    }

    /// Operations that were withdrawn in time.
    #[must_use]
    pub fn cancelled(&self) -> u64 {
        self.service.0.cancelled.load(Ordering::SeqCst)
    }

    /// Distorts every response from now on.
    pub fn set_fault(&self, fault: Option<Box<Fault>>) {
        *self.service.conduct().fault.lock() = fault;
    }

    /// Time that every pass takes from now on; operations go one behind the other.
    pub fn set_delay(&self, delay: Duration) {
        *self.service.conduct().time.lock() = StepTime { fixed: delay, ..StepTime::default() };
    }

    /// What the health service says.
    pub async fn set_serving(&self, serving: bool) {
        if serving {
            self.health.set_serving::<WorkerServer<Service<Disturbances>>>().await;
        } else {
            self.health.set_not_serving::<WorkerServer<Service<Disturbances>>>().await;
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

/// Serves `model` on `listener` for as long as it is polled: for fleets of mock workers on one runtime, none of which is
/// ever killed.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(model: MockModel, time: StepTime, listener: TcpListener) -> Result<(), tonic::transport::Error> {
    let service = Service::new(model, Disturbances { time: Mutex::new(time), ..Disturbances::default() });
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<WorkerServer<Service<Disturbances>>>().await;
    service.serve(health_service, listener).await
}

/// The gRPC service of a mock worker.
pub struct Service<C>(Arc<Hosted<C>>);

struct Hosted<C> {
    engine: MockEngine,
    conduct: C,
    cancelled: AtomicU64,
}

impl<C> Clone for Service<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: Conduct> Service<C> {
    /// Without sessions.
    #[must_use]
    pub fn new(model: MockModel, conduct: C) -> Self {
        let (engine, cancelled) = (MockEngine::new(model), AtomicU64::new(0));
        Self(Arc::new(Hosted { engine, conduct, cancelled }))
    }

    /// What it computes with.
    #[must_use]
    pub fn engine(&self) -> &MockEngine {
        &self.0.engine
    }

    /// How it goes about it.
    #[must_use]
    pub fn conduct(&self) -> &C {
        &self.0.conduct
    }

    /// With the limits of a real worker.
    #[must_use]
    pub fn server(&self) -> WorkerServer<Self> {
        WorkerServer::new(self.clone())
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(transport::MAX_MESSAGE_BYTES)
    }

    async fn serve(
        &self,
        health: HealthServer<impl Health>,
        listener: TcpListener,
    ) -> Result<(), tonic::transport::Error> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        transport::server().add_service(health).add_service(self.server()).serve_with_incoming(incoming).await
    }
}

#[tonic::async_trait]
impl<C: Conduct> worker::worker_server::Worker for Service<C> {
    async fn describe(
        &self,
        _: Request<worker::DescribeRequest>,
    ) -> Result<Response<worker::DescribeResponse>, Status> {
        let model = &self.0.engine.model;
        let truth = worker::DescribeResponse {
            role: model.role.into(),
            model: "mock".to_owned(),
            fingerprint: model.fingerprint.clone(),
            tokenizer_fingerprint: model.tokenizer_fingerprint.clone(),
            vocabulary: model.vocabulary,
            context_tokens: model.context_tokens,
            end_token_ids: model.end_token_ids.clone(),
            max_operation_tokens: model.max_operation_tokens,
            sessions: self.0.engine.sessions() as u32,
            ..worker::DescribeResponse::default()
        };
        Ok(Response::new(self.0.conduct.describe(truth).await?))
    }

    type TokenizerStream = Pin<Box<dyn Stream<Item = Result<worker::TokenizerResponse, Status>> + Send>>;

    async fn tokenizer(
        &self,
        _: Request<worker::TokenizerRequest>,
    ) -> Result<Response<Self::TokenizerStream>, Status> {
        Err(Status::unimplemented("a mock worker has no tokenizer"))
    }

    type StepStream = Pin<Box<dyn Stream<Item = Result<worker::StepResponse, Status>> + Send>>;

    async fn step(
        &self,
        request: Request<Streaming<worker::StepRequest>>,
    ) -> Result<Response<Self::StepStream>, Status> {
        let mut requests = request.into_inner();
        let (queue, queued) = mpsc::channel(1024);
        let (responses, answered) = mpsc::channel(1024);
        self.0.conduct.opened(&responses);
        let withdrawn = Arc::new(Mutex::new(HashSet::new()));
        let noted = Arc::clone(&withdrawn);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(step_request::Operation::Cancel(cancel)) = request.operation {
                    noted.lock().insert(cancel.target);
                } else if queue.send((request, Instant::now())).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(Passes { hosted: Arc::clone(&self.0), withdrawn, responses, batch: Vec::new() }.run(queued));
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }
}

/// Longer operations feed a prompt.
const SHORT_TOKENS: u32 = 64;

/// The forward passes for one stream: operations join between two passes and leave when they have had theirs, as in
/// an engine that batches continuously.
struct Passes<C> {
    hosted: Arc<Hosted<C>>,
    withdrawn: Arc<Mutex<HashSet<u64>>>,
    responses: Answers,
    batch: Vec<UnderWay>,
}

struct UnderWay {
    request: worker::StepRequest,
    begun: u64,
    queue: Duration,
    compute: Duration,
    passes: u32,
    /// Of all passes, with those of other operations.
    pass_tokens: u32,
    pass_rows: u32,
    /// Of the next pass.
    tokens: u32,
    passes_left: u32,
}

impl UnderWay {
    fn new(request: worker::StepRequest, received: Instant, begun: u64) -> Self {
        let (fed, passes) = match &request.operation {
            Some(step_request::Operation::Extend(extend)) => (extend.tokens.len(), 1),
            Some(step_request::Operation::Draft(draft)) => (draft.tokens.len(), draft.k.max(1)),
            _ => (0, 1),
        };
        let tokens = fed.max(1) as u32;
        Self {
            request,
            begun,
            queue: received.elapsed(),
            compute: Duration::ZERO,
            passes: 0,
            pass_tokens: 0,
            pass_rows: 0,
            tokens,
            passes_left: passes,
        }
    }
}

impl<C: Conduct> Passes<C> {
    async fn run(mut self, mut queued: mpsc::Receiver<(worker::StepRequest, Instant)>) {
        loop {
            if self.batch.is_empty() {
                let Some(first) = queued.recv().await else { return };
                self.join(first).await;
            }
            let time = self.hosted.conduct.time();
            while self.batch.len() < time.batch
                && let Ok(next) = queued.try_recv()
            {
                self.join(next).await;
            }
            let tokens: u32 = self.batch.iter().map(|operation| operation.tokens).sum();
            // Of a prompt, one row is wanted.
            let rows = |operation: &UnderWay| if operation.tokens > SHORT_TOKENS { 1 } else { operation.tokens };
            let rows: u32 = self.batch.iter().map(rows).sum();
            let pass = time.fixed + time.per_row * tokens;
            if !pass.is_zero() {
                tokio::time::sleep(pass).await;
            }
            for operation in &mut self.batch {
                operation.compute += pass;
                operation.passes += 1;
                operation.pass_tokens += tokens;
                operation.pass_rows += rows;
                operation.tokens = 1;
                operation.passes_left -= 1;
            }
            let withdrawn = self.withdrawn.lock().clone();
            let ends =
                |operation: &mut UnderWay| operation.passes_left == 0 || withdrawn.contains(&operation.request.op);
            let ended: Vec<_> = self.batch.extract_if(.., ends).collect();
            for operation in ended {
                if self.answer(operation).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn join(&mut self, (request, received): (worker::StepRequest, Instant)) {
        let begun = self.hosted.conduct.begin(&request).await;
        self.batch.push(UnderWay::new(request, received, begun));
    }

    async fn answer(&self, operation: UnderWay) -> Result<(), Gone> {
        let UnderWay { request, begun, queue, compute, passes, pass_tokens, pass_rows, .. } = operation;
        let (hosted, op) = (&self.hosted, request.op);
        let outcome = if self.withdrawn.lock().remove(&op) {
            hosted.cancelled.fetch_add(1, Ordering::SeqCst);
            hosted.engine.begin(request);
            failure(ErrorCode::Cancelled, "withdrawn")
        } else {
            hosted.engine.perform(request)
        };
        let (queue_us, compute_us) = (queue.as_micros() as u32, compute.as_micros() as u32);
        let outcome = Some(outcome);
        let response = worker::StepResponse { op, outcome, queue_us, compute_us, passes, pass_tokens, pass_rows };
        for answer in hosted.conduct.answer(begun, response) {
            self.responses.send(Ok(answer)).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}

/// Nobody reads the answers any more.
struct Gone;

fn failure(code: ErrorCode, message: &str) -> step_response::Outcome {
    step_response::Outcome::Failure(worker::Failure { code: code.name().to_owned(), message: message.to_owned() })
}

impl MockEngine {
    /// An engine without sessions.
    #[must_use]
    pub fn new(model: MockModel) -> Self {
        Self { model, sessions: Mutex::default() }
    }

    /// Sessions that hold a cache.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.lock().len()
    }

    /// Whether a session holds a cache.
    #[must_use]
    pub fn holds(&self, session: &[u8]) -> bool {
        self.sessions.lock().contains_key(session)
    }

    /// Forgets all caches.
    pub fn evict(&self) {
        self.sessions.lock().clear();
    }

    /// Forgets the caches of sessions that it has not heard of for `lease`.
    pub fn expire_leases(&self, lease: Duration) {
        self.sessions.lock().retain(|_, cache| cache.heard.elapsed() < lease);
    }

    /// Performs one operation.
    #[must_use]
    pub fn perform(&self, request: worker::StepRequest) -> step_response::Outcome {
        let performed = match request.operation {
            Some(step_request::Operation::Extend(extend)) => self.extend(&extend),
            Some(step_request::Operation::Draft(draft)) => self.draft(&draft),
            Some(step_request::Operation::Release(release)) => {
                self.sessions.lock().remove(&release.session);
                Ok(step_response::Outcome::Released(worker::Released {}))
            }
            Some(step_request::Operation::Cancel(_)) | None => {
                Err(failure(ErrorCode::InvalidArgument, "no operation"))
            }
        };
        performed.unwrap_or_else(|outcome| outcome)
    }

    /// An operation that is withdrawn before its second forward pass: what it fed in the first stays.
    pub fn begin(&self, request: worker::StepRequest) {
        match request.operation {
            Some(step_request::Operation::Draft(draft)) => {
                let _ = self.feed(&draft.session, draft.at, &draft.tokens, draft.tokens.is_empty());
            }
            Some(step_request::Operation::Release(release)) => {
                self.sessions.lock().remove(&release.session);
            }
            _ => {}
        }
    }

    /// Truncates and feeds; returns the history afterwards.
    fn feed(
        &self,
        session: &[u8],
        at: u32,
        tokens: &[u32],
        reads_kept: bool,
    ) -> Result<Vec<u32>, step_response::Outcome> {
        if tokens.iter().any(|&token| token >= self.model.vocabulary) {
            return Err(failure(ErrorCode::InvalidArgument, "a token id is out of range"));
        }
        if tokens.len() > self.model.max_operation_tokens as usize {
            return Err(failure(ErrorCode::InvalidArgument, "too many tokens"));
        }
        if at as usize + tokens.len() > self.model.context_tokens as usize {
            return Err(failure(ErrorCode::ContextLengthExceeded, "too long"));
        }
        let need = |have: usize| step_response::Outcome::NeedPrefix(worker::NeedPrefix { have: have as u32 });
        let mut sessions = self.sessions.lock();
        let at = at as usize;
        let have = sessions.get(session).map_or(0, |cache| cache.tokens.len());
        if have < at {
            return Err(need(have));
        }
        let kept = sessions.get(session).is_some_and(|cache| cache.kept && cache.tokens.len() == at);
        if reads_kept && !kept {
            return Err(need(at.saturating_sub(1)));
        }
        let now = Instant::now();
        let new = || Cache { tokens: Vec::new(), heard: now, kept: false };
        let cache = sessions.entry(session.to_vec()).or_insert_with(new);
        cache.heard = now;
        cache.tokens.truncate(at);
        cache.tokens.extend_from_slice(tokens);
        cache.kept = kept || !tokens.is_empty();
        Ok(cache.tokens.clone())
    }

    fn extend(&self, extend: &worker::Extend) -> Result<step_response::Outcome, step_response::Outcome> {
        let reads_kept = extend.rows.iter().any(|row| row.offset == 0);
        if extend.rows.iter().any(|row| row.offset as usize > extend.tokens.len()) {
            return Err(failure(ErrorCode::InvalidArgument, "offset behind the tokens"));
        }
        let history = self.feed(&extend.session, extend.at, &extend.tokens, reads_kept)?;
        let mut rows = Vec::new();
        let (asks, lengths) = row_runs::split_requests(extend.rows.clone());
        if asks.iter().any(|ask| ask.offset as usize > extend.tokens.len()) {
            return Err(failure(ErrorCode::InvalidArgument, "a run behind the tokens"));
        }
        for ask in &asks {
            let logits = self.model.row(&history[..(extend.at + ask.offset) as usize]);
            rows.push(worker::Row { offset: ask.offset, content: Some(view(ask, &logits)?) });
        }
        let rows = row_runs::join_rows(rows, &lengths);
        Ok(step_response::Outcome::Rows(worker::Rows { length: history.len() as u32, rows }))
    }

    fn draft(&self, draft: &worker::Draft) -> Result<step_response::Outcome, step_response::Outcome> {
        if draft.at as usize + draft.tokens.len() + draft.k as usize > self.model.context_tokens as usize + 1 {
            return Err(failure(ErrorCode::ContextLengthExceeded, "drafts beyond the context"));
        }
        let mut history = self.feed(&draft.session, draft.at, &draft.tokens, draft.tokens.is_empty())?;
        let warp = warp(draft.warp)?;
        let randomness = draft.randomness.map_or(Randomness { seed: 0, sample: 0 }, Randomness::from);
        let (mut ids, mut probabilities, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for offset in 0..draft.k {
            let logits = self.model.row(&history);
            for ask in draft.rows.iter().filter(|ask| ask.offset == offset) {
                rows.push(worker::Row { offset, content: Some(view(ask, &logits)?) });
            }
            let law = law(&logits, &warp)?;
            let id = law.sample(randomness.uniform(Purpose::Draft, history.len() as u32));
            ids.push(id);
            probabilities.push(law.probability(id));
            history.push(id);
        }
        history.pop();
        let length = history.len() as u32;
        if let Some(cache) = self.sessions.lock().get_mut(&draft.session) {
            cache.tokens = history;
        }
        Ok(step_response::Outcome::Drafted(worker::Drafted { length, ids, probabilities, rows }))
    }
}

fn warp(wire: Option<worker::Warp>) -> Result<Warp, step_response::Outcome> {
    let wire = wire.ok_or_else(|| failure(ErrorCode::InvalidArgument, "no warp"))?;
    Warp::try_from(wire).map_err(|error| failure(ErrorCode::InvalidArgument, &error.to_string()))
}

fn law(logits: &[f32], warp: &Warp) -> Result<Distribution, step_response::Outcome> {
    Distribution::warped(logits, warp).map_err(|error| failure(ErrorCode::Internal, &error.to_string()))
}

fn view(ask: &worker::RowRequest, logits: &[f32]) -> Result<worker::row::Content, step_response::Outcome> {
    use worker::row::Content;
    use worker::row_request::View;
    Ok(match &ask.view {
        Some(View::Gather(gather)) => {
            let law = law(logits, &warp(gather.warp)?)?;
            let probabilities = gather.ids.iter().map(|&id| law.probability(id)).collect();
            Content::Gathered(worker::Gathered { probabilities })
        }
        Some(View::Sample(sample)) => {
            let law = law(logits, &warp(sample.warp)?)?;
            let id = law.sample(sample.u);
            Content::Sampled(worker::Sampled { id, probability: law.probability(id) })
        }
        Some(View::Nucleus(nucleus)) => {
            let law = law(logits, &warp(nucleus.warp)?)?;
            let mut survivors: Vec<(u32, f64)> = law.iter().collect();
            let complete = survivors.len() <= nucleus.cap as usize;
            survivors.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            survivors.truncate(nucleus.cap as usize);
            survivors.sort_by_key(|&(id, _)| id);
            let (ids, probabilities) = survivors.into_iter().unzip();
            let log_normaliser = law.log_normaliser();
            Content::Nucleus(worker::NucleusRow { ids, probabilities, complete, log_normaliser })
        }
        Some(View::Full(_)) => Content::Full(worker::FullRow {
            precision: worker::Precision::F32.into(),
            logits: logits.iter().flat_map(|logit| logit.to_le_bytes()).collect(),
        }),
        None => return Err(failure(ErrorCode::InvalidArgument, "no view")),
    })
}
