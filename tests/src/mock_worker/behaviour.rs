//! How a worker behaves: how long its passes take, and which answers it sends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cosec_proto::wire::worker;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

/// Changes a response before it is sent; `None` is never sent.
pub type Fault = dyn Fn(worker::StepResponse) -> Option<worker::StepResponse> + Send + Sync;

/// How a worker treats its operations: how long they take, which answers it sends, who observes them.
pub trait WorkerBehaviour: Send + Sync + 'static {
    /// A stream of operations begins; answers may be sent on it at any time.
    fn opened(&self, _: &Answers) {}

    /// The description that it gives; `truth` is the correct one.
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
    /// No time, one operation after the other.
    fn default() -> Self {
        Self { fixed: Duration::ZERO, per_row: Duration::ZERO, batch: 1 }
    }
}

/// Faults and delays that a test sets.
#[derive(Default)]
pub struct InjectedFaults {
    pub(super) fault: Mutex<Option<Box<Fault>>>,
    pub(super) time: Mutex<StepTime>,
    pub(super) operations: AtomicU64,
}

impl WorkerBehaviour for InjectedFaults {
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
