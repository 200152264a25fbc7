//! Continuous batching: which tokens of which sessions ride in the next forward pass.
//!
//! The scheduler owns the sessions' block tables and kept rows. It knows no clock but the one it is handed, no thread
//! and no socket.

pub(crate) mod request_queue;

pub(crate) mod job;

pub(crate) mod batch;

pub(crate) mod step;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cosec_proto::{ErrorCode, SessionId};

use crate::engine::operation::{Answer, Failure, Operation, Outcome};
use crate::engine::{EngineOptions, Status};
use crate::kv_cache::{BlockPool, BlockTable};
use crate::metrics::Metrics;

use job::Job;
use request_queue::{Arrival, RequestQueue};

/// Bytes of logits that one forward pass may produce.
const STEP_LOGITS_BYTES: usize = 64 << 20;

/// What is cached for a session.
#[derive(Debug)]
struct Session {
    table: BlockTable,
    /// The row behind the last cached token.
    kept: Option<Vec<f32>>,
    /// Under whose name and with which adapter its tokens were cached.
    tenant: u64,
    adapter: Option<usize>,
    /// When an operation on it last came or ended.
    heard: Instant,
}

/// All operations and sessions of a worker.
#[derive(Debug)]
pub(crate) struct Scheduler {
    queue: RequestQueue,
    sessions: HashMap<SessionId, Session>,
    pool: BlockPool,
    options: EngineOptions,
    /// Tokens of unanswered operations that are still to be fed.
    queued_tokens: usize,
    /// Rows of logits that one forward pass may produce.
    step_rows: usize,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

impl Scheduler {
    pub(crate) fn new(options: EngineOptions, vocabulary: usize, status: Arc<Status>, metrics: Arc<Metrics>) -> Self {
        let scheduler = Self {
            queue: RequestQueue::default(),
            sessions: HashMap::new(),
            pool: BlockPool::new(options.blocks),
            step_rows: (STEP_LOGITS_BYTES / (4 * vocabulary.max(1))).max(1),
            options,
            queued_tokens: 0,
            status,
            metrics,
        };
        scheduler.report();
        scheduler
    }

    /// Queues an operation.
    pub(crate) fn submit(&mut self, operation: Operation, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&operation.session) {
            session.heard = now;
        }
        let job = Job::new(operation);
        self.queued_tokens += job.waiting_tokens();
        self.queue.push(job);
    }

    /// Ends what is over: withdrawn operations, passed deadlines, sessions without a lease.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let failed: Vec<(Arrival, Failure)> =
            self.queue.iter().filter_map(|(arrival, job)| Some((arrival, verdict(job, now)?))).collect();
        for (arrival, failure) in failed {
            if self.queue.get(arrival).is_some_and(|job| job.operation.is_cancelled()) {
                self.keep_what_was_fed(arrival);
            }
            self.fail(arrival, failure, now);
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

    /// How long nothing changes by itself: until the next deadline or end of a lease.
    pub(crate) fn patience(&self, now: Instant) -> Duration {
        let deadlines = self.queue.iter().map(|(_, job)| job.operation.deadline);
        let idle = self.sessions.iter().filter(|(id, _)| !self.queue.concerns(**id));
        let leases = idle.map(|(_, session)| session.heard + self.options.lease);
        deadlines.chain(leases).min().map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now))
    }

    /// Gives back everything that a session holds.
    fn forget(&mut self, id: SessionId) {
        if let Some(mut session) = self.sessions.remove(&id) {
            session.table.truncate(0, &mut self.pool);
        }
    }

    /// Answers an operation that has fed all its tokens.
    fn complete(&mut self, arrival: Arrival, now: Instant) {
        let Some(job) = self.queue.get_mut(arrival) else { return };
        if now > job.operation.deadline {
            return self.fail(arrival, deadline_exceeded(), now);
        }
        let length = job.length_afterwards();
        let finish = job.finish();
        if let Some(session) = self.sessions.get_mut(&job.session()) {
            session.table.commit(length);
            session.table.trim(&mut self.pool);
            session.kept = finish.last_row.or(session.kept.take());
        }
        self.answer(arrival, finish.outcome, now);
    }

    /// Counts as cached what a cancelled operation has fed.
    fn keep_what_was_fed(&mut self, arrival: Arrival) {
        let Some(job) = self.queue.get_mut(arrival) else { return };
        let length = job.length_so_far();
        if length == job.at() {
            return;
        }
        if let (Some(progress), Some(session)) = (&mut job.progress, self.sessions.get_mut(&job.operation.session)) {
            progress.opened = false;
            session.table.commit(length);
            session.kept = job.take_last_row();
        }
    }

    /// Answers an operation without a result and leaves its session as it was.
    fn fail(&mut self, arrival: Arrival, failure: Failure, now: Instant) {
        let Some(job) = self.queue.get(arrival) else { return };
        let id = job.session();
        if let Some(progress) = &job.progress {
            if progress.opened {
                self.forget(id);
            } else if let Some(session) = self.sessions.get_mut(&id) {
                session.table.trim(&mut self.pool);
            }
        }
        self.answer(arrival, Outcome::Failed(failure), now);
    }

    fn answer(&mut self, arrival: Arrival, outcome: Outcome, now: Instant) {
        let Some(job) = self.queue.remove(arrival) else { return };
        self.queued_tokens -= job.waiting_tokens();
        if let Some(session) = self.sessions.get_mut(&job.session()) {
            session.heard = now;
        }
        // Whoever reads the answer may ask for the figures next.
        self.report();
        let served = job.progress.as_ref().and_then(|progress| progress.first_pass).unwrap_or(now);
        let queue = served.saturating_duration_since(job.operation.received);
        let compute = job.progress.as_ref().map_or(Duration::ZERO, |progress| progress.compute);
        self.metrics.queue_seconds.observe(queue.as_secs_f64());
        job.operation.answer(Answer { outcome, queue, compute });
    }

    fn report(&self) {
        self.status.set_room(self.pool.free(), self.sessions.len(), self.queued_tokens);
        self.metrics.free_blocks.set(gauge(self.pool.free()));
        self.metrics.sessions.set(gauge(self.sessions.len()));
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
