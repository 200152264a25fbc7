//! Lets operations begin: checks what they assume, finds what is cached already, and makes room.

use std::time::Instant;

use cosec_proto::sampling::InvalidLogits;
use cosec_proto::{ErrorCode, OperationError, OperationOutcome, SessionId};

use super::fairness::FlowId;
use super::job::{JobId, JobStage, ScheduledJob};
use super::language_model::LanguageModel;
use super::request_queue::RequestQueue;
use super::state::{CachedSession, IDLE, Scheduler};
use crate::kv_cache::{BlockTable, PrefixHash};
use crate::logits_view::{LogitsTask, TaskResult};
use crate::model::ForwardError;

/// What became of a job that was to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Begun,
    Answered,
    /// For cache blocks, or for another operation that computes what both need.
    Waits,
}

impl Scheduler {
    /// Lets a job begin: checks what it assumes of its session and reserves all blocks that it will need.
    pub(crate) fn start(&mut self, id: JobId, now: Instant, model: &mut impl LanguageModel) -> Admission {
        if let Some(answer) = self.answered_at_once(id, now) {
            self.answer(id, answer, now);
            return Admission::Answered;
        }
        let Some(job) = self.queue.get(id) else { return Admission::Answered };
        let (session, stream, age) = (job.session, job.flow.stream, self.age(job));
        let opened = !self.sessions.contains_key(&session);
        if opened
            && self.is_full()
            && let Some(other) = self.gives_place(stream, now)
        {
            self.displace(other);
        }
        self.roll_back(id, now);
        match self.make_room(id, age, now) {
            Ok(fills) => {
                self.begin(id, JobStage::Runs { opened }, fills);
                if let Err(failure) = self.read_kept_row(id, model) {
                    self.fail(id, failure, now);
                } else if self.queue.get(id).is_some_and(ScheduledJob::is_done) {
                    self.complete(id, now);
                } else {
                    return Admission::Begun;
                }
                Admission::Answered
            }
            Err(missing) => {
                if let Some(job) = self.queue.get_mut(id) {
                    job.missing_blocks = missing;
                    job.skip(0);
                }
                if missing > 0 {
                    self.oldest_blocked_age = Some(self.oldest_blocked_age.map_or(age, |first| first.min(age)));
                }
                if opened {
                    self.forget(session);
                }
                Admission::Waits
            }
        }
    }

    /// The answer to a job that changes no cache, or cannot begin.
    fn answered_at_once(&mut self, id: JobId, now: Instant) -> Option<Result<OperationOutcome, OperationError>> {
        let job = self.queue.get(id)?;
        if job.is_release() {
            self.forget(job.session);
            return Some(Ok(OperationOutcome::Released));
        }
        if let Some((at, count)) = job.recalls() {
            return Some(Ok(OperationOutcome::Recalled(self.recalled(job.session.sequence(), at, count))));
        }
        self.refusal(job, now)
    }

    fn begin(&mut self, id: JobId, stage: JobStage, fills: Option<PrefixHash>) {
        let Some(job) = self.queue.get_mut(id) else { return };
        (job.stage, job.missing_blocks, job.fills) = (stage, 0, fills);
        self.queued_tokens -= job.shared_tokens();
        self.metrics.shared_tokens.inc_by(job.shared_tokens() as u64);
        if let Some(session) = self.sessions.get_mut(&job.session) {
            session.busy = true;
        }
    }

    /// The lower, the sooner the session was opened, and the later it is preempted.
    pub(crate) fn age(&self, job: &ScheduledJob) -> u64 {
        self.sessions.get(&job.session).map_or(job.arrival, |session| session.age)
    }

    /// The answer to a job that cannot begin, now or later.
    fn refusal(&self, job: &ScheduledJob, now: Instant) -> Option<Result<OperationOutcome, OperationError>> {
        let session = self.sessions.get(&job.session);
        let at = job.at;
        let ScheduledJob { flow: FlowId { tenant, stream }, adapter, .. } = *job;
        let same = session.filter(|session| (session.tenant, session.adapter) == (tenant, adapter));
        let have = same.map_or(0, |session| session.table.length());
        if at > have {
            return Some(need_prefix(have));
        }
        let kept = at == have && session.is_some_and(|session| session.kept.is_some());
        if job.needs_kept_logits() && !kept {
            return Some(need_prefix(at.saturating_sub(1)));
        }
        let usable = same.map_or(0, |session| session.table.kept_by_truncation(at, &self.pool));
        if usable < at {
            return Some(need_prefix(usable));
        }
        let (code, message) = if session.is_none() && self.status.is_draining() {
            (ErrorCode::Unavailable, "the worker is shutting down and opens no session".to_owned())
        } else if session.is_none() && self.is_full() && self.gives_place(stream, now).is_none() {
            let most = self.options.max_sessions;
            (ErrorCode::Overloaded, format!("the worker has {most} sessions in use, as many as it allows"))
        } else {
            return None;
        };
        Some(Err(OperationError { code, message }))
    }

    /// Takes from the kept logits what the job wants of them.
    fn read_kept_row(&mut self, id: JobId, model: &mut impl LanguageModel) -> Result<(), OperationError> {
        let Some(job) = self.queue.get_mut(id).filter(|job| job.needs_kept_logits()) else { return Ok(()) };
        let Some(kept) = self.sessions.get(&job.session).and_then(|session| session.kept.as_ref()) else {
            return Ok(());
        };
        let mut found = TaskResult::default();
        let mut task = LogitsTask { keep: false, ..job.task(0, &mut found) };
        model.read_kept(kept, &mut task).map_err(|error| failed_pass(&error))?;
        job.take_found(&mut found);
        found.invalid.map_or(Ok(()), |invalid| Err(impossible_logits(invalid)))
    }

