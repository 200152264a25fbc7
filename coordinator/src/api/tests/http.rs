//! What is HTTP's own: paths, methods, bodies, health, metrics, the end.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{Script, TestServer, saying, says};
use crate::api::config::ApiConfig;
use crate::config::Config;
use crate::server::Ports;

const PATH: &str = "/v1/completions";

async fn error_of(response: reqwest::Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    assert!(response.headers().contains_key("x-request-id"));
    let body: Value = response.json().await.unwrap();
    let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
    (status, text("code"), text("message"))
}

#[tokio::test]
async fn models_are_listed() {
    let server = TestServer::open(|_| says("x")).await;
    let get = async |path: &str| reqwest::get(format!("{}{path}", server.http)).await.unwrap();
    let list: Value = get("/v1/models").await.json().await.unwrap();
    assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 2));
    let mut model: Value = get("/v1/models/org/chat").await.json().await.unwrap();
    assert!(model["created"].take().as_u64().unwrap() > 1_500_000_000);
    assert_eq!(model, json!({"id": "org/chat", "object": "model", "created": null, "owned_by": "cosec"}));
    assert_eq!(list["data"][1]["id"], "org/chat");
    let (status, code, _) = error_of(get("/v1/models/nobody").await).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
}

#[tokio::test]
async fn wrong_paths_methods_and_bodies() {
    let server = TestServer::open(|_| says("x")).await;
    let client = reqwest::Client::new();
    let url = |path: &str| format!("{}{path}", server.http);
    let (status, code, _) = error_of(client.get(url("/v2")).send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    let (status, ..) = error_of(client.get(url(PATH)).send().await.unwrap()).await;
    assert_eq!(status, 405);
    let (status, ..) = error_of(client.delete(url("/v1/models")).send().await.unwrap()).await;
    assert_eq!(status, 405);
    let form = client.post(url(PATH)).header("content-type", "text/plain").body("{}");
    let (status, _, message) = error_of(form.send().await.unwrap()).await;
    assert_eq!(status, 415);
    assert!(message.contains("text/plain"), "{message}");
    let (status, ..) = error_of(client.post(url(PATH)).send().await.unwrap()).await;
    assert_eq!(status, 415);
    for body in ["", "{", "[]", "nul", "{\"model\": \"demo\", \"prompt\": \"x\", \"temperature\": NaN}", "\u{0}"] {
        let request = client.post(url(PATH)).header("content-type", "application/json; charset=utf-8").body(body);
        let (status, code, _) = error_of(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (400, "invalid_argument"), "{body}");
    }
    let raw = client.post(url(PATH)).header("content-type", "application/json").body(b"\xff\xfe".to_vec());
    assert_eq!(error_of(raw.send().await.unwrap()).await.0, 400);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let config = ApiConfig { max_body_bytes: Some(1000), max_prompt_bytes: 100, ..ApiConfig::default() };
    let server = TestServer::with(config, Duration::ZERO, |_| says("x")).await;
    let (status, error) = server.refusal(PATH, &json!({"model": "demo", "prompt": "a".repeat(1000)})).await;
    assert_eq!((status, error["code"].as_str()), (413, Some("payload_too_large")));
    let (status, error) = server.refusal(PATH, &json!({"model": "demo", "prompt": "a".repeat(101)})).await;
    assert_eq!((status, error["param"].as_str()), (413, Some("prompt")));
    // Without a length in its head, the body is counted as it comes.
    let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100])));
    let request = reqwest::Client::new().post(format!("{}{PATH}", server.http));
    let request = request.header("content-type", "application/json").body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(request.send().await.unwrap().status(), 413);
    server.answer(PATH, &json!({"model": "demo", "prompt": "a"})).await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let config = ApiConfig { body_timeout_seconds: 1, ..ApiConfig::default() };
    let server = TestServer::with(config, Duration::ZERO, |_| says("x")).await;
    let mut socket = tokio::net::TcpStream::connect(server.http.trim_start_matches("http://")).await.unwrap();
    let head =
        format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_request_may_not_take_for_ever() {
    let config = ApiConfig { request_timeout_seconds: 1, ..ApiConfig::default() };
    let server = TestServer::with(config, Duration::ZERO, |_| Script::Hang(saying("x"))).await;
    let (status, error) = server.refusal(PATH, &json!({"model": "demo", "prompt": "a"})).await;
    assert_eq!((status, error["code"].as_str()), (504, Some("deadline_exceeded")));
    server.until_live(0).await;
}

