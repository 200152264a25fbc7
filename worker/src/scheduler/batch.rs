//! Chooses what rides in a forward pass.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Instant;

use cosec_proto::draw::InvalidLogits;
use cosec_proto::{ErrorCode, SessionId};

use super::job::Job;
use super::request_queue::Arrival;
use super::{Scheduler, Session};
use crate::engine::operation::{Failure, Operation, Outcome, Work};
use crate::kv_cache::BlockTable;

/// The tokens of one job that ride in a forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) arrival: Arrival,
    pub(crate) tokens: usize,
    /// Indices of the tokens whose rows are wanted.
    pub(crate) rows: Range<usize>,
}

/// What became of a job that was to begin.
enum Start {
    Begun,
    Answered,
    /// For cache blocks.
    Waiting,
}

/// Room that is left in a forward pass that is being planned.
struct Plan {
    slices: Vec<Slice>,
    tokens: usize,
    rows: usize,
    /// An earlier operation waits for blocks, so no new session may take them.
    openings_wait: bool,
    answered: bool,
}

impl Scheduler {
    /// Chooses the next forward pass; empty when nothing can run before something else happens.
    ///
    /// Short operations (decode rows, drafts, blocks to verify) come first and may take three quarters of the token
    /// budget; the rest goes to whatever is left in order of arrival, so neither a prompt nor a crowd of short
    /// operations stops the others.
    pub(crate) fn plan(&mut self, now: Instant) -> Vec<Slice> {
        loop {
            let budget = self.options.step_tokens;
            let mut plan = Plan {
                slices: Vec::new(),
                tokens: budget,
                rows: self.step_rows,
                openings_wait: false,
                answered: false,
            };
            self.fill(&mut plan, budget / 4, true, now);
            self.fill(&mut plan, 0, false, now);
            if !plan.slices.is_empty() {
                return plan.slices;
            }
            // An answer may have freed what another operation waits for.
            if !plan.answered && !self.break_deadlock(now) {
                return Vec::new();
            }
        }
    }

    /// Adds slices while more than `reserve` tokens of the budget are left.
    fn fill(&mut self, plan: &mut Plan, reserve: usize, short_only: bool, now: Instant) {
        let mut from = 0;
        while plan.tokens > reserve
            && let Some(arrival) = self.queue.head_from(from)
        {
            from = arrival + 1;
            let Some(job) = self.queue.get(arrival) else { continue };
            if (short_only && job.is_long()) || plan.slices.iter().any(|slice| slice.arrival == arrival) {
                continue;
            }
            if job.progress.is_none() {
                match self.start(arrival, plan.openings_wait, now) {
                    Start::Begun => {}
                    Start::Answered => {
                        plan.answered = true;
                        continue;
                    }
                    Start::Waiting => {
                        plan.openings_wait = true;
                        continue;
                    }
                }
            }
            let next = self.queue.get(arrival).and_then(|job| job.next(plan.tokens - reserve, plan.rows));
            if let Some((tokens, rows)) = next {
                plan.tokens -= tokens;
                plan.rows -= rows.len();
                plan.slices.push(Slice { arrival, tokens, rows });
            }
        }
    }

    /// Lets a job begin: checks what it assumes of its session and reserves all blocks that it will need.
    fn start(&mut self, arrival: Arrival, openings_wait: bool, now: Instant) -> Start {
        let Some(job) = self.queue.get(arrival) else { return Start::Answered };
        let id = job.session();
        if let Work::Release = job.operation.work {
            self.forget(id);
            self.answer(arrival, Outcome::Released, now);
            return Start::Answered;
        }
        if let Some(outcome) = self.refusal(job) {
            self.answer(arrival, outcome, now);
            return Start::Answered;
        }
        let missing = self.missing_blocks(job);
        let opens = !self.sessions.contains_key(&id);
        if missing > 0 || (opens && openings_wait) {
            if let Some(job) = self.queue.get_mut(arrival) {
                job.missing_blocks = missing.max(1);
            }
            return Start::Waiting;
        }
        match self.begin(arrival, opens, now) {
            Err(invalid) => self.fail(arrival, Failure::new(ErrorCode::WorkerFault, invalid.to_string()), now),
            Ok(()) if self.queue.get(arrival).is_some_and(Job::is_done) => self.complete(arrival, now),
            Ok(()) => return Start::Begun,
        }
        Start::Answered
    }

