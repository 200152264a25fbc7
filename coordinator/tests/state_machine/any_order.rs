//! Any order of events.

use cosec_coordinator::merge::{LogitsTransport, MissingEvidence};
use cosec_coordinator::request::{FinishReason, SessionError, SessionEvent};
use cosec_coordinator::session::config::ExpertAbsent;
use cosec_coordinator::session::event::{RoleOperation, SessionAction, SessionInput, SessionParams};
use cosec_coordinator::session::state::SessionState;
use cosec_coordinator::speculation::controller::DraftPlan;
use cosec_proto::{ErrorCode, LogitsResult, OperationError, OperationOutcome, WorkerRole};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::fixture::{COSEC, drafted, drawn, lacking, located, task, token};

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
        1 => Just(SessionInput::Suspended),
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
                    SessionAction::Emit(SessionEvent::Prompt(_) | SessionEvent::TakenOver(_) | SessionEvent::Degraded) => {}
                }
            }
            prop_assert!(tokens <= 2);
        }
    }
}
