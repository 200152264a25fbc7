//! What a worker does for coordinators that come and go: tokens that outlive a session, places and streams that give
//! way.

use std::time::Duration;

use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::{Recall, Recalled};
use cosec_proto::{SequenceName, SessionId, transport};
use cosec_worker::limits::EngineOptions;
use tokio::time::sleep;
use tonic::Code;

use crate::fake_model::logits;
use crate::harness::{Harness, Wire, extend, failure, need_prefix, options, release};

/// Longer than a session may be idle and keep its place.
const IDLE: Duration = Duration::from_millis(2100);

async fn recalled(wire: &mut Wire, sequence: SequenceName, at: u32, count: u32) -> Vec<u32> {
    let recall = Recall { sequence: sequence.to_wire(), at, count };
    match wire.run(Operation::Recall(recall)).await {
        Outcome::Recalled(Recalled { tokens }) => tokens,
        other => panic!("{other:?}"),
    }
}

async fn stranger(harness: &Harness) -> Wire {
    Wire::open(transport::channel(&harness.address.to_string()).unwrap()).await
}

#[tokio::test]
async fn tokens_outlive_their_session_and_its_coordinator() {
    let harness = Harness::start(EngineOptions { blocks: 20, ..options() }).await;
    let (mut wire, mut other) = (harness.wire().await, stranger(&harness).await);
    let sequence = SequenceName::random();
    let tokens: Vec<u32> = (100..142).collect();
    let session = SessionId::of(sequence);
    wire.rows(session, 0, &tokens, &[]).await;
    assert_eq!(recalled(&mut other, sequence, 0, 42).await, tokens);
    assert_eq!(recalled(&mut other, sequence, 10, 5).await, tokens[10..15]);
    assert_eq!(recalled(&mut other, sequence, 40, 9).await, tokens[40..]);
    assert!(recalled(&mut other, sequence, 50, 9).await.is_empty());
    assert!(recalled(&mut other, SequenceName::random(), 0, 9).await.is_empty());
    // A prefill that is on its way hides nothing.
    other.rows(SessionId::of(sequence), 0, &tokens[..3], &[]).await;
    assert_eq!(recalled(&mut other, sequence, 0, 42).await, tokens);
    // An older session takes the blocks; the tokens stay.
    let older = harness.describe().await.sessions;
    assert_eq!(older, 2);
    drop(wire);
    other.run(release(session)).await;
    assert_eq!(recalled(&mut other, sequence, 0, 42).await, tokens);
    assert_eq!(harness.describe().await.sessions, 1, "a look opens no session");
    assert!(harness.metrics().await.contains("kind=\"recall\",outcome=\"recalled\""));
}

#[tokio::test]
async fn a_session_that_goes_on_shares_the_blocks_of_the_other() {
    let harness = Harness::start(options()).await;
    let (mut wire, mut other) = (harness.wire().await, stranger(&harness).await);
    let (sequence, tokens) = (SequenceName::random(), (100..140).collect::<Vec<u32>>());
    let (first, second) = (SessionId::of(sequence), SessionId::of(sequence));
    wire.rows(first, 0, &tokens, &[]).await;
    let fed = || harness.gate.tokens().iter().flatten().map(Vec::len).sum::<usize>();
    assert_eq!(fed(), 40);
    assert_eq!(other.rows(second, 0, &tokens, &[40]).await, [logits(&tokens)]);
    assert_eq!(fed(), 44, "one block was computed");
    // Both go on.
    for (wire, session, token) in [(&mut wire, first, 7), (&mut other, second, 8)] {
        assert_eq!(wire.rows(session, 40, &[token], &[1]).await, [logits(&[&tokens[..], &[token]].concat())]);
    }
}

#[tokio::test]
async fn malformed_recalls_are_refused() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let context = harness.describe().await.context_tokens;
    for (sequence, at, count, named) in [
        (vec![1; 9], 0, 1, "recall.sequence"),
        (vec![1; 10], context, 1, "recall.at"),
        (vec![1; 10], 9, u32::MAX, "recall.at"),
    ] {
        let (code, message) = failure(wire.run(Operation::Recall(Recall { sequence, at, count })).await);
        assert!(code == "invalid_argument" && message.contains(named), "{message}");
    }
}

#[tokio::test]
async fn one_coordinator_does_not_keep_the_places_from_another() {
    let harness = Harness::start(EngineOptions { max_sessions: 8, ..options() }).await;
    let (mut crowd, mut other) = (harness.wire().await, stranger(&harness).await);
    let held: Vec<SessionId> = (0..8).map(|_| SessionId::random()).collect();
    for &session in &held {
        crowd.rows(session, 0, &[1], &[]).await;
    }
    assert_eq!(failure(crowd.run(extend(SessionId::random(), 0, &[1], &[])).await).0, "overloaded");
    // The other one gets its part, from the sessions that were used the longest ago.
    let own: Vec<SessionId> = (0..5).map(|_| SessionId::random()).collect();
    for &session in &own[..4] {
        assert_eq!(other.rows(session, 0, &[2, 3], &[2]).await, [logits(&[2, 3])]);
    }
    assert_eq!(failure(other.run(extend(own[4], 0, &[2], &[])).await).0, "overloaded");
    for (at, &session) in held.iter().enumerate() {
        let lost = need_prefix(&crowd.run(extend(session, 1, &[5], &[])).await) == Some(0);
        assert_eq!(lost, at < 4, "session {at}");
    }
    // What is idle gives way, whoever asks.
    sleep(IDLE).await;
    other.rows(own[4], 0, &[2], &[]).await;
    crowd.rows(held[0], 0, &[1, 5, 6], &[]).await;
    assert_eq!(harness.describe().await.sessions, 8);
    assert!(harness.metrics().await.contains("cosec_worker_displaced_sessions_total{role=\"expert\"} 6"));
}

#[tokio::test]
async fn held_streams_keep_no_coordinator_out() {
    let harness = Harness::start(EngineOptions { max_sessions: 200, ..options() }).await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(stranger(&harness).await);
    }
    // All but the first are used.
    for wire in &mut held[1..] {
        wire.rows(SessionId::random(), 0, &[1], &[]).await;
    }
    let mut late = stranger(&harness).await;
    assert_eq!(late.rows(SessionId::random(), 0, &[2, 3], &[2]).await, [logits(&[2, 3])]);
    let idlest = held.remove(0).close().message().await.unwrap_err();
    assert_eq!(idlest.code(), Code::ResourceExhausted, "{idlest}");
    for wire in &mut held {
        assert_eq!(wire.rows(SessionId::random(), 0, &[2, 3], &[2]).await, [logits(&[2, 3])]);
    }
}
