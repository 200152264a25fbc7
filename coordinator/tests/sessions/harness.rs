//! A session and its workers in one thread: actions complete in an order drawn from a seed, and some of them fail.

use std::sync::Arc;
use std::time::Duration;

use cosec_coordinator::merge::{LogitAdjuster, MergeError, ModelEvidence, PositionDistributions, next_token};
use cosec_coordinator::request::{FinishReason, SessionError, SessionEvent, TokenEvent, TokenizedRequest};
use cosec_coordinator::session::config::ExpertAbsent;
use cosec_coordinator::session::event::{RoleOperation, SessionAction, SessionInput, SessionParams, SessionPhase};
use cosec_coordinator::session::plan::DecodePlan;
use cosec_coordinator::session::state::SessionState;
use cosec_coordinator::speculation::controller::DraftPlan;
use cosec_proto::sampling::PositionRandom;
use cosec_proto::sampling::SamplingSeed;
use cosec_proto::{ErrorCode, Operation, OperationError, OperationOutcome, OperationReply, SessionId, WorkerRole};
use cosec_tests::mock_worker::{MockEngine, MockModel};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::time::Instant;

use crate::reference::Models;

/// What a session decoded and how it ended.
pub(crate) type Decoded = (Vec<TokenEvent>, Result<FinishReason, SessionError>);

/// What a session meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HarnessOptions {
    pub(crate) seed: u64,
    /// Of 256 operations, so many fail, and so many find the cache gone.
    pub(crate) faults: u8,
    /// Changes at random, with at most so many draft tokens.
    pub(crate) draft_plan: DraftPlan,
    pub(crate) plan_varies: bool,
}

/// An action in flight.
enum Pending {
    Locate(WorkerRole),
    Send { role: WorkerRole, ticket: u64, operation: Operation },
    Merge { position: u32, evidence: Box<[ModelEvidence; 3]> },
    Emit(SessionEvent),
}

pub(crate) struct SessionHarness {
    models: [MockModel; 3],
    engines: [MockEngine; 3],
    session: SessionState,
    request: TokenizedRequest,
    adjuster: LogitAdjuster,
    pending: Vec<Pending>,
    chance: StdRng,
    options: HarnessOptions,
    now: Instant,
    /// Tokens fed to the base.
    pub(crate) base_tokens: usize,
    pub(crate) withdrawn: usize,
}

impl SessionHarness {
    pub(crate) fn new(models: &Models, request: &TokenizedRequest, options: HarnessOptions) -> Self {
        let settings = &request.settings;
        let end_tokens = models.base.end_token_ids.clone();
        let params = SessionParams {
            plan: DecodePlan::new(settings, models.anti_expert.is_some()).unwrap(),
            draft_plan: options.draft_plan,
            prompt: request.prompt.to_vec(),
            max_new_tokens: request.max_new_tokens,
            end_tokens: end_tokens.clone(),
            prompt_scores: None,
            expert_absent: ExpertAbsent::FailClosed,
            seed: SamplingSeed { seed: settings.seed, sample: request.sample },
            deadline: settings.deadline,
        };
        let anti_expert = models.anti_expert.clone().unwrap_or_else(MockModel::expert);
        let models = [models.base.clone(), models.expert.clone(), anti_expert];
        Self {
            engines: models.clone().map(MockEngine::new),
            models,
            session: SessionState::new(params),
            adjuster: LogitAdjuster::new(settings.adjustments.clone(), end_tokens, settings.min_tokens),
            request: request.clone(),
            pending: Vec::new(),
            chance: StdRng::seed_from_u64(options.seed),
            options,
            now: Instant::now(),
            base_tokens: 0,
            withdrawn: 0,
        }
    }

    /// Decodes until the end.
    pub(crate) fn run(&mut self) -> Decoded {
        let mut tokens = Vec::new();
        let mut event = SessionInput::Started;
        loop {
            for action in self.session.step(self.now, event) {
                self.note(action);
            }
            assert!(!self.pending.is_empty(), "nothing is under way in {:?}", self.session.phase());
            let at = self.chance.next_u32() as usize % self.pending.len();
            event = match self.pending.swap_remove(at) {
                Pending::Locate(role) => self.located(role),
                Pending::Send { role, ticket, operation } => {
                    SessionInput::Answered { role, ticket, reply: self.perform(role, &operation) }
                }
                Pending::Merge { position, evidence } => self.merge(position, evidence),
                Pending::Emit(SessionEvent::Token(token)) => {
                    self.maybe_suspend();
                    self.adjuster.emitted(token.decision.id);
                    tokens.push(token);
                    SessionInput::Emitted
                }
                Pending::Emit(SessionEvent::Finished(reason)) => return (tokens, Ok(reason)),
                Pending::Emit(SessionEvent::Failed(error)) => return (tokens, Err(error)),
                Pending::Emit(other) => panic!("{other:?}"),
            };
            if self.options.plan_varies {
                let num_draft_tokens = 1 + self.chance.next_u32() % self.options.draft_plan.num_draft_tokens;
                let pipelined = num_draft_tokens > 1 && self.chance.next_u32().is_multiple_of(2);
                self.session.set_draft_plan(DraftPlan { num_draft_tokens, pipelined });
            }
            assert_ne!(*self.session.phase(), SessionPhase::Finished);
        }
    }

