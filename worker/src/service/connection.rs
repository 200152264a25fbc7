//! One stream of a coordinator: its operations in flight, and their answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cosec_proto::transport::MAX_MESSAGE_BYTES;
use cosec_proto::wire::worker::step_request::Operation as WireOperation;
use cosec_proto::wire::worker::step_response::Outcome as WireOutcome;
use cosec_proto::wire::worker::{self as wire, StepRequest, StepResponse};
use cosec_proto::{ErrorCode, Operation, OperationError, OperationOutcome, ReplyLayout, StepCost, encode_response};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::streams::StreamSeat;
use crate::engine::EngineHandle;
use crate::metrics::WorkerMetrics;
use crate::operation::{OperationAnswer, OperationRequest};

/// Most unanswered operations of a stream.
const MAX_IN_FLIGHT: usize = 1024;

/// Most bytes that the answers to the operations in flight on a stream may take together.
const MAX_REPLY_BYTES: usize = 4 * MAX_MESSAGE_BYTES;

/// Time of an operation that names none.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(120);

/// An operation that the engine has answered.
struct AnsweredOperation {
    op: u64,
    kind: &'static str,
    layout: ReplyLayout,
    answer: OperationAnswer,
}

/// One stream of a coordinator.
pub(super) struct Connection {
    engine: EngineHandle,
    metrics: Arc<WorkerMetrics>,
    closing: CancellationToken,
    replies: mpsc::Sender<Result<StepResponse, Status>>,
    seat: StreamSeat,
    /// Flags that withdraw an operation.
    in_flight: HashMap<u64, Arc<AtomicBool>>,
    /// What the answers to the operations in flight may take.
    reply_bytes: usize,
    /// Dropping it withdraws every operation in it.
    pending: FuturesUnordered<BoxFuture<'static, AnsweredOperation>>,
}

impl Connection {
    /// The stream in this seat, whose answers go to `replies`.
    pub(super) fn new(
        engine: EngineHandle,
        metrics: Arc<WorkerMetrics>,
        closing: CancellationToken,
        replies: mpsc::Sender<Result<StepResponse, Status>>,
        seat: StreamSeat,
    ) -> Self {
        let (in_flight, pending) = (HashMap::new(), FuturesUnordered::new());
        Self { engine, metrics, closing, replies, seat, in_flight, reply_bytes: 0, pending }
    }

