//! Streams that are taken up again, from every event on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::fixture::{Script, TestServer, events, ids, says};
use crate::request::{SessionEvent, TokenizedRequest};

const TEXT: &str = "x = \u{1f600}1\nreturn x + é\nstop here";

/// Data of the events of each choice, and of those of none.
fn by_choice(events: &[(Option<String>, String)]) -> [Vec<String>; 3] {
    let mut choices: [Vec<String>; 3] = Default::default();
    for (_, data) in events {
        // What hardening did to tokens is counted where they were decoded.
        let mut chunk: Value = serde_json::from_str(data).unwrap_or_default();
        chunk["usage"].as_object_mut().map(|usage| usage.remove("hardening"));
        let index = chunk["choices"][0]["index"].as_u64();
        choices[index.map_or(2, |index| index as usize)].push(chunk.to_string());
    }
    choices
}

/// A session whose workers know nothing.
fn says_whole(_: &TokenizedRequest, text: &str) -> Script {
    says(text)
}

/// A session whose workers know the tokens that the client has.
fn goes_on(request: &TokenizedRequest, text: &str) -> Script {
    let (Script::Events(events), Some(received)) = (says(text), request.received) else { return says(text) };
    let taken = ids(text)[..received.count as usize].to_vec();
    assert_eq!(received.completed(taken[..taken.len() - 1].to_vec()).as_ref(), Some(&taken));
    let decoded = events.into_iter().skip(taken.len());
    Script::Events([SessionEvent::TakenOver(taken)].into_iter().chain(decoded).collect())
}

#[tokio::test]
async fn the_rest_follows_whatever_came_last() {
    follows(says_whole).await;
}

#[tokio::test]
async fn the_rest_follows_what_is_taken_over() {
    follows(goes_on).await;
}

async fn follows(session: impl Fn(&TokenizedRequest, &str) -> Script + Send + Sync + 'static) {
    let server = TestServer::open(move |request: &TokenizedRequest| {
        session(request, if request.sample == 0 { TEXT } else { "two\nthree four" })
    })
    .await;
    let check = async |path: &str, body: Value| {
        let whole = events(server.post(path, &body).await).await;
        assert_eq!(whole.last().unwrap(), &(None, "[DONE]".to_owned()));
        let undisturbed = by_choice(&whole);
        for last in 0..whole.len() - 1 {
            let id = whole[last].0.as_deref().unwrap();
            let rest = events(server.resume(path, &body, id).await).await;
            let mut joined = by_choice(&whole[..=last]);
            for (joined, rest) in joined.iter_mut().zip(by_choice(&rest)) {
                joined.extend(rest);
            }
            assert_eq!(joined, undisturbed, "after event {last} of {body}");
            // And once more, from the middle of the rest.
            let Some((Some(id), _)) = rest.get(rest.len() / 2) else { continue };
            let again = events(server.resume(path, &body, id).await).await;
            let mut joined = by_choice(&whole[..=last]);
            for part in [by_choice(&rest[..=rest.len() / 2]), by_choice(&again)] {
                joined.iter_mut().zip(part).for_each(|(joined, part)| joined.extend(part));
            }
            assert_eq!(joined, undisturbed, "after event {last} of {body}, twice");
        }
    };
    let completion = json!({"model": "demo", "prompt": "a", "max_tokens": 40, "stream": true});
    let with = |body: &Value, more: Value| {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    check("/v1/completions", completion.clone()).await;
    check("/v1/completions", with(&completion, json!({"n": 2, "stream_options": {"include_usage": true}}))).await;
    check("/v1/completions", with(&completion, json!({"n": 2, "stop": ["x + é\nst", "four"], "logprobs": 1}))).await;
    check("/v1/completions", with(&completion, json!({"echo": true, "cosec": {"report": true}}))).await;
    let messages = json!([{"role": "user", "content": "b"}]);
    let conversation = json!({"model": "org/chat", "messages": messages, "n": 2, "stream": true, "logprobs": true});
    check("/v1/chat/completions", conversation).await;
}

#[tokio::test]
async fn the_seed_is_that_of_the_first_request() {
    let server = TestServer::open(|_| says(TEXT)).await;
    let body = json!({"model": "demo", "prompt": "a", "stream": true});
    let whole = events(server.post("/v1/completions", &body).await).await;
    server.resume("/v1/completions", &body, whole[0].0.as_deref().unwrap()).await;
    let seen = server.seen();
    assert_eq!(seen[0].settings.seed, seen[1].settings.seed);
    server.post("/v1/completions", &body).await;
    assert_ne!(server.seen()[2].settings.seed, seen[0].settings.seed);
}

#[tokio::test]
async fn an_id_of_elsewhere_is_refused() {
    let server = TestServer::open(|_| says(TEXT)).await;
    let body = json!({"model": "demo", "prompt": "a", "stream": true});
    let whole = events(server.post("/v1/completions", &body).await).await;
    let id = whole[1].0.clone().unwrap();
    let refusal = async |path: &str, body: &Value, id: &str| {
        let response = server.resume(path, body, id).await;
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["param"], "Last-Event-ID", "{answer}");
        status
    };
    assert_eq!(refusal("/v1/completions", &body, "7").await, 400);
    assert_eq!(refusal("/v1/completions", &body, &id[1..]).await, 400);
    let stranger = TestServer::open(|_| says(TEXT)).await;
    let foreign = events(stranger.post("/v1/completions", &body).await).await[1].0.clone().unwrap();
    assert_eq!(refusal("/v1/completions", &body, &foreign).await, 400);
    let other = json!({"model": "demo", "prompt": "b", "stream": true});
    assert_eq!(refusal("/v1/completions", &other, &id).await, 409);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_rest_that_does_not_fit_is_not_sent() {
    let changed = Arc::new(AtomicBool::new(false));
    let models_changed = changed.clone();
    let server =
        TestServer::open(move |_| says(if models_changed.load(Ordering::SeqCst) { "y = 2" } else { TEXT })).await;
    let body = json!({"model": "demo", "prompt": "a", "stream": true, "max_tokens": 40});
    let whole = events(server.post("/v1/completions", &body).await).await;
    changed.store(true, Ordering::SeqCst);
    let rest = events(server.resume("/v1/completions", &body, whole[2].0.as_deref().unwrap()).await).await;
    assert_eq!(rest.len(), 1);
    assert!(rest[0].1.contains("cannot be continued"), "{}", rest[0].1);
}
