//! Workers that have no room. Once a session that such a worker refused ended, though another worker was free.

use cosec_tests::fleet::{body, complete, coordinator, until, worker};
use cosec_tests::stream::{Event, read};
use futures::future::join_all;
use tokio::time::Instant;

use crate::observation::{in_full, report};

#[tokio::test]
async fn a_worker_without_room_ends_no_stream() {
    let logs = tempfile::TempDir::new().unwrap();
    let streams = if in_full() { 12 } else { 6 };
    let mut large = worker("large", "base", &[], logs.path()).await;
    let small = worker("small", "base", &["--max-sessions", "2"], logs.path()).await;
    let expert = worker("expert", "expert", &[], logs.path()).await;
    let bases = format!("{},{}", large.address, small.address);
    let flags = ["--base", &bases, "--expert", &expert.address];
    let coordinator = coordinator("coordinator", &flags, logs.path()).await;
    coordinator.ready().await;
    until("both bases are up", async || coordinator.metric("cosec_worker_up").await == 3.0).await;
    let mut undisturbed = Vec::new();
    for seed in 0..streams {
        undisturbed.push(complete(&coordinator.http, seed, 150).await);
    }
    let ask = |seed: u64| {
        let (http, mut body) = (coordinator.http.clone(), body(seed, 150));
        body["stream"] = true.into();
        async move { read(&http, &body, None, usize::MAX).await }
    };
    let together = join_all((0..streams).map(ask)).await;
    assert_eq!(texts(together), undisturbed, "the small one refuses some of them");
    // All of them move to the worker that takes two.
    let began = Instant::now();
    let running = tokio::spawn(join_all((0..streams).map(ask)));
    // One that has no token yet is refused where all are busy.
    let begun = async || coordinator.metric("cosec_time_to_first_token_seconds_count").await;
    until("all have a token", async || begun().await >= 3.0 * streams as f64).await;
    large.process.kill().await.unwrap();
    assert_eq!(texts(running.await.unwrap()), undisturbed);
    report(
        "B7",
        &format!("{streams} streams on two bases, one takes 2 sessions, the other dies"),
        &format!("all identical after {:.1} s", began.elapsed().as_secs_f64()),
    );
}

fn texts(answers: Vec<Result<Vec<Event>, String>>) -> Vec<String> {
    let text = |answer: Result<Vec<Event>, String>| {
        let events = answer.unwrap();
        assert!(events.last().is_some_and(Event::is_last), "{:?}", events.last());
        let chunks = events.iter().filter_map(Event::chunk);
        chunks
            .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{chunk}")).to_owned())
            .collect()
    };
    answers.into_iter().map(text).collect()
}
