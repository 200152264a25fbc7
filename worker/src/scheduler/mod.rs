//! Continuous batching: which tokens of which sessions ride in the next forward pass.
//!
//! The scheduler owns the sessions' block tables and kept rows. It knows no clock but the one it is handed, no thread
//! and no socket.

pub(crate) mod request_queue;

pub(crate) mod job;

pub(crate) mod fairness;

pub(crate) mod batch;

pub(crate) mod gathering;

pub(crate) mod start;

pub(crate) mod step;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cosec_proto::{ErrorCode, SessionId};

use crate::engine::operation::{Answer, Effort, Failure, Outcome};
use crate::engine::{EngineOptions, Limits, Model, Status};
use crate::kv_cache::{BlockPool, BlockTable};
use crate::metrics::WorkerMetrics;
use crate::rows::KeptRow;

use batch::Plan;
use fairness::Fairness;
use gathering::Gathering;
use job::{Job, Stage};
use request_queue::{JobId, RequestQueue};
use step::Pass;

/// Bytes of logits that one forward pass may produce.
const STEP_LOGITS_BYTES: usize = 64 << 20;

/// What is cached for a session.
#[derive(Debug)]
struct Session {
    /// Empty after a preemption.
    table: BlockTable,
    /// The row behind the last cached token.
    kept: Option<KeptRow>,
    /// Under whose name and with which adapter its tokens were cached.
    tenant: u64,
    adapter: Option<usize>,
    /// Arrival of the operation that opened it; a preemption does not change it.
    age: u64,
    /// An operation on it is under way.
    busy: bool,
    /// When an operation on it last came or ended.
    heard: Instant,
}

/// All operations and sessions of a worker.
#[derive(Debug)]
pub(crate) struct Scheduler {
    queue: RequestQueue,
    sessions: HashMap<SessionId, Session>,
    gathering: Gathering,
    pool: BlockPool,
    fairness: Fairness,
    options: EngineOptions,
    /// Blocks of the longest sequence.
    table_blocks: usize,
    /// Tokens of unanswered operations that are still to be fed.
    queued_tokens: usize,
    /// Rows of logits that one forward pass may produce.
    step_rows: usize,
    /// Age of the oldest session that waits for blocks; younger ones take none before it.
    first_in_want: Option<u64>,
    plan: Plan,
    pass: Pass,
    status: Arc<Status>,
    metrics: Arc<WorkerMetrics>,
}

impl Scheduler {
    pub(crate) fn new(
        options: EngineOptions,
        limits: &Limits,
        status: Arc<Status>,
        metrics: Arc<WorkerMetrics>,
    ) -> Self {
        let scheduler = Self {
            queue: RequestQueue::default(),
            sessions: HashMap::new(),
            gathering: Gathering::default(),
            pool: BlockPool::new(options.blocks, options.block_tokens),
            fairness: Fairness::default(),
            table_blocks: limits.context_tokens.div_ceil(options.block_tokens),
            queued_tokens: 0,
            step_rows: (STEP_LOGITS_BYTES / (4 * limits.vocabulary.max(1))).max(1),
            first_in_want: None,
            plan: Plan::default(),
            pass: Pass::default(),
            options,
            status,
            metrics,
        };
        scheduler.report();
        scheduler
    }

    /// Queues an operation. One that needs no pass and is next in its session is answered at once: whoever asks wants to ride
    /// in the pass that is being gathered.
    pub(crate) fn submit(&mut self, job: Box<Job>, now: Instant, model: &mut impl Model) {
        let (session, needs_pass, received) = (job.session(), job.needs_pass(), job.operation.received);
        if let Some(session) = self.sessions.get_mut(&session) {
            session.heard = now;
        }
        if needs_pass {
            // It may have waited here while others computed.
            self.gathering.came(session, received);
        }
        self.queued_tokens += job.waiting_tokens();
        let id = self.queue.push(job);
        if !needs_pass && self.queue.head(session) == Some(id) {
            self.start(id, now, model);
        }
    }

    /// Begins to gather those who are to ride in the next pass.
    pub(crate) fn begin_gathering(&mut self, now: Instant) {
        self.gathering.begin(now);
    }

    /// Until when the next pass waits for those who are expected; `None` when all are there.
    pub(crate) fn awaits_until(&mut self) -> Option<Instant> {
        self.gathering.until()
    }

