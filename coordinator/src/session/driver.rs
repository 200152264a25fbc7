//! Performs a session's actions and feeds the results back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::sampling::SamplingSeed;
use cosec_proto::{ErrorCode, SessionId};
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable};
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::config::ExpertAbsent;
use super::event::{Action, Event, Phase, Task};
use super::metrics::SessionMetrics;
use super::plan::DecodePlan;
use super::state::Session;
use crate::admission::ActivePermit;
use crate::merge::{
    LogitAdjuster, MergeError, ModelEvidence, OverAdjusted, PositionDistributions, SelectedRule, score,
};
use crate::request::{SessionError, SessionEvent, TokenEvent, TokenizedRequest};
use crate::speculation::{RoundTimer, SharedController};
use crate::worker_pool::operation::Ask;
use crate::worker_pool::placement::prefix_hash;
use crate::worker_pool::reply::{Answer, OperationError, Reply, RowView};
use crate::worker_pool::{SessionSlot, SlotRequest, WorkerPool};
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

/// How long a session looks for another worker after a failure; a worker that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause before a worker that failed is asked again, doubled with every failure.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Rows up to so many logits are merged on the spot.
const LIGHT_ROW: usize = 1024;

/// All that a session begins with.
pub(crate) struct Opening {
    pub(crate) request: TokenizedRequest,
    pub(crate) plan: DecodePlan,
    pub(crate) controller: SharedController,
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) expert_absent: ExpertAbsent,
    pub(crate) pool: Arc<WorkerPool>,
    pub(crate) metrics: Arc<SessionMetrics>,
    pub(crate) events: mpsc::Sender<SessionEvent>,
    /// When the stream was handed out.
    pub(crate) admitted: Instant,
}

/// What became of an action.
enum Done {
    Event(Event),
    Seated {
        role: WorkerRole,
        seat: Arc<SessionSlot>,
    },
    Performed {
        role: WorkerRole,
        ticket: u64,
        answer: Result<Answer, OperationError>,
    },
    /// It was taken back.
    Withdrawn,
}

/// Takes an operation back.
struct Withdrawal {
    abort: AbortHandle,
    span: Span,
}

/// Runs one session.
pub(crate) struct Driver {
    // Dropped first: withdraws what is under way before the seats are given back.
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    /// The last operation of each role.
    withdrawals: [Option<Withdrawal>; 3],
    seats: [Option<Arc<SessionSlot>>; 3],
    permit: ActivePermit,
    rounds: RoundTimer,
    session: Session,
    id: SessionId,
    /// Also those that are given back.
    seats_taken: u16,
    opening: Opening,
    adjuster: LogitAdjuster,
    last_token: Option<Instant>,
    /// When a role's workers failed, and where, until one answers again.
    failed: [Vec<(Instant, String)>; 3],
}

impl Driver {
    pub(crate) fn new(opening: Opening, permit: ActivePermit) -> Self {
        let rounds = RoundTimer::new(opening.controller.clone());
        let request = &opening.request;
        let settings = &request.settings;
        let session = Session::new(Task {
            plan: opening.plan.clone(),
            draft_plan: rounds.plan(),
            prompt: request.prompt.to_vec(),
            max_new_tokens: request.max_new_tokens,
            end_tokens: opening.end_tokens.clone(),
            prompt_scores: settings.logprobs.filter(|_| settings.echo),
            expert_absent: opening.expert_absent,
            deadline: settings.deadline,
        });
        let adjuster =
            LogitAdjuster::new(settings.adjustments.clone(), opening.end_tokens.clone(), settings.min_tokens);
        Self {
            running: FuturesUnordered::new(),
            withdrawals: [None, None, None],
            seats: [None, None, None],
            permit,
            rounds,
            session,
            id: SessionId::random(),
            seats_taken: 0,
            opening,
            adjuster,
            last_token: None,
            failed: [const { Vec::new() }; 3],
        }
    }

