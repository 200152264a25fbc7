//! gRPC messages to engine messages and back, nothing else.

mod parse;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cosec_proto::transport::MAX_MESSAGE_BYTES;
use cosec_proto::wire::worker::row::Content as WireContent;
use cosec_proto::wire::worker::step_request::Operation as WireOperation;
use cosec_proto::wire::worker::step_response::Outcome as WireOutcome;
use cosec_proto::wire::worker::worker_server::{Worker, WorkerServer};
use cosec_proto::wire::worker::{
    self as wire, DescribeRequest, DescribeResponse, StepRequest, StepResponse, TokenizerRequest, TokenizerResponse,
};
use cosec_proto::{ErrorCode, WorkerRole, row_runs};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::EngineHandle;
use crate::engine::operation::{Answer, Effort, Failure, Outcome};
use crate::metrics::WorkerMetrics;
use crate::registration;
use crate::rows::{Content, Precision};
use parse::{invalid, parse};

/// Most streams at a time, one per coordinator.
const MAX_STREAMS: usize = 64;

/// Most unanswered operations of a stream.
const MAX_IN_FLIGHT: usize = 1024;

/// Most bytes that the answers to the operations in flight on a stream may take together.
const MAX_REPLY_BYTES: usize = 4 * MAX_MESSAGE_BYTES;

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
    /// Empty while the model is loading.
    engine: Arc<OnceLock<EngineHandle>>,
    metrics: Arc<WorkerMetrics>,
    tracker: TaskTracker,
    /// Ends all streams.
    closing: CancellationToken,
    streams: Arc<Semaphore>,
    /// Streams so far.
    opened: Arc<AtomicU64>,
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
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        Self { identity, engine: Arc::default(), metrics, tracker, closing, streams, opened: Arc::default() }
    }

    /// Begins to serve; the first call counts.
    pub fn set_engine(&self, engine: EngineHandle) {
        self.engine.get_or_init(|| engine);
    }

    /// Streams that are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        MAX_STREAMS - self.streams.available_permits()
    }

    /// The service with the limits of the transport.
    #[must_use]
    pub fn into_server(self) -> WorkerServer<Self> {
        WorkerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
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
        Ok(Response::new(DescribeResponse {
            role: wire::Role::from(self.identity.role).into(),
            model: self.identity.model.clone(),
            fingerprint: model.fingerprint.clone(),
            tokenizer_fingerprint: model.tokenizer_fingerprint.clone(),
            vocabulary: count(limits.vocabulary),
            context_tokens: count(limits.context_tokens),
            block_tokens: count(engine.options().block_tokens),
            total_blocks: count(engine.options().blocks),
            free_blocks: count(status.free_blocks()),
            sessions: count(status.sessions()),
            step_seconds: status.step_seconds(),
            end_token_ids: model.end_token_ids.clone(),
            max_operation_tokens: count(limits.operation_tokens),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adapters: model.adapters.clone(),
            queued_tokens: count(status.queued_tokens()),
            draining: status.is_draining(),
            zone: self.identity.zone.clone(),
            adapter_fingerprints: model.adapter_fingerprints.clone(),
        }))
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
        let engine = self.engine()?.clone();
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{MAX_STREAMS} streams are open, as many as the worker takes"))
        })?;
        let (replies, stream) = mpsc::channel(REPLY_QUEUE);
        let connection = Connection {
            engine,
            metrics: Arc::clone(&self.metrics),
            closing: self.closing.clone(),
            replies,
            number: self.opened.fetch_add(1, Ordering::Relaxed),
            in_flight: HashMap::new(),
            reply_bytes: 0,
            pending: FuturesUnordered::new(),
            _permit: permit,
        };
        self.tracker.spawn(connection.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// An operation that the engine has answered.
struct Answered {
    op: u64,
    kind: &'static str,
    response_bytes: usize,
    /// How many of its views each of the answer's rows stands for.
    runs: Vec<usize>,
    answer: Answer,
}

/// One stream of a coordinator.
struct Connection {
    engine: EngineHandle,
    metrics: Arc<WorkerMetrics>,
    closing: CancellationToken,
    replies: mpsc::Sender<Result<StepResponse, Status>>,
    /// Tells the streams apart.
    number: u64,
    /// Flags that withdraw an operation.
    in_flight: HashMap<u64, Arc<AtomicBool>>,
    /// What the answers to the operations in flight may take.
    reply_bytes: usize,
    /// Dropping it withdraws every operation in it.
    pending: FuturesUnordered<BoxFuture<'static, Answered>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Serves until both sides are done or one is gone. While the peer does not read its answers, no more operations
    /// are read from it.
    async fn run(mut self, mut inbound: Streaming<StepRequest>) {
        self.metrics.streams.inc();
        let mut open = true;
        while open || !self.pending.is_empty() {
            let response = tokio::select! {
                // Whoever has an answer gets it, also when the engine's end has made it.
                biased;
                Some(answered) = self.pending.next() => Some(self.respond(answered)),
                () = self.closing.cancelled() => {
                    // Only a peer that reads learns why.
                    let _ = self.replies.try_send(Err(Status::unavailable("the worker is shutting down")));
                    break;
                }
                () = self.replies.closed() => break,
                request = inbound.next(), if open => match request {
                    Some(Ok(request)) => self.receive(request),
                    Some(Err(_)) => break,
                    None => {
                        open = false;
                        None
                    }
                },
            };
            if let Some(response) = response
                && self.replies.send(Ok(response)).await.is_err()
            {
                break;
            }
        }
        self.metrics.streams.dec();
        drop(self.pending);
        self.engine.nudge();
    }

    /// Takes in one message; a response when the engine does not get to see it.
    fn receive(&mut self, request: StepRequest) -> Option<StepResponse> {
        let received = Instant::now();
        let StepRequest { op, deadline_ms, operation } = request;
        if let Some(WireOperation::Cancel(cancel)) = &operation {
            if let Some(flag) = self.in_flight.get(&cancel.target) {
                flag.store(true, Ordering::SeqCst);
                self.engine.nudge();
            }
            return None;
        }
        let kind = operation.as_ref().map_or("unknown", kind);
        let failure = self.start(op, kind, operation, deadline_ms, received).err()?;
        Some(self.response(op, kind, (Outcome::Failed(failure), &[]), Effort::default()))
    }

    fn start(
        &mut self,
        op: u64,
        kind: &'static str,
        operation: Option<WireOperation>,
        deadline_ms: u32,
        received: Instant,
    ) -> Result<(), Failure> {
        let operation = operation
            .ok_or_else(|| invalid("operation is missing or unknown; it must be extend, draft, release or cancel"))?;
        if self.in_flight.contains_key(&op) {
            return Err(invalid(format!("op is {op}; an operation of that number is in flight on this stream")));
        }
        let parsed = parse(
            operation,
            deadline_ms,
            received,
            &self.engine.limits(),
            &self.engine.description().adapters,
            self.number,
        )?;
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            let message = format!("{MAX_IN_FLIGHT} operations are in flight on this stream, as many as it may have");
            return Err(Failure::new(ErrorCode::Overloaded, message));
        }
        let (response_bytes, runs) = (parsed.response_bytes, parsed.runs);
        if self.reply_bytes + response_bytes > MAX_REPLY_BYTES {
            let message =
                format!("answers in flight on this stream may take {MAX_REPLY_BYTES} bytes and would take more");
            return Err(Failure::new(ErrorCode::Overloaded, message));
        }
        let ticket = self.engine.submit(parsed.request)?;
        self.in_flight.insert(op, Arc::clone(&ticket.flag));
        self.reply_bytes += response_bytes;
        self.pending.push(Box::pin(async move {
            Answered { op, kind, response_bytes, runs, answer: EngineHandle::answer(ticket).await }
        }));
        Ok(())
    }

    fn respond(&mut self, answered: Answered) -> StepResponse {
        let Answered { op, kind, response_bytes, runs, answer } = answered;
        self.in_flight.remove(&op);
        self.reply_bytes -= response_bytes;
        self.response(op, kind, (answer.outcome, &runs), answer.effort)
    }

    fn response(
        &self,
        op: u64,
        kind: &'static str,
        (outcome, runs): (Outcome, &[usize]),
        effort: Effort,
    ) -> StepResponse {
        self.metrics.operations.with_label_values(&[kind, label(&outcome)]).inc();
        let outcome = Some(self.outcome(outcome, runs));
        let Effort { queue, compute, passes, tokens, rows } = effort;
        StepResponse {
            op,
            outcome,
            queue_us: micros(queue),
            compute_us: micros(compute),
            passes,
            pass_tokens: tokens,
            pass_rows: rows,
        }
    }

    fn outcome(&self, outcome: Outcome, runs: &[usize]) -> WireOutcome {
        match outcome {
            Outcome::Rows { length, rows } => {
                WireOutcome::Rows(wire::Rows { length: count(length), rows: self.rows(rows, runs) })
            }
            Outcome::Drafted { length, ids, probabilities, rows } => WireOutcome::Drafted(wire::Drafted {
                length: count(length),
                ids,
                probabilities,
                rows: self.rows(rows, runs),
            }),
            Outcome::NeedPrefix { have } => WireOutcome::NeedPrefix(wire::NeedPrefix { have: count(have) }),
            Outcome::Released => WireOutcome::Released(wire::Released {}),
            Outcome::Failed(Failure { code, message }) => {
                WireOutcome::Failure(wire::Failure { code: code.name().to_owned(), message })
            }
        }
    }

    fn rows(&self, rows: Vec<(usize, Content)>, runs: &[usize]) -> Vec<wire::Row> {
        row_runs::join_rows(rows.into_iter().map(|(offset, content)| self.row(offset, content)).collect(), runs)
    }

    fn row(&self, offset: usize, content: Content) -> wire::Row {
        let (view, content) = match content {
            Content::Gathered(probabilities) => ("gather", WireContent::Gathered(wire::Gathered { probabilities })),
            Content::Nucleus { ids, probabilities, complete, log_normaliser } => {
                ("nucleus", WireContent::Nucleus(wire::NucleusRow { ids, probabilities, complete, log_normaliser }))
            }
            Content::Sampled { id, probability } => {
                ("sample", WireContent::Sampled(wire::Sampled { id, probability }))
            }
            Content::Full { precision, logits } => {
                let precision = match precision {
                    Precision::F32 => wire::Precision::F32,
                    Precision::F16 => wire::Precision::F16,
                };
                ("full", WireContent::Full(wire::FullRow { precision: precision.into(), logits }))
            }
        };
        let row = wire::Row { offset: count(offset), content: Some(content) };
        self.metrics.logits_bytes.with_label_values(&[view]).inc_by(row.encoded_len() as u64);
        row
    }
}

fn kind(operation: &WireOperation) -> &'static str {
    match operation {
        WireOperation::Extend(_) => "extend",
        WireOperation::Draft(_) => "draft",
        WireOperation::Release(_) => "release",
        WireOperation::Cancel(_) => "cancel",
    }
}

fn label(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Rows { .. } => "rows",
        Outcome::Drafted { .. } => "drafted",
        Outcome::NeedPrefix { .. } => "need_prefix",
        Outcome::Released => "released",
        Outcome::Failed(failure) => failure.code.name(),
    }
}

/// Sizes on the wire are u32 and bounded far below.
fn count(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
