//! Which operation each worker performs next.

use cosec_proto::WorkerRole;

use super::super::event::{AfterEvent, SessionAction, SessionPhase};
use super::super::role_state::NextOperation;
use super::SessionState;

/// Readers go first: what the expert drafts ahead depends on what they were asked.
const SENDING_ORDER: [WorkerRole; 3] = [WorkerRole::Base, WorkerRole::AntiExpert, WorkerRole::Expert];

impl SessionState {
    /// Sends whatever can be sent now.
    pub(super) fn pump(&mut self) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        for role in SENDING_ORDER {
            if self.role(role).is_idle()
                && let Some(next) = self.next_operation(role)
            {
                actions.extend(self.roles[role.index()].send(self.sequence.tokens(), next));
            }
        }
        actions
    }

    /// What to find out next from a worker that has nothing to do.
    fn next_operation(&self, role: WorkerRole) -> Option<NextOperation> {
        match &self.phase {
            SessionPhase::Placing
            | SessionPhase::Emitting { next: AfterEvent::Begin | AfterEvent::End }
            | SessionPhase::Finished => None,
            SessionPhase::Scoring { .. } => {
                let alternatives = self.params.prompt_scores?;
                (role == WorkerRole::Base && !self.is_scored()).then_some(NextOperation::Score { alternatives })
            }
            SessionPhase::Verifying { lookup: Some((of, view)) } if *of == role => {
                Some(NextOperation::Read { from: self.sequence.decided(), views: vec![vec![view.clone()]] })
            }
            SessionPhase::Prefilling
            | SessionPhase::Drafting
            | SessionPhase::Verifying { .. }
            | SessionPhase::Merging
            | SessionPhase::Emitting { next: AfterEvent::NextToken } => {
                if !self.params.plan.reads(role) || self.new_tokens() >= self.params.max_new_tokens {
                    None
                } else if role == WorkerRole::Expert && self.params.plan.drafts() {
                    self.next_draft()
                } else {
                    self.next_read(role)
                }
            }
        }
    }

    /// The logits that judge the drafts, once all that are known have been judged.
    fn next_read(&self, role: WorkerRole) -> Option<NextOperation> {
        let of_role = self.role(role);
        let from = self.sequence.decided();
        if of_role.known() > from {
            return None;
        }
        let views = |position: usize, proposal: Option<u32>| {
            // Beyond the model's vocabulary there is nothing to look up: the models differ in padding.
            let proposal = proposal.filter(|&id| id < of_role.vocabulary());
            self.params.plan.views(role, proposal, &self.random(position))
        };
        let drafts = self.sequence.drafts();
        if !drafts.is_empty() {
            let views = (from..).zip(drafts).map(|(position, &id)| views(position, Some(id))).collect();
            return Some(NextOperation::Read { from, views });
        }
        if self.draft_plan.num_draft_tokens == 1 || !self.params.plan.drafts() {
            return Some(NextOperation::Read { from, views: vec![views(from, None)] });
        }
        // The last token goes together with the drafts after it.
        (of_role.cached() + 1 < from).then_some(NextOperation::Feed { until: from - 1 })
    }

    fn next_draft(&self) -> Option<NextOperation> {
        let drafts = self.sequence.drafts();
        let room = self.params.max_new_tokens.saturating_sub(self.new_tokens() + drafts.len() as u32);
        let k = self.draft_plan.num_draft_tokens.min(room);
        let is_last = drafts.last().is_some_and(|&id| self.is_last(id));
        let are_asked_for = SENDING_ORDER
            .into_iter()
            .filter(|&role| role != WorkerRole::Expert && self.params.plan.reads(role))
            .all(|role| self.role(role).asked() >= self.sequence.len());
        let runs_ahead = self.draft_plan.pipelined && drafts.len() <= k as usize && are_asked_for;
        if k == 0 || is_last || !(drafts.is_empty() || runs_ahead) {
            return None;
        }
        let (plan, seed) = (&self.params.plan, self.params.seed);
        // The same views for all drafts: none of the expert's draws.
        let views = plan.views(WorkerRole::Expert, None, &self.random(self.sequence.len()));
        Some(NextOperation::Draft { k, sampling: plan.sampling.expert, seed, views, is_ahead: !drafts.is_empty() })
    }

    /// Whether nothing can follow a draft: it ends the choice, or a model does not have it.
    pub(super) fn is_last(&self, id: u32) -> bool {
        self.params.end_tokens.contains(&id) || self.unknown_to(id).is_some()
    }

    /// A role whose model does not have this token.
    pub(super) fn unknown_to(&self, id: u32) -> Option<WorkerRole> {
        let reads = |role: &WorkerRole| self.params.plan.reads(*role);
        WorkerRole::ALL.into_iter().filter(reads).find(|&role| self.role(role).vocabulary() <= id)
    }
}
