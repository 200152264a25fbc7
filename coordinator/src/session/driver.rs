//! Performs a session's actions and feeds the results back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cosec_proto::draw::Randomness;
use cosec_proto::{ErrorCode, SessionId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::metrics::SessionMetrics;
use super::plan::Plan;
use super::state::{Action, Event, Phase, Session, Task};
use crate::admission::Turn;
use crate::core::ExpertAbsent;
use crate::merge::{Adjuster, Decision, Evidence, Laws, MergeError, OverAdjusted, score};
use crate::request::{ChosenBy, RuleSettings, SessionError, SessionEvent, TokenEvent, TokenizedRequest};
use crate::role::Role;
use crate::sampler::Draws;
use crate::worker_pool::operation::{Ask, Operation};
use crate::worker_pool::reply::{OperationError, Reply, RowView};
use crate::worker_pool::{Seat, Wanted, WorkerPool};

/// How long a session looks for another worker after a failure; a worker that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause before a worker that failed is asked again, doubled with every failure.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// All that a session begins with.
pub(crate) struct Opening {
    pub(crate) request: TokenizedRequest,
    pub(crate) plan: Plan,
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
        role: Role,
        seat: Arc<Seat>,
        /// Whether it is not the seat that the session had.
        fresh: bool,
    },
}

/// Runs one session.
pub(crate) struct Driver {
    // Dropped first: withdraws what is under way before the seats are given back.
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    seats: [Option<Arc<Seat>>; 3],
    _turn: Turn,
    session: Session,
    id: SessionId,
    opening: Opening,
    adjuster: Adjuster,
    last_token: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(opening: Opening, turn: Turn) -> Self {
        let request = &opening.request;
        let settings = &request.settings;
        let session = Session::new(Task {
            plan: opening.plan.clone(),
            prompt: request.prompt.to_vec(),
            max_new_tokens: request.max_new_tokens,
            end_tokens: opening.end_tokens.clone(),
            prompt_scores: settings.logprobs.filter(|_| settings.echo),
            expert_absent: opening.expert_absent,
            deadline: settings.deadline,
        });
        let adjuster = Adjuster::new(settings.adjustments.clone(), opening.end_tokens.clone(), settings.min_tokens);
        Self {
            running: FuturesUnordered::new(),
            seats: [None, None, None],
            _turn: turn,
            session,
            id: SessionId::random(),
            opening,
            adjuster,
            last_token: None,
        }
    }

    /// Decodes until the end, and returns the last event. The caller hands it to the client after the driver, and with
    /// it every worker's cache, is gone: a client that does not read must hold nothing.
    ///
    /// `None` when `cancel` came first.
    pub(crate) async fn run(mut self, cancel: &CancellationToken) -> Option<SessionEvent> {
        let deadline = tokio::time::sleep_until(self.opening.request.settings.deadline.into());
        tokio::pin!(deadline);
        let mut ticked = false;
        let mut event = Event::Started;
        loop {
            for action in self.session.step(Instant::now(), event) {
                if let Some(last) = self.perform(action) {
                    return Some(last);
                }
            }
            debug_assert_ne!(*self.session.phase(), Phase::Finished);
            event = tokio::select! {
                Some(done) = self.running.next() => self.note(done),
                () = &mut deadline, if !ticked => {
                    ticked = true;
                    Event::Tick
                }
                () = cancel.cancelled() => return None,
            };
        }
    }

    /// Begins an action; returns the event that ends the session.
    fn perform(&mut self, action: Action) -> Option<SessionEvent> {
        let future: Pin<Box<dyn Future<Output = Done> + Send>> = match action {
            Action::Emit(last @ (SessionEvent::Finished(_) | SessionEvent::Failed(_))) => return Some(last),
            Action::Emit(event) => Box::pin(self.emit(event)),
            Action::Locate { role, failures } => Box::pin(self.locate(role, failures)),
            Action::Send { role, ticket, at, tokens, ask } => Box::pin(self.send(role, ticket, at, tokens, ask)),
            Action::Merge { position, evidence } => Box::pin(self.merge(position, evidence)),
        };
        self.running.push(future);
        None
    }

    fn note(&mut self, done: Done) -> Event {
        match done {
            Done::Seated { role, seat, fresh } => {
                let description = seat.description();
                let (max_operation_tokens, vocabulary) = (description.max_operation_tokens, description.vocabulary);
                self.seats[role.index()] = Some(seat);
                Event::Located { role, fresh, max_operation_tokens, vocabulary }
            }
            Done::Event(Event::Answered { role, ticket, reply }) => {
                let reply = reply.and_then(|reply| self.adjusted(reply));
                Event::Answered { role, ticket, reply }
            }
            Done::Event(event) => event,
        }
    }

    // === workers ===

