//! The thread that owns model and scheduler, and the handle through which others reach it.

pub mod model;

pub mod operation;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use cosec_proto::ErrorCode;
use tokio::sync::watch;

use crate::metrics::WorkerMetrics;
use crate::model::ModelDescription;
use crate::scheduler::Scheduler;
use crate::scheduler::job::Job;

pub use model::Model;
use operation::{Answer, Effort, Failure, Operation, Place, Request, Ticket};

/// Most tokens of one operation.
const MAX_OPERATION_TOKENS: usize = 8192;

/// Places in the inbox beside those of operations: one nudge and one order to stop.
const SPARE_INBOX: usize = 2;

/// Weight of the newest forward pass in the moving average of their time.
const STEP_TIME_WEIGHT: f64 = 0.1;

/// Sizes and times of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Blocks of the model's KV cache.
    pub blocks: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Most tokens of one forward pass.
    pub step_tokens: usize,
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// Most unanswered operations.
    pub max_operations: usize,
    /// A session that is not heard of for so long is released.
    pub lease: Duration,
}

/// What requests must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are below it.
    pub vocabulary: usize,
    /// Longest sequence: what the model can and the cache holds.
    pub context_tokens: usize,
    /// Most tokens of one operation.
    pub operation_tokens: usize,
}

impl Limits {
    pub(crate) fn new(options: &EngineOptions, model: &ModelDescription) -> Self {
        let capacity = options.blocks.saturating_mul(options.block_tokens);
        let context_tokens = model.context_tokens.min(capacity);
        let operation_tokens = context_tokens.min(MAX_OPERATION_TOKENS);
        Self { vocabulary: model.vocabulary, context_tokens, operation_tokens }
    }
}

/// Figures of the engine that others read while it runs.
#[derive(Debug)]
pub struct Status {
    free_blocks: AtomicUsize,
    sessions: AtomicUsize,
    queued_tokens: AtomicUsize,
    operations: Arc<AtomicUsize>,
    step_seconds_bits: AtomicU64,
    draining: AtomicBool,
    /// Whether a nudge lies in the inbox.
    nudged: AtomicBool,
}

impl Status {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            free_blocks: AtomicUsize::new(blocks),
            sessions: AtomicUsize::new(0),
            queued_tokens: AtomicUsize::new(0),
            operations: Arc::default(),
            step_seconds_bits: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            nudged: AtomicBool::new(false),
        }
    }

    /// Cache blocks that nobody holds.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        self.free_blocks.load(Ordering::Acquire)
    }

    /// Open sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Acquire)
    }

    /// Tokens of unanswered operations that are still to be fed.
    #[must_use]
    pub fn queued_tokens(&self) -> usize {
        self.queued_tokens.load(Ordering::Acquire)
    }

    /// Unanswered operations.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations.load(Ordering::Acquire)
    }

    /// Exponential moving average of the time of a forward pass; 0 before the first.
    #[must_use]
    pub fn step_seconds(&self) -> f64 {
        f64::from_bits(self.step_seconds_bits.load(Ordering::Relaxed))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn set_room(&self, free_blocks: usize, sessions: usize, queued_tokens: usize) {
        self.free_blocks.store(free_blocks, Ordering::Release);
        self.sessions.store(sessions, Ordering::Release);
        self.queued_tokens.store(queued_tokens, Ordering::Release);
    }

    /// Called by the engine's thread alone.
    pub(crate) fn observe_step(&self, elapsed: Duration) {
        let (before, now) = (self.step_seconds(), elapsed.as_secs_f64());
        let average = if before == 0.0 { now } else { before + STEP_TIME_WEIGHT * (now - before) };
        self.step_seconds_bits.store(average.to_bits(), Ordering::Relaxed);
    }
}

/// What reaches the engine's thread.
#[derive(Debug)]
enum Command {
    Submit(Box<Job>),
    /// An operation was cancelled.
    Nudge,
    Stop,
}

