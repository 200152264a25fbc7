//! Who waits for whom: batches, deadlines, cancellation, blocks.

use cosec_proto::SessionId;
use cosec_proto::sampling::{Distribution, DrawPurpose, SamplingSeed};
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_worker::limits::EngineOptions;
use tokio::time::sleep;

use crate::fake_model::logits;
use crate::harness::{Harness, PAUSE, SEED, draft, extend, failure, full_rows, need_prefix, options, release, warp};

/// Shorter than [`PAUSE`].
const SHORT_MS: u32 = 20;

#[tokio::test]
async fn short_operations_ride_along_with_the_chunks_of_a_prompt() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let short: Vec<SessionId> = (0..15).map(|_| SessionId::random()).collect();
    for &session in &short {
        wire.rows(session, 0, &[1, 2], &[]).await;
    }
    let before = harness.gate.passes().len();
    harness.gate.close();
    let long = SessionId::random();
    let prompt: Vec<u32> = (0..200).collect();
    let prefill = wire.send(extend(long, 0, &prompt, &[10, 200]), 0).await;
    harness.gate.reached(before + 1).await;
    let mut drafts = Vec::new();
    for &session in &short {
        drafts.push(wire.send(draft(session, 2, &[3], 4), 0).await);
    }
    // They wait for the first pass now; an operation answers only when the service has taken it in.
    sleep(PAUSE).await;
    harness.gate.open();
    for &op in &drafts {
        assert!(matches!(wire.answer(op).await, Outcome::Drafted(drafted) if drafted.ids.len() == 4));
    }
    let rows = full_rows(&wire.answer(prefill).await);
    assert_eq!(rows, Some(vec![logits(&prompt[..10]), logits(&prompt)]));
    let passes = &harness.gate.passes()[before..];
    assert_eq!(passes[0], [64]);
    let mut second = passes[1].clone();
    second.sort_unstable();
    // Fifteen drafts and the next chunk fill the budget.
    assert_eq!(second, [vec![1; 15], vec![49]].concat());
}

#[tokio::test]
async fn what_is_cancelled_in_the_queue_never_starts() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let (running, queued) = (SessionId::random(), SessionId::random());
    wire.rows(queued, 0, &[5, 6], &[]).await;
    harness.gate.close();
    let first = wire.send(extend(running, 0, &[1], &[1]), 0).await;
    harness.gate.reached(2).await;
    let second = wire.send(extend(queued, 1, &[9, 9], &[1]), 0).await;
    wire.cancel(second).await;
    // Its only forward pass runs: too late.
    wire.cancel(first).await;
    // Nobody knows it: no answer.
    wire.cancel(12_345).await;
    sleep(PAUSE).await;
    harness.gate.open();
    assert_eq!(failure(wire.answer(second).await).0, "cancelled");
    assert_eq!(full_rows(&wire.answer(first).await), Some(vec![logits(&[1])]));
    assert_eq!(wire.rows(queued, 2, &[], &[0]).await, [logits(&[5, 6])]);
    assert_eq!(harness.gate.passes().len(), 2);
}

#[tokio::test]
async fn what_is_cancelled_under_way_ends_before_its_next_pass_and_keeps_what_it_fed() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let (prompting, drafting) = (SessionId::random(), SessionId::random());
    let prompt: Vec<u32> = (0..200).collect();
    wire.rows(drafting, 0, &[1, 2], &[]).await;
    harness.gate.close();
    let prompted = wire.send(extend(prompting, 0, &prompt, &[200]), 0).await;
    harness.gate.reached(2).await;
    let drafted = wire.send(draft(drafting, 2, &[3], 60), 0).await;
    sleep(PAUSE).await;
    harness.gate.open_once();
    harness.gate.reached(3).await;
    assert_eq!(harness.describe().await.queued_tokens, 200 - 64 + 1);
    harness.gate.open_once();
    harness.gate.reached(4).await;
    wire.cancel(prompted).await;
    wire.cancel(drafted).await;
    sleep(PAUSE).await;
    harness.gate.open();
    assert_eq!(failure(wire.answer(prompted).await).0, "cancelled");
    assert_eq!(failure(wire.answer(drafted).await).0, "cancelled");
    assert_eq!(harness.gate.passes().len(), 4);
    let described = harness.describe().await;
    // Passes of 64, 63 and 63 tokens of the prompt, and of one drafted token with the given one.
    assert_eq!((described.free_blocks, described.queued_tokens), (512 - 190_u32.div_ceil(4) - 1, 0));
    assert_eq!(need_prefix(&wire.run(extend(prompting, 191, &[1], &[1])).await), Some(190));
    assert_eq!(need_prefix(&wire.run(extend(prompting, 190, &[], &[0])).await), Some(189));
    assert_eq!(wire.rows(prompting, 190, &prompt[190..], &[10]).await, [logits(&prompt)]);
    // The logits after what was drafted are kept, as after a draft that ended.
    let u = SamplingSeed { seed: SEED, sample: 1 }.uniform(DrawPurpose::Draft, 3);
    let drawn = Distribution::from_logits(&logits(&[1, 2, 3]), &warp()).unwrap().sample(u);
    assert_eq!(wire.rows(drafting, 4, &[], &[0]).await, [logits(&[1, 2, 3, drawn])]);
}