#[tokio::test]
async fn health_and_metrics() {
    let server = TestServer::open(|_| says("x")).await;
    let get = async |path: &str| reqwest::get(format!("{}{path}", server.http)).await.unwrap();
    assert_eq!(get("/health/live").await.status(), 200);
    assert_eq!(get("/health/ready").await.status(), 200);
    server.answer(PATH, &json!({"model": "demo", "prompt": "a"})).await;
    server.trouble("demo has no expert");
    let response = get("/health/ready").await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, code, message) = error_of(response).await;
    assert_eq!((status, code.as_str(), message.as_str()), (503, "unavailable", "demo has no expert"));
    let (status, error) = server.refusal(PATH, &json!({"model": "demo", "prompt": "a"})).await;
    assert_eq!(status, 503);
    assert!(error["message"].as_str().unwrap().contains("demo has no expert"), "{error}");
    let probed = async |path: &str| reqwest::get(format!("{}{path}", server.health)).await.unwrap();
    assert_eq!(probed("/health/live").await.status(), 200);
    let unready = probed("/health/ready").await;
    assert_eq!((unready.status().as_u16(), unready.text().await.unwrap().as_str()), (503, "not ready\n"));
    assert_eq!(get("/metrics").await.status(), 404);
    let text = reqwest::get(format!("{}/metrics", server.metrics)).await.unwrap().text().await.unwrap();
    for line in [
        "cosec_http_requests_total{protocol=\"http\",route=\"/v1/completions\",status=\"200\"} 1",
        "cosec_http_requests_total{protocol=\"http\",route=\"/v1/completions\",status=\"503\"} 1",
        "cosec_http_request_seconds_count{protocol=\"http\",route=\"/v1/completions\"} 2",
        "cosec_http_requests_in_flight{protocol=\"http\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn request_ids_are_in_the_answer() {
    let server = TestServer::open(|_| says("x")).await;
    let response = server.post(PATH, &json!({"model": "demo", "prompt": "a"})).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["id"], format!("cmpl-{id}"));
}

#[tokio::test]
async fn draining_refuses_and_finishes() {
    let server =
        TestServer::with(ApiConfig::default(), Duration::from_millis(500), |_| Script::Hang(saying("x"))).await;
    let asked = json!({"model": "demo", "prompt": "a", "stream": true});
    let streaming = server.post(PATH, &asked).await;
    server.until_live(1).await;
    server.shutdown.cancel();
    let (status, error) = loop {
        let (status, error) =
            server.refusal("/v1/completions", &json!({"model": "demo", "prompt": "a", "n": 0})).await;
        if status != 400 {
            break (status, error);
        }
    };
    assert_eq!((status, error["code"].as_str()), (503, Some("unavailable")));
    let ready = reqwest::get(format!("{}/health/ready", server.http)).await.unwrap();
    assert_eq!(ready.status(), 503);
    // The grace period passes, and the stream that would never end is told so.
    let text = streaming.text().await.unwrap();
    assert!(text.trim_end().ends_with('}') && text.contains("\"code\":\"unavailable\""), "{text}");
    let generator = server.generator.clone();
    server.ended().await;
    drop(generator);
}

#[tokio::test]
async fn draining_with_nothing_in_flight_is_quick() {
    let server = TestServer::with(ApiConfig::default(), Duration::from_secs(3600), |_| says("x")).await;
    // An idle connection that its client keeps open.
    server.answer(PATH, &json!({"model": "demo", "prompt": "a"})).await;
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(60), server.ended()).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let server = TestServer::open(|_| says("x")).await;
    let address = server.http.trim_start_matches("http://");
    let (http_listen, grpc_listen) = ("127.0.0.1:0".to_owned(), address.to_owned());
    let config = Config { http_listen, grpc_listen, ..Config::default() };
    let error = Ports::bind(&config).await.err().unwrap().to_string();
    assert!(error.contains(&format!("grpc_listen is {address}")), "{error}");
}
