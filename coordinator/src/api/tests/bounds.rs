//! What is refused before it costs anything, because of what it would cost.

use std::time::Duration;

use serde_json::{Value, json};

use super::fixture::{Script, TestServer, saying, says};
use crate::api::config::ApiConfig;

const PATH: &str = "/v1/completions";

fn body(more: &Value) -> Value {
    let mut body = json!({"model": "demo", "prompt": "a"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_response_in_one_piece_is_bounded_by_what_is_asked() {
    let server = TestServer::open(|_| says("x")).await;
    let check = async |more: Value, parameter: &str| {
        let (status, error) = server.refusal(PATH, &body(&more)).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(parameter)), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("67108864") && message.contains("stream"), "{message}");
    };
    check(json!({"n": 128, "max_tokens": 2000}), "n").await;
    check(json!({"n": 4, "max_tokens": 1000, "logprobs": 20}), "logprobs").await;
    check(json!({"max_tokens": 2000, "logprobs": 20, "echo": true, "prompt": vec!["a"; 4]}), "logprobs").await;
    assert!(server.seen().is_empty());
    for more in [
        json!({"n": 128, "max_tokens": 2000, "stream": true}),
        json!({"n": 4, "max_tokens": 1000, "logprobs": 20, "stream": true}),
    ] {
        assert_eq!(server.post(PATH, &body(&more)).await.status(), 200, "{more}");
    }
    server.answer(PATH, &body(&json!({"n": 128, "max_tokens": 400}))).await;
    server.answer(PATH, &body(&json!({"max_tokens": 2000, "logprobs": 20, "cosec": {"report": true}}))).await;
}

#[tokio::test]
async fn responses_in_one_piece_share_a_budget() {
    let config = ApiConfig { response_memory_bytes: 1 << 20, max_response_bytes: 1 << 20, ..ApiConfig::default() };
    let server = TestServer::with(config, Duration::ZERO, |request| match request.settings.seed {
        1 => Script::Hang(saying("x")),
        _ => says("x"),
    })
    .await;
    let large = |seed: u64| body(&json!({"max_tokens": 1200, "seed": seed}));
    let url = format!("{}{PATH}", server.http);
    let first = tokio::spawn(reqwest::Client::new().post(url).json(&large(1)).send());
    server.until_live(1).await;
    let (status, error) = server.refusal(PATH, &large(2)).await;
    assert_eq!((status, error["code"].as_str()), (429, Some("overloaded")), "{error}");
    server.answer(PATH, &body(&json!({"max_tokens": 500}))).await;
    first.abort();
    server.until_live(0).await;
    while server.post(PATH, &large(2)).await.status() != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn text_that_cannot_fit_is_refused_by_its_bytes() {
    let server = TestServer::open(|_| says("x")).await;
    let chat = |messages: Value| json!({"model": "org/chat", "messages": messages});
    let cases = [
        (PATH, body(&json!({"prompt": "x = 1\n".repeat(120_000)})), "prompt", "bytes of text"),
        (PATH, body(&json!({"prompt": ["a", "b".repeat(700_000)]})), "prompt", "bytes of text"),
        (PATH, body(&json!({"prompt": vec![1; 3000]})), "prompt", "3000 tokens"),
        (
            "/v1/chat/completions",
            chat(json!(vec![json!({"role": "user", "content": ""}); 600])),
            "messages",
            "600 messages",
        ),
        (
            "/v1/chat/completions",
            chat(json!([{"role": "user", "content": "a".repeat(20_000)}])),
            "messages",
            "bytes of text",
        ),
        // The template makes more of it than fits.
        (
            "/v1/chat/completions",
            chat(json!(vec![json!({"role": "user", "content": "abcdefg"}); 500])),
            "messages",
            "chat template makes more than",
        ),
    ];
    for (path, body, parameter, part) in cases {
        let (status, error) = server.refusal(path, &body).await;
        let code = error["code"].as_str().unwrap();
        assert_eq!(
            (status, code, error["param"].as_str()),
            (400, "context_length_exceeded", Some(parameter)),
            "{error}"
        );
        assert!(error["message"].as_str().unwrap().contains(part), "{error} does not say {part}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn lists_and_objects_are_read_no_further_than_they_may_be_long() {
    let server = TestServer::open(|_| says("x")).await;
    let fields: serde_json::Map<String, Value> = (0..10_000).map(|at| (format!("f{at}"), json!(1))).collect();
    let biases: serde_json::Map<String, Value> = (0..10_000).map(|at| (at.to_string(), json!(1))).collect();
    let cases = [
        (PATH, body(&Value::Object(fields)), None, "more than 128 fields"),
        (PATH, body(&json!({"stop": vec![""; 10_000]})), Some("stop"), "at most 16"),
        (PATH, body(&json!({"logit_bias": biases})), Some("logit_bias"), "more than 1024 fields"),
        (PATH, body(&json!({"prompt": vec![Vec::<u32>::new(); 10_000]})), Some("prompt"), "a list"),
        (
            "/v1/chat/completions",
            json!({"model": "org/chat", "messages": vec![json!({}); 10_000]}),
            Some("messages"),
            "at most 4096",
        ),
    ];
    for (path, body, parameter, part) in cases {
        let (status, error) = server.refusal(path, &body).await;
        assert_eq!((status, error["param"].as_str()), (400, parameter), "{error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{error} does not say {part}");
    }
    // A long body that is well is parsed as a short one.
    server.answer(PATH, &body(&json!({"user": "u".repeat(100_000)}))).await;
}

#[tokio::test]
async fn more_choices_than_a_key_may_ever_have_are_no_matter_of_waiting() {
    // SHA-256 of "abc".
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), format!("[[keys]]\nname = 'team'\nsha256 = '{digest}'\nmax_sessions = 2\n")).unwrap();
    let config = ApiConfig { keys_file: Some(keys.path().to_owned()), ..ApiConfig::default() };
    let server = TestServer::with(config, Duration::ZERO, |_| says("x")).await;
    let ask = async |n: u32| {
        let request = reqwest::Client::new().post(format!("{}{PATH}", server.http)).bearer_auth("abc");
        request.json(&body(&json!({"n": n}))).send().await.unwrap()
    };
    assert_eq!(ask(2).await.status(), 200);
    let refused = ask(3).await;
    assert_eq!(refused.status(), 400);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["param"], "n");
    assert!(error["error"]["message"].as_str().unwrap().contains("2 at a time"), "{error}");
}
