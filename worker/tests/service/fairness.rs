//! Who gets how many tokens: coordinators (streams) and tenants.

use cosec_proto::SessionId;
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::{Draft, Extend};
use cosec_worker::limits::EngineOptions;
use tokio::time::sleep;

use crate::harness::{Harness, PAUSE, Wire, draft, extend, options};

/// Tokens of a forward pass, and twice it: a party may be ahead by the chunk that it got last and the one before.
const BUDGET: usize = 64;
const AHEAD: usize = 2 * BUDGET;

/// Tokens that tell by their number whose they are.
const FIRST: u32 = 0;
const SECOND: u32 = 100;

fn of_tenant(tenant: u64, operation: Operation) -> Operation {
    match operation {
        Operation::Extend(extend) => Operation::Extend(Extend { tenant, ..extend }),
        Operation::Draft(draft) => Operation::Draft(Draft { tenant, ..draft }),
        other => other,
    }
}

/// A prompt of one party that begins as no other does.
fn prompt(whose: u32, number: u32, length: u32) -> Vec<u32> {
    (0..length).map(|at| whose + if at < 2 { (number >> (4 * at)) % 16 } else { at % 90 }).collect()
}

async fn send_prompts(wire: &mut Wire, tenant: u64, whose: u32, count: u32, length: u32) -> Vec<u64> {
    let mut ops = Vec::new();
    for number in 0..count {
        let prompt = prompt(whose, number, length);
        ops.push(wire.send(of_tenant(tenant, extend(SessionId::random(), 0, &prompt, &[])), 0).await);
    }
    ops
}

fn ample() -> EngineOptions {
    EngineOptions { blocks: 8192, max_sessions: 1000, ..options() }
}

/// Checks that in no pass one party was ahead of the other by more than [`AHEAD`] while both waited for `each` tokens.
fn assert_equal_shares(harness: &Harness, each: usize) {
    let mut served = [0, 0];
    // The first pass is of `hold`.
    for pass in harness.gate.tokens().into_iter().skip(1) {
        for token in pass.into_iter().flatten() {
            served[usize::from(token >= SECOND)] += 1;
        }
        if served.iter().all(|&tokens| tokens < each) {
            assert!(served[0].abs_diff(served[1]) <= AHEAD, "{served:?}");
        }
    }
    assert!(served.iter().all(|&tokens| tokens >= each), "{served:?}");
}

/// Holds the engine in a pass of somebody else's, so that all that is sent now waits together.
async fn hold(harness: &Harness, wire: &mut Wire) -> u64 {
    harness.gate.close();
    let op = wire.send(of_tenant(99, extend(SessionId::random(), 0, &[299], &[])), 0).await;
    harness.gate.reached(1).await;
    op
}

#[tokio::test]
async fn a_tenant_with_a_hundred_prompts_delays_no_decode_step_of_another() {
    const DECODED: u32 = 285;
    let harness = Harness::start(ample()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    wire.run(of_tenant(2, extend(session, 0, &[1, 2, 3], &[]))).await;
    // Prompts, and such as could be blocks to verify.
    for length in [200, 60] {
        harness.gate.close();
        let before = harness.gate.tokens().len();
        let prompts = send_prompts(&mut wire, 1, length, 100, length).await;
        harness.gate.reached(before + 1).await;
        sleep(PAUSE).await;
        for _ in 0..8 {
            // The pass that runs is the only one without it.
            let passes = harness.gate.tokens().len();
            let decode = wire.send(of_tenant(2, draft(session, 3, &[DECODED], 1)), 0).await;
            sleep(PAUSE).await;
            harness.gate.open_once();
            harness.gate.reached(passes + 1).await;
            let pass = &harness.gate.tokens()[passes];
            assert!(pass.contains(&vec![DECODED]), "{pass:?}");
            assert!(pass.iter().flatten().count() > BUDGET / 2, "{pass:?}");
            harness.gate.open_once();
            wire.answer(decode).await;
            harness.gate.reached(passes + 2).await;
        }
        harness.gate.open();
        for op in prompts {
            wire.answer(op).await;
        }
    }
}

#[tokio::test]
async fn two_tenants_get_equal_tokens_whatever_the_size_of_their_operations() {
    let harness = Harness::start(ample()).await;
    let mut wire = harness.wire().await;
    let mut ops = vec![hold(&harness, &mut wire).await];
    ops.extend(send_prompts(&mut wire, 1, FIRST, 100, 60).await);
    ops.extend(send_prompts(&mut wire, 2, SECOND, 20, 300).await);
    sleep(PAUSE).await;
    harness.gate.open();
    for op in ops {
        wire.answer(op).await;
    }
    assert_equal_shares(&harness, 6000);
}

#[tokio::test]
async fn a_coordinator_with_one_session_gets_as_much_as_one_with_fifty() {
    let harness = Harness::start(ample()).await;
    let (mut one, mut fifty) = (harness.wire().await, harness.wire().await);
    let mut ops = vec![hold(&harness, &mut fifty).await];
    ops.extend(send_prompts(&mut fifty, 0, FIRST, 50, 200).await);
    // More tenants do not make a larger share.
    ops.extend(send_prompts(&mut fifty, 5, FIRST + 20, 10, 30).await);
    let session = SessionId::random();
    let mut own = Vec::new();
    for at in (0..900).step_by(300) {
        own.push(one.send(extend(session, at, &prompt(SECOND, at, 300), &[]), 0).await);
    }
    sleep(PAUSE).await;
    harness.gate.open();
    for op in own {
        one.answer(op).await;
    }
    for op in ops {
        fifty.answer(op).await;
    }
    assert_equal_shares(&harness, 900);
}