    fn note(&mut self, action: SessionAction) {
        self.pending.push(match action {
            SessionAction::Locate { role, .. } => Pending::Locate(role),
            SessionAction::Send(RoleOperation { role, ticket, at, tokens, kind, .. }) => {
                self.base_tokens += if role == WorkerRole::Base { tokens.len() } else { 0 };
                let operation = Operation {
                    session: SessionId::from_wire(&[7; 16]).unwrap(),
                    adapter: String::new(),
                    tenant: 0,
                    at,
                    tokens,
                    kind,
                };
                Pending::Send { role, ticket, operation }
            }
            SessionAction::Merge { position, evidence } => Pending::Merge { position, evidence },
            SessionAction::Emit(event) => Pending::Emit(event),
            SessionAction::Withdraw { role, ticket } => return self.withdraw(role, ticket),
        });
    }

    /// Some clients do not read for so long that all workers are given back.
    fn maybe_suspend(&mut self) {
        if self.options.faults > 0 && self.chance.next_u32().is_multiple_of(8) {
            self.pending.clear();
            assert!(self.session.step(self.now, SessionInput::Suspended).is_empty());
        }
    }

    fn randomness(&self) -> SamplingSeed {
        SamplingSeed { seed: self.request.settings.seed, sample: self.request.sample }
    }

    fn located(&mut self, role: WorkerRole) -> SessionInput {
        self.engines[role.index()].evict();
        let MockModel { max_operation_tokens, vocabulary, .. } = self.models[role.index()];
        SessionInput::Located { role, max_operation_tokens, vocabulary }
    }

    fn perform(&mut self, role: WorkerRole, operation: &Operation) -> Result<OperationOutcome, OperationError> {
        let engine = &self.engines[role.index()];
        match self.chance.next_u32() as u8 {
            lot if lot < self.options.faults => {
                return Err(OperationError::new(ErrorCode::Unavailable, "a fault"));
            }
            lot if lot < self.options.faults.saturating_mul(2) => engine.evict(),
            _ => {}
        }
        let response = engine.perform(operation.encode(1, 0));
        let vocabulary = self.models[role.index()].vocabulary;
        Ok(OperationReply::decode(operation, vocabulary, response)?.outcome)
    }

    /// A withdrawn operation has done nothing yet, has begun, or is done.
    fn withdraw(&mut self, role: WorkerRole, ticket: u64) {
        self.withdrawn += 1;
        let is_it = |pending: &Pending| matches!(pending, Pending::Send { role: r, ticket: t, .. } if (*r, *t) == (role, ticket));
        let at = self.pending.iter().position(is_it).expect("only what is under way is withdrawn");
        if let Pending::Send { operation, .. } = self.pending.swap_remove(at) {
            let request = operation.encode(1, 0);
            match self.chance.next_u32() % 3 {
                0 => {}
                1 => self.engines[role.index()].begin(request),
                _ => drop(self.engines[role.index()].perform(request)),
            }
        }
    }

    fn merge(&self, position: u32, evidence: Box<[ModelEvidence; 3]>) -> SessionInput {
        let plan = self.session.plan();
        let laws = PositionDistributions::new(evidence, self.adjuster.changes(), plan.sampling);
        let draws = PositionRandom { seed: self.randomness(), position };
        match next_token(&*plan.rule, &laws, &draws, plan.questions(&draws)) {
            Ok((decision, score)) => SessionInput::Decided(TokenEvent { decision, score }),
            Err(MergeError::Missing(missing)) => SessionInput::Missing { missing, evidence: laws.into_evidence() },
            Err(error) => panic!("{error}"),
        }
    }
}

/// Decodes `request` under `options`.
pub(crate) fn decode(models: &Models, request: &TokenizedRequest, options: HarnessOptions) -> Decoded {
    SessionHarness::new(models, request, options).run()
}

/// The same, one position at a time, with full logits, in time and without faults: what everything else must reproduce.
pub(crate) fn decode_plainly(models: &Models, request: &TokenizedRequest) -> Decoded {
    let settings = cosec_coordinator::request::GenerationSettings {
        deadline: Instant::now() + Duration::from_secs(60),
        transport: cosec_coordinator::merge::LogitsTransport::Full,
        ..(*request.settings).clone()
    };
    let request = TokenizedRequest { settings: Arc::new(settings), ..request.clone() };
    decode(
        models,
        &request,
        HarnessOptions { seed: 0, faults: 0, draft_plan: DraftPlan::SEQUENTIAL, plan_varies: false },
    )
}
