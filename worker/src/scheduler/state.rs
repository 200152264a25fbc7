//! Operations and sessions of a worker, and how both end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cosec_proto::{ErrorCode, OperationError, OperationOutcome, SessionId, WorkerLimits};

use super::batch_plan::BatchPlan;
use super::batch_window::BatchWindow;
use super::fairness::FairShares;
use super::job::{JobId, JobStage, ScheduledJob};
use super::language_model::LanguageModel;
use super::pass_memory::PassMemory;
use super::request_queue::RequestQueue;
use super::sequence_memory::SequenceMemory;
use crate::kv_cache::{BlockPool, BlockTable};
use crate::limits::EngineOptions;
use crate::logits_view::KeptLogits;
use crate::metrics::WorkerMetrics;
use crate::status::EngineStatus;

/// A session idle for so long gives way to any other that needs its blocks or its place.
pub(super) const IDLE: Duration = Duration::from_secs(2);

/// Bytes of logits that one forward pass may produce.
const STEP_LOGITS_BYTES: usize = 64 << 20;

/// What is cached for a session.
#[derive(Debug)]
pub(super) struct CachedSession {
    /// Empty after a preemption.
    pub(super) table: BlockTable,
    /// The logits after the last cached token.
    pub(super) kept: Option<KeptLogits>,
    /// Under whose name and with which adapter its tokens were cached.
    pub(super) tenant: u64,
    pub(super) adapter: Option<usize>,
    /// Arrival of the operation that opened it; a preemption does not change it.
    pub(super) age: u64,
    /// Of the coordinator that used it last.
    pub(super) stream: u64,
    /// An operation on it is under way.
    pub(super) busy: bool,
    /// When an operation on it last came or ended.
    pub(super) last_activity: Instant,
}

/// All operations and sessions of a worker.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(super) queue: RequestQueue,
    pub(super) sessions: HashMap<SessionId, CachedSession>,
    pub(super) window: BatchWindow,
    pub(super) pool: BlockPool,
    pub(super) memory: SequenceMemory,
    pub(super) fairness: FairShares,
    pub(super) options: EngineOptions,
    /// Blocks of the longest sequence.
    pub(super) table_blocks: usize,
    /// Tokens of unanswered operations that are still to be fed.
    pub(super) queued_tokens: usize,
    /// Positions whose logits one forward pass may compute.
    pub(super) step_positions: usize,
    /// Age of the oldest session that waits for blocks; younger ones take none before it.
    pub(super) oldest_blocked_age: Option<u64>,
    pub(super) plan: BatchPlan,
    pub(super) pass: PassMemory,
    pub(super) status: Arc<EngineStatus>,
    pub(super) metrics: Arc<WorkerMetrics>,
}

impl Scheduler {
    pub(crate) fn new(
        options: EngineOptions,
        limits: &WorkerLimits,
        status: Arc<EngineStatus>,
        metrics: Arc<WorkerMetrics>,
    ) -> Self {
        let scheduler = Self {
            queue: RequestQueue::default(),
            sessions: HashMap::new(),
            window: BatchWindow::default(),
            pool: BlockPool::new(options.blocks, options.block_tokens),
            memory: SequenceMemory::default(),
            fairness: FairShares::default(),
            table_blocks: (limits.context_tokens as usize).div_ceil(options.block_tokens),
            queued_tokens: 0,
            step_positions: (STEP_LOGITS_BYTES / (4 * limits.vocabulary.max(1) as usize)).max(1),
            oldest_blocked_age: None,
            plan: BatchPlan::default(),
            pass: PassMemory::default(),
            options,
            status,
            metrics,
        };
        scheduler.report();
        scheduler
    }

    /// Queues an operation. One that needs no pass and is next in its session is answered at once: its caller wants to
    /// ride in the pass that is being put together.
    pub(crate) fn submit(&mut self, job: Box<ScheduledJob>, now: Instant, model: &mut impl LanguageModel) {
        let (session, needs_pass, received) = (job.session, job.needs_pass(), job.received);
        if let Some(session) = self.sessions.get_mut(&session) {
            session.last_activity = now;
        }
        if needs_pass {
            // It may have waited here while others computed.
            self.window.came(session, received);
        }
        self.queued_tokens += job.waiting_tokens();
        let id = self.queue.push(job);
        if !needs_pass && self.queue.head(session) == Some(id) {
            self.start(id, now, model);
        }
    }

    /// Begins to wait for the sessions that may ride in the next pass.
    pub(crate) fn open_batch_window(&mut self, now: Instant) {
        self.window.open(now);
    }

    /// Until when the next pass waits for sessions that are expected; `None` when all are there.
    pub(crate) fn batch_window_end(&mut self) -> Option<Instant> {
        self.window.end()
    }

