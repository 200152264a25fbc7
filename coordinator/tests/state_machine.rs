//! The session's state machine, event by event: no socket, no clock, no randomness.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::time::Duration;

use cosec_coordinator::merge::{
    BaseOnly, ChosenBy, Cosec, Decision, LogitAdjustments, LogitsTransport, MissingEvidence, RejectedProposal,
    SelectedRule,
};
use cosec_coordinator::request::{FinishReason, GenerationSettings, SessionError, SessionEvent, TokenEvent};
use cosec_coordinator::session::config::ExpertAbsent;
use cosec_coordinator::session::event::{RoleOperation, SessionAction, SessionInput, SessionParams, SessionPhase};
use cosec_coordinator::session::plan::DecodePlan;
use cosec_coordinator::session::state::SessionState;
use cosec_coordinator::speculation::controller::DraftPlan;
use cosec_coordinator::speculation::tally::VerifiedBlock;
use cosec_proto::sampling::{SamplingParams, SamplingSeed, TokenProbability};
use cosec_proto::{
    ErrorCode, LogitsRequest, LogitsResult, LogitsView, OperationError, OperationKind, OperationOutcome, WorkerRole,
};
use proptest::prelude::*;
use tokio::time::Instant;

fn task(rule: SelectedRule, transport: LogitsTransport, prompt: Vec<u32>, now: Instant) -> SessionParams {
    let settings = GenerationSettings {
        n: 1,
        seed: 1,
        max_tokens: None,
        min_tokens: 0,
        stop: Vec::new(),
        base: SamplingParams::RAW,
        expert: SamplingParams::RAW,
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
struct Script {
    session: SessionState,
    now: Instant,
}

impl Script {
    fn new(rule: SelectedRule, transport: LogitsTransport, prompt: Vec<u32>) -> Self {
        let now = Instant::now();
        Self { session: SessionState::new(task(rule, transport, prompt, now)), now }
    }

    /// Three drafts at a time, the expert running ahead; up to `max_new_tokens`.
    fn lookahead(transport: LogitsTransport, prompt: Vec<u32>, max_new_tokens: u32) -> Self {
        let now = Instant::now();
        let draft_plan = DraftPlan { num_draft_tokens: 3, pipelined: true };
        let params = SessionParams { draft_plan, max_new_tokens, ..task(COSEC, transport, prompt, now) };
        let mut script = Self { session: SessionState::new(params), now };
        script.step(SessionInput::Started);
        script.step(located(WorkerRole::Base));
        script
    }

    /// Feeds `event` and renders the actions, one word or phrase each.
    fn step(&mut self, event: SessionInput) -> Vec<String> {
        self.session.step(self.now, event).iter().map(render).collect()
    }

    #[track_caller]
    fn check(&mut self, event: SessionInput, expected: &[&str]) {
        assert_eq!(self.step(event), expected);
    }
}

fn render(action: &SessionAction) -> String {
    match action {
        SessionAction::Locate { role, failures } => format!("locate {} after {failures}", role.name()),
        SessionAction::Send(RoleOperation { role, at, tokens, kind, is_ahead, .. }) => {
            let views = |rows: &[LogitsRequest]| {
                let row = |row: &LogitsRequest| format!("{}@{}", view(&row.view), row.offset);
                rows.iter().map(row).collect::<Vec<_>>().join(" ")
            };
            let asked = match kind {
                OperationKind::Draft { k, logits, .. } => format!("draft {k} {}", views(logits)),
                OperationKind::Release => "release".to_owned(),
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
    }
}

fn view(view: &LogitsView) -> String {
    match view {
        LogitsView::Gather { ids, .. } => format!("gather {ids:?}"),
        LogitsView::Nucleus { .. } => "nucleus".to_owned(),
        LogitsView::Sample { .. } => "sample".to_owned(),
        LogitsView::Full => "full".to_owned(),
    }
}

fn located(role: WorkerRole) -> SessionInput {
    SessionInput::Located { role, max_operation_tokens: 3, vocabulary: 10 }
}

fn answered(role: WorkerRole, ticket: u64, reply: OperationOutcome) -> SessionInput {
    SessionInput::Answered { role, ticket, reply: Ok(reply) }
}

fn failed(role: WorkerRole, ticket: u64, code: ErrorCode) -> SessionInput {
    SessionInput::Answered { role, ticket, reply: Err(OperationError { code, message: "no".to_owned() }) }
}

fn drawn(id: u32) -> TokenProbability {
    TokenProbability { id, probability: 0.5 }
}

fn drafted(ids: &[u32]) -> OperationOutcome {
    OperationOutcome::Drafted { tokens: ids.iter().map(|&id| drawn(id)).collect(), logits: Vec::new() }
}

/// A gathered probability and a fallback per draft.
fn judged(ids: &[u32]) -> OperationOutcome {
    OperationOutcome::Extended(
        ids.iter()
            .flat_map(|&id| [LogitsResult::Gathered(vec![drawn(id)]), LogitsResult::Sampled(drawn(4))])
            .collect(),
    )
}

fn decided(id: u32, rejected: Option<RejectedProposal>) -> SessionInput {
    let decision = Decision { id, chosen_by: ChosenBy::Base, p: None, q: None, rejected };
    SessionInput::Decided(TokenEvent { decision, score: None })
}

fn token(id: u32) -> SessionInput {
    decided(id, None)
}

fn lacking(lacking: MissingEvidence) -> SessionInput {
    SessionInput::Missing { missing: lacking, evidence: Box::default() }
}

const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });

#[test]
fn cosec_asks_ahead_for_all_that_needs_no_id() {
    let mut script = Script::new(COSEC, LogitsTransport::Auto, vec![1, 2]);
    script.check(SessionInput::Started, &["locate base after 0", "locate expert after 0"]);
    script.check(located(WorkerRole::Expert), &[]);
    script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2] sample@2", "expert: at 0 feed [1, 2] draft 1"]);
    script
        .check(answered(WorkerRole::Base, 0, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(4))])), &[]);
    script.check(answered(WorkerRole::Expert, 0, drafted(&[5])), &["merge 2"]);
    script.check(lacking(MissingEvidence::Judgement(5)), &["base: at 2 feed [] gather [5]@0"]);
    assert!(matches!(script.session.phase(), SessionPhase::Verifying { lookup: Some(_) }));
    script.check(
        answered(WorkerRole::Base, 1, OperationOutcome::Extended(vec![LogitsResult::Gathered(vec![drawn(5)])])),
        &["merge 2"],
    );
    script.check(token(5), &["token 5"]);
    script.check(SessionInput::Emitted, &["base: at 2 feed [5] sample@1", "expert: at 2 feed [5] draft 1"]);
    script.check(answered(WorkerRole::Expert, 1, drafted(&[9])), &[]);
    script.check(
        answered(WorkerRole::Base, 2, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(4))])),
        &["merge 3"],
    );
    script.check(token(9), &["finished Stop"]);
    script.check(SessionInput::Emitted, &[]);
    assert_eq!(*script.session.phase(), SessionPhase::Finished);
}

