//! A real server with the fake model, and a client of one stream.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::sampling::SamplingParams;
use cosec_proto::transport::with_protocol_version;
use cosec_proto::wire::worker::row::Content;
use cosec_proto::wire::worker::row_request::View;
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::{
    Cancel, DescribeRequest, DescribeResponse, Draft, Extend, Full, Precision, Release, RowRequest, StepRequest,
    StepResponse,
};
use cosec_proto::{SessionId, transport};
use cosec_worker::engine::LanguageModel;
use cosec_worker::limits::EngineOptions;
use cosec_worker::model::ModelRunner;
use cosec_worker::registration;
use cosec_worker::server::{BoundServer, BoxedLoadError, ListenConfig, ServeError};
use cosec_worker::service::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::fake_model::{FakeModel, Gate};

/// Far longer than anything takes; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const SEED: u64 = 11;

/// By then whatever was sent has reached the engine's inbox.
pub(crate) const PAUSE: Duration = Duration::from_millis(60);

pub(crate) fn options() -> EngineOptions {
    EngineOptions {
        blocks: 512,
        block_tokens: 4,
        step_tokens: 64,
        max_sessions: 64,
        max_operations: 4096,
        lease: Duration::from_secs(600),
    }
}

pub(crate) struct Harness {
    pub(crate) address: SocketAddr,
    pub(crate) metrics_address: SocketAddr,
    pub(crate) gate: Arc<Gate>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<Result<(), ServeError>>,
    channel: Channel,
}

impl Harness {
    /// Serves, and the model is loaded.
    pub(crate) async fn start(options: EngineOptions) -> Self {
        let harness = Self::start_loading(options, || {}).await;
        harness.reaches_health(ServingStatus::Serving).await;
        harness
    }

    /// Serves; the model is loaded when `loading` returns.
    pub(crate) async fn start_loading(options: EngineOptions, loading: impl FnOnce() + Send + 'static) -> Self {
        let gate = Arc::new(Gate::default());
        let model = FakeModel::new(options.blocks, options.block_tokens, Arc::clone(&gate));
        let load = move || {
            loading();
            Ok((model, options))
        };
        Self::serve(gate, load).await
    }

    /// Serves a real model.
    pub(crate) async fn start_model(model: ModelRunner, options: EngineOptions) -> Self {
        let harness = Self::serve(Arc::default(), move || Ok((model, options))).await;
        harness.reaches_health(ServingStatus::Serving).await;
        harness
    }

    async fn serve<M: LanguageModel>(
        gate: Arc<Gate>,
        load: impl FnOnce() -> Result<(M, EngineOptions), BoxedLoadError> + Send + 'static,
    ) -> Self {
        let any = "127.0.0.1:0";
        let server = BoundServer::bind(&listening(any, Some(any))).await.unwrap();
        let (address, metrics_address) = (server.address(), server.metrics_address().unwrap());
        let shutdown = CancellationToken::new();
        let identity = Identity {
            role: cosec_proto::WorkerRole::Expert,
            model: "fake".to_owned(),
            zone: "here".to_owned(),
            registration: registration::RegistrationConfig::default(),
        };
        let server = tokio::spawn(server.run(identity, load, PATIENCE, shutdown.clone()));
        let channel = transport::channel(&address.to_string()).unwrap();
        Self { address, metrics_address, gate, shutdown, server, channel }
    }

    pub(crate) async fn wire(&self) -> Wire {
        Wire::open(self.channel.clone()).await
    }

    pub(crate) fn client(&self) -> WorkerClient<Channel> {
        WorkerClient::new(self.channel.clone())
    }

    pub(crate) async fn describe(&self) -> DescribeResponse {
        self.client().describe(DescribeRequest {}).await.unwrap().into_inner()
    }

