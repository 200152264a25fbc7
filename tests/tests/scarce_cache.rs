//! Sixteen completions on workers whose caches hold a quarter of them: nobody is told, and no byte changes.

use cosec_launcher::{Cluster, ClusterConfig};
use cosec_tests::cluster::demo;
use futures::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

const COMPLETIONS: usize = 16;

/// At 16 tokens a block, a quarter of what the completions come to: about 24 tokens of prompt and 96 new ones each.
const BLOCKS: &str = "30";

/// A completion of 96 tokens: the end token is banned. No two prompts begin alike.
async fn complete(http: &str, number: usize) -> String {
    let prompt = format!("{number}: def select_{number}(cur, x):\n    cur.execute(");
    let body = json!({
        "model": "demo", "prompt": prompt, "max_tokens": 96, "seed": number, "logit_bias": {"0": -100},
    });
    let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(&body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test]
async fn four_times_what_the_cache_holds_ends_with_the_same_bytes() {
    let logs = TempDir::new().unwrap();
    let mut undisturbed = Vec::new();
    {
        let cluster = Cluster::start(&demo(logs.path()), |_| {}).await.unwrap();
        for number in 0..COMPLETIONS {
            undisturbed.push(complete(&cluster.http, number).await);
        }
    }
    let scarce = ClusterConfig {
        worker_flags: ["--blocks", BLOCKS, "--block-tokens", "16"].map(Into::into).to_vec(),
        ..demo(logs.path())
    };
    let cluster = Cluster::start(&scarce, |_| {}).await.unwrap();
    let texts = join_all((0..COMPLETIONS).map(|number| complete(&cluster.http, number))).await;
    assert_eq!(texts, undisturbed);
    for metrics in [&cluster.base_metrics, &cluster.expert_metrics] {
        let figures = reqwest::get(metrics).await.unwrap().text().await.unwrap();
        let preemptions = figures.lines().find(|line| line.starts_with("cosec_worker_preemptions_total")).unwrap();
        assert!(!preemptions.ends_with(" 0"), "the cache was not scarce: {preemptions}");
    }
}