#[test]
fn with_gather_the_base_is_fed_while_the_expert_drafts() {
    let mut script = Script::new(COSEC, LogitsTransport::Gather, vec![1]);
    script.check(SessionInput::Started, &["locate base after 0", "locate expert after 0"]);
    script.check(located(WorkerRole::Base), &[]);
    script.check(located(WorkerRole::Expert), &["base: at 0 feed [1]", "expert: at 0 feed [1] draft 1"]);
    script.check(answered(WorkerRole::Expert, 0, drafted(&[5])), &[]);
    script.check(answered(WorkerRole::Base, 0, OperationOutcome::Extended(Vec::new())), &["merge 1"]);
    script.check(lacking(MissingEvidence::Judgement(5)), &["base: at 1 feed [] gather [5]@0"]);
    script.check(
        answered(WorkerRole::Base, 1, OperationOutcome::Extended(vec![LogitsResult::Gathered(vec![drawn(5)])])),
        &["merge 1"],
    );
    script.check(lacking(MissingEvidence::Fallback), &["base: at 1 feed [] sample@0"]);
    script.check(
        answered(WorkerRole::Base, 2, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(3))])),
        &["merge 1"],
    );
    script.check(token(3), &["token 3"]);
}

#[test]
fn a_long_prompt_goes_in_pieces_and_a_lost_cache_goes_again() {
    let mut script = Script::new(SelectedRule::BaseOnly(BaseOnly), LogitsTransport::Full, vec![1, 2, 3, 4, 5, 6, 7]);
    script.check(SessionInput::Started, &["locate base after 0"]);
    script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2, 3]"]);
    script
        .check(answered(WorkerRole::Base, 0, OperationOutcome::Extended(Vec::new())), &["base: at 3 feed [4, 5, 6]"]);
    script.check(
        answered(WorkerRole::Base, 1, OperationOutcome::Extended(Vec::new())),
        &["base: at 6 feed [7] full@1"],
    );
    script.check(
        answered(WorkerRole::Base, 2, OperationOutcome::NeedPrefix { have: 1 }),
        &["base: at 1 feed [2, 3, 4]"],
    );
    script.check(
        answered(WorkerRole::Base, 3, OperationOutcome::Extended(Vec::new())),
        &["base: at 4 feed [5, 6, 7] full@3"],
    );
    script.check(
        answered(WorkerRole::Base, 4, OperationOutcome::Extended(vec![LogitsResult::Full(vec![0.0; 10])])),
        &["merge 7"],
    );
}

