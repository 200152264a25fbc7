//! The session as a pure state machine: `step(now, event) -> actions`. No socket, clock or randomness inside.
//!
//! ```text
//! Placing → [Scoring] → Prefilling ─┐
//!              Drafting → Verifying → Merging → Emitting ─→ Finished
//!                 └───────────┴──────────────────┘
//! ```
//! The expert drafts a block of tokens; the base reads the rows of all of them in one forward pass; the rule then decides
//! position after position. The drafts behind a token stand as long as that token is the one drafted. With the first that
//! is another, they are discarded and every worker's cache is cut back. Rows are never read behind the last draft, so a
//! block of k drafts feeds the base k tokens: the last one decided and the drafts but the last.
//!
//! Where the draft plan is pipelined, the expert drafts the next block while the base verifies, as if all were accepted; a
//! rejection withdraws it. With one draft token nothing waits for the draft: base and expert compute the same position side by side, and the base looks the
//! proposal up in the row that it keeps.

use cosec_proto::ErrorCode;
use tokio::time::Instant;

use super::config::ExpertAbsent;
use super::event::{Action, Event, Phase, Task, Then};
use super::lane::{Aim, Lane, Sent, note_scores};
use super::plan::DecodePlan;
use super::sequence::Sequence;
use crate::merge::{MissingEvidence, ModelEvidence};
use crate::request::{FinishReason, SessionError, SessionEvent, TokenEvent};
use crate::speculation::controller::DraftPlan;
use crate::speculation::tally::DraftTally;
use crate::worker_pool::operation::View;
use crate::worker_pool::reply::{OperationError, Reply};
use cosec_proto::WorkerRole;
use cosec_proto::sampling::TokenProbability;

/// See the module.
#[derive(Debug)]
pub struct Session {
    task: Task,
    sequence: Sequence,
    phase: Phase,
    lanes: [Lane; 3],
    /// What the rule lacks at the next position.
    lookup: Option<(WorkerRole, View)>,
    /// A worker that cannot be found, not dealt with yet.
    absent: Option<(WorkerRole, OperationError)>,
    draft_plan: DraftPlan,
    tally: DraftTally,
}

/// Readers go first: what the expert drafts ahead depends on what they were asked.
const SENDING_ORDER: [WorkerRole; 3] = [WorkerRole::Base, WorkerRole::AntiExpert, WorkerRole::Expert];

impl Session {
    /// A session that waits for `Started`.
    #[must_use]
    pub fn new(task: Task) -> Self {
        Self {
            sequence: Sequence::new(task.prompt.clone()),
            phase: Phase::Placing,
            lanes: WorkerRole::ALL.map(Lane::new),
            lookup: None,
            absent: None,
            draft_plan: task.draft_plan,
            tally: DraftTally::default(),
            task,
        }
    }

    /// How it decodes now.
    #[must_use]
    pub fn plan(&self) -> &DecodePlan {
        &self.task.plan
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> &Phase {
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

    /// Takes note of an event and says what to do about it.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        if matches!(self.phase, Phase::Finished | Phase::Emitting { then: Then::End }) {
            return match event {
                Event::Emitted => self.emitted(),
                // Too late to matter.
                _ => Vec::new(),
            };
        }
        if now >= self.task.deadline {
            let message = format!("the request's deadline passed while {}", self.phase.activity());
            return self.fail(ErrorCode::DeadlineExceeded, message);
        }
        match event {
            Event::Started => self.place(),
            Event::Located { role, max_operation_tokens, vocabulary } => {
                self.lanes[role.index()].placed(max_operation_tokens, vocabulary);
                if self.phase == Phase::Placing { self.begin_when_placed() } else { self.pump() }
            }
            Event::Absent { role, error } => {
                self.absent = Some((role, error));
                self.go_on()
            }
            Event::Answered { role, ticket, reply } => self.answered(role, ticket, reply),
            Event::Decided(token) if self.phase == Phase::Merging => self.decided(token),
            Event::Missing { missing, evidence } if self.phase == Phase::Merging => self.look_up(missing, evidence),
            Event::MergeFailed(error) => self.fail(error.code, error.message),
            Event::Emitted => self.emitted(),
            // Nobody asked for a decision, or only the time was to be looked at.
            Event::Decided(_) | Event::Missing { .. } | Event::Tick => Vec::new(),
        }
    }

    // === placing ===