    /// Ends what is over: withdrawn operations, passed deadlines, sessions without a lease.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let failed: Vec<(JobId, Failure)> =
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
            .filter(|(id, session)| now - session.heard >= lease && !self.queue.concerns(**id))
            .map(|(&id, _)| id)
            .collect();
        for id in expired {
            tracing::info!(session = %id, "lease expired");
            self.forget(id);
        }
        self.report();
    }

    /// How long nothing changes by itself: until the next deadline, the end of a lease, or the time when a session has to
    /// give way to those that wait for blocks.
    pub(crate) fn patience(&self, now: Instant) -> Duration {
        let deadlines = self.queue.iter().map(|(_, job)| job.operation.deadline);
        let in_want = self.queue.iter().any(|(_, job)| job.missing_blocks > 0);
        let idle = self.sessions.iter().filter(|(id, _)| !self.queue.concerns(**id));
        let changes = idle.map(|(_, session)| {
            let gives_way = session.heard + start::IDLE;
            if in_want && gives_way > now { gives_way } else { session.heard + self.options.lease }
        });
        deadlines.chain(changes).min().map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now))
    }

    /// Gives back everything that a session holds.
    fn forget(&mut self, id: SessionId) {
        self.gathering.forget(id);
        if let Some(mut session) = self.sessions.remove(&id) {
            session.table.clear(&mut self.pool);
        }
    }

    /// Answers an operation that has fed all its tokens.
    fn complete(&mut self, id: JobId, now: Instant) {
        let Some(job) = self.queue.get_mut(id) else { return };
        if now > job.operation.deadline {
            return self.fail(id, deadline_exceeded(), now);
        }
        let outcome = job.outcome();
        self.keep(id);
        self.answer(id, outcome, now);
    }

    /// Answers a withdrawn operation and leaves cached what it has fed.
    fn cancel(&mut self, id: JobId, failure: Failure, now: Instant) {
        if self.queue.get(id).is_some_and(|job| job.runs() && job.has_fed()) {
            self.keep(id);
            self.answer(id, Outcome::Failed(failure), now);
        } else {
            self.fail(id, failure, now);
        }
    }

    /// Leaves a session with what its operation has fed and the row behind it.
    fn keep(&mut self, id: JobId) {
        let Some(job) = self.queue.get_mut(id) else { return };
        let Some(session) = self.sessions.get_mut(&job.session()) else { return };
        session.table.trim(&mut self.pool);
        if job.has_fed() {
            session.kept = job.last_row();
        }
    }

    /// Answers an operation without a result and leaves its session as it was.
    fn fail(&mut self, id: JobId, failure: Failure, now: Instant) {
        let Some(job) = self.queue.get(id) else { return };
        match job.stage {
            Stage::Waits => {}
            Stage::Runs { opened: true } => self.forget(job.session()),
            Stage::Runs { opened: false } => {
                if let Some(session) = self.sessions.get_mut(&job.session()) {
                    session.table.truncate(job.at(), &mut self.pool);
                    if session.table.length() < job.at() {
                        session.kept = None;
                    }
                }
            }
        }
        self.answer(id, Outcome::Failed(failure), now);
    }

    fn answer(&mut self, id: JobId, outcome: Outcome, now: Instant) {
        let Some(job) = self.queue.remove(id) else { return };
        self.queued_tokens -= job.waiting_tokens();
        if let Some(session) = self.sessions.get_mut(&job.session()) {
            session.heard = now;
            session.busy &= !job.runs();
            if job.runs() && !self.queue.concerns(job.session()) {
                self.gathering.left(job.session(), now);
            }
        }
        // Whoever reads the answer may ask for the figures next.
        self.report();
        let queue = job.first_pass.unwrap_or(now).saturating_duration_since(job.operation.received);
        self.metrics.queue_seconds.observe(queue.as_secs_f64());
        job.operation.answer(Answer { outcome, effort: Effort { queue, ..job.effort } });
    }

    fn report(&self) {
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
fn verdict(job: &Job, now: Instant) -> Option<Failure> {
    if job.operation.is_abandoned() {
        return Some(Failure::new(ErrorCode::Cancelled, "the caller is gone"));
    }
    if job.operation.is_cancelled() {
        return Some(Failure::new(ErrorCode::Cancelled, "the operation was cancelled before it was done"));
    }
    if now < job.operation.deadline {
        return None;
    }
    if job.missing_blocks > 0 {
        return Some(Failure::new(
            ErrorCode::OutOfBlocks,
            format!("no {} cache blocks became free before the deadline", job.missing_blocks),
        ));
    }
    Some(deadline_exceeded())
}

fn deadline_exceeded() -> Failure {
    Failure::new(ErrorCode::DeadlineExceeded, "the deadline passed before the operation was done")
}