    /// The answer to a job that cannot begin, now or later.
    fn refusal(&self, job: &Job) -> Option<Outcome> {
        let session = self.sessions.get(&job.session());
        let at = job.at();
        let Operation { tenant, adapter, .. } = job.operation;
        let same = session.filter(|session| (session.tenant, session.adapter) == (tenant, adapter));
        let have = same.map_or(0, |session| session.table.length());
        if at > have {
            return Some(Outcome::NeedPrefix { have });
        }
        let kept = at == have && session.is_some_and(|session| session.kept.is_some());
        if job.needs_kept_row() && !kept {
            return Some(Outcome::NeedPrefix { have: at.saturating_sub(1) });
        }
        let (code, message) = if session.is_none() && self.status.is_draining() {
            (ErrorCode::Unavailable, "the worker is shutting down and opens no session".to_owned())
        } else if session.is_none() && self.sessions.len() >= self.options.max_sessions {
            let most = self.options.max_sessions;
            (ErrorCode::Overloaded, format!("the worker has {most} sessions, as many as it allows"))
        } else {
            return None;
        };
        Some(Outcome::Failed(Failure { code, message }))
    }

    /// Blocks that must become free before `job` can begin.
    fn missing_blocks(&self, job: &Job) -> usize {
        let empty = BlockTable::new(self.options.block_tokens);
        let table = self.sessions.get(&job.session()).map_or(&empty, |session| &session.table);
        let needed = table.missing(job.at(), job.length_afterwards());
        needed.saturating_sub(self.pool.free() + table.freed_by_truncation(job.at()))
    }

    fn begin(&mut self, arrival: Arrival, opens: bool, now: Instant) -> Result<(), InvalidLogits> {
        let Some(job) = self.queue.get_mut(arrival) else { return Ok(()) };
        let block_tokens = self.options.block_tokens;
        let Operation { tenant, adapter, .. } = job.operation;
        let fresh = || Session { table: BlockTable::new(block_tokens), kept: None, tenant, adapter, heard: now };
        let session = self.sessions.entry(job.session()).or_insert_with(fresh);
        // Only an operation at 0 comes so far under another name.
        (session.tenant, session.adapter) = (tenant, adapter);
        job.missing_blocks = 0;
        job.begin(opens, session.kept.as_deref())?;
        if job.at() < session.table.length() {
            session.table.truncate(job.at(), &mut self.pool);
            session.kept = None;
        }
        if let Err(error) = session.table.reserve(job.length_afterwards(), &mut self.pool) {
            // `missing_blocks` has just said otherwise.
            debug_assert!(false, "{error}");
        }
        Ok(())
    }

    /// When every session that holds blocks waits for more, none will be given back: fails the youngest of their
    /// operations. Says whether it did.
    fn break_deadlock(&mut self, now: Instant) -> bool {
        let waiting = |job: &Job| job.missing_blocks > 0;
        let waiters: HashSet<SessionId> =
            self.queue.iter().filter(|(_, job)| waiting(job)).map(|(_, job)| job.session()).collect();
        let holds = |session: &Session| !session.table.blocks().is_empty();
        if self.sessions.iter().any(|(id, session)| holds(session) && !waiters.contains(id)) {
            return false;
        }
        let held = |job: &Job| self.sessions.get(&job.session()).is_some_and(holds);
        let Some((arrival, job)) = self.queue.iter().rev().find(|(_, job)| waiting(job) && held(job)) else {
            return false;
        };
        let message =
            format!("{} more cache blocks are needed and no session will give any back", job.missing_blocks);
        self.fail(arrival, Failure::new(ErrorCode::OutOfBlocks, message), now);
        true
    }

    /// How an operation of more than [`SHORT_TOKENS`](super::job::SHORT_TOKENS) tokens and others share a pass, for the metrics.
    pub(crate) fn phase(&self, slices: &[Slice]) -> &'static str {
        let long = slices.iter().filter(|slice| self.queue.get(slice.arrival).is_some_and(Job::is_long)).count();
        match long {
            0 => "decode",
            _ if long == slices.len() => "prefill",
            _ => "mixed",
        }
    }
}
