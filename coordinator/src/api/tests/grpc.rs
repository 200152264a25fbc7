//! gRPC: the same settings, checks and text.

use cosec_proto::ErrorCode;
use cosec_proto::wire::coordinator::coordinator_client::CoordinatorClient;
use cosec_proto::wire::coordinator::{self as wire, generate_event::Event, generate_request::Prompt};
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::fixture::{Script, TestServer, ids, saying, says};
use crate::request::{FinishReason, SessionError, SessionEvent};

fn request() -> wire::GenerateRequest {
    wire::GenerateRequest {
        model: "demo".to_owned(),
        prompt: Some(Prompt::Text("def f".to_owned())),
        seed: Some(7),
        ..Default::default()
    }
}

async fn generate(server: &TestServer, request: wire::GenerateRequest) -> Result<Vec<Event>, tonic::Status> {
    let mut client = CoordinatorClient::connect(server.grpc.clone()).await.unwrap();
    let mut stream = client.generate(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        events.push(event.event.unwrap());
    }
    Ok(events)
}

fn text(events: &[Event], choice: u32) -> String {
    let text = |event: &Event| match event {
        Event::Delta(delta) if delta.choice == choice => Some(delta.text.clone()),
        Event::Delta(_) | Event::Finished(_) | Event::Usage(_) => None,
    };
    events.iter().filter_map(text).collect()
}

#[tokio::test]
async fn events_of_a_generation() {
    let server = TestServer::open(|_| says("x =")).await;
    let asked = wire::GenerateRequest {
        logprobs: Some(2),
        cosec: Some(wire::Cosec { report: Some(true), ..Default::default() }),
        ..request()
    };
    let events = generate(&server, asked).await.unwrap();
    let token = |id, log_probability, hardening: &str, q: Option<f64>| wire::Token {
        id,
        log_probability: Some(log_probability),
        alternatives: vec![
            wire::Alternative { id: 0, log_probability: -0.25 },
            wire::Alternative { id, log_probability },
        ],
        report: Some(wire::TokenReport {
            hardening: hardening.to_owned(),
            p: Some(0.25),
            q,
            law: q.map(|_| 0.375),
            rejected: q.is_none().then_some(wire::Rejected { id: 87, p: 0.125, q: 0.75 }),
        }),
    };
    let delta =
        |text: &str, token| Event::Delta(wire::Delta { choice: 0, text: text.to_owned(), tokens: vec![token] });
    assert_eq!(
        events,
        [
            delta("x", token(87, -0.5, "expert", Some(0.5))),
            delta(" =", token(796, f64::NEG_INFINITY, "base", None)),
            Event::Finished(wire::Finished { choice: 0, reason: "stop".to_owned() }),
            Event::Usage(wire::Usage {
                prompt_tokens: 2,
                completion_tokens: 2,
                agreed_tokens: 0,
                expert_tokens: 1,
                base_tokens: 1,
            }),
        ]
    );
}

#[tokio::test]
async fn http_and_grpc_ask_for_the_same() {
    let server = TestServer::open(|_| says("x = 1\nreturn")).await;
    let asked = wire::GenerateRequest {
        n: Some(2),
        max_tokens: Some(9),
        min_tokens: Some(1),
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(4),
        frequency_penalty: Some(0.5),
        presence_penalty: Some(-0.5),
        logit_bias: [(5, 1.5)].into(),
        stop: vec!["\n".to_owned()],
        logprobs: Some(1),
        cosec: Some(wire::Cosec {
            rule: Some("linear".to_owned()),
            lambda: Some(0.25),
            expert_temperature: Some(0.1),
            expert_top_p: Some(0.5),
            transport: Some("full".to_owned()),
            ..Default::default()
        }),
        ..request()
    };
    let events = generate(&server, asked).await.unwrap();
    assert_eq!([text(&events, 0), text(&events, 1)], ["x = 1", "x = 1"]);
    let body = json!({
        "model": "demo", "prompt": "def f", "seed": 7, "n": 2, "max_tokens": 9, "min_tokens": 1, "temperature": 0.5,
        "top_p": 0.9, "top_k": 4, "frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": {"5": 1.5},
        "stop": "\n", "logprobs": 1,
        "cosec": {"rule": "linear", "lambda": 0.25, "expert_temperature": 0.1, "expert_top_p": 0.5, "transport": "full"},
    });
    let answer: Value = server.answer("/v1/completions", &body).await;
    assert_eq!(answer["choices"][1]["text"], "x = 1");
    let seen = server.seen();
    let without_deadline = |at: usize| {
        let mut settings = (*seen[at].settings).clone();
        settings.deadline = seen[0].settings.deadline;
        format!("{settings:?} {:?} {} {}", seen[at].prompt, seen[at].sample, seen[at].max_new_tokens)
    };
    assert_eq!(without_deadline(0), without_deadline(2));
    assert_eq!(without_deadline(1), without_deadline(3));
}

