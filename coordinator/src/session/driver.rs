//! Performs a session's actions and feeds the results back.

use std::pin::Pin;
use std::sync::Arc;

use cosec_proto::sampling::{PositionRandom, SamplingSeed};
use cosec_proto::{ErrorCode, OperationError, OperationOutcome, OperationReply, SessionId, WorkerRole};
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable};
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::config::ExpertAbsent;
use super::event::{LocateCause, RoleOperation, SessionAction, SessionInput, SessionParams, SessionPhase};
use super::merge_job::{MergeJob, is_heavy};
use super::metrics::SessionMetrics;
use super::pace::{ClientPace, ClientPatience, PaceStep};
use super::plan::DecodePlan;
use super::recovery::{FailedWorkers, give_up_at, retry_pause};
use super::state::SessionState;
use super::takeover;
use crate::admission::ActivePermit;
use crate::merge::{Hardening, LogitAdjuster, ModelEvidence, PositionDistributions};
use crate::request::{SessionEvent, TokenEvent, TokenizedRequest};
use crate::speculation::metrics::SpeculationMetrics;
use crate::speculation::{RoundTimer, SharedController};
use crate::worker_pool::placement::prefix_hash;
use crate::worker_pool::{SessionSlot, SlotRequest, WorkerPool};

/// All that a session begins with.
pub(crate) struct SessionContext {
    pub(crate) request: TokenizedRequest,
    pub(crate) plan: DecodePlan,
    pub(crate) controller: SharedController,
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) expert_absent: ExpertAbsent,
    pub(crate) pool: Arc<WorkerPool>,
    pub(crate) metrics: Arc<SessionMetrics>,
    pub(crate) speculation_metrics: Arc<SpeculationMetrics>,
    pub(crate) events: mpsc::Sender<SessionEvent>,
    pub(crate) patience: ClientPatience,
    /// When the stream was handed out.
    pub(crate) admitted: Instant,
}

/// What became of an action.
enum ActionOutcome {
    Input(SessionInput),
    Located { role: WorkerRole, slot: Arc<SessionSlot> },
    Answered { role: WorkerRole, ticket: u64, answer: Result<OperationReply, OperationError> },
    Withdrawn,
}

type RunningAction = Pin<Box<dyn Future<Output = ActionOutcome> + Send>>;

/// Takes an operation back.
struct WithdrawHandle {
    abort: AbortHandle,
    span: Span,
}

/// Runs one session.
pub(crate) struct SessionDriver {
    // Dropped first: withdraws what is under way before the slots are given back.
    running: FuturesUnordered<RunningAction>,
    /// Of the last operation of each role.
    withdraw_handles: [Option<WithdrawHandle>; 3],
    slots: [Option<Arc<SessionSlot>>; 3],
    /// Of the models that the session began on.
    fingerprints: [Option<String>; 3],
    failed_workers: [FailedWorkers; 3],
    /// Addresses of the workers that have the tokens taken over in their cache.
    holders: [Option<String>; 3],
    pace: ClientPace,
    rounds: RoundTimer,
    state: SessionState,
    id: SessionId,
    /// Those given back included.
    slots_taken: u16,
    context: SessionContext,
    adjuster: LogitAdjuster,
    last_token: Option<Instant>,
}

