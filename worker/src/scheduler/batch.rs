//! Chooses what rides in a forward pass.

use std::time::Instant;

use super::admit::Admission;
use super::batch_plan::{BatchCandidate, BatchPlan, BatchSlice, FlowCandidates};
use super::job::{JobId, ScheduledJob};
use super::language_model::LanguageModel;
use super::state::Scheduler;

/// Which operations may take the room that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OperationClass {
    /// Decode steps, drafts, blocks to verify; a part of the budget is not for them.
    Short {
        reserve: usize,
    },
    All,
}

impl Scheduler {
    /// Chooses the next forward pass; without slices when nothing can run before something else happens.
    ///
    /// Short operations come first and may take three quarters of the token budget; the rest goes to whatever is left,
    /// so neither a prompt nor many short operations stop the others. Within both, the flow that has been served the
    /// fewest tokens is next; one that is ahead by a whole pass has no short operations first.
    pub(crate) fn plan(&mut self, now: Instant, model: &mut impl LanguageModel) -> BatchPlan {
        let mut plan = std::mem::take(&mut self.plan);
        loop {
            plan.slices.clear();
            (plan.tokens, plan.logits, plan.answered) = (self.options.step_tokens, self.step_positions, false);
            self.list_candidates(&mut plan);
            self.fill(&mut plan, OperationClass::Short { reserve: self.options.step_tokens / 4 }, now, model);
            self.fill(&mut plan, OperationClass::All, now, model);
            self.fairness.close_round(plan.unserved());
            // An answer may have freed what another operation waits for.
            if !plan.slices.is_empty() || !plan.answered {
                return plan;
            }
        }
    }

    /// Lists the jobs that could run.
    fn list_candidates(&mut self, plan: &mut BatchPlan) {
        let BatchPlan { candidates, flows, .. } = plan;
        candidates.clear();
        let candidate = |(id, job): (JobId, &ScheduledJob)| BatchCandidate {
            flow: job.flow,
            arrival: job.arrival,
            job: id,
            tokens: job.rest().len(),
            is_planned: false,
        };
        candidates.extend(self.queue.heads().map(candidate));
        candidates.sort_unstable();
        flows.clear();
        for (at, candidate) in candidates.iter().enumerate() {
            match flows.last_mut() {
                Some(flow) if flow.flow == candidate.flow => flow.end = at + 1,
                _ => flows.push(FlowCandidates {
                    flow: candidate.flow,
                    is_ahead: false,
                    is_left: false,
                    first: at,
                    next: at,
                    end: at + 1,
                }),
            }
        }
        self.fairness.open_round(flows.iter().map(|flow| flow.flow));
        for flow in flows.iter_mut() {
            flow.is_ahead = self.fairness.lead(flow.flow) > self.options.step_tokens as u64;
        }
        let lacking = self.queue.iter().filter(|(_, job)| job.missing_blocks > 0);
        self.oldest_blocked_age = lacking.map(|(_, job)| self.age(job)).min();
    }

    /// Adds slices while there is room.
    fn fill(&mut self, plan: &mut BatchPlan, class: OperationClass, now: Instant, model: &mut impl LanguageModel) {
        let reserve = match class {
            OperationClass::Short { reserve } => reserve,
            OperationClass::All => 0,
        };
        plan.flows.iter_mut().for_each(|flow| flow.next = flow.first);
        while plan.tokens > reserve {
            let BatchPlan { slices, candidates, flows, answered, .. } = plan;
            let waiting = flows.iter_mut().filter(|flow| flow.next < flow.end);
            let waiting = waiting.filter(|flow| class == OperationClass::All || !flow.is_ahead);
            // On equal service, short operations go before prompts.
            let order = |flow: &&mut FlowCandidates| {
                let BatchCandidate { arrival, tokens, .. } = candidates[flow.next];
                (self.fairness.served(flow.flow), tokens, arrival)
            };
            let Some(flow) = waiting.min_by_key(order) else { return };
            let candidate = &mut candidates[flow.next];
            flow.next += 1;
            let Some(job) = self.ready(candidate, class, now, answered, model) else { continue };
            let Some(running) = self.queue.get(job) else { continue };
            if let Some((tokens, wanted)) = running.next_slice(plan.tokens - reserve, plan.logits) {
                candidate.is_planned = true;
                flow.is_left |= tokens < running.rest().len() || running.next.is_some();
                plan.tokens -= tokens;
                plan.logits -= wanted.len();
                self.fairness.charge(candidate.flow, tokens);
                slices.push(BatchSlice { job, tokens, wanted });
            }
        }
    }

    /// The job that runs for `candidate`: what is answered at once makes way for the next operation of its session.
    fn ready(
        &mut self,
        candidate: &BatchCandidate,
        class: OperationClass,
        now: Instant,
        answered: &mut bool,
        model: &mut impl LanguageModel,
    ) -> Option<JobId> {
        let mut id = candidate.job;
        loop {
            let job = self.queue.get(id).filter(|job| !candidate.is_planned && allowed(job, class))?;
            let session = job.session;
            if job.runs() {
                return Some(id);
            }
            match self.start(id, now, model) {
                Admission::Begun => return Some(id),
                Admission::Waits => return None,
                Admission::Answered => *answered = true,
            }
            id = self.queue.head(session)?;
        }
    }

    /// How an operation of more than `SHORT_TOKENS` tokens and others share a pass, for the metrics.
    pub(crate) fn phase(&self, slices: &[BatchSlice]) -> &'static str {
        let long = slices.iter().filter(|slice| self.queue.get(slice.job).is_some_and(ScheduledJob::is_long)).count();
        match long {
            0 => "decode",
            _ if long == slices.len() => "prefill",
            _ => "mixed",
        }
    }
}

fn allowed(job: &ScheduledJob, class: OperationClass) -> bool {
    class == OperationClass::All || !job.is_long()
}