    /// Ends what is over: withdrawn operations, passed deadlines, sessions without a lease.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let failed: Vec<(JobId, OperationError)> =
            self.queue.iter().filter_map(|(id, job)| Some((id, verdict(job, now)?))).collect();
        for (id, failure) in failed {
            if failure.code == ErrorCode::Cancelled {
                self.cancel(id, failure, now);
            } else {
                self.fail(id, failure, now);
            }
        }
        let lease = self.options.lease;
        let expired: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(id, session)| now - session.last_activity >= lease && !self.queue.concerns(**id))
            .map(|(&id, _)| id)
            .collect();
        for id in expired {
            tracing::info!(session = %id, "lease expired");
            self.forget(id);
        }
        self.report();
    }

    /// How long nothing changes by itself: until the next deadline, the end of a lease, or the time when a session has
    /// to give way to those that wait for blocks.
    pub(crate) fn patience(&self, now: Instant) -> Duration {
        let deadlines = self.queue.iter().map(|(_, job)| job.deadline);
        let in_want = self.queue.iter().any(|(_, job)| job.missing_blocks > 0);
        let idle = self.sessions.iter().filter(|(id, _)| !self.queue.concerns(**id));
        let changes = idle.map(|(_, session)| {
            let gives_way = session.last_activity + IDLE;
            if in_want && gives_way > now { gives_way } else { session.last_activity + self.options.lease }
        });
        deadlines.chain(changes).min().map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now))
    }

    /// Gives back everything that a session holds; its tokens are remembered.
    pub(super) fn forget(&mut self, id: SessionId) {
        self.remember(id);
        self.window.forget(id);
        if let Some(mut session) = self.sessions.remove(&id) {
            session.table.clear(&mut self.pool);
        }
    }

    /// Answers an operation that has fed all its tokens.
    pub(super) fn complete(&mut self, id: JobId, now: Instant) {
        let Some(job) = self.queue.get_mut(id) else { return };
        if now > job.deadline {
            return self.fail(id, deadline_exceeded(), now);
        }
        let outcome = job.outcome();
        self.keep(id);
        self.answer(id, Ok(outcome), now);
    }

    /// Answers a withdrawn operation and leaves cached what it has fed.
    pub(super) fn cancel(&mut self, id: JobId, failure: OperationError, now: Instant) {
        if self.queue.get(id).is_some_and(|job| job.runs() && job.has_fed()) {
            self.keep(id);
            self.answer(id, Err(failure), now);
        } else {
            self.fail(id, failure, now);
        }
    }

    /// Leaves a session with what its operation has fed and the logits after it.
    fn keep(&mut self, id: JobId) {
        let Some(job) = self.queue.get_mut(id) else { return };
        let Some(session) = self.sessions.get_mut(&job.session) else { return };
        session.table.trim(&mut self.pool);
        if job.has_fed() {
            session.kept = job.last_logits();
        }
    }

    /// Answers an operation without a result and leaves its session as it was.
    pub(super) fn fail(&mut self, id: JobId, failure: OperationError, now: Instant) {
        let Some(job) = self.queue.get(id) else { return };
        match job.stage {
            JobStage::Waits => {}
            JobStage::Runs { opened: true } => self.forget(job.session),
            JobStage::Runs { opened: false } => {
                if let Some(session) = self.sessions.get_mut(&job.session) {
                    session.table.truncate(job.at, &mut self.pool);
                    if session.table.length() < job.at {
                        session.kept = None;
                    }
                }
            }
        }
        self.answer(id, Err(failure), now);
    }

    pub(super) fn answer(&mut self, id: JobId, result: Result<OperationOutcome, OperationError>, now: Instant) {
        let Some(job) = self.queue.remove(id) else { return };
        self.queued_tokens -= job.waiting_tokens();
        if let Some(session) = self.sessions.get_mut(&job.session) {
            session.last_activity = now;
            session.busy &= !job.runs();
            if job.runs() && !self.queue.concerns(job.session) {
                self.window.left(job.session, now);
            }
        }
        // Whoever reads the answer may ask for the figures next.
        self.report();
        self.metrics.queue_seconds.observe(job.queue_time(now).as_secs_f64());
        job.answer(result, now);
    }

    pub(super) fn report(&self) {
        self.status.set_room(self.pool.free(), self.sessions.len(), self.queued_tokens);
        self.metrics.free_blocks.set(gauge(self.pool.free()));
        self.metrics.sessions.set(gauge(self.sessions.len()));
        self.metrics.queued_tokens.set(gauge(self.queued_tokens));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Why `job` is over before it is done, if it is.
fn verdict(job: &ScheduledJob, now: Instant) -> Option<OperationError> {
    if job.caller.is_gone() {
        return Some(OperationError::new(ErrorCode::Cancelled, "the caller is gone"));
    }
    if job.caller.has_cancelled() {
        return Some(OperationError::new(ErrorCode::Cancelled, "the operation was cancelled before it was done"));
    }
    if now < job.deadline {
        return None;
    }
    if job.missing_blocks > 0 {
        return Some(OperationError::new(
            ErrorCode::OutOfBlocks,
            format!("no {} cache blocks became free before the deadline", job.missing_blocks),
        ));
    }
    Some(deadline_exceeded())
}

fn deadline_exceeded() -> OperationError {
    OperationError::new(ErrorCode::DeadlineExceeded, "the deadline passed before the operation was done")
}
