//! A coordinator is killed; how long until its clients get their next event elsewhere.

use std::time::Duration;

use cosec_tests::fleet::{body, coordinator, metric, signal, worker};
use cosec_tests::stream::{choices, read};
use serde_json::Value;
use tokio::time::Instant;

use crate::observation::{in_full, report};

/// Resumes after each kill: the first finds caches of a coordinator that is gone, the others also those of the resumes
/// before them.
const RESUMES: usize = 5;

#[tokio::test]
async fn a_killed_coordinators_streams_go_on() {
    let logs = tempfile::TempDir::new().unwrap();
    let logs = logs.path();
    let (base, expert) = (worker("base", "base", &[], logs).await, worker("expert", "expert", &[], logs).await);
    let (key, config) = (logs.join("resume.key"), logs.join("coordinator.toml"));
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::write(&config, format!("[api]\nresume_key_file = {key:?}\n")).unwrap();
    let flags = ["--config", config.to_str().unwrap(), "--base", &base.address, "--expert", &expert.address];
    let survivor = coordinator("survivor", &flags, logs).await;
    survivor.ready().await;
    let tokens: u32 = if in_full() { 1000 } else { 100 };
    for (n, kills) in [(1, if in_full() { 4 } else { 1 }), (4, if in_full() { 2 } else { 1 })] {
        let (mut firsts, mut all, mut decoding) = (Vec::new(), Vec::new(), Duration::ZERO);
        let mut longest_id = 0;
        for kill in 0..kills {
            let mut request: Value = body(kill, tokens);
            request["stream"] = true.into();
            request["n"] = n.into();
            let victim = coordinator("victim", &flags, logs).await;
            victim.ready().await;
            let began = Instant::now();
            // All but the last few tokens.
            let seen = read(&victim.http, &request, None, (tokens as usize - 10) * n).await.unwrap();
            decoding += began.elapsed();
            signal(&victim.process, "KILL");
            let id = seen.last().unwrap().id.clone().unwrap();
            longest_id = longest_id.max(id.len());
            for resume in 0..RESUMES {
                let fed = metric(&base.metrics, "cosec_worker_step_tokens_sum").await;
                let began = Instant::now();
                let next = read(&survivor.http, &request, Some(&id), 1).await.unwrap();
                let took = began.elapsed();
                assert!(next[0].chunk().is_some(), "{next:?}");
                if resume == 0 {
                    firsts.push(took);
                    let fed = metric(&base.metrics, "cosec_worker_step_tokens_sum").await - fed;
                    assert!(fed < f64::from(tokens * n as u32), "the base was fed {fed} tokens");
                }
                all.push(took);
            }
            let rest = read(&survivor.http, &request, Some(&id), usize::MAX).await.unwrap();
            let ends = choices(&[seen, rest].concat()).iter().filter(|choice| !choice.is_empty()).count();
            assert_eq!(ends, n, "every choice came to its end");
        }
        all.sort();
        firsts.sort();
        let decoding = decoding.as_secs_f64() / kills as f64;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let seen = format!(
            "next event after {:.0} ms (p50), {:.0} ms (the slowest of {}); at the first resume {:.0} ms at worst; \
             decoding took {decoding:.1} s; ids of {longest_id} bytes",
            ms(all[all.len() / 2]),
            ms(all[all.len() - 1]),
            all.len(),
            ms(firsts[firsts.len() - 1]),
        );
        report("A2", &format!("coordinator killed at {} tokens, n {n}", tokens - 10), &seen);
    }
}
