//! How a session gets its workers, and what it does without one.

use cosec_proto::{ErrorCode, OperationError, WorkerRole};

use super::super::config::ExpertAbsent;
use super::super::event::{AfterEvent, LocateCause, SessionAction, SessionPhase};
use super::super::role_state::RoleState;
use super::SessionState;
use crate::request::SessionEvent;

impl SessionState {
    pub(super) fn place(&mut self) -> Vec<SessionAction> {
        let actions = self.locate_all(LocateCause::Unplaced);
        // No tokens and no scores are asked for: there is nothing to place.
        if actions.is_empty() { self.begin() } else { actions }
    }

    fn locate_all(&self, cause: LocateCause) -> Vec<SessionAction> {
        let roles = WorkerRole::ALL.into_iter().filter(|&role| self.needs(role));
        roles.map(|role| SessionAction::Locate { role, failures: 0, cause }).collect()
    }

    /// Every worker was given back because the client does not read.
    pub(super) fn suspend(&mut self) -> Vec<SessionAction> {
        if matches!(self.phase, SessionPhase::Emitting { next: AfterEvent::Begin | AfterEvent::NextToken }) {
            self.roles.iter_mut().for_each(RoleState::unplace);
            self.absent = None;
            self.is_suspended = true;
        }
        Vec::new()
    }

    /// The client reads again. A worker that has gone meanwhile gets time to come back, as after a failure.
    pub(super) fn resume(&mut self) -> Vec<SessionAction> {
        let is_over = matches!(self.phase, SessionPhase::Emitting { next: AfterEvent::End });
        if std::mem::take(&mut self.is_suspended) && !is_over {
            self.locate_all(LocateCause::Failed)
        } else {
            Vec::new()
        }
    }

    /// Scores of the prompt are the base's, whatever the rule reads.
    pub(super) fn needs(&self, role: WorkerRole) -> bool {
        let scores = role == WorkerRole::Base && self.params.prompt_scores.is_some();
        scores || (self.params.max_new_tokens > 0 && self.params.plan.reads(role))
    }

    pub(super) fn begin_when_placed(&mut self) -> Vec<SessionAction> {
        let is_missing = |role: WorkerRole| self.needs(role) && !self.role(role).is_placed();
        if WorkerRole::ALL.into_iter().any(is_missing) { Vec::new() } else { self.begin() }
    }

    fn begin(&mut self) -> Vec<SessionAction> {
        self.phase = match self.params.prompt_scores {
            Some(_) => SessionPhase::Scoring { scores: vec![None; self.sequence.len()] },
            None => SessionPhase::Prefilling,
        };
        self.proceed()
    }

    /// Goes on without a worker, or fails.
    pub(super) fn do_without(&mut self, role: WorkerRole, error: OperationError) -> Vec<SessionAction> {
        // A rule that does not read the base, such as `expert_only`, cannot go on without its expert.
        let is_needed = role == WorkerRole::Base || !self.params.plan.rule_reads(WorkerRole::Base);
        // That all experts are busy is no leave to do without them.
        let is_busy = error.code == ErrorCode::Overloaded;
        if is_needed || is_busy || self.params.expert_absent != ExpertAbsent::Degrade {
            return self.fail(error.code, error.message);
        }
        self.params.plan = self.params.plan.degraded();
        let mut actions = self.discard_drafts();
        let next = if self.phase == SessionPhase::Placing { AfterEvent::Begin } else { AfterEvent::NextToken };
        actions.extend(self.emit(SessionEvent::Degraded, next));
        actions
    }
}
