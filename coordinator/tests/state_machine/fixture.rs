//! A session under test, what is fed to it, and how its actions are written down.

use std::time::Duration;

use cosec_coordinator::merge::{
    Cosec, Decision, Judge, LogitAdjustments, LogitsTransport, MissingEvidence, RejectedProposal, SelectedRule,
};
use cosec_coordinator::request::{GenerationSettings, SessionEvent, TokenEvent};
use cosec_coordinator::session::config::ExpertAbsent;
use cosec_coordinator::session::event::{RoleOperation, SessionAction, SessionInput, SessionParams};
use cosec_coordinator::session::plan::DecodePlan;
use cosec_coordinator::session::state::SessionState;
use cosec_coordinator::speculation::controller::DraftPlan;
use cosec_proto::sampling::{SamplingParams, SamplingSeed, TokenProbability};
use cosec_proto::{
    ErrorCode, LogitsRequest, LogitsResult, LogitsView, OperationError, OperationKind, OperationOutcome, WorkerRole,
};
use tokio::time::Instant;

pub(crate) fn task(rule: SelectedRule, transport: LogitsTransport, prompt: Vec<u32>, now: Instant) -> SessionParams {
    let settings = GenerationSettings {
        n: 1,
        seed: 1,
        max_tokens: None,
        min_tokens: 0,
        stop: Vec::new(),
        base: SamplingParams::RAW,
        expert: SamplingParams::RAW,
        judge: Judge::Raw,
        reference_code: false,
        rule,
        adjustments: LogitAdjustments::default(),
        transport,
        logprobs: None,
        echo: false,
        report: false,
        deadline: now + Duration::from_secs(10),
    };
    SessionParams {
        plan: DecodePlan::new(&settings, false).unwrap(),
        draft_plan: DraftPlan::SEQUENTIAL,
        prompt,
        max_new_tokens: 2,
        end_tokens: vec![9],
        prompt_scores: None,
        expert_absent: ExpertAbsent::FailClosed,
        seed: SamplingSeed { seed: settings.seed, sample: 0 },
        deadline: settings.deadline,
    }
}

/// A session under test, with the answers that a healthy world gives.
pub(crate) struct Script {
    pub(crate) session: SessionState,
    pub(crate) now: Instant,
}

impl Script {
    pub(crate) fn new(rule: SelectedRule, transport: LogitsTransport, prompt: Vec<u32>) -> Self {
        let now = Instant::now();
        Self { session: SessionState::new(task(rule, transport, prompt, now)), now }
    }

    /// Three drafts at a time, the expert running ahead; up to `max_new_tokens`.
    pub(crate) fn lookahead(transport: LogitsTransport, prompt: Vec<u32>, max_new_tokens: u32) -> Self {
        let now = Instant::now();
        let draft_plan = DraftPlan { num_draft_tokens: 3, pipelined: true };
        let params = SessionParams { draft_plan, max_new_tokens, ..task(COSEC, transport, prompt, now) };
        let mut script = Self { session: SessionState::new(params), now };
        script.step(SessionInput::Started);
        script.step(located(WorkerRole::Base));
        script
    }

    /// Feeds `event` and renders the actions, one word or phrase each.
    pub(crate) fn step(&mut self, event: SessionInput) -> Vec<String> {
        self.session.step(self.now, event).iter().map(render).collect()
    }

    #[track_caller]
    pub(crate) fn check(&mut self, event: SessionInput, expected: &[&str]) {
        assert_eq!(self.step(event), expected);
    }
}

pub(crate) fn render(action: &SessionAction) -> String {
    match action {
        SessionAction::Locate { role, failures, .. } => format!("locate {} after {failures}", role.name()),
        SessionAction::Send(RoleOperation { role, at, tokens, kind, is_ahead, .. }) => {
            let views = |rows: &[LogitsRequest]| {
                let row = |row: &LogitsRequest| format!("{}@{}", view(&row.view), row.offset);
                rows.iter().map(row).collect::<Vec<_>>().join(" ")
            };
            let asked = match kind {
                OperationKind::Draft { k, logits, .. } => format!("draft {k} {}", views(logits)),
                OperationKind::Release => "release".to_owned(),
                OperationKind::Recall { count } => format!("recall {count}"),
                OperationKind::Extend { logits: rows } => views(rows),
            };
            let ahead = if *is_ahead { " ahead" } else { "" };
            format!("{}: at {at} feed {tokens:?} {}{ahead}", role.name(), asked.trim_end()).trim_end().to_owned()
        }
        SessionAction::Withdraw { role, .. } => format!("withdraw {}", role.name()),
        SessionAction::Merge { position, .. } => format!("merge {position}"),
        SessionAction::Emit(SessionEvent::Token(token)) => format!("token {}", token.decision.id),
        SessionAction::Emit(SessionEvent::Finished(reason)) => format!("finished {reason:?}"),
        SessionAction::Emit(SessionEvent::Failed(error)) => format!("failed {}", error.code),
        SessionAction::Emit(SessionEvent::Degraded) => "degraded".to_owned(),
        SessionAction::Emit(SessionEvent::Prompt(_)) => "prompt".to_owned(),
        SessionAction::Emit(SessionEvent::TakenOver(tokens)) => format!("taken over {tokens:?}"),
    }
}

pub(crate) fn view(view: &LogitsView) -> String {
    match view {
        LogitsView::Gather { ids, .. } => format!("gather {ids:?}"),
        LogitsView::Nucleus { .. } => "nucleus".to_owned(),
        LogitsView::Sample { .. } => "sample".to_owned(),
        LogitsView::Full => "full".to_owned(),
    }
}

pub(crate) fn located(role: WorkerRole) -> SessionInput {
    SessionInput::Located { role, max_operation_tokens: 3, vocabulary: 10 }
}

pub(crate) fn answered(role: WorkerRole, ticket: u64, reply: OperationOutcome) -> SessionInput {
    SessionInput::Answered { role, ticket, reply: Ok(reply) }
}

pub(crate) fn failed(role: WorkerRole, ticket: u64, code: ErrorCode) -> SessionInput {
    SessionInput::Answered { role, ticket, reply: Err(OperationError { code, message: "no".to_owned() }) }
}

pub(crate) fn drawn(id: u32) -> TokenProbability {
    TokenProbability { id, probability: 0.5 }
}

pub(crate) fn drafted(ids: &[u32]) -> OperationOutcome {
    OperationOutcome::Drafted { tokens: ids.iter().map(|&id| drawn(id)).collect(), logits: Vec::new() }
}

/// A gathered probability and a fallback per draft.
pub(crate) fn judged(ids: &[u32]) -> OperationOutcome {
    OperationOutcome::Extended(
        ids.iter()
            .flat_map(|&id| [LogitsResult::Gathered(vec![drawn(id)]), LogitsResult::Sampled(drawn(4))])
            .collect(),
    )
}

pub(crate) fn decided(id: u32, rejected: Option<RejectedProposal>) -> SessionInput {
    let decision = Decision { id, hardening: None, p: None, q: None, law: None, rejected };
    SessionInput::Decided(TokenEvent { decision, score: None })
}

pub(crate) fn token(id: u32) -> SessionInput {
    decided(id, None)
}

pub(crate) fn lacking(lacking: MissingEvidence) -> SessionInput {
    SessionInput::Missing { missing: lacking, evidence: Box::default() }
}

pub(crate) const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });
