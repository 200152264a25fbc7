//! The session as a pure state machine: `step(now, input) -> actions`. It has no socket, clock or randomness.
//!
//! ```text
//! Placing → [Scoring] → Prefilling ─┐
//!              Drafting → Verifying → Merging → Emitting ─→ Finished
//!                 └───────────┴──────────────────┘
//! ```
//! The expert drafts a block of tokens, the base reads the logits of all of them in one forward pass, and the rule then
//! decides position after position. The drafts after a token stand as long as that token is the one drafted. With the
//! first that differs, they are discarded and every worker's cache is cut back. Logits are never read after the last
//! draft, so a block of k drafts feeds the base k tokens: the last one decided and the drafts but the last.
//!
//! Where the draft plan is pipelined, the expert drafts the next block while the base verifies, as if all were
//! accepted; a rejection withdraws it. With one draft token nothing waits for the draft: base and expert compute the
//! same position at the same time, and the base looks the proposal up in the logits that it keeps.

mod next_operation;
mod placing;

use cosec_proto::sampling::{PositionRandom, SamplingSeed, TokenProbability};
use cosec_proto::{ErrorCode, OperationError, OperationOutcome, WorkerRole};
use tokio::time::Instant;

use super::event::{AfterEvent, SessionAction, SessionInput, SessionParams, SessionPhase};
use super::plan::DecodePlan;
use super::recovery::cause_of;
use super::role_state::{InFlight, RoleState, note_scores};
use super::sequence::TokenSequence;
use crate::merge::{MissingEvidence, ModelEvidence};
use crate::request::{FinishReason, SessionError, SessionEvent, TokenEvent};
use crate::speculation::controller::DraftPlan;
use crate::speculation::tally::DraftTally;

/// One session. See the module.
#[derive(Debug)]
pub struct SessionState {
    params: SessionParams,
    sequence: TokenSequence,
    phase: SessionPhase,
    roles: [RoleState; 3],
    /// A worker that cannot be found. It may be missed in any phase and is dealt with after the decision under way.
    absent: Option<(WorkerRole, OperationError)>,
    /// Whether all workers were given back because the client does not read.
    is_suspended: bool,
    draft_plan: DraftPlan,
    tally: DraftTally,
}

impl SessionState {
    /// A session that waits for `Started`.
    #[must_use]
    pub fn new(params: SessionParams) -> Self {
        Self {
            sequence: TokenSequence::new(params.prompt.clone()),
            phase: SessionPhase::Placing,
            roles: WorkerRole::ALL.map(RoleState::new),
            absent: None,
            is_suspended: false,
            draft_plan: params.draft_plan,
            tally: DraftTally::default(),
            params,
        }
    }

    /// Goes on behind new tokens that were decided elsewhere; to be called before `Started`. Their scores, and those of
    /// the prompt, were sent there.
    pub fn take_over(&mut self, tokens: &[u32]) {
        self.sequence.take_over(tokens);
        self.params.prompt_scores = None;
    }

    /// Names the random numbers.
    pub(crate) fn seed(&self) -> SamplingSeed {
        self.params.seed
    }