impl SessionDriver {
    pub(crate) fn new(context: SessionContext, permit: ActivePermit) -> Self {
        let rounds = RoundTimer::new(context.controller.clone());
        let request = &context.request;
        let settings = &request.settings;
        let state = SessionState::new(SessionParams {
            plan: context.plan.clone(),
            draft_plan: rounds.plan(),
            prompt: request.prompt.to_vec(),
            max_new_tokens: request.max_new_tokens,
            end_tokens: context.end_tokens.clone(),
            prompt_scores: settings.logprobs.filter(|_| settings.echo),
            expert_absent: context.expert_absent,
            seed: SamplingSeed { seed: settings.seed, sample: request.sample },
            deadline: settings.deadline,
        });
        let active_sessions = &context.metrics.active_sessions;
        let pace = ClientPace::new(context.events.clone(), context.patience, permit, active_sessions);
        let (adjustments, end_tokens) = (settings.adjustments.clone(), context.end_tokens.clone());
        Self {
            running: FuturesUnordered::new(),
            withdraw_handles: Default::default(),
            slots: Default::default(),
            fingerprints: Default::default(),
            failed_workers: Default::default(),
            holders: Default::default(),
            pace,
            rounds,
            state,
            id: SessionId::of(request.sequence),
            slots_taken: 0,
            adjuster: LogitAdjuster::new(adjustments, end_tokens, settings.min_tokens),
            context,
            last_token: None,
        }
    }