    fn place(&mut self) -> Vec<Action> {
        let roles = WorkerRole::ALL.into_iter().filter(|&role| self.needs(role));
        let actions: Vec<_> = roles.map(|role| Action::Locate { role, failures: 0 }).collect();
        // A prompt of no interest to anybody: nothing to place.
        if actions.is_empty() { self.begin() } else { actions }
    }

    /// Scores of the prompt are the base's, whatever the rule reads.
    fn needs(&self, role: WorkerRole) -> bool {
        let scores = role == WorkerRole::Base && self.task.prompt_scores.is_some();
        scores || (self.task.max_new_tokens > 0 && self.task.plan.reads(role))
    }

    fn begin_when_placed(&mut self) -> Vec<Action> {
        let missing =
            WorkerRole::ALL.into_iter().any(|role| self.needs(role) && !self.lanes[role.index()].is_placed());
        if missing { Vec::new() } else { self.begin() }
    }

    fn begin(&mut self) -> Vec<Action> {
        if self.task.prompt_scores.is_some() {
            self.phase = Phase::Scoring { scores: vec![None; self.sequence.len()] };
        } else {
            self.phase = Phase::Prefilling;
        }
        self.go_on()
    }

    /// Goes on without a worker, or not at all.
    fn do_without(&mut self, role: WorkerRole, error: OperationError) -> Vec<Action> {
        // A rule that does not read the base, such as `expert_only`, cannot go on without its expert.
        let is_needed = role == WorkerRole::Base || !self.task.plan.reads(WorkerRole::Base);
        if is_needed || self.task.expert_absent != ExpertAbsent::Degrade {
            return self.fail(error.code, error.message);
        }
        self.task.plan = self.task.plan.degraded();
        self.lookup = None;
        let mut actions = self.discard_drafts();
        let then = if self.phase == Phase::Placing { Then::Begin } else { Then::Round };
        actions.extend(self.emit(SessionEvent::Degraded, then));
        actions
    }

    // === rounds ===

    /// Does what there is to do: sends operations, and decides the next token as soon as all that was asked for is known.
    fn go_on(&mut self) -> Vec<Action> {
        // A decision or an event under way comes first.
        let waits = !matches!(self.phase, Phase::Merging | Phase::Emitting { .. } | Phase::Finished);
        // Expert and anti-expert can be missed both; once is enough.
        if waits
            && let Some((role, error)) = self.absent.take()
            && self.needs(role)
        {
            return self.do_without(role, error);
        }
        let is_scored = self.lanes[WorkerRole::Base.index()].cached() + 1 >= self.sequence.prompt_tokens();
        match &mut self.phase {
            Phase::Placing => return Vec::new(),
            Phase::Scoring { scores } if is_scored => {
                let scores = std::mem::take(scores);
                return self.emit(SessionEvent::Prompt(scores), Then::Round);
            }
            Phase::Scoring { .. } => return self.pump(),
            Phase::Prefilling
            | Phase::Drafting
            | Phase::Verifying
            | Phase::Merging
            | Phase::Emitting { .. }
            | Phase::Finished => {}
        }
        if waits && self.new_tokens() >= self.task.max_new_tokens {
            return self.emit(SessionEvent::Finished(FinishReason::Length), Then::End);
        }
        let mut actions = self.pump();
        if waits {
            if self.is_ready() {
                self.phase = Phase::Merging;
                actions
                    .push(Action::Merge { position: self.sequence.decided() as u32, evidence: self.sequence.take() });
            } else {
                self.phase = match self.sequence.drafts() {
                    _ if self.lookup.is_some() => Phase::Verifying,
                    [] if self.new_tokens() == 0 => Phase::Prefilling,
                    [] => Phase::Drafting,
                    [_, ..] => Phase::Verifying,
                };
            }
        }
        actions
    }

    fn new_tokens(&self) -> u32 {
        self.sequence.new_tokens() as u32
    }

    fn is_ready(&self) -> bool {
        let position = self.sequence.decided();
        self.lookup.is_none()
            && WorkerRole::ALL.into_iter().filter(|&role| self.task.plan.reads(role)).all(|role| match role {
                WorkerRole::Expert if self.task.plan.drafts() => !self.sequence.drafts().is_empty(),
                WorkerRole::Base | WorkerRole::Expert | WorkerRole::AntiExpert => {
                    self.lanes[role.index()].known() > position
                }
            })
    }

