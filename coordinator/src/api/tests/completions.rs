//! `/v1/completions`: shapes, streams, prompts.

use cosec_proto::ErrorCode;
use futures::StreamExt;
use serde_json::{Value, json};

use super::fixture::{Script, TestServer, ids, saying, says};
use crate::merge::{LogitsTransport, TokenScore};
use crate::request::{FinishReason, SessionError, SessionEvent};

const PATH: &str = "/v1/completions";

fn body(more: Value) -> Value {
    let mut body = json!({"model": "demo", "prompt": "def f", "seed": 7});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn an_answer_in_one_piece() {
    let server = TestServer::open(|_| says("x = 1")).await;
    let answer = server.answer(PATH, &body(json!({}))).await;
    assert_eq!(
        answer,
        json!({
            "object": "text_completion", "model": "demo",
            "choices": [{"index": 0, "text": "x = 1", "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5,
                      "hardening": {"agreed": 0, "expert": 1, "base": 2}},
            "cosec": {"rule": "cosec", "seed": 7},
        })
    );
    let [request] = server.seen().try_into().unwrap();
    assert_eq!((request.model.as_str(), &*request.prompt), ("demo", ids("def f").as_slice()));
    assert_eq!((request.sample, request.max_new_tokens, request.settings.seed), (0, 16, 7));
}

#[tokio::test]
async fn a_stream_has_the_same_text() {
    let server = TestServer::open(|_| says("x = 1")).await;
    let chunk = |choices: Value| {
        json!({"object": "text_completion", "model": "demo", "choices": choices, "usage": null,
               "cosec": {"rule": "cosec", "seed": 7}})
    };
    let text = |text: &str| chunk(json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": null}]));
    let mut last = chunk(json!([]));
    last["usage"] = json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5,
                           "hardening": {"agreed": 0, "expert": 1, "base": 2}});
    let end = chunk(json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": "stop"}]));
    let asked = body(json!({"stream": true, "stream_options": {"include_usage": true}}));
    assert_eq!(server.chunks(PATH, &asked).await, [text("x"), text(" ="), text(" 1"), end, last]);
    let without_usage = server.chunks(PATH, &body(json!({"stream": true}))).await;
    assert_eq!(without_usage.len(), 4);
    assert!(without_usage.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn choices_are_numbered_through_prompts() {
    let server = TestServer::open(|request| says(&format!("{}", request.sample))).await;
    let asked = body(json!({"prompt": ["a", "b c"], "n": 2}));
    let answer = server.answer(PATH, &asked).await;
    let choices: Vec<(u64, &str)> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap()))
        .collect();
    assert_eq!(choices, [(0, "0"), (1, "1"), (2, "2"), (3, "3")]);
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
                       "hardening": {"agreed": 0, "expert": 4, "base": 0}});
    assert_eq!(answer["usage"], usage);
    let prompts: Vec<Vec<u32>> = server.seen().iter().map(|request| request.prompt.to_vec()).collect();
    assert_eq!(prompts, [ids("a"), ids("a"), ids("b c"), ids("b c")]);
    let mut texts = vec![String::new(); 4];
    let mut asked = asked;
    asked["stream"] = true.into();
    for chunk in server.chunks(PATH, &asked).await {
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let server = TestServer::open(|_| says("x")).await;
    let check = async |prompt: Value, expected: Vec<Vec<u32>>| {
        let before = server.seen().len();
        server.answer(PATH, &body(json!({"prompt": prompt}))).await;
        let seen: Vec<Vec<u32>> = server.seen()[before..].iter().map(|request| request.prompt.to_vec()).collect();
        assert_eq!(seen, expected);
    };
    check(json!("a"), vec![ids("a")]).await;
    check(json!(["a", "b"]), vec![ids("a"), ids("b")]).await;
    check(json!([1, 2]), vec![vec![1, 2]]).await;
    check(json!([[1, 2], [3]]), vec![vec![1, 2], vec![3]]).await;
}

#[tokio::test]
async fn log_probabilities_and_echo() {
    let server = TestServer::open(|request| {
        let score = |id: u32| TokenScore { log_probability: -1.5, alternatives: vec![(id, -1.5)] };
        let mut scores: Vec<Option<TokenScore>> = request.prompt.iter().map(|&id| Some(score(id))).collect();
        scores[0] = None;
        let mut events = vec![SessionEvent::Prompt(scores)];
        events.extend(saying("x ="));
        events.push(SessionEvent::Finished(FinishReason::Length));
        Script::Events(events)
    })
    .await;
    let asked = body(json!({"echo": true, "logprobs": 1, "max_tokens": 2}));
    let answer = server.answer(PATH, &asked).await;
    let expected = json!({
        "index": 0, "text": "def fx =", "finish_reason": "length",
        "logprobs": {
            "tokens": ["def", " f", "x", " ="],
            "token_logprobs": [null, -1.5, -0.5, -9999.0],
            "top_logprobs": [null, {" f": -1.5}, {"!": -0.25, "x": -0.5}, {"!": -0.25, " =": -9999.0}],
            "text_offset": [0, 3, 5, 6],
        },
    });
    assert_eq!(answer["choices"][0], expected);
    let mut asked = asked;
    asked["stream"] = true.into();
    let chunks = server.chunks(PATH, &asked).await;
    let tokens: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["tokens"].as_array()).flatten().collect();
    assert_eq!(json!(tokens), expected["logprobs"]["tokens"]);
}