    /// Decodes until the end, and returns the last event. The caller hands it to the client after the driver, and with
    /// it every worker's cache, is gone.
    ///
    /// `None` when `cancel` came first.
    pub(crate) async fn run(mut self, cancel: &CancellationToken) -> Option<SessionEvent> {
        let deadline = tokio::time::sleep_until(self.context.request.settings.deadline);
        tokio::pin!(deadline);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return None,
            () = self.take_over() => {}
        }
        let mut ticked = false;
        let mut input = SessionInput::Started;
        loop {
            let actions = self.state.step(Instant::now(), input);
            self.note_drafts();
            for action in actions {
                if let Some(last) = self.perform(action) {
                    return Some(last);
                }
            }
            debug_assert_ne!(*self.state.phase(), SessionPhase::Finished);
            input = loop {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return None,
                    () = &mut deadline, if !ticked => {
                        ticked = true;
                        break SessionInput::Tick;
                    }
                    step = self.pace.step() => match step {
                        PaceStep::Emitted => break SessionInput::Emitted,
                        PaceStep::GiveCachesBack => {
                            self.give_caches_back();
                            break SessionInput::Suspended;
                        }
                        PaceStep::Failed(error) => return Some(SessionEvent::Failed(error)),
                    },
                    Some(outcome) = self.running.next() => if let Some(input) = self.note(outcome) {
                        break input;
                    },
                }
            };
        }
    }

    /// Goes on behind what the client has already, where workers still know it.
    async fn take_over(&mut self) {
        let context = &self.context;
        let Some(taken) = takeover::take_over(&context.pool, &context.request, &context.plan).await else { return };
        let how = if taken.tokens.is_empty() { "decoded_anew" } else { "taken_over" };
        context.metrics.resumed_choices.with_label_values(&[how]).inc();
        tracing::debug!(how, tokens = taken.tokens.len(), holders = ?taken.holders, "resumed");
        if taken.tokens.is_empty() {
            return;
        }
        for &id in &taken.tokens {
            self.adjuster.emitted(id);
            self.pace.grow();
        }
        self.state.take_over(&taken.tokens);
        self.holders = taken.holders;
        // A client that is gone cancels the session by itself.
        let _ = self.context.events.send(SessionEvent::TakenOver(taken.tokens)).await;
    }

    /// Begins an action; returns the event that ends the session.
    fn perform(&mut self, action: SessionAction) -> Option<SessionEvent> {
        let running: RunningAction = match action {
            SessionAction::Emit(last @ (SessionEvent::Finished(_) | SessionEvent::Failed(_))) => return Some(last),
            SessionAction::Emit(event) => {
                self.emit(event);
                return None;
            }
            SessionAction::Locate { role, failures, cause } => Box::pin(self.locate(role, failures, cause)),
            SessionAction::Send(operation) => Box::pin(self.send(operation)),
            SessionAction::Withdraw { role, ticket: _ } => {
                if let Some(WithdrawHandle { abort, span }) = self.withdraw_handles[role.index()].take() {
                    tracing::debug!(parent: &span, "withdrawn");
                    abort.abort();
                }
                return None;
            }
            SessionAction::Merge { position, evidence } => Box::pin(self.merge(position, evidence)),
        };
        self.running.push(running);
        None
    }

    /// What an outcome means to the session, if anything.
    fn note(&mut self, outcome: ActionOutcome) -> Option<SessionInput> {
        match outcome {
            ActionOutcome::Located { role, slot } => {
                let description = slot.description();
                let (max_operation_tokens, vocabulary) =
                    (description.limits.operation_tokens, description.limits.vocabulary);
                if role == WorkerRole::Base {
                    self.state.set_draft_plan(self.rounds.begin(slot.load()));
                }
                self.fingerprints[role.index()] = Some(slot.fingerprint().to_owned());
                self.slots[role.index()] = Some(slot);
                Some(SessionInput::Located { role, max_operation_tokens, vocabulary })
            }
            ActionOutcome::Answered { role, ticket, answer } => {
                if let Ok(OperationReply {
                    outcome: OperationOutcome::Extended(_) | OperationOutcome::Drafted { .. },
                    ..
                }) = &answer
                    && let Some(failed) = self.failed_workers[role.index()].recovered()
                {
                    let recovery = &self.context.metrics.recovery_seconds;
                    recovery.with_label_values(&[role.name()]).observe(failed.elapsed().as_secs_f64());
                }
                let reply = answer.map(|answer| answer.outcome);
                Some(SessionInput::Answered { role, ticket, reply })
            }
            ActionOutcome::Input(input) => Some(input),
            ActionOutcome::Withdrawn => None,
        }
    }

    // === workers ===

    /// Finds a worker, another one than those that failed.
    fn locate(
        &mut self,
        role: WorkerRole,
        failures: u32,
        cause: LocateCause,
    ) -> impl Future<Output = ActionOutcome> + Send + use<> {
        // The cache of the old one is given back, whatever it holds: what may still arrive there would change it.
        let slot = self.slots[role.index()].take();
        self.rounds.interrupt();
        let (now, request) = (Instant::now(), &self.context.request);
        let until = give_up_at(role, cause, self.context.expert_absent, now, request.settings.deadline);
        let failed = &mut self.failed_workers[role.index()];
        if let Some(slot) = &slot {
            failed.add(now, slot.address());
            self.context.metrics.relocations.with_label_values(&[role.name()]).inc();
        }
        let wanted = SlotRequest {
            model: request.model.clone(),
            role,
            fingerprint: self.fingerprints[role.index()].clone(),
            avoid: failed.addresses().to_vec(),
            holder: self.holders[role.index()].take(),
            only_others: cause == LocateCause::NoRoom && failed.has_waited_for_room(now),
            prefix: prefix_hash(&request.prompt, request.tenant.id),
            tokens: request.prompt.len() as u64 + u64::from(request.max_new_tokens),
        };
        let (pool, id) = (Arc::clone(&self.context.pool), self.id.at_seat(self.slots_taken));
        self.slots_taken = self.slots_taken.wrapping_add(1);
        drop(slot);
        async move {
            if let Some(pause) = retry_pause(failures) {
                tokio::time::sleep(pause).await;
            }
            match pool.locate(&wanted, id, until).await {
                Ok(slot) => ActionOutcome::Located { role, slot },
                Err(error) => ActionOutcome::Input(SessionInput::Absent { role, error }),
            }
        }
    }

    /// Withdraws what is under way and gives the slots back; the state machine asks for others when it goes on.
    fn give_caches_back(&mut self) {
        self.rounds.interrupt();
        self.running = FuturesUnordered::new();
        self.withdraw_handles = Default::default();
        self.slots = Default::default();
    }

    fn send(&mut self, operation: RoleOperation) -> impl Future<Output = ActionOutcome> + Send + use<> {
        let role = operation.role;
        let span = operation.span();
        let answered = self.call(operation).instrument(span.clone());
        let (abort, withdrawn) = AbortHandle::new_pair();
        self.withdraw_handles[role.index()] = Some(WithdrawHandle { abort, span });
        let answered = Abortable::new(answered, withdrawn);
        async { answered.await.unwrap_or(ActionOutcome::Withdrawn) }
    }

    fn call(&self, operation: RoleOperation) -> impl Future<Output = ActionOutcome> + Send + use<> {
        let RoleOperation { role, ticket, at, tokens, kind, is_ahead: _ } = operation;
        let tenant = self.context.request.tenant.id;
        let placed = self.slots[role.index()].clone().map(|slot| {
            let operation = slot.operation(tenant, (at, tokens), kind);
            (slot, operation)
        });
        let left = self.context.request.settings.deadline.saturating_duration_since(Instant::now());
        let deadline = self.context.pool.step_deadline().min(left);
        async move {
            let began = Instant::now();
            let answer = match placed {
                Some((slot, operation)) => {
                    tracing::debug!(session = %operation.session, address = slot.address(), "sent");
                    slot.call(&operation, deadline).await
                }
                None => Err(OperationError::new(ErrorCode::Internal, "an operation without a worker")),
            };
            let took_us = began.elapsed().as_micros() as u64;
            match &answer {
                Ok(_) => tracing::debug!(took_us, "answered"),
                Err(error) => tracing::debug!(took_us, %error, "failed"),
            }
            ActionOutcome::Answered { role, ticket, answer }
        }
    }

    // === tokens ===

    fn merge(
        &self,
        position: u32,
        evidence: Box<[ModelEvidence; 3]>,
    ) -> impl Future<Output = ActionOutcome> + Send + use<> {
        let (plan, is_heavy) = (self.state.plan(), is_heavy(&evidence));
        let random = PositionRandom { seed: self.state.seed(), position };
        let job = MergeJob {
            rule: plan.rule,
            models: PositionDistributions::new(evidence, self.adjuster.changes(), plan.sampling),
            random,
            asked: plan.questions(&random),
        };
        async move { ActionOutcome::Input(job.run(is_heavy).await) }
    }

    fn emit(&mut self, event: SessionEvent) {
        match &event {
            SessionEvent::Token(token) => {
                self.adjuster.emitted(token.decision.id);
                self.pace.grow();
                self.count(token);
            }
            SessionEvent::Degraded => {
                let model = &self.context.request.model;
                tracing::warn!(model, "a session goes on without its expert: unhardened");
                self.context.metrics.degraded_sessions.inc();
            }
            SessionEvent::Prompt(_)
            | SessionEvent::TakenOver(_)
            | SessionEvent::Finished(_)
            | SessionEvent::Failed(_) => {}
        }
        if self.pace.emit(event) {
            // The round is none of the workers' time.
            self.rounds.interrupt();
        }
    }

    fn count(&mut self, token: &TokenEvent) {
        let metrics = &self.context.metrics;
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => metrics.first_token_seconds.observe((now - self.context.admitted).as_secs_f64()),
            Some(before) => metrics.inter_token_seconds.observe((now - before).as_secs_f64()),
        }
        let (model, hardening) = (self.context.request.model.as_str(), token.decision.hardening);
        metrics.tokens.with_label_values(&[model, hardening.map_or("unknown", Hardening::name)]).inc();
        if hardening == Some(Hardening::Expert) {
            metrics.changed_tokens.with_label_values(&[model]).inc();
        }
    }

    /// Counts what became of drafts. With the end of a block, the next round gets its draft plan.
    fn note_drafts(&mut self) {
        let tally = self.state.take_tally();
        for &block in &tally.blocks {
            let load = self.slots[WorkerRole::Base.index()].as_ref().map_or(1, |slot| slot.load());
            self.state.set_draft_plan(self.rounds.round_ended(load, Instant::now(), block));
        }
        let labels = [self.context.request.model.as_str(), self.state.plan().rule.name()];
        self.context.speculation_metrics.count(labels, &tally);
    }
}