#[test]
fn a_worker_that_fails_is_replaced_and_the_sequence_goes_to_the_new_one() {
    let mut script = Script::new(SelectedRule::BaseOnly(BaseOnly), LogitsTransport::Auto, vec![1, 2]);
    script.check(SessionInput::Started, &["locate base after 0"]);
    script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2] sample@2"]);
    script.check(
        answered(WorkerRole::Base, 0, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(4))])),
        &["merge 2"],
    );
    script.check(token(4), &["token 4"]);
    script.check(SessionInput::Emitted, &["base: at 2 feed [4] sample@1"]);
    script.check(failed(WorkerRole::Base, 1, ErrorCode::Unavailable), &["locate base after 1"]);
    script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2, 4] sample@3"]);
    for failures in 2..=4 {
        let expected = format!("locate base after {failures}");
        script.check(failed(WorkerRole::Base, failures, ErrorCode::OutOfBlocks), &[expected.as_str()]);
        script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2, 4] sample@3"]);
    }
    script.check(failed(WorkerRole::Base, 5, ErrorCode::OutOfBlocks), &["failed out_of_blocks"]);
}

#[test]
fn an_error_that_no_other_worker_can_mend_ends_the_session() {
    let mut script = Script::new(SelectedRule::BaseOnly(BaseOnly), LogitsTransport::Auto, vec![1]);
    script.step(SessionInput::Started);
    script.step(located(WorkerRole::Base));
    script.check(failed(WorkerRole::Base, 0, ErrorCode::InvalidArgument), &["failed invalid_argument"]);
    script.check(answered(WorkerRole::Base, 0, OperationOutcome::NeedPrefix { have: 0 }), &[]);
}

#[test]
fn a_degraded_session_ignores_answers_to_what_it_asked_before() {
    let now = Instant::now();
    let params =
        SessionParams { expert_absent: ExpertAbsent::Degrade, ..task(COSEC, LogitsTransport::Auto, vec![1], now) };
    let mut script = Script { session: SessionState::new(params), now };
    script.step(SessionInput::Started);
    script.step(located(WorkerRole::Base));
    script.step(located(WorkerRole::Expert));
    script.check(failed(WorkerRole::Expert, 0, ErrorCode::Unavailable), &["locate expert after 1"]);
    let error = OperationError { code: ErrorCode::ExpertUnavailable, message: "none".to_owned() };
    script.check(SessionInput::Absent { role: WorkerRole::Expert, error }, &["withdraw base", "degraded"]);
    script
        .check(answered(WorkerRole::Base, 0, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(3))])), &[]);
    script.check(SessionInput::Emitted, &["base: at 0 feed [1] sample@1"]);
    script.check(
        answered(WorkerRole::Base, 1, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(3))])),
        &["merge 1"],
    );
}