    /// Finds a worker. At the beginning an absent worker is absent; in mid-decode it gets time to come back.
    fn locate(&mut self, role: Role, failures: u32) -> impl Future<Output = Done> + Send + use<> {
        let seat = self.seats[role.index()].take();
        let deadline = self.opening.request.settings.deadline;
        let waits = role != Role::Base && self.opening.expert_absent == ExpertAbsent::Wait;
        let until = match (waits, failures) {
            (true, _) => deadline,
            (false, 0) => Instant::now(),
            (false, _) => deadline.min(Instant::now() + PATIENCE),
        };
        let wanted = Wanted {
            model: self.opening.request.model.clone(),
            role,
            fingerprint: seat.as_ref().map(|seat| seat.fingerprint().to_owned()),
            avoid: seat.as_ref().map(|seat| seat.address().to_owned()),
        };
        let (pool, id) = (Arc::clone(&self.opening.pool), self.id);
        if failures > 0 {
            self.opening.metrics.relocations.with_label_values(&[role.name()]).inc();
        }
        async move {
            if failures > 0 {
                tokio::time::sleep(RETRY_PAUSE * 2u32.saturating_pow(failures - 1)).await;
            }
            match pool.locate(&wanted, id, seat.clone(), until).await {
                Ok(found) => {
                    let fresh = seat.is_none_or(|seat| !Arc::ptr_eq(&seat, &found));
                    Done::Seated { role, seat: found, fresh }
                }
                Err(error) => Done::Event(Event::Absent { role, error }),
            }
        }
    }

    fn send(
        &self,
        role: Role,
        ticket: u64,
        at: u32,
        tokens: Vec<u32>,
        ask: Ask,
    ) -> impl Future<Output = Done> + Send + use<> {
        let seat = self.seats[role.index()].clone();
        let adapter = seat.as_ref().map_or_else(String::new, |seat| seat.adapter().to_owned());
        let operation = Operation { session: self.id, adapter, randomness: self.randomness(), at, tokens, ask };
        let left = self.opening.request.settings.deadline.saturating_duration_since(Instant::now());
        let deadline = self.opening.pool.step_deadline().min(left);
        async move {
            let reply = match seat {
                Some(seat) => seat.worker().call(&operation, deadline).await,
                None => Err(OperationError::new(ErrorCode::Internal, "an operation without a worker")),
            };
            if let Err(error) = &reply {
                tracing::debug!(role = role.name(), %error, "operation failed");
            }
            Done::Event(Event::Answered { role, ticket, reply })
        }
    }

    fn adjusted(&self, mut reply: Reply) -> Result<Reply, OperationError> {
        if let Reply::Rows(rows) = &mut reply {
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

    fn randomness(&self) -> Randomness {
        let request = &self.opening.request;
        Randomness { seed: request.settings.seed, sample: request.sample }
    }

    // === tokens ===

    fn merge(&self, position: u32, evidence: Box<[Evidence; 3]>) -> impl Future<Output = Done> + Send + use<> {
        // Whole rows take milliseconds; points take none.
        let is_heavy = evidence.iter().any(|of_role| of_role.row.is_some());
        let plan = self.session.plan();
        let job = Merge {
            rule: plan.rule,
            laws: Laws::new(evidence, plan.warps),
            draws: Draws { randomness: self.randomness(), position },
            alternatives: self.opening.request.settings.logprobs,
        };
        async move {
            let event = if is_heavy {
                let merged = tokio::task::spawn_blocking(|| job.run()).await;
                merged.unwrap_or_else(|error| {
                    Event::MergeFailed(SessionError { code: ErrorCode::Internal, message: error.to_string() })
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
                self.adjuster.emitted(token.id);
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
        metrics.tokens.with_label_values(&[token.chosen_by.name()]).inc();
        if let RuleSettings::Cosec { .. } = self.session.plan().rule {
            let outcome = if token.chosen_by == ChosenBy::Expert { "accepted" } else { "rejected" };
            metrics.draft_tokens.with_label_values(&["drafted"]).inc();
            metrics.draft_tokens.with_label_values(&[outcome]).inc();
        }
    }
}

/// One decision, to be made on any thread.
struct Merge {
    rule: RuleSettings,
    laws: Laws,
    draws: Draws,
    /// Most probable others to score.
    alternatives: Option<u32>,
}

impl Merge {
    fn run(self) -> Event {
        match self.decide() {
            Ok(token) => Event::Decided(token),
            Err(MergeError::Lacking(lacking)) => Event::Lacking { lacking, evidence: self.laws.into_evidence() },
            Err(error @ (MergeError::Logits(_) | MergeError::Law(_))) => {
                Event::MergeFailed(SessionError { code: ErrorCode::WorkerFault, message: error.to_string() })
            }
        }
    }

    fn decide(&self) -> Result<TokenEvent, MergeError> {
        let rule = self.rule.rule();
        let Decision { id, chosen_by, p, q, rejected } = rule.decide(&self.laws, &self.draws)?;
        let score = match self.alternatives {
            Some(alternatives) => Some(score(&rule.law(&self.laws)?, id, alternatives as usize)),
            None => None,
        };
        Ok(TokenEvent { id, chosen_by, p, q, rejected, score })
    }
}
