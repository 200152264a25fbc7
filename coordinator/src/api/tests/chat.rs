//! `/v1/chat/completions`: shapes, messages, what it does not take.

use serde_json::{Value, json};

use super::fixture::{Script, TestServer};
use crate::merge::{Decision, Hardening, TokenScore};
use crate::postprocess::samples;
use crate::request::{FinishReason, SessionEvent, TokenEvent};

const PATH: &str = "/v1/chat/completions";

fn body(more: Value) -> Value {
    let mut body = json!({"model": "org/chat", "messages": [{"role": "user", "content": "hi"}], "seed": 7});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The two bytes of é, one token each, then "b".
fn accented() -> Script {
    let tokenizer = samples::byte_level(&[]);
    let ids = tokenizer.encode("éb", false).unwrap().get_ids().to_vec();
    assert_eq!(ids.len(), 3);
    let token = |id: u32| {
        let score = Some(TokenScore { log_probability: -0.5, alternatives: vec![(id, -0.5)] });
        let hardening = Some(Hardening::Agreed);
        let decision = Decision { id, hardening, p: None, q: None, law: None, rejected: None };
        SessionEvent::Token(TokenEvent { decision, score })
    };
    let mut events: Vec<SessionEvent> = ids.into_iter().map(token).collect();
    events.push(SessionEvent::Finished(FinishReason::Length));
    Script::Events(events)
}

async fn server() -> TestServer {
    TestServer::open(|_| accented()).await
}

#[tokio::test]
async fn an_answer_in_one_piece() {
    let answer = server().await.answer(PATH, &body(json!({"logprobs": true, "top_logprobs": 1}))).await;
    let entry = |token: &str, bytes: &[u8]| {
        let top = json!({"token": token, "logprob": -0.5, "bytes": bytes});
        json!({"token": token, "logprob": -0.5, "bytes": bytes, "top_logprobs": [top]})
    };
    assert_eq!(
        answer,
        json!({
            "object": "chat.completion", "model": "org/chat",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "éb", "refusal": null},
                "logprobs": {
                    "content": [entry("bytes:\\xc3", &[0xc3]), entry("bytes:\\xa9", &[0xa9]), entry("b", b"b")],
                    "refusal": null,
                },
                "finish_reason": "length",
            }],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                "hardening": {"agreed": 3, "expert": 0, "base": 0}},
            "cosec": {"rule": "cosec", "seed": 7},
        })
    );
}

#[tokio::test]
async fn a_stream_opens_with_the_role() {
    let server = server().await;
    let chunk = |delta: Value, reason: Value| {
        json!({"object": "chat.completion.chunk", "model": "org/chat", "cosec": {"rule": "cosec", "seed": 7},
               "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]})
    };
    let chunks = server.chunks(PATH, &body(json!({"stream": true}))).await;
    assert_eq!(
        chunks,
        [
            chunk(json!({"role": "assistant", "content": ""}), json!(null)),
            chunk(json!({"content": "é"}), json!(null)),
            chunk(json!({"content": "b"}), json!(null)),
            chunk(json!({}), json!("length")),
        ]
    );
}

#[tokio::test]
async fn messages_go_through_the_template() {
    let server = server().await;
    let check = async |messages: Value, expected: &str| {
        server.answer(PATH, &body(json!({"messages": messages}))).await;
        let tokenizer = samples::byte_level(&["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<eos>"]);
        let prompt = server.seen().last().unwrap().prompt.to_vec();
        assert_eq!(tokenizer.decode(&prompt, false).unwrap(), expected);
    };
    check(json!([{"role": "user", "content": "hi"}]), "u:hi<eos>a:").await;
    check(
        json!([
            {"role": "system", "content": "be", "name": null},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null},
        ]),
        "s:be<eos>u:ab<eos>a:c<eos>a:",
    )
    .await;
}

#[tokio::test]
async fn the_rest_of_the_context_is_the_default() {
    let server = server().await;
    server.answer(PATH, &body(json!({}))).await;
    server.answer(PATH, &body(json!({"max_completion_tokens": 5}))).await;
    server.answer(PATH, &body(json!({"max_completion_tokens": 5, "max_tokens": 5}))).await;
    let granted: Vec<u32> = server.seen().iter().map(|request| request.max_new_tokens).collect();
    assert_eq!(granted, [512 - 7, 5, 5]);
}

#[tokio::test]
async fn what_is_not_taken_is_named() {
    let server = server().await;
    let check = async |more: Value, parameter: &str| {
        let (status, error) = server.refusal(PATH, &body(more)).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(parameter)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(parameter), "{error}");
    };
    let message = |message: Value| json!({"messages": [message]});
    check(json!({"messages": null}), "messages").await;
    check(json!({"messages": []}), "messages").await;
    check(json!({"messages": "hi"}), "messages").await;
    check(json!({"messages": ["hi"]}), "messages[0]").await;
    check(message(json!({"content": "a"})), "messages[0].role").await;
    check(message(json!({"role": "tool", "content": "a"})), "messages[0].role").await;
    check(message(json!({"role": "user"})), "messages[0].content").await;
    check(message(json!({"role": "user", "content": 1})), "messages[0].content").await;
    check(message(json!({"role": "user", "content": "a", "name": "b"})), "messages[0].name").await;
    check(message(json!({"role": "user", "content": "a", "x": 1})), "messages[0].x").await;
    let image = json!([{"type": "image_url", "image_url": {"url": "http://"}}]);
    check(message(json!({"role": "user", "content": image})), "messages[0].content[0].type").await;
    check(message(json!({"role": "user", "content": [{"type": "text"}]})), "messages[0].content[0].text").await;
    check(json!({"tools": []}), "tools").await;
    check(json!({"tool_choice": "none"}), "tool_choice").await;
    check(json!({"response_format": {"type": "json_object"}}), "response_format.type").await;
    check(json!({"response_format": {"type": "text", "x": 1}}), "response_format.x").await;
    check(json!({"logprobs": 1}), "logprobs").await;
    check(json!({"top_logprobs": 1}), "top_logprobs").await;
    check(json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs").await;
    check(json!({"max_tokens": 4, "max_completion_tokens": 5}), "max_completion_tokens").await;
    check(json!({"echo": true}), "echo").await;
    check(json!({"prompt": "a"}), "prompt").await;
    check(json!({"best_of": 1}), "best_of").await;
    server.answer(PATH, &body(json!({"tools": null, "response_format": {"type": "text"}, "user": "me"}))).await;
}

#[tokio::test]
async fn templates_and_models_may_refuse() {
    let server = server().await;
    let late_system = json!([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]);
    let (status, error) = server.refusal(PATH, &body(json!({"messages": late_system}))).await;
    assert_eq!((status, &error["param"]), (400, &json!("messages")));
    assert!(error["message"].as_str().unwrap().ends_with("system comes first"), "{error}");
    let (status, error) = server.refusal(PATH, &body(json!({"model": "demo"}))).await;
    assert_eq!((status, &error["param"]), (400, &json!("messages")));
    assert!(error["message"].as_str().unwrap().contains("no chat template"), "{error}");
}