#[test]
fn without_leave_to_degrade_an_absent_expert_ends_the_session() {
    let mut script = Script::new(COSEC, LogitsTransport::Auto, vec![1]);
    script.step(SessionInput::Started);
    let error = OperationError { code: ErrorCode::ExpertUnavailable, message: "none".to_owned() };
    script.check(SessionInput::Absent { role: WorkerRole::Expert, error }, &["failed expert_unavailable"]);
}

#[test]
fn the_deadline_ends_the_session_at_any_event() {
    let mut script = Script::new(COSEC, LogitsTransport::Auto, vec![1]);
    script.step(SessionInput::Started);
    script.now += Duration::from_secs(11);
    script.check(SessionInput::Tick, &["failed deadline_exceeded"]);
    script.check(located(WorkerRole::Base), &[]);
}

#[test]
fn a_token_that_a_model_does_not_have_is_a_fault_and_a_proposal_beyond_the_base_has_no_mass() {
    let mut script = Script::new(COSEC, LogitsTransport::Auto, vec![1]);
    script.step(SessionInput::Started);
    script.step(located(WorkerRole::Base));
    script.step(located(WorkerRole::Expert));
    script.step(answered(WorkerRole::Base, 0, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(4))])));
    script.step(answered(WorkerRole::Expert, 0, drafted(&[77])));
    let actions = script.session.step(script.now, lacking(MissingEvidence::Judgement(77)));
    let [SessionAction::Merge { evidence, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(evidence[WorkerRole::Base.index()].looked_up, Some(TokenProbability { id: 77, probability: 0.0 }));
    script.check(token(77), &["failed worker_fault"]);
}

#[test]
fn a_block_of_drafts_is_verified_at_once_while_the_expert_runs_ahead() {
    let mut script = Script::lookahead(LogitsTransport::Auto, vec![1, 2], 20);
    // The base holds the prompt but its last token while it waits for drafts.
    script.check(located(WorkerRole::Expert), &["base: at 0 feed [1]", "expert: at 0 feed [1, 2] draft 3"]);
    script.check(answered(WorkerRole::Base, 0, OperationOutcome::Extended(Vec::new())), &[]);
    let expected = [
        "base: at 1 feed [2, 5, 6] gather [5]@1 gather [6]@2 gather [7]@3 sample@1 sample@2 sample@3",
        "expert: at 4 feed [7] draft 3 ahead",
    ];
    script.check(answered(WorkerRole::Expert, 0, drafted(&[5, 6, 7])), &expected);
    // Answered first, but what it builds on is not decided.
    script.check(answered(WorkerRole::Expert, 1, drafted(&[1, 2, 3])), &[]);
    script.check(answered(WorkerRole::Base, 1, judged(&[5, 6, 7])), &["merge 2"]);
    script.check(token(5), &["token 5"]);
    script.check(SessionInput::Emitted, &["merge 3"]);
    script.check(token(6), &["token 6"]);
    script.check(SessionInput::Emitted, &["merge 4"]);
    script.check(token(7), &["token 7"]);
    // Three drafts feed the base three tokens: the last one decided and two of them.
    let expected = [
        "base: at 4 feed [7, 1, 2] gather [1]@1 gather [2]@2 gather [3]@3 sample@1 sample@2 sample@3",
        "expert: at 7 feed [3] draft 3 ahead",
    ];
    script.check(SessionInput::Emitted, &expected);
    let tally = script.session.take_tally();
    assert_eq!((tally.drafted, tally.accepted, tally.rejected, tally.rollbacks), (6, 3, 0, 0));
    assert_eq!(tally.blocks, [VerifiedBlock { proposals: 3, accepted: 3, stood: 3 }]);
}

#[test]
fn a_rejection_withdraws_what_was_drafted_ahead_and_cuts_the_caches_back() {
    let mut script = Script::lookahead(LogitsTransport::Auto, vec![1], 20);
    script.check(located(WorkerRole::Expert), &["expert: at 0 feed [1] draft 3"]);
    script.step(answered(WorkerRole::Expert, 0, drafted(&[5, 6, 7])));
    script.check(answered(WorkerRole::Base, 0, judged(&[5, 6, 7])), &["merge 1"]);
    script.step(token(5));
    script.check(SessionInput::Emitted, &["merge 2"]);
    script.check(rejected(8, 6), &["withdraw expert", "token 8"]);
    // One token of the block stands: the rest goes again from there.
    script.check(SessionInput::Emitted, &["expert: at 2 feed [8] draft 3"]);
    script.check(answered(WorkerRole::Expert, 1, drafted(&[1, 1, 1])), &[]);
    let expected = [
        "base: at 2 feed [8, 3, 3] gather [3]@1 gather [3]@2 gather [3]@3 sample@1 sample@2 sample@3",
        "expert: at 5 feed [3] draft 3 ahead",
    ];
    script.check(answered(WorkerRole::Expert, 2, drafted(&[3, 3, 3])), &expected);
    let tally = script.session.take_tally();
    assert_eq!((tally.accepted, tally.rejected, tally.rollbacks, tally.withdrawn), (1, 1, 1, 1));
    assert_eq!(tally.blocks, [VerifiedBlock { proposals: 2, accepted: 1, stood: 1 }]);
}

fn rejected(id: u32, proposal: u32) -> SessionInput {
    decided(id, Some(RejectedProposal { id: proposal, p: 0.1, q: 0.5 }))
}

#[test]
fn a_fallback_that_is_the_drafted_token_discards_nothing() {
    let mut script = Script::lookahead(LogitsTransport::Auto, vec![1], 20);
    script.step(located(WorkerRole::Expert));
    script.step(answered(WorkerRole::Expert, 0, drafted(&[5, 6, 7])));
    script.step(answered(WorkerRole::Base, 0, judged(&[5, 6, 7])));
    script.check(rejected(5, 5), &["token 5"]);
    script.check(SessionInput::Emitted, &["merge 2"]);
}

#[test]
fn nothing_is_drafted_behind_an_end_token_or_the_last_token() {
    let mut script = Script::lookahead(LogitsTransport::Auto, vec![1], 5);
    script.step(located(WorkerRole::Expert));
    // Token 9 ends the choice: what was drafted behind it is dropped.
    let expected = ["base: at 0 feed [1, 5] gather [5]@1 gather [9]@2 sample@1 sample@2"];
    script.check(answered(WorkerRole::Expert, 0, drafted(&[5, 9, 7])), &expected);
    script.step(answered(WorkerRole::Base, 0, judged(&[5, 9])));
    script.step(token(5));
    script.check(SessionInput::Emitted, &["merge 2"]);
    // It is rejected: two tokens are left to draft, then one.
    script.check(rejected(6, 9), &["token 6"]);
    script.check(SessionInput::Emitted, &["expert: at 2 feed [6] draft 3"]);
    let expected = ["base: at 2 feed [6, 1, 2] gather [1]@1 gather [2]@2 gather [3]@3 sample@1 sample@2 sample@3"];
    script.check(answered(WorkerRole::Expert, 1, drafted(&[1, 2, 3])), &expected);
}

#[test]
fn a_worker_lost_while_drafts_are_verified_is_fed_them_again() {
    let mut script = Script::lookahead(LogitsTransport::Gather, vec![1, 2, 3, 4], 20);
    let expected = ["base: at 0 feed [1, 2, 3]", "expert: at 0 feed [1, 2, 3]"];
    script.check(located(WorkerRole::Expert), &expected);
    script.check(
        answered(WorkerRole::Expert, 0, OperationOutcome::Extended(Vec::new())),
        &["expert: at 3 feed [4] draft 3"],
    );
    script.check(failed(WorkerRole::Base, 0, ErrorCode::Unavailable), &["locate base after 1"]);
    script.check(answered(WorkerRole::Expert, 1, drafted(&[5, 6, 7])), &[]);
    // Operations take three tokens: two of the drafts fit beside what the new base lacks.
    script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2, 3]"]);
    let expected =
        ["base: at 3 feed [4, 5, 6] gather [5]@1 gather [6]@2 gather [7]@3", "expert: at 6 feed [7] draft 3 ahead"];
    script.check(answered(WorkerRole::Base, 1, OperationOutcome::Extended(Vec::new())), &expected);
    script.check(
        answered(WorkerRole::Base, 2, OperationOutcome::NeedPrefix { have: 1 }),
        &["base: at 1 feed [2, 3, 4] gather [5]@3"],
    );
    script.check(
        answered(WorkerRole::Base, 3, OperationOutcome::Extended(vec![LogitsResult::Gathered(vec![drawn(5)])])),
        &["merge 4"],
    );
    // The rule needs the base's own token of a row that was kept: no forward pass.
    script.check(lacking(MissingEvidence::Fallback), &["base: at 4 feed [] sample@0"]);
}