    /// Waits until the worker describes itself as `wanted`.
    pub(crate) async fn describes(&self, wanted: impl Fn(&DescribeResponse) -> bool) {
        let reached = async {
            while !wanted(&self.describe().await) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    }

    /// What Prometheus scrapes.
    pub(crate) async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.metrics_address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    pub(crate) async fn health(&self, service: &str) -> ServingStatus {
        let request = HealthCheckRequest { service: service.to_owned() };
        HealthClient::new(self.channel.clone()).check(request).await.unwrap().into_inner().status()
    }

    pub(crate) async fn reaches_health(&self, wanted: ServingStatus) {
        let reached = async {
            while self.health("cosec.worker.v1.Worker").await != wanted || self.health("").await != wanted {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    }
}

/// Ports in the clear.
pub(crate) fn listening(listen: &str, metrics_listen: Option<&str>) -> ListenConfig {
    let metrics_listen = metrics_listen.map(str::to_owned);
    ListenConfig { listen: listen.to_owned(), metrics_listen, ..ListenConfig::default() }
}

impl Drop for Harness {
    fn drop(&mut self) {
        // A closed gate would hold the engine's thread.
        self.gate.open();
        self.shutdown.cancel();
    }
}

/// One stream.
pub(crate) struct Wire {
    requests: mpsc::Sender<StepRequest>,
    responses: Streaming<StepResponse>,
    early: HashMap<u64, StepResponse>,
    next_op: u64,
}

impl Wire {
    pub(crate) async fn open(channel: Channel) -> Self {
        let (requests, outgoing) = mpsc::channel(4096);
        let mut client = WorkerClient::new(channel).max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
        let responses = client.step(with_protocol_version(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
        Self { requests, responses, early: HashMap::new(), next_op: 0 }
    }

    /// Sends an operation and does not wait for its answer.
    pub(crate) async fn send(&mut self, operation: impl Into<Option<Operation>>, deadline_ms: u32) -> u64 {
        self.next_op += 1;
        self.send_as(self.next_op, operation, deadline_ms).await;
        self.next_op
    }

    pub(crate) async fn send_as(&self, op: u64, operation: impl Into<Option<Operation>>, deadline_ms: u32) {
        let request = StepRequest { op, deadline_ms, operation: operation.into() };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn cancel(&mut self, target: u64) {
        self.send(Operation::Cancel(Cancel { target }), 0).await;
    }

    /// The next response, whichever it is.
    pub(crate) async fn next(&mut self) -> Option<StepResponse> {
        timeout(PATIENCE, self.responses.message()).await.expect("no response came").unwrap()
    }

    /// The response of `op`; others are kept for later.
    pub(crate) async fn response(&mut self, op: u64) -> StepResponse {
        loop {
            if let Some(response) = self.early.remove(&op) {
                return response;
            }
            let response = self.next().await.expect("the stream ended");
            self.early.insert(response.op, response);
        }
    }

    pub(crate) async fn answer(&mut self, op: u64) -> Outcome {
        self.response(op).await.outcome.unwrap()
    }

    pub(crate) async fn run(&mut self, operation: impl Into<Option<Operation>>) -> Outcome {
        let op = self.send(operation, 0).await;
        self.answer(op).await
    }

    /// Runs an Extend for full rows and returns their logits.
    pub(crate) async fn rows(
        &mut self,
        session: SessionId,
        at: u32,
        tokens: &[u32],
        offsets: &[u32],
    ) -> Vec<Vec<f32>> {
        let outcome = self.run(extend(session, at, tokens, offsets)).await;
        full_rows(&outcome).unwrap_or_else(|| panic!("{outcome:?}"))
    }

    /// Nothing more will be sent.
    pub(crate) fn close(self) -> Streaming<StepResponse> {
        self.responses
    }
}

pub(crate) fn full(offset: u32) -> RowRequest {
    RowRequest { offset, view: Some(View::Full(Full { precision: Precision::F32.into() })) }
}

pub(crate) fn extend(session: SessionId, at: u32, tokens: &[u32], offsets: &[u32]) -> Operation {
    let rows = offsets.iter().map(|&offset| full(offset)).collect();
    Operation::Extend(Extend { session: session.to_wire(), at, tokens: tokens.to_vec(), rows, ..Extend::default() })
}

pub(crate) fn warp() -> SamplingParams {
    SamplingParams::new(0.8, 0.95, 0).unwrap()
}

pub(crate) fn draft(session: SessionId, at: u32, tokens: &[u32], k: u32) -> Operation {
    let randomness = Some(cosec_proto::sampling::SamplingSeed { seed: SEED, sample: 1 }.into());
    let warp = Some(warp().into());
    Operation::Draft(Draft {
        session: session.to_wire(),
        at,
        tokens: tokens.to_vec(),
        k,
        warp,
        randomness,
        ..Draft::default()
    })
}

pub(crate) fn release(session: SessionId) -> Operation {
    Operation::Release(Release { session: session.to_wire() })
}

/// The logits of an answer whose rows are all full.
pub(crate) fn full_rows(outcome: &Outcome) -> Option<Vec<Vec<f32>>> {
    let Outcome::Rows(rows) = outcome else { return None };
    rows.rows
        .iter()
        .map(|row| match row.content.as_ref()? {
            Content::Full(full) => {
                Some(full.logits.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect())
            }
            _ => None,
        })
        .collect()
}

/// Code and message of an answer that has to be a failure.
pub(crate) fn failure(outcome: Outcome) -> (String, String) {
    match outcome {
        Outcome::Failure(failure) => (failure.code, failure.message),
        other => panic!("not a failure: {other:?}"),
    }
}

pub(crate) fn need_prefix(outcome: &Outcome) -> Option<u32> {
    match outcome {
        Outcome::NeedPrefix(need) => Some(need.have),
        _ => None,
    }
}
