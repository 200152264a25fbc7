//! The session as a pure state machine: `step(now, event) -> actions`. No socket, clock or randomness inside.
//!
//! ```text
//! Placing → [Scoring] → Prefilling ─┐
//!              Drafting → Verifying → Merging → Emitting ─→ Finished
//!                 └────────────────────────────────┘
//! ```
//! One round decides one position. Workers are asked at once for whatever needs no token id (`Drafting`), then for what
//! the rule says is lacking (`Verifying`), until it can decide (`Merging`).

use std::time::Instant;

use cosec_proto::ErrorCode;

use super::lane::{Lane, LaneWant, Progress};
use super::plan::Plan;
use crate::core::ExpertAbsent;
use crate::merge::{Drawn, Evidence, Lacking};
use crate::request::{FinishReason, RuleSettings, Score, SessionError, SessionEvent, TokenEvent};
use crate::role::Role;
use crate::worker_pool::operation::Ask;
use crate::worker_pool::reply::{OperationError, Reply, RowView};

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The session may begin.
    Started,
    /// A worker was found for a role.
    Located {
        /// Which.
        role: Role,
        /// Whether the worker may not have the session's cache.
        fresh: bool,
        /// Largest operation of the worker, in tokens.
        max_operation_tokens: u32,
        /// Length of its rows.
        vocabulary: u32,
    },
    /// No worker was found for a role in the time that the driver allows.
    Absent {
        /// Which.
        role: Role,
        /// Why.
        error: OperationError,
    },
    /// A worker answered.
    Answered {
        /// Which.
        role: Role,
        /// Of the action.
        ticket: u64,
        /// What.
        reply: Result<Reply, OperationError>,
    },
    /// The rule decided.
    Decided(TokenEvent),
    /// The rule needs to know more.
    Lacking {
        /// What.
        lacking: Lacking,
        /// Of the action, given back.
        evidence: Box<[Evidence; 3]>,
    },
    /// The rows make no distribution.
    MergeFailed(SessionError),
    /// The event was taken from our hands.
    Emitted,
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Find a worker; answered by `Located` or `Absent`.
    Locate {
        /// As what.
        role: Role,
        /// Failures in a row of the worker before it; 0 at the beginning.
        failures: u32,
    },
    /// Have a worker perform an operation; answered by `Answered`.
    Send {
        /// Whom.
        role: Role,
        /// To be named in the answer.
        ticket: u64,
        /// Cached tokens that the operation assumes.
        at: u32,
        /// To feed.
        tokens: Vec<u32>,
        /// To answer.
        ask: Ask,
    },
    /// Let the rule decide; answered by `Decided`, `Lacking` or `MergeFailed`.
    Merge {
        /// Of the token to decide.
        position: u32,
        /// In the order of [`Role::ALL`].
        evidence: Box<[Evidence; 3]>,
    },
    /// Hand an event to the client; answered by `Emitted`.
    Emit(SessionEvent),
}

/// Where the session stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Looks for workers.
    Placing,
    /// Has the base score the prompt.
    Scoring {
        /// By position; the first token has none.
        scores: Vec<Option<Score>>,
    },
    /// As `Drafting`, with a prompt to feed first.
    Prefilling,
    /// Waits for what was asked for at once.
    Drafting,
    /// Waits for what the rule lacked.
    Verifying,
    /// Lets the rule decide.
    Merging,
    /// Waits for the client to take an event.
    Emitting {
        /// What follows.
        then: Then,
    },
    /// Nothing follows.
    Finished,
}

impl Phase {
    fn activity(&self) -> &'static str {
        match self {
            Self::Placing => "looking for workers",
            Self::Scoring { .. } => "scoring the prompt",
            Self::Prefilling => "feeding the prompt",
            Self::Drafting | Self::Verifying => "waiting for workers",
            Self::Merging => "merging",
            Self::Emitting { .. } => "waiting for the client",
            Self::Finished => "finishing",
        }
    }
}

/// What follows an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The beginning, with workers in place.
    Begin,
    /// The next token, if there is to be one.
    Round,
    /// The end.
    End,
}

/// What a session is to do.
#[derive(Clone, Debug)]
pub struct Task {
    /// How.
    pub plan: Plan,
    /// Not empty.
    pub prompt: Vec<u32>,
    /// Most new tokens.
    pub max_new_tokens: u32,
    /// Ids that end the generation.
    pub end_tokens: Vec<u32>,
    /// Alternatives per score when the prompt is to be scored.
    pub prompt_scores: Option<u32>,
    /// What to do when no expert can be found.
    pub expert_absent: ExpertAbsent,
    /// When to give up.
    pub deadline: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    task: Task,
    /// Prompt and new tokens.
    tokens: Vec<u32>,
    phase: Phase,
    lanes: [Lane; 3],
    evidence: Box<[Evidence; 3]>,
}