fn any_event() -> impl Strategy<Value = SessionInput> {
    let role = prop_oneof![Just(WorkerRole::Base), Just(WorkerRole::Expert), Just(WorkerRole::AntiExpert)];
    let codes =
        [ErrorCode::Unavailable, ErrorCode::OutOfBlocks, ErrorCode::ModelMismatch, ErrorCode::DeadlineExceeded];
    let error =
        proptest::sample::select(codes.to_vec()).prop_map(|code| OperationError { code, message: String::new() });
    let reply = prop_oneof![
        (0u32..12).prop_map(|have| Ok(OperationOutcome::NeedPrefix { have })),
        Just(Ok(OperationOutcome::Released)),
        Just(Ok(OperationOutcome::Extended(Vec::new()))),
        proptest::collection::vec(0u32..12, 0..4).prop_map(|ids| Ok(drafted(&ids))),
        (0u32..12).prop_map(|id| Ok(OperationOutcome::Extended(vec![
            LogitsResult::Sampled(drawn(id)),
            LogitsResult::Gathered(Vec::new())
        ]))),
        error.clone().prop_map(Err),
    ];
    prop_oneof![
        1 => Just(SessionInput::Started),
        4 => role.clone().prop_map(located),
        1 => (role.clone(), error).prop_map(|(role, error)| SessionInput::Absent { role, error }),
        8 => (role, 0u64..20, reply).prop_map(|(role, ticket, reply)| SessionInput::Answered { role, ticket, reply }),
        4 => (0u32..12).prop_map(token),
        2 => (0u32..12).prop_map(|id| lacking(MissingEvidence::Judgement(id))),
        2 => Just(lacking(MissingEvidence::Logits(WorkerRole::Expert))),
        4 => Just(SessionInput::Emitted),
        1 => Just(SessionInput::MergeFailed(SessionError::new(ErrorCode::Internal, String::new()))),
        1 => Just(SessionInput::Tick),
    ]
}

