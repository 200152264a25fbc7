//! gRPC messages to operations of the engine and back, nothing else.

mod connection;

mod streams;

use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};

use cosec_proto::transport::{MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, check_protocol_version};
use cosec_proto::wire::worker::worker_server::{Worker, WorkerServer};
use cosec_proto::wire::worker::{
    DescribeRequest, DescribeResponse, StepRequest, StepResponse, TokenizerRequest, TokenizerResponse,
};
use cosec_proto::{AdapterDescription, WorkerDescription, WorkerRole};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use self::connection::Connection;
use self::streams::StreamSeats;
use crate::engine::EngineHandle;
use crate::metrics::WorkerMetrics;
use crate::registration;

/// Most bytes of a piece of the tokenizer.
const TOKENIZER_PIECE: usize = 1 << 20;

/// Responses that wait for the transport; others stay with the engine's replies.
const REPLY_QUEUE: usize = 4;

/// How the worker presents itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What the worker is for.
    pub role: WorkerRole,
    /// Name of the model; not unique.
    pub model: String,
    /// Where the worker stands; empty for nowhere in particular.
    pub zone: String,
    /// Where it tells coordinators of itself.
    pub registration: registration::RegistrationConfig,
}

/// The `Worker` service. Clones share everything.
#[derive(Clone, Debug)]
pub struct WorkerService {
    identity: Identity,
    /// Tells this process from others, whatever addresses lead to it.
    instance: NonZeroU64,
    /// Empty while the model is loading.
    engine: Arc<OnceLock<EngineHandle>>,
    metrics: Arc<WorkerMetrics>,
    tracker: TaskTracker,
    /// Ends all streams.
    closing: CancellationToken,
    streams: StreamSeats,
}

impl WorkerService {
    /// Answers `Unavailable` until [`Self::set_engine`]; its streams run on `tracker` and end with `closing`.
    #[must_use]
    pub fn new(
        identity: Identity,
        metrics: Arc<WorkerMetrics>,
        tracker: TaskTracker,
        closing: CancellationToken,
    ) -> Self {
        let instance = rand::random();
        Self {
            identity,
            instance,
            engine: Arc::default(),
            metrics,
            tracker,
            closing,
            streams: StreamSeats::default(),
        }
    }

    /// Begins to serve; the first call counts.
    pub fn set_engine(&self, engine: EngineHandle) {
        self.engine.get_or_init(|| engine);
    }

    /// Streams that are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.taken()
    }

    /// The service with the limits of the transport.
    #[must_use]
    pub fn into_server(self) -> WorkerServer<Self> {
        WorkerServer::new(self)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn engine(&self) -> Result<&EngineHandle, Status> {
        self.engine.get().ok_or_else(|| Status::unavailable("the model is loading"))
    }
}

#[tonic::async_trait]
impl Worker for WorkerService {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let engine = self.engine()?;
        let (model, limits, status) = (engine.description(), engine.limits(), engine.status());
        let adapters = model.adapters.iter().zip(&model.adapter_fingerprints);
        let adapters = adapters
            .map(|(name, fingerprint)| AdapterDescription { name: name.clone(), fingerprint: fingerprint.clone() });
        let description = WorkerDescription {
            role: self.identity.role,
            model: self.identity.model.clone(),
            instance: self.instance.get(),
            fingerprint: model.fingerprint.clone(),
            tokenizer_fingerprint: model.tokenizer_fingerprint.clone(),
            limits,
            block_tokens: count(engine.options().block_tokens),
            total_blocks: count(engine.options().blocks),
            free_blocks: count(status.free_blocks()),
            sessions: count(status.sessions()),
            end_token_ids: model.end_token_ids.clone(),
            adapters: adapters.collect(),
            queued_tokens: count(status.queued_tokens()),
            draining: status.is_draining(),
            zone: self.identity.zone.clone(),
        };
        Ok(Response::new(description.into()))
    }

    type TokenizerStream = BoxStream<'static, Result<TokenizerResponse, Status>>;

    async fn tokenizer(&self, _: Request<TokenizerRequest>) -> Result<Response<Self::TokenizerStream>, Status> {
        let tokenizer = self.engine()?.description().tokenizer.clone();
        let tokenizer = tokenizer.ok_or_else(|| Status::not_found("the model has no tokenizer.json"))?;
        let pieces = (0..tokenizer.len()).step_by(TOKENIZER_PIECE).map(move |from| {
            let piece = tokenizer[from..].iter().take(TOKENIZER_PIECE).copied().collect();
            Ok(TokenizerResponse { piece })
        });
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    type StepStream = ReceiverStream<Result<StepResponse, Status>>;

    async fn step(&self, request: Request<Streaming<StepRequest>>) -> Result<Response<Self::StepStream>, Status> {
        check_protocol_version(&request)?;
        let engine = self.engine()?.clone();
        let seat = self.streams.take(request.remote_addr().map(|peer| peer.ip()));
        let (replies, stream) = mpsc::channel(REPLY_QUEUE);
        let (metrics, closing) = (Arc::clone(&self.metrics), self.closing.clone());
        let connection = Connection::new(engine, metrics, closing, replies, seat);
        self.tracker.spawn(connection.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Sizes on the wire are u32 and bounded far below.
fn count(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