#[tokio::test]
async fn prompts_come_in_three_forms() {
    let server = TestServer::open(|_| Script::Events(vec![SessionEvent::Finished(FinishReason::Length)])).await;
    let check = async |model: &str, prompt: Prompt, expected: usize, granted: u32| {
        let asked = wire::GenerateRequest { model: model.to_owned(), prompt: Some(prompt), ..request() };
        generate(&server, asked).await.unwrap();
        let seen = server.seen();
        let last = seen.last().unwrap();
        assert_eq!((last.prompt.len(), last.max_new_tokens), (expected, granted));
    };
    check("demo", Prompt::Text("def f".to_owned()), ids("def f").len(), 16).await;
    check("demo", Prompt::TokenIds(wire::TokenIds { ids: vec![1, 2, 3] }), 3, 16).await;
    let message = wire::ChatMessage { role: "user".to_owned(), content: "hi".to_owned() };
    check("org/chat", Prompt::Chat(wire::Chat { messages: vec![message] }), 7, 505).await;
}

#[tokio::test]
async fn refusals_name_the_field() {
    let server = TestServer::open(|_| says("x")).await;
    let check = async |asked: wire::GenerateRequest, code: Code, field: &str| {
        let status = generate(&server, asked).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(field), "{status} does not name {field}");
    };
    let cosec = |cosec: wire::Cosec| wire::GenerateRequest { cosec: Some(cosec), ..request() };
    check(wire::GenerateRequest::default(), Code::InvalidArgument, "prompt").await;
    check(wire::GenerateRequest { model: "nobody".to_owned(), ..request() }, Code::NotFound, "model").await;
    check(wire::GenerateRequest { temperature: Some(f64::NAN), ..request() }, Code::InvalidArgument, "temperature")
        .await;
    check(wire::GenerateRequest { top_p: Some(f64::INFINITY), ..request() }, Code::InvalidArgument, "top_p").await;
    check(
        wire::GenerateRequest { logit_bias: [(1, f64::NAN)].into(), ..request() },
        Code::InvalidArgument,
        "logit_bias",
    )
    .await;
    check(wire::GenerateRequest { presence_penalty: Some(f64::NAN), ..request() }, Code::InvalidArgument, "presence")
        .await;
    check(wire::GenerateRequest { max_tokens: Some(3000), ..request() }, Code::InvalidArgument, "max_tokens").await;
    check(wire::GenerateRequest { suffix: Some("a".to_owned()), ..request() }, Code::InvalidArgument, "suffix").await;
    check(cosec(wire::Cosec { tau: Some(f64::NAN), ..Default::default() }), Code::InvalidArgument, "cosec.tau").await;
    check(cosec(wire::Cosec { alpha: Some(1.0), ..Default::default() }), Code::InvalidArgument, "cosec.alpha").await;
    let linear = Some("product".to_owned());
    check(
        cosec(wire::Cosec { rule: linear, alpha: Some(f64::INFINITY), ..Default::default() }),
        Code::InvalidArgument,
        "cosec.alpha",
    )
    .await;
    let role = wire::ChatMessage { role: "tool".to_owned(), content: "a".to_owned() };
    let chat = |messages| Some(Prompt::Chat(wire::Chat { messages }));
    check(wire::GenerateRequest { prompt: chat(vec![role]), ..request() }, Code::InvalidArgument, "messages[0].role")
        .await;
    check(wire::GenerateRequest { prompt: chat(vec![]), ..request() }, Code::InvalidArgument, "messages").await;
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn failures_and_departures() {
    let server = TestServer::open(|request| {
        if request.settings.seed == 1 {
            return Script::Hang(saying("x"));
        }
        let failed = SessionError::new(ErrorCode::ExpertUnavailable, "no expert".to_owned());
        let mut events = saying("x");
        events.push(SessionEvent::Failed(failed));
        Script::Hang(events)
    })
    .await;
    let status = generate(&server, request()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "no expert"));
    server.until_live(0).await;
    let mut client = CoordinatorClient::connect(server.grpc.clone()).await.unwrap();
    let asked = wire::GenerateRequest { seed: Some(1), n: Some(2), ..request() };
    let mut stream = client.generate(asked).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    server.until_live(2).await;
    drop(stream);
    server.until_live(0).await;
}

#[tokio::test]
async fn health_follows_readiness() {
    let server = TestServer::open(|_| says("x")).await;
    let channel = tonic::transport::Endpoint::from_shared(server.grpc.clone()).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let mut until = async |wanted: i32| {
        for _ in 0..1000 {
            let service = "cosec.coordinator.v1.Coordinator".to_owned();
            let status = client.check(HealthCheckRequest { service }).await.unwrap().into_inner().status;
            if status == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("health never became {wanted}");
    };
    until(1).await;
    server.trouble("gone");
    until(2).await;
}