proptest! {
    #[test]
    fn no_order_of_events_panics_or_goes_on_after_the_end(
        events in proptest::collection::vec(any_event(), 1..120),
        scores in proptest::option::of(0u32..3),
        degrades in any::<bool>(),
        prompt in 1u32..9,
        num_draft_tokens in 1u32..5,
        pipelined in any::<bool>(),
    ) {
        let now = Instant::now();
        let expert_absent = if degrades { ExpertAbsent::Degrade } else { ExpertAbsent::FailClosed };
        let of = task(COSEC, LogitsTransport::Auto, (0..prompt).collect(), now);
        let mut session = SessionState::new(SessionParams {
            prompt_scores: scores,
            expert_absent,
            draft_plan: DraftPlan { num_draft_tokens, pipelined },
            ..of
        });
        let (mut ends, mut tokens) = (0, 0);
        session.step(now, SessionInput::Started);
        for event in events {
            for action in session.step(now, event) {
                prop_assert_eq!(ends, 0, "{:?} after the end", action);
                match action {
                    SessionAction::Emit(SessionEvent::Finished(FinishReason::Length | FinishReason::Stop)) => ends += 1,
                    SessionAction::Emit(SessionEvent::Failed(_)) => ends += 1,
                    SessionAction::Emit(SessionEvent::Token(token)) => {
                        tokens += 1;
                        prop_assert!(token.decision.id < 10);
                    }
                    SessionAction::Send(RoleOperation { at, tokens, .. }) => prop_assert!(at as usize + tokens.len() <= prompt as usize + 2),
                    SessionAction::Merge { .. } | SessionAction::Locate { .. } | SessionAction::Withdraw { .. } => {}
                    SessionAction::Emit(SessionEvent::Prompt(_) | SessionEvent::Degraded) => {}
                }
            }
            prop_assert!(tokens <= 2);
        }
    }
}