#[tokio::test]
async fn a_passed_deadline_leaves_the_session_as_it_was() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let (started, queued) = (SessionId::random(), SessionId::random());
    wire.rows(started, 0, &[1, 2, 3], &[]).await;
    wire.rows(queued, 0, &[5, 6], &[]).await;
    harness.gate.close();
    let first = wire.send(extend(started, 3, &[4; 9], &[1]), SHORT_MS).await;
    harness.gate.reached(3).await;
    let second = wire.send(extend(queued, 1, &[9], &[1]), SHORT_MS).await;
    sleep(PAUSE).await;
    harness.gate.open();
    assert_eq!(failure(wire.answer(first).await).0, "deadline_exceeded");
    assert_eq!(failure(wire.answer(second).await).0, "deadline_exceeded");
    assert_eq!(harness.describe().await.free_blocks, 510);
    assert_eq!(wire.rows(started, 3, &[], &[0]).await, [logits(&[1, 2, 3])]);
    assert_eq!(wire.rows(queued, 2, &[7], &[0, 1]).await, [logits(&[5, 6]), logits(&[5, 6, 7])]);
}

#[tokio::test]
async fn a_stream_that_ends_withdraws_what_it_asked() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    harness.gate.close();
    let first = wire.send(extend(SessionId::random(), 0, &[1], &[1]), 0).await;
    harness.gate.reached(1).await;
    let mut other = harness.wire().await;
    for _ in 0..10 {
        other.send(extend(SessionId::random(), 0, &[2; 8], &[]), 0).await;
    }
    sleep(PAUSE).await;
    drop(other);
    sleep(PAUSE).await;
    harness.gate.open();
    assert!(full_rows(&wire.answer(first).await).is_some());
    let last = wire.rows(SessionId::random(), 0, &[3], &[1]).await;
    assert_eq!(last, [logits(&[3])]);
    assert_eq!(harness.gate.passes(), [[1], [1]]);
    assert_eq!(harness.describe().await.sessions, 2);
}

#[tokio::test]
async fn a_half_closed_stream_still_gets_its_answers() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let ops = [
        wire.send(extend(SessionId::random(), 0, &[1; 100], &[100]), 0).await,
        wire.send(extend(SessionId::random(), 0, &[2; 100], &[100]), 0).await,
    ];
    let mut responses = wire.close();
    let mut seen = Vec::new();
    while let Some(response) = responses.message().await.unwrap() {
        assert!(full_rows(&response.outcome.unwrap()).is_some());
        seen.push(response.op);
    }
    seen.sort_unstable();
    assert_eq!(seen, ops);
}

#[tokio::test]
async fn who_needs_blocks_waits_until_others_give_them_back() {
    let harness = Harness::start(EngineOptions { blocks: 260, ..options() }).await;
    let mut wire = harness.wire().await;
    let (first, second) = (SessionId::random(), SessionId::random());
    wire.rows(first, 0, &[1; 900], &[]).await;
    // Sessions that are open overtake the one that waits, new ones do not.
    let waits = wire.send(extend(second, 0, &[2; 200], &[200]), 0).await;
    let overtakes = wire.send(extend(first, 900, &[3], &[1]), 0).await;
    let queues = wire.send(extend(SessionId::random(), 0, &[4], &[1]), 0).await;
    assert!(full_rows(&wire.answer(overtakes).await).is_some());
    let freed = wire.send(release(first), 0).await;
    assert!(matches!(wire.answer(freed).await, Outcome::Released(_)));
    assert_eq!(full_rows(&wire.answer(waits).await), Some(vec![logits(&[2; 200])]));
    assert!(full_rows(&wire.answer(queues).await).is_some());
}

#[tokio::test]
async fn who_waits_in_vain_for_blocks_is_told_so() {
    let harness = Harness::start(EngineOptions { blocks: 20, ..options() }).await;
    let mut wire = harness.wire().await;
    let (holder, waiter) = (SessionId::random(), SessionId::random());
    wire.rows(holder, 0, &[1; 60], &[]).await;
    let op = wire.send(extend(waiter, 0, &[2; 40], &[]), SHORT_MS).await;
    let (code, message) = failure(wire.answer(op).await);
    assert_eq!(code, "out_of_blocks");
    assert!(message.contains("blocks"), "{message}");
    // The holder can still give some back by a rollback, and the waiter try again.
    wire.rows(holder, 8, &[], &[]).await;
    assert_eq!(wire.rows(waiter, 0, &[2; 40], &[40]).await, [logits(&[2; 40])]);
}