    /// Sends whatever can be sent now.
    fn pump(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for role in SENDING_ORDER {
            if self.lanes[role.index()].is_idle()
                && let Some(aim) = self.aim(role)
            {
                actions.push(self.lanes[role.index()].send(self.sequence.tokens(), aim));
            }
        }
        actions
    }

    /// What to find out next from a worker that has nothing to do.
    fn aim(&self, role: WorkerRole) -> Option<Aim> {
        let lane = &self.lanes[role.index()];
        match (&self.phase, &self.lookup) {
            (Phase::Placing | Phase::Emitting { then: Then::Begin | Then::End } | Phase::Finished, _) => None,
            (Phase::Scoring { .. }, _) => {
                let alternatives = self.task.prompt_scores?;
                let is_scored = lane.cached() + 1 >= self.sequence.prompt_tokens();
                (role == WorkerRole::Base && !is_scored).then_some(Aim::Scores { alternatives })
            }
            (_, Some((of, view))) if *of == role => {
                Some(Aim::Rows { from: self.sequence.decided(), views: vec![vec![view.clone()]] })
            }
            _ if !self.task.plan.reads(role) || self.new_tokens() >= self.task.max_new_tokens => None,
            _ if role == WorkerRole::Expert && self.task.plan.drafts() => self.draft_aim(),
            _ => self.rows_aim(role),
        }
    }

    /// The rows that judge the drafts, once all that are known have been judged.
    fn rows_aim(&self, role: WorkerRole) -> Option<Aim> {
        let lane = &self.lanes[role.index()];
        let from = self.sequence.decided();
        if lane.known() > from {
            return None;
        }
        let views = |proposal: Option<u32>| {
            // Beyond the model's row there is nothing to look up: the models differ in padding.
            self.task.plan.views(role, proposal.filter(|&id| id < lane.vocabulary()))
        };
        let drafts = self.sequence.drafts();
        if !drafts.is_empty() {
            return Some(Aim::Rows { from, views: drafts.iter().map(|&id| views(Some(id))).collect() });
        }
        if self.draft_plan.num_draft_tokens == 1 || !self.task.plan.drafts() {
            return Some(Aim::Rows { from, views: vec![views(None)] });
        }
        // The last token goes together with the drafts behind it.
        (lane.cached() + 1 < from).then_some(Aim::Feed { until: from - 1 })
    }

    fn draft_aim(&self) -> Option<Aim> {
        let drafts = self.sequence.drafts();
        let room = self.task.max_new_tokens.saturating_sub(self.new_tokens() + drafts.len() as u32);
        let k = self.draft_plan.num_draft_tokens.min(room);
        let is_last = drafts.last().is_some_and(|&id| self.is_last(id));
        let are_asked_for = SENDING_ORDER
            .into_iter()
            .filter(|&role| role != WorkerRole::Expert && self.task.plan.reads(role))
            .all(|role| self.lanes[role.index()].asked() >= self.sequence.len());
        let runs_ahead = self.draft_plan.pipelined && drafts.len() <= k as usize && are_asked_for;
        if k == 0 || is_last || !(drafts.is_empty() || runs_ahead) {
            return None;
        }
        let views = self.task.plan.views(WorkerRole::Expert, None);
        Some(Aim::Draft { k, warp: self.task.plan.sampling.expert, views, is_ahead: !drafts.is_empty() })
    }

    /// Whether nothing can follow a draft: it ends the choice, or a model does not have it.
    fn is_last(&self, id: u32) -> bool {
        self.task.end_tokens.contains(&id) || self.unknown_to(id).is_some()
    }

    fn unknown_to(&self, id: u32) -> Option<WorkerRole> {
        let reads = |role: &WorkerRole| self.task.plan.reads(*role);
        WorkerRole::ALL.into_iter().filter(reads).find(|role| self.lanes[role.index()].vocabulary() <= id)
    }

    fn look_up(&mut self, missing: MissingEvidence, evidence: Box<[ModelEvidence; 3]>) -> Vec<Action> {
        self.sequence.give_back(evidence);
        match missing {
            MissingEvidence::Judgement(id) if self.lanes[WorkerRole::Base.index()].vocabulary() <= id => {
                self.sequence.look_up(WorkerRole::Base, TokenProbability { id, probability: 0.0 });
            }
            MissingEvidence::Judgement(_)
            | MissingEvidence::Proposal
            | MissingEvidence::Fallback
            | MissingEvidence::Logits(_) => {
                self.lookup = Some(self.task.plan.request_for(missing));
            }
        }
        self.phase = Phase::Verifying;
        self.go_on()
    }

