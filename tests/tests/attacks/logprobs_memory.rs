//! Log-probabilities once kept a whole row of the vocabulary for each token until the client had its answer.

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use cosec_tests::fleet::body;
use serde_json::Value;

use crate::observation::{in_full, peak_memory_mib, report};

/// A token then took 28 KiB on the demo pair, whose vocabulary is small.
#[tokio::test]
async fn log_probabilities_take_memory_for_what_is_asked() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let choices = if in_full() { 32 } else { 8 };
    let asked = |logprobs: Option<u32>| {
        let mut request = body(1, 400);
        request["n"] = choices.into();
        if let Some(logprobs) = logprobs {
            request["logprobs"] = logprobs.into();
        }
        reqwest::Client::new().post(format!("{}/v1/completions", cluster.http)).json(&request).send()
    };
    let mut peaks = Vec::new();
    for logprobs in [None, Some(0), Some(1)] {
        let answer: Value = asked(logprobs).await.unwrap().json().await.unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], choices * 400, "{answer}");
        peaks.push(peak_memory_mib(&cluster.coordinator));
    }
    let tokens = choices * 400;
    let seen = format!("{tokens} tokens: {peaks:?} MiB without, with 0 and with 1 alternative");
    report("-", "log-probabilities keep rows of the vocabulary", &seen);
    let kept = peaks[2] - peaks[0];
    assert!(kept < tokens * 8 / 1024, "{seen}: {kept} MiB");
}