    /// Opens the session of a job, or truncates it to what the job assumes.
    fn roll_back(&mut self, id: JobId, now: Instant) {
        let Some(job) = self.queue.get(id) else { return };
        let ScheduledJob { flow: FlowId { tenant, stream }, adapter, .. } = *job;
        let table = || BlockTable::new(PrefixHash::root(tenant, adapter), self.table_blocks);
        match self.sessions.get_mut(&job.session) {
            None => {
                let table = table();
                let session = CachedSession {
                    table,
                    kept: None,
                    tenant,
                    adapter,
                    age: job.arrival,
                    stream,
                    busy: false,
                    last_activity: now,
                };
                self.sessions.insert(job.session, session);
            }
            Some(session) => {
                session.stream = stream;
                if job.at < session.table.length() {
                    session.table.truncate(job.at, &mut self.pool);
                    session.kept = None;
                }
                // Only an operation at 0 comes so far under another name.
                if (session.tenant, session.adapter) != (tenant, adapter) {
                    (session.tenant, session.adapter, session.table) = (tenant, adapter, table());
                }
            }
        }
    }

    /// Shares what is cached of the job's tokens and reserves blocks for the others. Returns what the next block that
    /// it fills will be called.
    ///
    /// # Errors
    /// When the job has to wait: how many blocks are missing; 0 when another operation is about to compute the next
    /// one.
    fn make_room(&mut self, id: JobId, age: u64, now: Instant) -> Result<Option<PrefixHash>, usize> {
        let Self { queue, sessions, pool, .. } = self;
        let Some(job) = queue.get_mut(id) else { return Ok(None) };
        let Some(session) = sessions.get_mut(&job.session) else { return Ok(None) };
        let (at, table) = (job.at, &mut session.table);
        let shareable = job.shareable();
        let shared = table.share(shareable, shareable.len(), pool);
        let awaited = table.next_hash(&shareable[shared..], pool);
        job.skip(shared);
        let fills = table.next_hash(job.rest(), pool);
        let length = job.length_afterwards();
        let (session, needed) = (job.session, table.missing(length, pool));
        let is_computed = awaited.is_some() && queue.iter().any(|(_, other)| other.runs() && other.fills == awaited);
        let is_behind = needed > 0 && self.oldest_blocked_age.is_some_and(|first| first < age);
        let missing = if is_computed {
            Some(0)
        } else if is_behind {
            Some(needed)
        } else {
            self.free_blocks(needed, age, now).err()
        };
        let Some(session) = self.sessions.get_mut(&session) else { return Ok(None) };
        if let Some(missing) = missing {
            session.table.truncate(at, &mut self.pool);
            return Err(missing);
        }
        if let Err(error) = session.table.reserve(length, &mut self.pool) {
            // `free_blocks` has just said otherwise.
            debug_assert!(false, "{error}");
        }
        Ok(fills)
    }

    /// Sees to it that `needed` blocks are free: younger sessions, the youngest first, and idle ones lose theirs. So
    /// the oldest that needs blocks always gets them, and every session comes to be the oldest.
    ///
    /// # Errors
    /// How many are missing when that would not be enough; then nobody loses anything.
    fn free_blocks(&mut self, needed: usize, age: u64, now: Instant) -> Result<(), usize> {
        if needed <= self.pool.free() {
            return Ok(());
        }
        let gives_way = |queue: &RequestQueue, id: &SessionId, session: &CachedSession| {
            let is_idle = now - session.last_activity >= IDLE && !queue.concerns(*id);
            !session.busy && (session.age > age || (is_idle && session.age != age))
        };
        let keepers = self.sessions.iter().filter(|(id, session)| !gives_way(&self.queue, id, session));
        let kept: usize = keepers.map(|(_, session)| session.table.blocks().len()).sum();
        if needed > self.options.blocks.saturating_sub(kept) {
            return Err(needed - self.pool.free());
        }
        while needed > self.pool.free() {
            let victims = self
                .sessions
                .iter()
                .filter(|(id, session)| !session.table.blocks().is_empty() && gives_way(&self.queue, id, session));
            let Some((&id, _)) = victims.max_by_key(|(_, session)| session.age) else {
                return Err(needed - self.pool.free());
            };
            self.remember(id);
            let Some(victim) = self.sessions.get_mut(&id) else { continue };
            tracing::debug!(session = %id, blocks = victim.table.blocks().len(), "preempted");
            victim.table.clear(&mut self.pool);
            victim.kept = None;
            self.metrics.preemptions.inc();
        }
        Ok(())
    }
}

/// The answer to an operation whose session holds only so many of the tokens that it assumes.
fn need_prefix(have: usize) -> Result<OperationOutcome, OperationError> {
    Ok(OperationOutcome::NeedPrefix { have: u32::try_from(have).unwrap_or(u32::MAX) })
}

pub(crate) fn failed_pass(error: &ForwardError) -> OperationError {
    OperationError::new(ErrorCode::WorkerFault, format!("the forward pass failed: {error}"))
}

pub(crate) fn impossible_logits(invalid: InvalidLogits) -> OperationError {
    OperationError::new(ErrorCode::WorkerFault, format!("the model computed an impossible row: {invalid}"))
}