impl Session {
    /// A session that waits for `Started`.
    #[must_use]
    pub fn new(task: Task) -> Self {
        let tokens = task.prompt.clone();
        let lanes = Role::ALL.map(Lane::new);
        Self { task, tokens, phase: Phase::Placing, lanes, evidence: Default::default() }
    }

    /// How it decodes now.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.task.plan
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
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
            Event::Located { role, fresh, max_operation_tokens, vocabulary } => {
                self.lanes[role.index()].placed(fresh, max_operation_tokens, vocabulary);
                if self.phase == Phase::Placing { self.begin_when_placed() } else { self.pump(role) }
            }
            Event::Absent { role, error } => self.absent(role, &error),
            Event::Answered { role, ticket, reply } => self.answered(role, ticket, reply),
            Event::Decided(token) if self.phase == Phase::Merging => self.decided(token),
            Event::Lacking { lacking, evidence } if self.phase == Phase::Merging => self.look_up(lacking, evidence),
            Event::MergeFailed(error) => self.fail(error.code, error.message),
            Event::Emitted => self.emitted(),
            // Nobody asked for a decision, or only the time was to be looked at.
            Event::Decided(_) | Event::Lacking { .. } | Event::Tick => Vec::new(),
        }
    }

    // === placing ===

    fn place(&mut self) -> Vec<Action> {
        let roles = Role::ALL.into_iter().filter(|&role| self.needs(role));
        let actions: Vec<_> = roles.map(|role| Action::Locate { role, failures: 0 }).collect();
        // A prompt of no interest to anybody: nothing to place.
        if actions.is_empty() { self.begin() } else { actions }
    }

    /// Scores of the prompt are the base's, whatever the rule reads.
    fn needs(&self, role: Role) -> bool {
        let scores = role == Role::Base && self.task.prompt_scores.is_some();
        scores || (self.task.max_new_tokens > 0 && self.task.plan.reads(role))
    }

    fn begin_when_placed(&mut self) -> Vec<Action> {
        let missing = Role::ALL.into_iter().any(|role| self.needs(role) && !self.lanes[role.index()].is_placed());
        if missing { Vec::new() } else { self.begin() }
    }

    fn begin(&mut self) -> Vec<Action> {
        match self.task.prompt_scores {
            Some(alternatives) => {
                self.phase = Phase::Scoring { scores: vec![None; self.tokens.len()] };
                self.lanes[Role::Base.index()].want(LaneWant::Scores { alternatives });
                self.pump(Role::Base)
            }
            None => self.round(Phase::Prefilling),
        }
    }

    fn absent(&mut self, role: Role, error: &OperationError) -> Vec<Action> {
        // Without its expert, `expert_only` is nothing that could go on.
        let is_expert_only = self.task.plan.rule == RuleSettings::ExpertOnly;
        if role == Role::Base || self.task.expert_absent != ExpertAbsent::Degrade || is_expert_only {
            return self.fail(error.code, error.message.clone());
        }
        if !self.task.plan.reads(role) {
            // Expert and anti-expert can be missed both; once is enough.
            return Vec::new();
        }
        self.task.plan = self.task.plan.degraded();
        *self.evidence = Default::default();
        self.lanes.iter_mut().for_each(Lane::forget);
        let then = if self.phase == Phase::Placing { Then::Begin } else { Then::Round };
        self.emit(SessionEvent::Degraded, then)
    }

    // === rounds ===

    fn new_tokens(&self) -> usize {
        self.tokens.len() - self.task.prompt.len()
    }

    fn round(&mut self, phase: Phase) -> Vec<Action> {
        if self.new_tokens() >= self.task.max_new_tokens as usize {
            return self.emit(SessionEvent::Finished(FinishReason::Length), Then::End);
        }
        self.phase = phase;
        *self.evidence = Default::default();
        for role in Role::ALL {
            if let Some(want) = self.task.plan.upfront(role) {
                self.lanes[role.index()].want(LaneWant::Position(want));
            }
        }
        Role::ALL.into_iter().flat_map(|role| self.pump(role)).collect()
    }

    /// Sends what a lane wants, if it can.
    fn pump(&mut self, role: Role) -> Vec<Action> {
        let prompt = self.task.prompt.len();
        match self.lanes[role.index()].send(&self.tokens, prompt) {
            Progress::Send(action) => vec![action],
            Progress::Waits => Vec::new(),
            Progress::Done => self.lane_done(),
        }
    }

    fn lane_done(&mut self) -> Vec<Action> {
        if self.lanes.iter().any(Lane::is_busy) {
            return Vec::new();
        }
        if let Phase::Scoring { scores } = &mut self.phase {
            let scores = std::mem::take(scores);
            return self.emit(SessionEvent::Prompt(scores), Then::Round);
        }
        self.merge()
    }

    fn merge(&mut self) -> Vec<Action> {
        self.phase = Phase::Merging;
        let evidence = std::mem::take(&mut self.evidence);
        vec![Action::Merge { position: self.tokens.len() as u32, evidence }]
    }

    fn look_up(&mut self, lacking: Lacking, evidence: Box<[Evidence; 3]>) -> Vec<Action> {
        self.evidence = evidence;
        if let Lacking::Judgement(id) = lacking {
            let base = Role::Base.index();
            if self.lanes[base].vocabulary() <= id {
                // Beyond the base's row: the models differ in padding.
                self.evidence[base].looked_up = Some(Drawn { id, probability: 0.0 });
                return self.merge();
            }
        }
        self.phase = Phase::Verifying;
        let (role, want) = self.task.plan.supply(lacking);
        self.lanes[role.index()].want(LaneWant::Position(want));
        self.pump(role)
    }

    fn decided(&mut self, token: TokenEvent) -> Vec<Action> {
        if self.task.end_tokens.contains(&token.id) {
            return self.emit(SessionEvent::Finished(FinishReason::Stop), Then::End);
        }
        let reads = |role: &Role| self.task.plan.reads(*role);
        let unknown_to = |role: &Role| self.lanes[role.index()].vocabulary() <= token.id;
        if let Some(role) = Role::ALL.into_iter().filter(reads).find(unknown_to) {
            let message = format!("token {} was drawn, which the {} does not have", token.id, role.name());
            return self.fail(ErrorCode::WorkerFault, message);
        }
        self.tokens.push(token.id);
        self.emit(SessionEvent::Token(token), Then::Round)
    }

    // === workers ===

    fn answered(&mut self, role: Role, ticket: u64, reply: Result<Reply, OperationError>) -> Vec<Action> {
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
                    self.pump(role)
                } else {
                    let message = format!("the {} loses its cache again and again", role.name());
                    self.fail(ErrorCode::WorkerFault, message)
                }
            }
            Ok(reply) => {
                self.lanes[role.index()].fed(&sent);
                if !sent.is_partial {
                    self.absorb(role, sent.at, reply);
                }
                self.pump(role)
            }
        }
    }

    fn absorb(&mut self, role: Role, at: u32, reply: Reply) {
        if let Phase::Scoring { scores } = &mut self.phase {
            if let Reply::Rows(rows) = reply {
                super::lane::note_scores(scores, at, rows);
            }
            return;
        }
        let evidence = &mut self.evidence[role.index()];
        match reply {
            Reply::Drafted(tokens) => evidence.drawn = tokens.first().copied(),
            Reply::Rows(rows) => {
                let warps = self.task.plan.nucleus_warps(role);
                for (row, warp) in rows.into_iter().zip(warps.into_iter().map(Some).chain(std::iter::repeat(None))) {
                    match (row, warp) {
                        (RowView::Gathered(tokens), _) => evidence.looked_up = tokens.first().copied(),
                        (RowView::Sampled(token), _) => evidence.drawn = Some(token),
                        (RowView::Full(row), _) => evidence.row = Some(row),
                        (RowView::Nucleus { survivors, complete: true }, Some(warp)) => {
                            evidence.nuclei.push((warp, survivors));
                        }
                        // The rule will say that it lacks the rest.
                        (RowView::Nucleus { .. }, _) => {}
                    }
                }
            }
            Reply::NeedPrefix { .. } | Reply::Released => {}
        }
    }

    // === events ===

    fn emit(&mut self, event: SessionEvent, then: Then) -> Vec<Action> {
        self.phase = Phase::Emitting { then };
        vec![Action::Emit(event)]
    }

    fn fail(&mut self, code: ErrorCode, message: impl Into<String>) -> Vec<Action> {
        self.emit(SessionEvent::Failed(SessionError { code, message: message.into() }), Then::End)
    }

    fn emitted(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Emitting { then: Then::Begin } => {
                self.phase = Phase::Placing;
                self.begin_when_placed()
            }
            Phase::Emitting { then: Then::Round } => {
                let phase = if self.new_tokens() == 0 { Phase::Prefilling } else { Phase::Drafting };
                self.round(phase)
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
