//! Sessions that begin alike: what is computed once, and what is never shared.

use cosec_proto::SessionId;
use cosec_proto::wire::worker::Extend;
use cosec_proto::wire::worker::step_request::Operation;
use tokio::time::sleep;

use crate::fake_model::{adapted, logits};
use crate::harness::{Harness, PAUSE, extend, full_rows, need_prefix, options, release};

fn prompt() -> Vec<u32> {
    (100..140).collect()
}

/// Tokens that the model was fed so far.
fn fed(harness: &Harness) -> usize {
    harness.gate.tokens().iter().flatten().map(Vec::len).sum()
}

#[tokio::test]
async fn a_second_session_feeds_only_what_is_new() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let (first, second) = (SessionId::random(), SessionId::random());
    wire.rows(first, 0, &prompt(), &[]).await;
    assert_eq!((fed(&harness), harness.describe().await.free_blocks), (40, 502));
    // The last token is fed for its row, with its block.
    assert_eq!(wire.rows(second, 0, &prompt(), &[40]).await, [logits(&prompt())]);
    assert_eq!((fed(&harness), harness.describe().await.free_blocks), (44, 501));
    // A row in the middle is computed.
    let rows = wire.rows(SessionId::random(), 0, &prompt(), &[10, 40]).await;
    assert_eq!((rows, fed(&harness)), (vec![logits(&prompt()[..10]), logits(&prompt())], 76));
    // Each goes on in its own way after it.
    for (session, token) in [(first, 7), (second, 8)] {
        assert_eq!(wire.rows(session, 40, &[token], &[1]).await, [logits(&[&prompt()[..], &[token]].concat())]);
    }
    assert!(harness.metrics().await.contains("cosec_worker_shared_prefix_tokens_total{role=\"expert\"} 44"));
}

#[tokio::test]
async fn what_nobody_holds_is_found_again() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    wire.rows(session, 0, &prompt(), &[]).await;
    wire.run(release(session)).await;
    assert_eq!(harness.describe().await.free_blocks, 512);
    // In two pieces, the second at the end of a block.
    let again = SessionId::random();
    wire.rows(again, 0, &prompt()[..16], &[]).await;
    assert_eq!(wire.rows(again, 16, &prompt()[16..], &[24]).await, [logits(&prompt())]);
    assert_eq!(fed(&harness), 40 + 4 + 4);
}

#[tokio::test]
async fn samples_that_come_at_once_wait_for_the_first_to_compute_their_prompt() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let long: Vec<u32> = (0..150).collect();
    harness.gate.close();
    let mut ops = vec![wire.send(extend(SessionId::random(), 0, &[9], &[]), 0).await];
    for _ in 0..5 {
        ops.push(wire.send(extend(SessionId::random(), 0, &long, &[150]), 0).await);
    }
    sleep(PAUSE).await;
    harness.gate.open();
    wire.answer(ops.remove(0)).await;
    for op in ops {
        assert_eq!(full_rows(&wire.answer(op).await), Some(vec![logits(&long)]));
    }
    // The first feeds all, each of the others what follows the last full block.
    assert_eq!(fed(&harness), 1 + 150 + 4 * 2);
    assert_eq!(harness.describe().await.free_blocks, 512 - 1 - 38 - 4);
}

#[tokio::test]
async fn tenants_and_adapters_share_nothing() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let run = |tenant, adapter: &str| {
        let Operation::Extend(extend) = extend(SessionId::random(), 0, &prompt(), &[40]) else { unreachable!() };
        Operation::Extend(Extend { tenant, adapter: adapter.to_owned(), ..extend })
    };
    let cases = [(0, "", None), (1, "", None), (u64::MAX, "", None), (1, "polite", Some(0)), (1, "terse", Some(1))];
    for (index, (tenant, adapter, number)) in cases.into_iter().enumerate() {
        let history: Vec<u32> = prompt().into_iter().map(|token| adapted(number, token)).collect();
        assert_eq!(full_rows(&wire.run(run(tenant, adapter)).await), Some(vec![logits(&history)]));
        assert_eq!(fed(&harness), 40 * (index + 1));
    }
}

#[tokio::test]
async fn a_rollback_into_a_block_of_others_feeds_that_block_again() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let (first, second) = (SessionId::random(), SessionId::random());
    wire.rows(first, 0, &prompt(), &[]).await;
    wire.rows(second, 0, &prompt(), &[]).await;
    assert_eq!(need_prefix(&wire.run(extend(second, 22, &[7], &[1])).await), Some(20));
    let history = [&prompt()[..22], &[7]].concat();
    assert_eq!(wire.rows(second, 20, &history[20..], &[3]).await, [logits(&history)]);
    // The other has not changed, and rolls back in its own blocks.
    assert_eq!(wire.rows(first, 40, &[], &[0]).await, [logits(&prompt())]);
    assert_eq!(wire.rows(first, 22, &[8], &[1]).await, [logits(&[&prompt()[..22], &[8]].concat())]);
    assert_eq!(wire.rows(second, 23, &[], &[0]).await, [logits(&history)]);
}