    /// Serves until both sides are done or one is gone. While the peer does not read its answers, no more operations
    /// are read from it.
    pub(super) async fn run(mut self, mut inbound: Streaming<StepRequest>) {
        self.metrics.streams.inc();
        let mut open = true;
        while open || !self.pending.is_empty() {
            let response = tokio::select! {
                // Deliver finished answers before closing.
                biased;
                Some(answered) = self.pending.next() => Some(self.respond(answered)),
                () = self.closing.cancelled() => {
                    // Only a peer that reads learns why.
                    let _ = self.replies.try_send(Err(Status::unavailable("the worker is shutting down")));
                    break;
                }
                () = self.seat.lost() => {
                    let _ = self.replies.try_send(Err(StreamSeat::gave_way()));
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
            let Some(response) = response else { continue };
            let sent = tokio::select! {
                // A peer that does not read must not keep its seat.
                () = self.seat.lost() => false,
                sent = self.replies.send(Ok(response)) => sent.is_ok(),
            };
            if !sent {
                break;
            }
        }
        self.metrics.streams.dec();
        drop(self.pending);
        self.engine.wake();
    }

    /// Takes in one message; a response when the engine does not get to see it.
    fn receive(&mut self, request: StepRequest) -> Option<StepResponse> {
        let received = Instant::now();
        self.seat.used(received);
        let StepRequest { op, deadline_ms, operation } = request;
        if let Some(WireOperation::Cancel(cancel)) = &operation {
            if let Some(flag) = self.in_flight.get(&cancel.target) {
                flag.store(true, Ordering::SeqCst);
                self.engine.wake();
            }
            return None;
        }
        let kind = operation.as_ref().map_or("unknown", kind);
        let refusal = self.start(op, kind, operation, deadline_ms, received).err()?;
        Some(self.response(op, kind, Err(refusal), StepCost::default(), &ReplyLayout::default()))
    }

    fn start(
        &mut self,
        op: u64,
        kind: &'static str,
        operation: Option<WireOperation>,
        deadline_ms: u32,
        received: Instant,
    ) -> Result<(), OperationError> {
        let operation = operation.ok_or_else(|| {
            OperationError::invalid(
                "operation is missing or unknown; it must be extend, draft, release, recall or cancel",
            )
        })?;
        if self.in_flight.contains_key(&op) {
            return Err(OperationError::invalid(format!(
                "op is {op}; an operation of that number is in flight on this stream"
            )));
        }
        let (operation, layout) = Operation::decode(operation, &self.engine.limits())?;
        let adapter = self.adapter(kind, &operation.adapter)?;
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            let message = format!("{MAX_IN_FLIGHT} operations are in flight on this stream, as many as it may have");
            return Err(OperationError::new(ErrorCode::Overloaded, message));
        }
        if self.reply_bytes + layout.max_bytes > MAX_REPLY_BYTES {
            let message =
                format!("answers in flight on this stream may take {MAX_REPLY_BYTES} bytes and would take more");
            return Err(OperationError::new(ErrorCode::Overloaded, message));
        }
        let patience = if deadline_ms == 0 { DEFAULT_DEADLINE } else { Duration::from_millis(deadline_ms.into()) };
        let (stream, deadline) = (self.seat.number(), received + patience);
        let ticket = self.engine.submit(OperationRequest { operation, adapter, stream, received, deadline })?;
        self.in_flight.insert(op, Arc::clone(&ticket.cancelled));
        self.reply_bytes += layout.max_bytes;
        self.pending.push(Box::pin(async move {
            AnsweredOperation { op, kind, layout, answer: EngineHandle::answer(ticket).await }
        }));
        Ok(())
    }

    /// Index of the adapter called `name`.
    fn adapter(&self, kind: &str, name: &str) -> Result<Option<usize>, OperationError> {
        if name.is_empty() {
            return Ok(None);
        }
        let adapters = &self.engine.description().adapters;
        let known = || if adapters.is_empty() { "the model has none".to_owned() } else { adapters.join(", ") };
        let index = adapters.iter().position(|adapter| adapter == name);
        let unknown =
            || OperationError::invalid(format!("{kind}.adapter is {name:?}; the adapters are: {}", known()));
        index.map(Some).ok_or_else(unknown)
    }

    fn respond(&mut self, answered: AnsweredOperation) -> StepResponse {
        let AnsweredOperation { op, kind, layout, answer } = answered;
        self.in_flight.remove(&op);
        self.reply_bytes -= layout.max_bytes;
        self.response(op, kind, answer.result, answer.cost, &layout)
    }

    fn response(
        &self,
        op: u64,
        kind: &'static str,
        result: Result<OperationOutcome, OperationError>,
        cost: StepCost,
        layout: &ReplyLayout,
    ) -> StepResponse {
        self.metrics.operations.with_label_values(&[kind, label(&result)]).inc();
        let response = encode_response(op, result, cost, layout);
        if let Some(WireOutcome::Rows(wire::Rows { rows, .. }) | WireOutcome::Drafted(wire::Drafted { rows, .. })) =
            &response.outcome
        {
            for row in rows {
                let view = row.content.as_ref().map_or("none", |content| content.view_name());
                self.metrics.logits_bytes.with_label_values(&[view]).inc_by(row.encoded_len() as u64);
            }
        }
        response
    }
}

fn kind(operation: &WireOperation) -> &'static str {
    match operation {
        WireOperation::Extend(_) => "extend",
        WireOperation::Draft(_) => "draft",
        WireOperation::Release(_) => "release",
        WireOperation::Cancel(_) => "cancel",
        WireOperation::Recall(_) => "recall",
    }
}

fn label(result: &Result<OperationOutcome, OperationError>) -> &'static str {
    match result {
        Ok(OperationOutcome::Extended(_)) => "rows",
        Ok(OperationOutcome::Drafted { .. }) => "drafted",
        Ok(OperationOutcome::NeedPrefix { .. }) => "need_prefix",
        Ok(OperationOutcome::Released) => "released",
        Ok(OperationOutcome::Recalled(_)) => "recalled",
        Err(error) => error.code.name(),
    }
}
