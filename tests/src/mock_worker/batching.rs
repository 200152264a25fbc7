//! Forward passes that operations join and leave, as in an engine that batches continuously.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cosec_proto::wire::worker::{self, step_request};
use cosec_proto::{ErrorCode, OperationError, ReplyLayout, StepCost, encode_response};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::behaviour::{Answers, WorkerBehaviour};
use super::session_cache::MockEngine;

/// Longer operations feed a prompt.
const SHORT_TOKENS: u32 = 64;

pub(super) struct Hosted<C> {
    pub(super) engine: MockEngine,
    pub(super) behaviour: C,
    /// In its description.
    pub(super) instance: u64,
    pub(super) cancelled: AtomicU64,
}

/// The forward passes for one stream: operations join between two passes and leave when they have had theirs, as in
/// an engine that batches continuously.
pub(super) struct Passes<C> {
    pub(super) hosted: Arc<Hosted<C>>,
    pub(super) withdrawn: Arc<Mutex<HashSet<u64>>>,
    pub(super) responses: Answers,
    pub(super) batch: Vec<UnderWay>,
}

pub(super) struct UnderWay {
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

impl<C: WorkerBehaviour> Passes<C> {
    pub(super) async fn run(mut self, mut queued: mpsc::Receiver<(worker::StepRequest, Instant)>) {
        loop {
            if self.batch.is_empty() {
                let Some(first) = queued.recv().await else { return };
                self.join(first).await;
            }
            let time = self.hosted.behaviour.time();
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
        let begun = self.hosted.behaviour.begin(&request).await;
        self.batch.push(UnderWay::new(request, received, begun));
    }

    async fn answer(&self, operation: UnderWay) -> Result<(), Gone> {
        let UnderWay { request, begun, queue, compute, passes, pass_tokens, pass_rows, .. } = operation;
        let (hosted, op) = (&self.hosted, request.op);
        let answered = if self.withdrawn.lock().remove(&op) {
            hosted.cancelled.fetch_add(1, Ordering::SeqCst);
            hosted.engine.begin(request);
            let cancelled = Err(OperationError::new(ErrorCode::Cancelled, "withdrawn"));
            encode_response(op, cancelled, StepCost::default(), &ReplyLayout::default())
        } else {
            hosted.engine.perform(request)
        };
        let (queue_us, compute_us) = (queue.as_micros() as u32, compute.as_micros() as u32);
        let response = worker::StepResponse { queue_us, compute_us, passes, pass_tokens, pass_rows, ..answered };
        for answer in hosted.behaviour.answer(begun, response) {
            self.responses.send(Ok(answer)).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}

/// The coordinator has closed the stream.
struct Gone;
