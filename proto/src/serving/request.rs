//! The bodies of a request and of its answer, and what they tell of the client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tonic::Status;

use super::table::{RequestStage, TrackedRequest};

/// What every body may take without a share of the memory for bodies: no small request is refused for the large ones.
const FREE_BYTES: usize = 16 << 10;

/// A request until its answer has gone.
#[derive(Debug)]
pub(super) struct ServedRequest {
    tracked: TrackedRequest,
    /// Held until the answer begins: then the body has been read and made into something else.
    memory: Mutex<Option<OwnedSemaphorePermit>>,
}

impl ServedRequest {
    pub(super) fn new(tracked: TrackedRequest) -> Arc<Self> {
        Arc::new(Self { tracked, memory: Mutex::default() })
    }

    /// Notes that the answer's head goes out.
    pub(super) fn answered(&self) {
        self.arrived();
        self.memory.lock().take();
    }

    fn arrived(&self) {
        if self.tracked.stage() == RequestStage::Arriving {
            self.tracked.moves(RequestStage::Served);
        }
    }

    /// Takes memory for all but the free bytes of `received`.
    fn charge(&self, received: usize) -> Result<(), Status> {
        let mut memory = self.memory.lock();
        let held = memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = received.saturating_sub(FREE_BYTES).div_ceil(1024);
        if wanted <= held {
            return Ok(());
        }
        let more = self.tracked.table.body_memory(wanted - held);
        let more =
            more.ok_or_else(|| Status::resource_exhausted("too many large requests are arriving at a time"))?;
        match memory.as_mut() {
            Some(memory) => memory.merge(more),
            None => *memory = Some(more),
        }
        Ok(())
    }
}

/// What a client sends.
pub(super) struct ReceivedBody {
    body: Incoming,
    request: Arc<ServedRequest>,
    received: usize,
    /// For the whole of it, as long as the answer has not begun.
    deadline: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl ReceivedBody {
    pub(super) fn new(body: Incoming, request: Arc<ServedRequest>, timeout: Option<Duration>) -> Self {
        if body.is_end_stream() {
            request.arrived();
        }
        let deadline = timeout.map(|timeout| (timeout, Box::pin(tokio::time::sleep(timeout))));
        Self { body, request, received: 0, deadline }
    }
}

impl HttpBody for ReceivedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let is_arriving = this.request.tracked.stage() == RequestStage::Arriving;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.received += frame.data_ref().map_or(0, Bytes::len);
                if is_arriving {
                    this.request.charge(this.received)?;
                    let stage = if this.body.is_end_stream() { RequestStage::Served } else { RequestStage::Arriving };
                    this.request.tracked.moves(stage);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cause))) => Poll::Ready(Some(Err(Status::from_error(Box::new(cause))))),
            Poll::Ready(None) => {
                this.request.arrived();
                Poll::Ready(None)
            }
            Poll::Pending if !is_arriving => Poll::Pending,
            Poll::Pending => {
                let Some((timeout, deadline)) = &mut this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(context));
                let late = Status::deadline_exceeded(format!("the request did not arrive within {timeout:?}"));
                Poll::Ready(Some(Err(late)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a client is sent.
pub(super) struct SentBody {
    pub(super) body: Body,
    pub(super) request: Arc<ServedRequest>,
}

impl HttpBody for SentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(context);
        // Whoever asks for the next part has room for it; until then the last one waits for the client.
        let stage = if polled.is_ready() { RequestStage::Unread } else { RequestStage::Served };
        if this.request.tracked.stage() != stage || polled.is_ready() {
            this.request.tracked.moves(stage);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