/// Reaches the engine from any thread.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inbox: SyncSender<Command>,
    status: Arc<Status>,
    description: Arc<ModelDescription>,
    options: Arc<EngineOptions>,
    /// Closed when the thread ends.
    alive: watch::Receiver<()>,
}

/// Starts the engine's thread.
///
/// # Errors
/// When the system starts no thread.
pub fn start(model: impl Model, options: EngineOptions, metrics: Arc<WorkerMetrics>) -> io::Result<EngineHandle> {
    let (sender, inbox) = sync_channel(options.max_operations + SPARE_INBOX);
    let (alive_sender, alive) = watch::channel(());
    let status = Arc::new(Status::new(options.blocks));
    let description = Arc::new(model.description().clone());
    metrics.total_blocks.set(i64::try_from(options.blocks).unwrap_or(i64::MAX));
    let limits = Limits::new(&options, &description);
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
    mut model: impl Model,
    inbox: Receiver<Command>,
    status: &Status,
    max_operations: usize,
) {
    loop {
        let mut is_gathering = scheduler.step(&mut model);
        let began = Instant::now();
        if is_gathering {
            scheduler.begin_gathering(began);
        }
        let patience = scheduler.patience(began);
        // What is answered at once makes room for more: they must not come for ever.
        for _ in 0..max_operations {
            let until = if is_gathering { scheduler.awaits_until() } else { Some(began + patience) };
            let wait = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            match inbox.recv_timeout(wait) {
                Ok(Command::Submit(job)) => {
                    let now = Instant::now();
                    scheduler.submit(job, now, &mut model);
                    if !is_gathering {
                        scheduler.begin_gathering(now);
                        is_gathering = true;
                    }
                }
                Ok(Command::Nudge) => {
                    status.nudged.store(false, Ordering::SeqCst);
                    // The next pass is about to see to it, unless there is none.
                    if !is_gathering {
                        break;
                    }
                }
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
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
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// What requests must keep to.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::new(&self.options, &self.description)
    }

    /// Queues a request that keeps to the [`Limits`].
    ///
    /// # Errors
    /// A [`Failure`] with `Overloaded` when the queue is full, with `Unavailable` when the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<Ticket, Failure> {
        let most = self.options.max_operations;
        let overloaded = || {
            Failure::new(ErrorCode::Overloaded, format!("{most} operations are queued, as many as the worker takes"))
        };
        let place = Place::take(&self.status.operations, most).ok_or_else(overloaded)?;
        let (operation, ticket) = Operation::new(request, place);
        match self.inbox.try_send(Command::Submit(Box::new(Job::new(operation)))) {
            Ok(()) => Ok(ticket),
            Err(TrySendError::Full(_)) => Err(overloaded()),
            Err(TrySendError::Disconnected(_)) => Err(stopped()),
        }
    }

    /// Waits for the answer; `Unavailable` when the engine stops before.
    pub async fn answer(ticket: Ticket) -> Answer {
        ticket
            .answer
            .await
            .unwrap_or_else(|_| Answer { outcome: operation::Outcome::Failed(stopped()), effort: Effort::default() })
    }

    /// Makes the engine look at operations that were cancelled meanwhile.
    pub fn nudge(&self) {
        if !self.status.nudged.swap(true, Ordering::SeqCst) {
            // A stopped engine has no queue.
            let _ = self.inbox.try_send(Command::Nudge);
        }
    }

    /// Opens no session any more.
    pub fn drain(&self) {
        self.status.draining.store(true, Ordering::Release);
    }

    /// Ends the thread after the step that it is in; what is queued is answered `Unavailable`.
    pub fn stop(&self) {
        let _ = self.inbox.try_send(Command::Stop);
    }

    /// Waits until the thread has ended, in whatever way.
    pub async fn stopped(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }
}

fn stopped() -> Failure {
    Failure::new(ErrorCode::Unavailable, "the worker's engine has stopped")
}
