//! What clients ask for and get.

use cosec_tests::stream::{choices, read};
use serde_json::{Value, json};

pub(crate) fn body(more: Value) -> Value {
    let mut body = json!({
        "model": "demo", "prompt": "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
        "max_tokens": 60, "seed": 11,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub(crate) async fn read_whole(http: &str, body: &Value) -> Value {
    let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(body).send().await.unwrap();
    let mut answer: Value = answer.json().await.unwrap();
    assert!(answer["choices"].is_array(), "{answer}");
    answer["choices"].take()
}

/// What clients of all kinds get at the same time: several choices streamed with their scores, a stop string, a plain
/// text.
pub(crate) async fn answer_all(http: &str, stop: &str) -> Value {
    let streamed = body(json!({"stream": true, "n": 2, "logprobs": 2, "temperature": 0.8}));
    let stopped = body(json!({"seed": 12, "stop": [stop], "cosec": {"report": true}}));
    let plain = body(json!({"seed": 13, "temperature": 1.2, "max_tokens": 80}));
    let streamed = async { choices(&read(http, &streamed, None, usize::MAX).await.unwrap()) };
    let (streamed, stopped, plain) = tokio::join!(streamed, read_whole(http, &stopped), read_whole(http, &plain));
    json!([streamed, stopped, plain])
}
