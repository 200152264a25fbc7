//! Bodies that are refused, but cost much to read. Once they stopped all streams.

use std::time::Duration;

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use futures::future::join_all;
use tokio::time::Instant;

use crate::observation::{Bystander, in_full, peak_memory_mib, report};

/// As long as the demo's context allows by default.
const BODY_BYTES: usize = 1 << 20;

/// A list or an object of as many elements as fit.
fn filled(head: &str, element: impl Fn(usize) -> String, tail: &str) -> String {
    let mut body = head.to_owned();
    for at in 0.. {
        let next = element(at);
        if body.len() + next.len() + tail.len() > BODY_BYTES {
            break;
        }
        body += &next;
    }
    body + tail
}

#[tokio::test]
async fn bodies_of_many_elements_stop_no_stream() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let span = Duration::from_secs(if in_full() { 10 } else { 2 });
    let alone = Bystander::undisturbed(&cluster.http, None, span).await;
    let request = r#"{"model": "demo", "prompt": "a""#;
    let bodies = [
        ("keys", filled(request, |at| format!(r#", "{at}": 1"#), "}")),
        ("stop strings", filled(&format!(r#"{request}, "stop": ["""#), |_| r#","""#.to_owned(), "]}")),
        ("biases", filled(&format!(r#"{request}, "logit_bias": {{"0": 1"#), |at| format!(r#", "{at}": 1"#), "}}")),
        ("prompts", filled(r#"{"model": "demo", "prompt": [[]"#, |_| ",[]".to_owned(), "]}")),
        ("messages", filled(r#"{"model": "demo", "messages": [{}"#, |_| ",{}".to_owned(), "]}")),
        ("long", format!(r#"{request}, "user": "{}"}}"#, " ".repeat(8 * BODY_BYTES))),
    ];
    for (what, body) in bodies {
        let bystander = Bystander::start(&cluster.http, None);
        let path = if what == "messages" { "chat/completions" } else { "completions" };
        let url = format!("{}/v1/{path}", cluster.http);
        let until = Instant::now() + span;
        let flood = async || {
            let client = reqwest::Client::new();
            let mut refused = 0;
            while Instant::now() < until || refused == 0 {
                let request = client.post(&url).header("content-type", "application/json").body(body.clone());
                // The connection of a body that is too long may be closed before it is sent.
                let Ok(answer) = request.send().await else {
                    refused += 1;
                    continue;
                };
                let expected = if what == "long" { 413 } else { 400 };
                assert_eq!(answer.status(), expected, "{what}: {}", answer.text().await.unwrap());
                refused += 1;
            }
            refused
        };
        let refused: usize = join_all((0..6).map(|_| flood())).await.into_iter().sum();
        let seen = bystander.stop().await;
        let memory = peak_memory_mib(&cluster.coordinator);
        report(
            "B4",
            &format!("6 clients with bodies of many {what}"),
            &format!("{refused} refused; {seen} (alone p99 {} ms), coordinator {memory} MiB", alone.p99.as_millis()),
        );
        assert!(seen.tokens > 1 && memory < 300, "{seen}, {memory} MiB");
    }
}
