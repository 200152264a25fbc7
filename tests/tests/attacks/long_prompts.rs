//! Text that cannot fit the context. Once it was tokenized before it was refused, and took gigabytes and the others' time.

use std::time::Duration;

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::observation::{Bystander, in_full, peak_memory_mib, report};

#[tokio::test]
async fn text_that_cannot_fit_costs_nothing() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let span = Duration::from_secs(if in_full() { 10 } else { 2 });
    let alone = Bystander::undisturbed(&cluster.http, None, span).await;
    let chat = |messages: Value| json!({"model": "demo", "messages": messages});
    let empty = json!({"role": "user", "content": ""});
    let bodies = [
        ("one prompt of 900,000 bytes", json!({"model": "demo", "prompt": "x = 1\n".repeat(150_000)})),
        ("seven prompts of 126,000 bytes", json!({"model": "demo", "prompt": vec!["x = 1\n".repeat(21_000); 7]})),
        ("a message of 450,000 line ends", chat(json!([{"role": "user", "content": "\n".repeat(450_000)}]))),
        ("30,000 empty messages", chat(json!(vec![empty; 30_000]))),
    ];
    for (what, body) in bodies {
        let bystander = Bystander::start(&cluster.http, None);
        let path = if body["messages"].is_null() { "completions" } else { "chat/completions" };
        let (url, until) = (format!("{}/v1/{path}", cluster.http), Instant::now() + span);
        let body = body.to_string();
        let ask = async || {
            let client = reqwest::Client::new();
            let mut refused = 0;
            while Instant::now() < until || refused == 0 {
                let request = client.post(&url).header("content-type", "application/json").body(body.clone());
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), 400, "{what}: {}", answer.text().await.unwrap());
                refused += 1;
            }
            refused
        };
        let refused: usize = join_all((0..4).map(|_| ask())).await.into_iter().sum();
        let seen = bystander.stop().await;
        let memory = peak_memory_mib(&cluster.coordinator);
        report(
            "B5",
            &format!("4 clients with {what}"),
            &format!("{refused} refused; {seen} (alone p99 {} ms), coordinator {memory} MiB", alone.p99.as_millis()),
        );
        assert!(seen.tokens > 1 && memory < 300, "{seen}, {memory} MiB");
    }
}
