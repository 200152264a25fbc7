//! One connection takes what a worker's port gives: all places for sessions, all streams.

use std::time::Duration;

use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::{Extend, StepRequest, StepResponse};
use cosec_proto::{SessionId, transport};
use cosec_tests::fleet::{coordinator, worker};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::observation::{in_full, report};

/// Sessions of a worker, less a few.
const SESSIONS: u64 = 1016;

/// Streams of a worker, less a few.
const STREAMS: usize = 62;

struct Stream {
    requests: mpsc::Sender<StepRequest>,
    answers: Streaming<StepResponse>,
}

async fn open(address: &str) -> Stream {
    let (requests, outgoing) = mpsc::channel(256);
    let channel = transport::channel(address).unwrap();
    let opening = transport::with_protocol_version(ReceiverStream::new(outgoing));
    let answers = WorkerClient::new(channel).step(opening).await.unwrap().into_inner();
    Stream { requests, answers }
}

impl Stream {
    /// Feeds a token to each of `sessions`, new or not. Returns how many were taken.
    async fn feed(&mut self, sessions: &[SessionId], at: u32) -> usize {
        let mut taken = 0;
        for (op, session) in sessions.iter().enumerate() {
            let extend = Extend { session: session.to_wire(), at, tokens: vec![1], ..Extend::default() };
            let request = StepRequest { op: op as u64, deadline_ms: 0, operation: Some(Operation::Extend(extend)) };
            self.requests.send(request).await.unwrap();
            let answer = self.answers.message().await.unwrap().unwrap();
            taken += usize::from(matches!(answer.outcome, Some(Outcome::Rows(_))));
        }
        taken
    }
}

#[tokio::test]
async fn one_connection_keeps_nobody_out() {
    let logs = tempfile::TempDir::new().unwrap();
    let logs = logs.path();
    let (base, expert) = (worker("base", "base", &[], logs).await, worker("expert", "expert", &[], logs).await);
    let flags = ["--base", base.address.as_str(), "--expert", &expert.address];
    let connected = coordinator("connected", &flags, logs).await;
    connected.ready().await;
    let undisturbed = connected.complete(3, 20).await;

    let sessions: Vec<SessionId> = (0..SESSIONS).map(|_| SessionId::random()).collect();
    let mut crowd = open(&base.address).await;
    let mut taken = crowd.feed(&sessions, 0).await;
    // More than there are places, all of them in use.
    let more: Vec<SessionId> = (0..16).map(|_| SessionId::random()).collect();
    taken += crowd.feed(&more, 0).await;
    let began = Instant::now();
    let clients = if in_full() { 40 } else { 12 };
    let completions = (0..clients).map(|_| connected.complete(3, 20));
    for text in futures::future::join_all(completions).await {
        assert_eq!(text, undisturbed);
    }
    let seen =
        format!("{clients} completions beside {taken} held sessions took {:.1} s", began.elapsed().as_secs_f64());
    report("B9", "1,016 sessions of one connection", &seen);

    let mut held = Vec::new();
    for _ in 0..2 * STREAMS {
        held.push(open(&base.address).await);
    }
    let began = Instant::now();
    let late = coordinator("late", &flags, logs).await;
    tokio::time::timeout(Duration::from_secs(60), late.ready()).await.expect("a new coordinator gets in");
    let ready = began.elapsed().as_secs_f64();
    assert_eq!(late.complete(3, 20).await, undisturbed);
    assert_eq!(connected.complete(3, 20).await, undisturbed);
    let seen = format!("a coordinator that starts is ready after {ready:.1} s, the one before goes on");
    report("B9", "124 held streams of one connection", &seen);
}