#[tokio::test]
async fn when_blocks_run_out_the_youngest_loses_its_own_and_comes_back() {
    let harness = Harness::start(EngineOptions { blocks: 20, ..options() }).await;
    let mut wire = harness.wire().await;
    let (older, younger) = (SessionId::random(), SessionId::random());
    wire.rows(older, 0, &[1; 40], &[]).await;
    wire.rows(younger, 0, &[2; 40], &[40]).await;
    assert_eq!(wire.rows(older, 40, &[3; 8], &[8]).await, [logits(&[vec![1; 40], vec![3; 8]].concat())]);
    // It learns it from the answer to its next operation, and waits its turn.
    assert_eq!(need_prefix(&wire.run(draft(younger, 40, &[], 2)).await), Some(0));
    let again = wire.send(extend(younger, 0, &[[2; 40], [4; 40]].concat(), &[80]), 0).await;
    assert!(!wire.rows(older, 48, &[5; 4], &[4]).await.is_empty());
    wire.run(release(older)).await;
    assert_eq!(full_rows(&wire.answer(again).await), Some(vec![logits(&[[2; 40], [4; 40]].concat())]));
    assert!(harness.metrics().await.contains("cosec_worker_preemptions_total{role=\"expert\"} 1"));
}

#[tokio::test]
async fn a_session_that_came_back_is_as_old_as_before() {
    let harness = Harness::start(EngineOptions { blocks: 20, ..options() }).await;
    let mut wire = harness.wire().await;
    let [first, second, third] = [(); 3].map(|()| SessionId::random());
    wire.rows(first, 0, &[1; 20], &[]).await;
    wire.rows(second, 0, &[2; 20], &[]).await;
    wire.rows(first, 20, &[1; 48], &[]).await;
    // The second has lost its blocks; a third comes in its place.
    wire.rows(third, 0, &[3; 8], &[]).await;
    assert_eq!(need_prefix(&wire.run(extend(second, 20, &[2], &[1])).await), Some(0));
    // It gets them back from the third, which came later.
    assert_eq!(wire.rows(second, 0, &[2; 12], &[12]).await, [logits(&[2; 12])]);
    assert_eq!(need_prefix(&wire.run(extend(third, 8, &[3], &[1])).await), Some(0));
    assert_eq!(wire.rows(first, 68, &[], &[0]).await, [logits(&[1; 68])]);
}

#[tokio::test]
async fn too_many_sessions_are_refused() {
    let harness = Harness::start(EngineOptions { max_sessions: 2, ..options() }).await;
    let mut wire = harness.wire().await;
    let sessions = [SessionId::random(), SessionId::random()];
    for session in sessions {
        wire.rows(session, 0, &[1], &[]).await;
    }
    let third = SessionId::random();
    assert_eq!(failure(wire.run(extend(third, 0, &[1], &[])).await).0, "overloaded");
    assert_eq!(need_prefix(&wire.run(extend(third, 1, &[1], &[])).await), Some(0));
    wire.rows(sessions[0], 1, &[1], &[]).await;
    wire.run(release(sessions[0])).await;
    wire.rows(third, 0, &[1], &[]).await;
}

#[tokio::test]
async fn too_many_operations_are_refused_and_the_others_served() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    harness.gate.close();
    let session = SessionId::random();
    let mut ops = vec![wire.send(extend(session, 0, &[1], &[1]), 0).await];
    for _ in 0..1100 {
        ops.push(wire.send(extend(session, 1, &[], &[0]), 0).await);
    }
    for &op in &ops[1024..] {
        assert_eq!(failure(wire.answer(op).await).0, "overloaded");
    }
    harness.gate.open();
    for &op in &ops[..1024] {
        assert_eq!(full_rows(&wire.answer(op).await), Some(vec![logits(&[1])]));
    }
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_else() {
    let harness = Harness::start(options()).await;
    let mut deaf = harness.wire().await;
    let session = SessionId::random();
    for _ in 0..3000 {
        deaf.send(extend(session, 0, &[1; 60], &(1..60).collect::<Vec<u32>>()), 0).await;
    }
    let mut wire = harness.wire().await;
    for length in 1..40 {
        let tokens = vec![2; length];
        assert_eq!(wire.rows(SessionId::random(), 0, &tokens, &[length as u32]).await, [logits(&tokens)]);
    }
    drop(deaf);
    wire.run(release(session)).await;
}
