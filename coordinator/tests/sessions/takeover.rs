//! Sessions that go on where another coordinator's are gone: tokens come from the workers, not from decoding.

use std::time::Duration;

use cosec_coordinator::continuation::ReceivedTokens;
use cosec_coordinator::merge::{BaseOnly, Cosec, ExpertOnly, LogitAdjustments, SelectedRule};
use cosec_coordinator::request::{GenerationSettings, SessionEvent, TokenizedRequest};
use cosec_coordinator::session::service::SessionStream;
use cosec_proto::SequenceName;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_tests::mock_worker::{MockModel, MockWorker};
use futures::StreamExt;

use crate::cluster::{Service, config, prompt, request, settings, start, until};

const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });

/// Workers, and two coordinators before them.
struct Pair {
    base: MockWorker,
    expert: MockWorker,
    first: Service,
    second: Service,
}

impl Pair {
    async fn start() -> Self {
        let base = MockWorker::start(MockModel { end_token_ids: Vec::new(), ..MockModel::base() }).unwrap();
        let expert = MockWorker::start(MockModel { end_token_ids: Vec::new(), ..MockModel::expert() }).unwrap();
        let mut config = config(&[&base], &[&expert]);
        // The first coordinator keeps what its client does not read, however long the test takes.
        (config.sessions.slow_client_cache_ms, config.sessions.write_timeout_ms) = (600_000, 600_000);
        let [first, second] = [(); 2].map(|()| start(config.clone()).0);
        until("both are ready", || first.ready().is_ok() && second.ready().is_ok()).await;
        Self { base, expert, first, second }
    }

    fn operations(&self) -> u64 {
        self.base.operations() + self.expert.operations()
    }

    /// Waits until a coordinator decodes no further ahead of its client.
    async fn rests(&self) {
        let mut before = self.operations();
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = self.operations();
            if now == before {
                return;
            }
            before = now;
        }
    }
}

/// What was taken over and what was decoded.
async fn split(mut stream: SessionStream) -> (Vec<u32>, Vec<u32>) {
    let (mut taken, mut decoded) = (Vec::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            SessionEvent::TakenOver(tokens) => taken.extend(tokens),
            SessionEvent::Token(token) => decoded.push(token.decision.id),
            SessionEvent::Finished(_) => break,
            other => panic!("{other:?}"),
        }
    }
    (taken, decoded)
}

/// Reads so many tokens.
async fn read(stream: &mut SessionStream, count: usize) -> Vec<u32> {
    let mut ids = Vec::new();
    while ids.len() < count {
        match stream.next().await {
            Some(SessionEvent::Token(token)) => ids.push(token.decision.id),
            other => panic!("{other:?}"),
        }
    }
    ids
}

/// More tokens than a coordinator decodes ahead of a client that does not read: the session stays.
fn long(settings: GenerationSettings) -> TokenizedRequest {
    request(GenerationSettings { max_tokens: Some(400), ..settings }, &prompt(30))
}

/// The same request to another coordinator, to be decoded to 120 tokens.
fn resumed(of: &TokenizedRequest, ids: &[u32]) -> TokenizedRequest {
    TokenizedRequest { received: ReceivedTokens::of(ids), max_new_tokens: 120, ..of.clone() }
}

/// The same for others than those who know the sequence.
fn unknown(of: &TokenizedRequest) -> TokenizedRequest {
    TokenizedRequest { sequence: SequenceName::random(), ..of.clone() }
}

#[tokio::test]
async fn what_a_client_has_is_not_decoded_again() {
    let pair = Pair::start().await;
    let adjustments = LogitAdjustments { frequency_penalty: 0.7, ..LogitAdjustments::default() };
    let cases = [
        settings(COSEC),
        settings(SelectedRule::BaseOnly(BaseOnly)),
        settings(SelectedRule::ExpertOnly(ExpertOnly)),
        GenerationSettings { adjustments, ..settings(COSEC) },
    ];
    for request in cases.map(long) {
        let (_, wanted) = split(pair.first.open(unknown(&resumed(&request, &[]))).unwrap()).await;
        assert_eq!(wanted.len(), 120);
        // The first coordinator is left in the midst, and stays.
        let mut left = pair.first.open(request.clone()).unwrap();
        let seen = read(&mut left, 100).await;
        pair.rests().await;
        for received in [100, 60, 2, 1] {
            let before = pair.operations();
            let (taken, decoded) = split(pair.second.open(resumed(&request, &seen[..received])).unwrap()).await;
            assert_eq!(taken, wanted[..received]);
            assert_eq!(decoded, wanted[received..]);
            let operations = pair.operations() - before;
            let most = 4 * (120 - received as u64) + 16;
            assert!(operations <= most, "{operations} operations for {} tokens", 120 - received);
        }
    }
}

#[tokio::test]
async fn either_worker_has_the_tokens_and_without_both_they_are_decoded_anew() {
    let pair = Pair::start().await;
    let request = long(settings(COSEC));
    let mut left = pair.first.open(request.clone()).unwrap();
    let seen = read(&mut left, 80).await;
    let go_on = async || split(pair.second.open(resumed(&request, &seen)).unwrap()).await;
    let (_, rest) = go_on().await;
    assert_eq!(rest.len(), 40);
    pair.base.evict();
    assert_eq!(go_on().await, (seen.clone(), rest.clone()));
    // The first coordinator does not feed the base again, while its client does not read.
    pair.expert.evict();
    pair.base.evict();
    let (taken, decoded) = go_on().await;
    assert_eq!((taken.len(), decoded), (0, [&seen[..], &rest].concat()));
}

#[tokio::test]
async fn other_tokens_than_the_client_has_are_not_taken() {
    let pair = Pair::start().await;
    let request = long(settings(COSEC));
    let mut left = pair.first.open(request.clone()).unwrap();
    let seen = read(&mut left, 50).await;
    let mut other = seen.clone();
    other[20] += 1;
    let (taken, decoded) = split(pair.second.open(resumed(&request, &other)).unwrap()).await;
    assert_eq!((taken.len(), &decoded[..50]), (0, &seen[..]));
    let (taken, decoded) = split(pair.second.open(unknown(&resumed(&request, &seen))).unwrap()).await;
    assert_eq!((taken.len(), &decoded[..50]), (0, &seen[..]));
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_not_waited_for_long() {
    let pair = Pair::start().await;
    let request = long(settings(COSEC));
    let mut left = pair.first.open(request.clone()).unwrap();
    let seen = read(&mut left, 50).await;
    pair.expert.set_fault(Some(Box::new(|answer| {
        (!matches!(answer.outcome, Some(Outcome::Recalled(_)))).then_some(answer)
    })));
    let going_on = split(pair.second.open(resumed(&request, &seen)).unwrap());
    let (taken, _) = tokio::time::timeout(Duration::from_secs(20), going_on).await.unwrap();
    assert_eq!(taken, seen);
}