    /// Decodes until the end, and returns the last event. The caller hands it to the client after the driver, and with
    /// it every worker's cache, is gone: a client that does not read must hold nothing.
    ///
    /// `None` when `cancel` came first.
    pub(crate) async fn run(mut self, cancel: &CancellationToken) -> Option<SessionEvent> {
        let deadline = tokio::time::sleep_until(self.opening.request.settings.deadline);
        tokio::pin!(deadline);
        let mut ticked = false;
        let mut event = Event::Started;
        loop {
            let actions = self.session.step(Instant::now(), event);
            self.drafts_judged();
            for action in actions {
                if let Some(last) = self.perform(action) {
                    return Some(last);
                }
            }
            debug_assert_ne!(*self.session.phase(), Phase::Finished);
            event = loop {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return None,
                    () = &mut deadline, if !ticked => {
                        ticked = true;
                        break Event::Tick;
                    }
                    Some(done) = self.running.next() => if let Some(event) = self.note(done) {
                        break event;
                    },
                }
            };
        }
    }

    /// Begins an action; returns the event that ends the session.
    fn perform(&mut self, action: Action) -> Option<SessionEvent> {
        let future: Pin<Box<dyn Future<Output = Done> + Send>> = match action {
            Action::Emit(last @ (SessionEvent::Finished(_) | SessionEvent::Failed(_))) => return Some(last),
            Action::Emit(event) => Box::pin(self.emit(event)),
            Action::Locate { role, failures } => Box::pin(self.locate(role, failures)),
            Action::Send { role, ticket, at, tokens, ask, is_ahead } => {
                // Collectors know signed numbers only.
                let (start, feeds, drafts) = (i64::from(at), tokens.len() as i64, i64::from(ask.drafts()));
                let span = tracing::debug_span!(
                    "operation",
                    otel.name = format!("{} {}", role.name(), ask.activity()),
                    role = role.name(),
                    ticket,
                    at = start,
                    feeds,
                    drafts,
                    is_ahead
                );
                let performed = self.send(role, ticket, at, tokens, ask).instrument(span.clone());
                let (abort, withdrawn) = AbortHandle::new_pair();
                self.withdrawals[role.index()] = Some(Withdrawal { abort, span });
                let performed = Abortable::new(performed, withdrawn);
                Box::pin(async { performed.await.unwrap_or(Done::Withdrawn) })
            }
            Action::Withdraw { role, ticket: _ } => {
                if let Some(Withdrawal { abort, span }) = self.withdrawals[role.index()].take() {
                    tracing::debug!(parent: &span, "withdrawn");
                    abort.abort();
                }
                return None;
            }
            Action::Merge { position, evidence } => Box::pin(self.merge(position, evidence)),
        };
        self.running.push(future);
        None
    }

    /// What an outcome means to the session, if anything.
    fn note(&mut self, done: Done) -> Option<Event> {
        match done {
            Done::Seated { role, seat } => {
                let description = seat.description();
                let (max_operation_tokens, vocabulary) = (description.max_operation_tokens, description.vocabulary);
                if role == WorkerRole::Base {
                    self.session.set_draft_plan(self.rounds.begin(seat.load()));
                }
                self.seats[role.index()] = Some(seat);
                Some(Event::Located { role, max_operation_tokens, vocabulary })
            }
            Done::Performed { role, ticket, answer } => {
                if let Ok(Answer { reply: Reply::Rows(_) | Reply::Drafted { .. }, .. }) = &answer
                    && let Some((failed, _)) = self.failed[role.index()].drain(..).next()
                {
                    let recovery = &self.opening.metrics.recovery_seconds;
                    recovery.with_label_values(&[role.name()]).observe(failed.elapsed().as_secs_f64());
                }
                let reply = answer.and_then(|answer| self.adjusted(answer.reply));
                Some(Event::Answered { role, ticket, reply })
            }
            Done::Event(event) => Some(event),
            Done::Withdrawn => None,
        }
    }

    // === workers ===

    /// Finds a worker. At the beginning an absent worker is absent; in mid-decode it gets time to come back.
    fn locate(&mut self, role: WorkerRole, failures: u32) -> impl Future<Output = Done> + Send + use<> {
        // The cache of the old one is given back, whatever it holds: what may still arrive there would change it.
        let seat = self.seats[role.index()].take();
        self.rounds.interrupt();
        let deadline = self.opening.request.settings.deadline;
        let waits = role != WorkerRole::Base && self.opening.expert_absent == ExpertAbsent::Wait;
        let until = match (waits, failures) {
            (true, _) => deadline,
            (false, 0) => Instant::now(),
            (false, _) => deadline.min(Instant::now() + PATIENCE),
        };
        let failed = &mut self.failed[role.index()];
        if let Some(seat) = &seat {
            failed.push((Instant::now(), seat.address().to_owned()));
            self.opening.metrics.relocations.with_label_values(&[role.name()]).inc();
        }
        let wanted = SlotRequest {
            model: self.opening.request.model.clone(),
            role,
            fingerprint: seat.as_ref().map(|seat| seat.fingerprint().to_owned()),
            avoid: failed.iter().map(|(_, address)| address.clone()).collect(),
            prefix: prefix_hash(&self.opening.request.prompt, self.opening.request.tenant.id),
        };
        let (pool, id) = (Arc::clone(&self.opening.pool), self.id.at_seat(self.seats_taken));
        self.seats_taken = self.seats_taken.wrapping_add(1);
        drop(seat);
        async move {
            if failures > 0 {
                tokio::time::sleep(RETRY_PAUSE * 2u32.saturating_pow(failures - 1)).await;
            }
            match pool.locate(&wanted, id, until).await {
                Ok(seat) => Done::Seated { role, seat },
                Err(error) => Done::Event(Event::Absent { role, error }),
            }
        }
    }

    fn send(
        &self,
        role: WorkerRole,
        ticket: u64,
        at: u32,
        tokens: Vec<u32>,
        ask: Ask,
    ) -> impl Future<Output = Done> + Send + use<> {
        let (tenant, randomness) = (self.opening.request.tenant.id, self.randomness());
        let seated = self.seats[role.index()].clone().map(|seat| {
            let operation = seat.operation(tenant, randomness, (at, tokens), ask);
            (seat, operation)
        });
        let left = self.opening.request.settings.deadline.saturating_duration_since(Instant::now());
        let deadline = self.opening.pool.step_deadline().min(left);
        async move {
            let began = Instant::now();
            let answer = match seated {
                Some((seat, operation)) => {
                    tracing::debug!(session = %operation.session, address = seat.address(), "sent");
                    seat.call(&operation, deadline).await
                }
                None => Err(OperationError::new(ErrorCode::Internal, "an operation without a worker")),
            };
            let took = began.elapsed();
            match &answer {
                Ok(_) => tracing::debug!(took_us = took.as_micros() as u64, "answered"),
                Err(error) => tracing::debug!(took_us = took.as_micros() as u64, %error, "failed"),
            }
            Done::Performed { role, ticket, answer }
        }
    }

    fn adjusted(&self, mut reply: Reply) -> Result<Reply, OperationError> {
        if self.session.plan().is_adjusted()
            && let Reply::Rows(rows) = &mut reply
        {
            for row in rows {
                if let RowView::Full(logits) = row {
                    let over =
                        |error: OverAdjusted| OperationError::new(ErrorCode::InvalidArgument, error.to_string());
                    self.adjuster.adjust(logits).map_err(over)?;
                }
            }
        }
        Ok(reply)
    }

    fn randomness(&self) -> SamplingSeed {
        let request = &self.opening.request;
        SamplingSeed { seed: request.settings.seed, sample: request.sample }
    }

    // === tokens ===

    fn merge(&self, position: u32, evidence: Box<[ModelEvidence; 3]>) -> impl Future<Output = Done> + Send + use<> {
        // Whole rows of a code model take milliseconds; short rows and points take less than a way to another thread.
        let is_heavy =
            evidence.iter().any(|of_role| of_role.logits.as_ref().is_some_and(|row| row.len() > LIGHT_ROW));
        let plan = self.session.plan();
        let job = Merge {
            rule: plan.rule,
            models: PositionDistributions::new(evidence, plan.sampling),
            draws: PositionRandom { seed: self.randomness(), position },
            alternatives: self.opening.request.settings.logprobs,
        };
        async move {
            let event = if is_heavy {
                let merged = tokio::task::spawn_blocking(|| job.run()).await;
                merged.unwrap_or_else(|error| {
                    Event::MergeFailed(SessionError::new(ErrorCode::Internal, error.to_string()))
                })
            } else {
                job.run()
            };
            Done::Event(event)
        }
    }

    fn emit(&mut self, event: SessionEvent) -> impl Future<Output = Done> + Send + use<> {
        match &event {
            SessionEvent::Token(token) => {
                self.adjuster.emitted(token.decision.id);
                self.permit.grow();
                self.count(token);
            }
            SessionEvent::Degraded => {
                tracing::warn!(
                    model = self.opening.request.model,
                    "a session goes on without its expert: unhardened"
                );
                self.opening.metrics.degraded_sessions.inc();
            }
            SessionEvent::Prompt(_) | SessionEvent::Finished(_) | SessionEvent::Failed(_) => {}
        }
        let events = self.opening.events.clone();
        if events.capacity() == 0 {
            // The round waits for a client that does not read.
            self.rounds.interrupt();
        }
        async move {
            // A client that is gone cancels the session by itself.
            let _ = events.send(event).await;
            Done::Event(Event::Emitted)
        }
    }

    fn count(&mut self, token: &TokenEvent) {
        let metrics = &self.opening.metrics;
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => metrics.first_token_seconds.observe((now - self.opening.admitted).as_secs_f64()),
            Some(before) => metrics.inter_token_seconds.observe((now - before).as_secs_f64()),
        }
        metrics.tokens.with_label_values(&[token.decision.chosen_by.name()]).inc();
    }

    /// Counts what became of drafts. With the end of a block, the next round gets its draft plan.
    fn drafts_judged(&mut self) {
        let tally = self.session.take_tally();
        for &block in &tally.blocks {
            let load = self.seats[WorkerRole::Base.index()].as_ref().map_or(1, |seat| seat.load());
            self.session.set_draft_plan(self.rounds.round_ended(load, Instant::now(), block));
        }
        let labels = [self.opening.request.model.as_str(), self.session.plan().rule.name()];
        self.opening.metrics.count_drafts(labels, &tally);
    }
}

/// One decision, to be made on any thread.
struct Merge {
    rule: SelectedRule,
    models: PositionDistributions,
    draws: PositionRandom,
    /// Most probable others to score.
    alternatives: Option<u32>,
}

impl Merge {
    fn run(self) -> Event {
        match self.decide() {
            Ok(token) => Event::Decided(token),
            Err(MergeError::Missing(missing)) => Event::Missing { missing, evidence: self.models.into_evidence() },
            Err(error @ (MergeError::Logits(_) | MergeError::Blend(_))) => {
                Event::MergeFailed(SessionError::new(ErrorCode::WorkerFault, error.to_string()))
            }
        }
    }

    fn decide(&self) -> Result<TokenEvent, MergeError> {
        let decision = self.rule.decide(&self.models, &self.draws)?;
        let score = match self.alternatives {
            None => None,
            Some(count) => Some(score(&self.rule.distribution(&self.models)?, decision.id, count as usize)),
        };
        Ok(TokenEvent { decision, score })
    }
}