#[tokio::test]
async fn echo_without_log_probabilities() {
    let server = TestServer::open(|_| says("x")).await;
    let answer = server.answer(PATH, &body(json!({"echo": true}))).await;
    assert_eq!(answer["choices"][0]["text"], "def fx");
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    let only_echo = TestServer::open(|_| Script::Events(vec![SessionEvent::Finished(FinishReason::Length)])).await;
    let answer = only_echo.answer(PATH, &body(json!({"echo": true, "max_tokens": 0}))).await;
    assert_eq!(answer["choices"][0]["text"], "def f");
    assert_eq!(only_echo.seen()[0].max_new_tokens, 0);
}

#[tokio::test]
async fn tokens_say_what_hardening_did() {
    let server = TestServer::open(|_| says("x =")).await;
    let asked = body(json!({"cosec": {"report": true, "transport": "full"}}));
    let answer = server.answer(PATH, &asked).await;
    let report = json!([
        {"token": "x", "id": 87, "hardening": "expert", "p": 0.25, "q": 0.5, "law": 0.375},
        {"token": " =", "id": 796, "hardening": "base", "p": 0.25, "q": null,
         "rejected": {"token": "x", "id": 87, "p": 0.125, "q": 0.75}},
    ]);
    assert_eq!(answer["choices"][0]["cosec"], json!({"report": report}));
    assert_eq!(server.seen()[0].settings.transport, LogitsTransport::Full);
    let mut asked = asked;
    asked["stream"] = true.into();
    let chunks = server.chunks(PATH, &asked).await;
    assert_eq!(chunks[0]["choices"][0]["cosec"]["report"], json!([report[0]]));
    assert_eq!(chunks[1]["choices"][0]["cosec"]["report"], json!([report[1]]));
}

#[tokio::test]
async fn unhardened_answers_are_marked() {
    let server = TestServer::open(|_| {
        let mut events = vec![SessionEvent::Degraded];
        events.extend(saying("x"));
        events.push(SessionEvent::Finished(FinishReason::Stop));
        Script::Events(events)
    })
    .await;
    let answer = server.answer(PATH, &body(json!({}))).await;
    assert_eq!(answer["cosec"], json!({"rule": "cosec", "seed": 7, "degraded": true}));
    let chunks = server.chunks(PATH, &body(json!({"stream": true}))).await;
    assert!(chunks.iter().all(|chunk| chunk["cosec"]["degraded"] == true), "{chunks:?}");
}

#[tokio::test]
async fn a_stop_string_ends_the_session() {
    let server = TestServer::open(|_| Script::Hang(saying("x = 1\nreturn x"))).await;
    let answer = server.answer(PATH, &body(json!({"stop": ["\nret", "zzz"]}))).await;
    assert_eq!(answer["choices"][0]["text"], "x = 1");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    server.until_live(0).await;
    let chunks = server.chunks(PATH, &body(json!({"stop": "\nret", "stream": true}))).await;
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "x = 1");
    server.until_live(0).await;
}

#[tokio::test]
async fn a_seed_is_chosen_when_none_is_given() {
    let server = TestServer::open(|_| says("x")).await;
    let asked = json!({"model": "demo", "prompt": "a"});
    let (first, second) = (server.answer(PATH, &asked).await, server.answer(PATH, &asked).await);
    let seed = |answer: &Value| answer["cosec"]["seed"].as_u64().unwrap();
    assert_ne!(seed(&first), seed(&second));
    assert_eq!([seed(&first), seed(&second)], [server.seen()[0].settings.seed, server.seen()[1].settings.seed]);
    assert!(seed(&first) < 1 << 53, "clients read numbers as f64");
}

#[tokio::test]
async fn a_failure_is_told_before_and_amid_the_text() {
    let server = TestServer::open(|request| match request.settings.seed {
        0 => Script::Refuse(SessionError::new(ErrorCode::Overloaded, "full".to_owned())),
        1 => Script::Events(saying("x =")),
        _ => {
            let mut events = saying("x =");
            let message = "no expert".to_owned();
            events.push(SessionEvent::Failed(SessionError::new(ErrorCode::ExpertUnavailable, message)));
            Script::Hang(events)
        }
    })
    .await;
    let response = server.post(PATH, &body(json!({"seed": 0, "stream": true}))).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = server.refusal(PATH, &body(json!({"seed": 1}))).await;
    assert_eq!((status, &error["code"]), (500, &json!("internal")), "a session never just ends");
    let (status, error) = server.refusal(PATH, &body(json!({"seed": 2}))).await;
    assert_eq!((status, &error["code"], &error["message"]), (503, &json!("expert_unavailable"), &json!("no expert")));
    let frames = server.frames(PATH, &body(json!({"seed": 2, "stream": true}))).await;
    assert_eq!(frames.len(), 3);
    let error: Value = serde_json::from_str(&frames[2]).unwrap();
    assert_eq!(error["error"]["code"], "expert_unavailable");
    server.until_live(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_sessions() {
    let server = TestServer::open(|_| Script::Hang(saying("x"))).await;
    let response = server.post(PATH, &body(json!({"stream": true, "n": 3}))).await;
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    server.until_live(3).await;
    drop(stream);
    server.until_live(0).await;
    let asked = body(json!({}));
    tokio::select! {
        response = server.post(PATH, &asked) => panic!("{response:?}"),
        () = server.until_live(1) => {}
    }
    assert_eq!(server.seen().len(), 4);
    server.until_live(0).await;
}

#[tokio::test]
async fn holes_are_filled_where_the_model_can() {
    let server = TestServer::open(|_| Script::Events(vec![SessionEvent::Finished(FinishReason::Stop)])).await;
    let answer = server.answer(PATH, &json!({"model": "org/chat", "prompt": "ab", "suffix": "c"})).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    let (status, error) = server.refusal(PATH, &body(json!({"suffix": "c"}))).await;
    assert_eq!((status, &error["param"]), (400, &json!("suffix")));
    assert!(error["message"].as_str().unwrap().contains("fill-in-the-middle"), "{error}");
}