    fn decided(&mut self, token: TokenEvent) -> Vec<Action> {
        let id = token.decision.id;
        if let (Some(&proposal), true) = (self.sequence.drafts().first(), self.task.plan.reads(WorkerRole::Base)) {
            self.tally.judged(token.decision.rejected.is_none(), proposal == id);
        }
        if self.task.end_tokens.contains(&id) {
            return self.emit(SessionEvent::Finished(FinishReason::Stop), Then::End);
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
        if self.task.plan.drafts() && self.lanes[WorkerRole::Base.index()].known() == self.sequence.decided() {
            self.tally.end_block();
        }
        actions.extend(self.emit(SessionEvent::Token(token), Then::Round));
        actions
    }

    /// The token at `position` is not the one that workers were told.
    fn roll_back(&mut self, position: usize) -> Vec<Action> {
        self.lanes.iter_mut().filter_map(|lane| lane.roll_back(position)).collect()
    }

    fn discard_drafts(&mut self) -> Vec<Action> {
        self.sequence.discard();
        let position = self.sequence.decided();
        let actions = self.roll_back(position);
        self.lanes.iter_mut().for_each(|lane| lane.forget(position));
        actions
    }

    // === workers ===

    fn answered(&mut self, role: WorkerRole, ticket: u64, reply: Result<Reply, OperationError>) -> Vec<Action> {
        let Some(sent) = self.lanes[role.index()].answered(ticket) else {
            // The question is no longer of interest.
            return Vec::new();
        };
        match reply {
            Err(error) if !error.code.may_try_elsewhere() => self.fail(error.code, error.message),
            Err(error) => match self.lanes[role.index()].failed() {
                Some(failures) => {
                    vec![Action::Locate { role, failures }]
                }
                None => self.fail(error.code, format!("the {} failed again and again: {error}", role.name())),
            },
            Ok(Reply::NeedPrefix { have }) => {
                if self.lanes[role.index()].rewind(have) {
                    self.pump()
                } else {
                    let message = format!("the {} loses its cache again and again", role.name());
                    self.fail(ErrorCode::WorkerFault, message)
                }
            }
            Ok(reply) => {
                self.absorb(role, &sent, reply);
                self.go_on()
            }
        }
    }

    fn absorb(&mut self, role: WorkerRole, sent: &Sent, reply: Reply) {
        let (rows, drafted) = match reply {
            Reply::Rows(rows) => (rows, 0),
            Reply::Drafted { tokens, rows } => {
                let last = tokens.iter().position(|token| self.is_last(token.id));
                let taken = last.map_or(tokens.len(), |last| last + 1);
                self.sequence.draft(&tokens[..taken]);
                self.tally.drafted(tokens.len());
                // The last is never fed.
                (rows, taken.min(tokens.len().saturating_sub(1)))
            }
            Reply::NeedPrefix { .. } | Reply::Released => (Vec::new(), 0),
        };
        self.lanes[role.index()].fed(sent, drafted);
        if let Phase::Scoring { scores } = &mut self.phase {
            return note_scores(scores, sent.at, rows);
        }
        let answers_lookup = !sent.is_draft && !sent.asked.is_empty();
        if answers_lookup && self.lookup.as_ref().is_some_and(|(of, _)| *of == role) {
            self.lookup = None;
        }
        for ((position, view), row) in sent.asked.iter().zip(rows) {
            self.sequence.note(role, *position, view, row);
        }
    }

    // === events ===

    fn emit(&mut self, event: SessionEvent, then: Then) -> Vec<Action> {
        self.phase = Phase::Emitting { then };
        vec![Action::Emit(event)]
    }

    fn fail(&mut self, code: ErrorCode, message: impl Into<String>) -> Vec<Action> {
        self.emit(SessionEvent::Failed(SessionError::new(code, message.into())), Then::End)
    }

    fn emitted(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Emitting { then: Then::Begin } => {
                self.phase = Phase::Placing;
                self.begin_when_placed()
            }
            Phase::Emitting { then: Then::Round } => {
                self.phase = Phase::Drafting;
                self.go_on()
            }
            Phase::Emitting { then: Then::End } => {
                self.phase = Phase::Finished;
                Vec::new()
            }
            Phase::Placing
            | Phase::Scoring { .. }
            | Phase::Prefilling
            | Phase::Drafting
            | Phase::Verifying
            | Phase::Merging
            | Phase::Finished => Vec::new(),
        }
    }
}
