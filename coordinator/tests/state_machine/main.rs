//! The session's state machine, event by event: no socket, no clock, no randomness.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

mod any_order;
mod fixture;
mod lookahead;

use std::time::Duration;

use cosec_coordinator::merge::{BaseOnly, LogitsTransport, MissingEvidence, SelectedRule};
use cosec_coordinator::session::config::ExpertAbsent;
use cosec_coordinator::session::event::{LocateCause, SessionAction, SessionInput, SessionParams, SessionPhase};
use cosec_coordinator::session::state::SessionState;
use cosec_proto::sampling::TokenProbability;
use cosec_proto::{ErrorCode, LogitsResult, OperationError, OperationOutcome, WorkerRole};
use tokio::time::Instant;

use fixture::{COSEC, Script, answered, drafted, drawn, failed, lacking, located, task, token};

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
        script.check(failed(WorkerRole::Base, failures, ErrorCode::WorkerFault), &[expected.as_str()]);
        script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2, 4] sample@3"]);
    }
    script.check(failed(WorkerRole::Base, 5, ErrorCode::WorkerFault), &["failed worker_fault"]);
}

#[test]
fn workers_without_room_are_asked_until_one_has_it() {
    let mut script = Script::new(SelectedRule::BaseOnly(BaseOnly), LogitsTransport::Auto, vec![1, 2]);
    script.step(SessionInput::Started);
    script.step(located(WorkerRole::Base));
    let refused = |script: &mut Script, ticket: u64, code: ErrorCode, cause: LocateCause, again: &str| {
        let actions = script.session.step(script.now, failed(WorkerRole::Base, ticket, code));
        assert!(
            matches!(actions.as_slice(), [SessionAction::Locate { cause: of, .. }] if *of == cause),
            "{actions:?}"
        );
        script.check(located(WorkerRole::Base), &[again]);
    };
    // Before the first token the driver ends it, once all have refused.
    for ticket in 0..6 {
        let again = "base: at 0 feed [1, 2] sample@2";
        refused(&mut script, ticket, ErrorCode::Overloaded, LocateCause::NoRoom, again);
    }
    script.check(
        answered(WorkerRole::Base, 6, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(4))])),
        &["merge 2"],
    );
    script.check(token(4), &["token 4"]);
    script.check(SessionInput::Emitted, &["base: at 2 feed [4] sample@1"]);
    for (ticket, code) in (7..).zip([ErrorCode::Overloaded, ErrorCode::OutOfBlocks].repeat(4)) {
        let again = "base: at 0 feed [1, 2, 4] sample@3";
        refused(&mut script, ticket, code, LocateCause::NoRoomUnderWay, again);
    }
}

#[test]
fn a_session_whose_client_does_not_read_gives_all_workers_back_and_asks_for_others() {
    let mut script = Script::new(COSEC, LogitsTransport::Auto, vec![1, 2]);
    script.step(SessionInput::Started);
    script.step(located(WorkerRole::Base));
    script.step(located(WorkerRole::Expert));
    script.check(SessionInput::Suspended, &[]);
    script.step(answered(WorkerRole::Base, 0, OperationOutcome::Extended(vec![LogitsResult::Sampled(drawn(4))])));
    script.step(answered(WorkerRole::Expert, 0, drafted(&[5])));
    script.step(lacking(MissingEvidence::Judgement(5)));
    script.step(answered(
        WorkerRole::Base,
        1,
        OperationOutcome::Extended(vec![LogitsResult::Gathered(vec![drawn(5)])]),
    ));
    script.check(token(5), &["token 5"]);
    script.check(SessionInput::Suspended, &[]);
    script.check(SessionInput::Emitted, &["locate base after 0", "locate expert after 0"]);
    script.check(located(WorkerRole::Expert), &["expert: at 0 feed [1, 2, 5] draft 1"]);
    script.check(located(WorkerRole::Base), &["base: at 0 feed [1, 2, 5] sample@3"]);
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
