//! Blocks of drafts: verified at once, rejected, fed again.

use cosec_coordinator::merge::{LogitsTransport, MissingEvidence, RejectedProposal};
use cosec_coordinator::session::event::SessionInput;
use cosec_coordinator::speculation::tally::VerifiedBlock;
use cosec_proto::{ErrorCode, LogitsResult, OperationOutcome, WorkerRole};

use crate::fixture::{Script, answered, decided, drafted, drawn, failed, judged, lacking, located, token};

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
    // Token 9 ends the choice: what was drafted after it is dropped.
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
    // Operations take three tokens: two of the drafts fit in with what the new base lacks.
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