    /// How it decodes now.
    #[must_use]
    pub fn plan(&self) -> &DecodePlan {
        &self.params.plan
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> &SessionPhase {
        &self.phase
    }

    /// Changes how the next tokens are drafted; never which tokens come out.
    pub fn set_draft_plan(&mut self, draft_plan: DraftPlan) {
        self.draft_plan = draft_plan;
    }

    /// What became of drafts since the last call.
    pub fn take_tally(&mut self) -> DraftTally {
        self.tally.take()
    }

    /// Takes an input and returns what to do about it.
    pub fn step(&mut self, now: Instant, input: SessionInput) -> Vec<SessionAction> {
        if matches!(self.phase, SessionPhase::Finished | SessionPhase::Emitting { next: AfterEvent::End }) {
            return match input {
                SessionInput::Emitted => self.emitted(),
                // Too late to matter.
                _ => Vec::new(),
            };
        }
        if now >= self.params.deadline {
            let message = format!("the request's deadline passed while {}", self.phase.activity());
            return self.fail(ErrorCode::DeadlineExceeded, message);
        }
        match input {
            SessionInput::Started => self.place(),
            SessionInput::Located { role, max_operation_tokens, vocabulary } => {
                self.roles[role.index()].place(max_operation_tokens, vocabulary);
                if self.phase == SessionPhase::Placing { self.begin_when_placed() } else { self.pump() }
            }
            SessionInput::Absent { role, error } => {
                self.absent = Some((role, error));
                self.proceed()
            }
            SessionInput::Answered { role, ticket, reply } => self.answered(role, ticket, reply),
            SessionInput::Decided(token) if self.phase == SessionPhase::Merging => self.decided(token),
            SessionInput::Missing { missing, evidence } if self.phase == SessionPhase::Merging => {
                self.look_up(missing, evidence)
            }
            SessionInput::MergeFailed(error) => self.fail(error.code, error.message),
            SessionInput::Emitted => self.emitted(),
            SessionInput::Suspended => self.suspend(),
            // No decision was asked for, or only the deadline was to be checked.
            SessionInput::Decided(_) | SessionInput::Missing { .. } | SessionInput::Tick => Vec::new(),
        }
    }

    fn role(&self, role: WorkerRole) -> &RoleState {
        &self.roles[role.index()]
    }

    // === rounds ===

    /// Does what there is to do: sends operations, and has the next token decided once all that was asked for is known.
    fn proceed(&mut self) -> Vec<SessionAction> {
        if matches!(self.phase, SessionPhase::Merging | SessionPhase::Emitting { .. } | SessionPhase::Finished) {
            // The decision or event under way comes first; workers go on meanwhile.
            return self.pump();
        }
        // Expert and anti-expert may both be missed; once is enough.
        if let Some((role, error)) = self.absent.take()
            && self.needs(role)
        {
            return self.do_without(role, error);
        }
        if self.phase == SessionPhase::Placing {
            return Vec::new();
        }
        let is_scored = self.is_scored();
        if let SessionPhase::Scoring { scores } = &mut self.phase {
            if !is_scored {
                return self.pump();
            }
            let scores = std::mem::take(scores);
            return self.emit(SessionEvent::Prompt(scores), AfterEvent::NextToken);
        }
        if self.new_tokens() >= self.params.max_new_tokens {
            return self.emit(SessionEvent::Finished(FinishReason::Length), AfterEvent::End);
        }
        let mut actions = self.pump();
        if matches!(self.phase, SessionPhase::Verifying { lookup: Some(_) }) {
            return actions;
        }
        if self.is_ready() {
            self.phase = SessionPhase::Merging;
            let position = self.sequence.decided() as u32;
            actions.push(SessionAction::Merge { position, evidence: self.sequence.take() });
        } else {
            self.phase = match self.sequence.drafts() {
                [] if self.new_tokens() == 0 => SessionPhase::Prefilling,
                [] => SessionPhase::Drafting,
                [_, ..] => SessionPhase::Verifying { lookup: None },
            };
        }
        actions
    }

    fn is_scored(&self) -> bool {
        self.role(WorkerRole::Base).cached() + 1 >= self.sequence.prompt_tokens()
    }

    fn new_tokens(&self) -> u32 {
        self.sequence.new_tokens() as u32
    }

    /// Whether all that the rule reads at the next position is known.
    fn is_ready(&self) -> bool {
        WorkerRole::ALL.into_iter().filter(|&role| self.params.plan.reads(role)).all(|role| match role {
            WorkerRole::Expert if self.params.plan.drafts() => !self.sequence.drafts().is_empty(),
            WorkerRole::Base | WorkerRole::Expert | WorkerRole::AntiExpert => {
                self.role(role).known() > self.sequence.decided()
            }
        })
    }

    /// The random numbers of the token at `position`.
    fn random(&self, position: usize) -> PositionRandom {
        PositionRandom { seed: self.params.seed, position: position as u32 }
    }

    fn look_up(&mut self, missing: MissingEvidence, evidence: Box<[ModelEvidence; 3]>) -> Vec<SessionAction> {
        self.sequence.give_back(evidence);
        let lookup = match missing {
            MissingEvidence::Judgement(id) if self.role(WorkerRole::Base).vocabulary() <= id => {
                self.sequence.look_up(WorkerRole::Base, TokenProbability { id, probability: 0.0 });
                None
            }
            MissingEvidence::Judgement(_)
            | MissingEvidence::Proposal
            | MissingEvidence::Fallback
            | MissingEvidence::Logits(_) => {
                Some(self.params.plan.request_for(missing, &self.random(self.sequence.decided())))
            }
        };
        self.phase = SessionPhase::Verifying { lookup };
        self.proceed()
    }

    fn decided(&mut self, token: TokenEvent) -> Vec<SessionAction> {
        let id = token.decision.id;
        if let (Some(&proposal), true) = (self.sequence.drafts().first(), self.params.plan.reads(WorkerRole::Base)) {
            self.tally.judged(token.decision.rejected.is_none(), proposal == id);
        }
        if self.params.end_tokens.contains(&id) {
            return self.emit(SessionEvent::Finished(FinishReason::Stop), AfterEvent::End);
        }
        if let Some(role) = self.unknown_to(id) {
            let message = format!("token {id} was drawn, which the {} does not have", role.name());
            return self.fail(ErrorCode::WorkerFault, message);
        }
        let position = self.sequence.decided();
        let discarded = self.sequence.drafts().len().saturating_sub(1);
        let mut actions = Vec::new();
        if !self.sequence.decide(id) {
            actions = self.roll_back(position);
            self.tally.rolled_back(discarded, actions.len());
        }
        if self.params.plan.drafts() && self.role(WorkerRole::Base).known() == self.sequence.decided() {
            self.tally.end_block();
        }
        actions.extend(self.emit(SessionEvent::Token(token), AfterEvent::NextToken));
        actions
    }

    /// The token at `position` is not the one that workers were told.
    fn roll_back(&mut self, position: usize) -> Vec<SessionAction> {
        self.roles.iter_mut().filter_map(|role| role.roll_back(position)).collect()
    }

    fn discard_drafts(&mut self) -> Vec<SessionAction> {
        self.sequence.discard();
        let position = self.sequence.decided();
        let actions = self.roll_back(position);
        self.roles.iter_mut().for_each(|role| role.forget(position));
        actions
    }

    // === answers ===

    fn answered(
        &mut self,
        role: WorkerRole,
        ticket: u64,
        reply: Result<OperationOutcome, OperationError>,
    ) -> Vec<SessionAction> {
        let Some(operation) = self.roles[role.index()].answered(ticket) else {
            // It was withdrawn.
            return Vec::new();
        };
        match reply {
            Err(error) if !error.code.may_try_elsewhere() => self.fail(error.code, error.message),
            Err(error) => {
                let cause = cause_of(error.code, self.new_tokens() > 0);
                match self.roles[role.index()].failed(cause) {
                    Some(failures) => vec![SessionAction::Locate { role, failures, cause }],
                    None => self.fail(error.code, format!("the {} failed again and again: {error}", role.name())),
                }
            }
            Ok(OperationOutcome::NeedPrefix { have }) => {
                if self.roles[role.index()].rewind(have) {
                    self.pump()
                } else {
                    let message = format!("the {} loses its cache again and again", role.name());
                    self.fail(ErrorCode::WorkerFault, message)
                }
            }
            Ok(reply) => {
                self.absorb(role, &operation, reply);
                self.proceed()
            }
        }
    }

    /// Takes what a worker found out into the sequence.
    fn absorb(&mut self, role: WorkerRole, operation: &InFlight, reply: OperationOutcome) {
        let (results, drafted) = match reply {
            OperationOutcome::Extended(logits) => (logits, 0),
            OperationOutcome::Drafted { tokens, logits } => {
                let last = tokens.iter().position(|token| self.is_last(token.id));
                let taken = last.map_or(tokens.len(), |last| last + 1);
                self.sequence.draft(&tokens[..taken]);
                self.tally.drafted(tokens.len());
                // The last is never fed.
                (logits, taken.min(tokens.len().saturating_sub(1)))
            }
            OperationOutcome::NeedPrefix { .. } | OperationOutcome::Released | OperationOutcome::Recalled(_) => {
                (Vec::new(), 0)
            }
        };
        self.roles[role.index()].fed(operation, drafted);
        if let SessionPhase::Scoring { scores } = &mut self.phase {
            return note_scores(scores, operation.at, results);
        }
        if let SessionPhase::Verifying { lookup } = &mut self.phase
            && !operation.is_draft
            && !operation.asked.is_empty()
        {
            lookup.take_if(|(of, _)| *of == role);
        }
        for ((position, view), result) in operation.asked.iter().zip(results) {
            self.sequence.note(role, *position, view, result);
        }
    }

    // === events ===

    fn emit(&mut self, event: SessionEvent, next: AfterEvent) -> Vec<SessionAction> {
        self.phase = SessionPhase::Emitting { next };
        vec![SessionAction::Emit(event)]
    }

    fn fail(&mut self, code: ErrorCode, message: impl Into<String>) -> Vec<SessionAction> {
        self.emit(SessionEvent::Failed(SessionError::new(code, message.into())), AfterEvent::End)
    }

    fn emitted(&mut self) -> Vec<SessionAction> {
        match self.phase {
            SessionPhase::Emitting { next: AfterEvent::Begin } => {
                self.phase = SessionPhase::Placing;
                let mut actions = self.begin_when_placed();
                actions.extend(self.resume());
                actions
            }
            SessionPhase::Emitting { next: AfterEvent::NextToken } => {
                self.phase = SessionPhase::Drafting;
                let mut actions = self.proceed();
                actions.extend(self.resume());
                actions
            }
            SessionPhase::Emitting { next: AfterEvent::End } => {
                self.phase = SessionPhase::Finished;
                Vec::new()
            }
            SessionPhase::Placing
            | SessionPhase::Scoring { .. }
            | SessionPhase::Prefilling
            | SessionPhase::Drafting
            | SessionPhase::Verifying { .. }
            | SessionPhase::Merging
            | SessionPhase::Finished => Vec::new(),
        }
    }
}
