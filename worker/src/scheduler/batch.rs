//! Chooses what rides in a forward pass.

use std::ops::Range;
use std::time::Instant;

use super::Scheduler;
use super::fairness::Party;
use super::job::Job;
use super::request_queue::JobId;
use super::start::Start;
use crate::engine::Model;

/// The tokens of one job that ride in a forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) job: JobId,
    pub(crate) tokens: usize,
    /// Indices of the tokens whose rows are wanted.
    pub(crate) rows: Range<usize>,
}

/// A forward pass that is being planned. Kept from one to the next for its memory.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) slices: Vec<Slice>,
    /// Heads by party, then by arrival.
    candidates: Vec<Candidate>,
    parties: Vec<Turns>,
    /// Room that is left.
    tokens: usize,
    rows: usize,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    party: Party,
    arrival: u64,
    job: JobId,
    /// To be fed.
    tokens: usize,
    /// It has a slice.
    is_planned: bool,
}

impl Candidate {
    fn is_left(&self) -> bool {
        !self.is_planned
    }
}

/// The candidates of one party.
#[derive(Debug)]
struct Turns {
    party: Party,
    first: usize,
    /// Has had so much more than others that it must not go before their prompts.
    is_ahead: bool,
    /// Waits for more than this pass gives it.
    is_left: bool,
    /// Whose turn it is next.
    next: usize,
    end: usize,
}

/// Which operations may take the room that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// Decode rows, drafts, blocks to verify; a part of the budget is not for them.
    Short {
        reserve: usize,
    },
    All,
}

impl Scheduler {
    /// Chooses the next forward pass; without slices when nothing can run before something else happens.
    ///
    /// Short operations come first and may take three quarters of the token budget; the rest goes to whatever is left, so
    /// neither a prompt nor a crowd of short operations stops the others. Within both, the party that has been served the
    /// fewest tokens is next; one that is ahead by a whole pass has no short operations first.
    pub(crate) fn plan(&mut self, now: Instant, model: &mut impl Model) -> Plan {
        let mut plan = std::mem::take(&mut self.plan);
        loop {
            plan.slices.clear();
            (plan.tokens, plan.rows, plan.answered) = (self.options.step_tokens, self.step_rows, false);
            self.gather(&mut plan);
            self.fill(&mut plan, Which::Short { reserve: self.options.step_tokens / 4 }, now, model);
            self.fill(&mut plan, Which::All, now, model);
            let left = |turns: &&Turns| {
                turns.is_left || plan.candidates[turns.next..turns.end].iter().any(Candidate::is_left)
            };
            self.fairness.close_round(plan.parties.iter().filter(left).map(|turns| turns.party));
            // An answer may have freed what another operation waits for.
            if !plan.slices.is_empty() || !plan.answered {
                return plan;
            }
        }
    }

    /// Lists who could run.
    fn gather(&mut self, plan: &mut Plan) {
        let Plan { candidates, parties, .. } = plan;
        candidates.clear();
        let candidate = |(id, job): (JobId, &Job)| Candidate {
            party: job.party(),
            arrival: job.arrival,
            job: id,
            tokens: job.rest().len(),
            is_planned: false,
        };
        candidates.extend(self.queue.heads().map(candidate));
        candidates.sort_unstable();
        parties.clear();
        for (at, candidate) in candidates.iter().enumerate() {
            match parties.last_mut() {
                Some(turns) if turns.party == candidate.party => turns.end = at + 1,
                _ => parties.push(Turns {
                    party: candidate.party,
                    is_ahead: false,
                    is_left: false,
                    first: at,
                    next: at,
                    end: at + 1,
                }),
            }
        }
        self.fairness.open_round(parties.iter().map(|turns| turns.party));
        for turns in parties.iter_mut() {
            turns.is_ahead = self.fairness.lead(turns.party) > self.options.step_tokens as u64;
        }
        let lacking = self.queue.iter().filter(|(_, job)| job.missing_blocks > 0);
        self.first_in_want = lacking.map(|(_, job)| self.age(job)).min();
    }

    /// Adds slices while there is room.
    fn fill(&mut self, plan: &mut Plan, which: Which, now: Instant, model: &mut impl Model) {
        let reserve = match which {
            Which::Short { reserve } => reserve,
            Which::All => 0,
        };
        plan.parties.iter_mut().for_each(|turns| turns.next = turns.first);
        while plan.tokens > reserve {
            let Plan { slices, candidates, parties, answered, .. } = plan;
            let waiting = parties.iter_mut().filter(|turns| turns.next < turns.end);
            let waiting = waiting.filter(|turns| which == Which::All || !turns.is_ahead);
            // Who comes level with others and wants little is not to wait for their prompts.
            let order = |turns: &&mut Turns| {
                let Candidate { arrival, tokens, .. } = candidates[turns.next];
                (self.fairness.served(turns.party), tokens, arrival)
            };
            let Some(turns) = waiting.min_by_key(order) else { return };
            let candidate = &mut candidates[turns.next];
            turns.next += 1;
            let Some(job) = self.ready(candidate, which, now, answered, model) else { continue };
            let Some(running) = self.queue.get(job) else { continue };
            if let Some((tokens, rows)) = running.next_slice(plan.tokens - reserve, plan.rows) {
                candidate.is_planned = true;
                turns.is_left |= tokens < running.rest().len() || running.next.is_some();
                plan.tokens -= tokens;
                plan.rows -= rows.len();
                self.fairness.charge(candidate.party, tokens);
                slices.push(Slice { job, tokens, rows });
            }
        }
    }

    /// The job that runs for `candidate`: what is answered at once makes way for the next operation of its session.
    fn ready(
        &mut self,
        candidate: &Candidate,
        which: Which,
        now: Instant,
        answered: &mut bool,
        model: &mut impl Model,
    ) -> Option<JobId> {
        let mut id = candidate.job;
        loop {
            let job = self.queue.get(id).filter(|job| !candidate.is_planned && allowed(job, which))?;
            let session = job.session();
            if job.runs() {
                return Some(id);
            }
            match self.start(id, now, model) {
                Start::Begun => return Some(id),
                Start::Waits => return None,
                Start::Answered => *answered = true,
            }
            id = self.queue.head(session)?;
        }
    }

    /// How an operation of more than [`SHORT_TOKENS`](super::job::SHORT_TOKENS) tokens and others share a pass, for the metrics.
    pub(crate) fn phase(&self, slices: &[Slice]) -> &'static str {
        let long = slices.iter().filter(|slice| self.queue.get(slice.job).is_some_and(Job::is_long)).count();
        match long {
            0 => "decode",
            _ if long == slices.len() => "prefill",
            _ => "mixed",
        }
    }
}

fn allowed(job: &Job, which: Which) -> bool {
    which == Which::All || !job.is_long()
}
