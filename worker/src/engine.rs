//! The thread that owns model and scheduler, and the handle through which others reach it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use cosec_proto::{ErrorCode, OperationError, StepCost, WorkerLimits};
use tokio::sync::watch;

use crate::limits::EngineOptions;
use crate::metrics::WorkerMetrics;
use crate::model::ModelDescription;
use crate::operation::{OperationAnswer, OperationRequest, OperationTicket, QueuedOperation};
pub use crate::scheduler::LanguageModel;
use crate::scheduler::{ScheduledJob, Scheduler};
use crate::status::EngineStatus;

/// Places in the inbox that are not for operations: one wake-up and one order to stop.
const SPARE_INBOX: usize = 2;

/// What reaches the engine's thread.
#[derive(Debug)]
enum EngineCommand {
    Submit(Box<ScheduledJob>),
    /// An operation was cancelled.
    Wake,
    Stop,
}

/// Reaches the engine from any thread.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inbox: SyncSender<EngineCommand>,
    status: Arc<EngineStatus>,
    description: Arc<ModelDescription>,
    options: Arc<EngineOptions>,
    /// Closed when the thread ends.
    alive: watch::Receiver<()>,
}

/// Starts the engine's thread.
///
/// # Errors
/// When the system starts no thread.
pub fn start(
    model: impl LanguageModel,
    options: EngineOptions,
    metrics: Arc<WorkerMetrics>,
) -> io::Result<EngineHandle> {
    let (sender, inbox) = sync_channel(options.max_operations + SPARE_INBOX);
    let (alive_sender, alive) = watch::channel(());
    let status = Arc::new(EngineStatus::new(options.blocks));
    let description = Arc::new(model.description().clone());
    metrics.total_blocks.set(i64::try_from(options.blocks).unwrap_or(i64::MAX));
    let limits = options.limits(&description);
    let scheduler = Scheduler::new(options.clone(), &limits, Arc::clone(&status), metrics);
    let (thread_status, max_operations) = (Arc::clone(&status), options.max_operations);
    thread::Builder::new().name("engine".to_owned()).spawn(move || {
        // Dropped when the thread ends, by a panic too.
        let _alive = alive_sender;
        run(scheduler, model, inbox, &thread_status, max_operations);
    })?;
    Ok(EngineHandle { inbox: sender, status, description, options: Arc::new(options), alive })
}

/// Serves until told to stop or until nobody can ask any more. The operations in the inbox end with it.
fn run(
    mut scheduler: Scheduler,
    mut model: impl LanguageModel,
    inbox: Receiver<EngineCommand>,
    status: &EngineStatus,
    max_operations: usize,
) {
    loop {
        let mut is_gathering = scheduler.step(&mut model, &Instant::now);
        let began = Instant::now();
        if is_gathering {
            scheduler.open_batch_window(began);
        }
        let patience = scheduler.patience(began);
        // What is answered at once makes room for more: they must not come for ever.
        for _ in 0..max_operations {
            let until = if is_gathering { scheduler.batch_window_end() } else { Some(began + patience) };
            let wait = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            match inbox.recv_timeout(wait) {
                Ok(EngineCommand::Submit(job)) => {
                    let now = Instant::now();
                    scheduler.submit(job, now, &mut model);
                    if !is_gathering {
                        scheduler.open_batch_window(now);
                        is_gathering = true;
                    }
                }
                Ok(EngineCommand::Wake) => {
                    status.clear_wake();
                    // The next pass is about to see to it, unless there is none.
                    if !is_gathering {
                        break;
                    }
                }
                Ok(EngineCommand::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
    }
}

impl EngineHandle {
    /// What the model is.
    #[must_use]
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// Sizes and times of the engine.
    #[must_use]
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Live figures.
    #[must_use]
    pub fn status(&self) -> &EngineStatus {
        &self.status
    }

    /// What operations must keep to.
    #[must_use]
    pub fn limits(&self) -> WorkerLimits {
        self.options.limits(&self.description)
    }

    /// Queues an operation that keeps to the [`WorkerLimits`].
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `Unavailable` when the engine has stopped.
    pub fn submit(&self, request: OperationRequest) -> Result<OperationTicket, OperationError> {
        let most = self.options.max_operations;
        let overloaded = || {
            let message = format!("{most} operations are queued, as many as the worker takes");
            OperationError::new(ErrorCode::Overloaded, message)
        };
        let permit = self.status.permit(most).ok_or_else(overloaded)?;
        let (operation, ticket) = QueuedOperation::new(request, permit);
        match self.inbox.try_send(EngineCommand::Submit(Box::new(ScheduledJob::new(operation)))) {
            Ok(()) => Ok(ticket),
            Err(TrySendError::Full(_)) => Err(overloaded()),
            Err(TrySendError::Disconnected(_)) => Err(stopped()),
        }
    }

    /// Waits for the answer; `Unavailable` when the engine stops before.
    pub async fn answer(ticket: OperationTicket) -> OperationAnswer {
        let lost = |_| OperationAnswer { result: Err(stopped()), cost: StepCost::default() };
        ticket.answer.await.unwrap_or_else(lost)
    }

    /// Makes the engine look at operations that were cancelled meanwhile.
    pub fn wake(&self) {
        if self.status.wake() {
            // A stopped engine has no queue.
            let _ = self.inbox.try_send(EngineCommand::Wake);
        }
    }

    /// Opens no session any more.
    pub fn drain(&self) {
        self.status.drain();
    }

    /// Ends the thread after the step that it is in; what is queued is answered `Unavailable`.
    pub fn stop(&self) {
        let _ = self.inbox.try_send(EngineCommand::Stop);
    }

    /// Waits until the thread has ended, in whatever way.
    pub async fn stopped(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }
}

fn stopped() -> OperationError {
    OperationError::new(ErrorCode::Unavailable, "the worker's engine has stopped")
}
