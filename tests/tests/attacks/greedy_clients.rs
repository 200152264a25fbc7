//! One client that asks for as many choices as it can. Once three of its requests left no place for anybody else.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use cosec_tests::fleet::{body, complete, metric, until};
use tokio::time::{Instant, timeout};

use crate::observation::{Bystander, in_full, report};

const SERVED_WITHIN: Duration = Duration::from_secs(90);

#[tokio::test]
async fn one_client_does_not_take_all_places() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let undisturbed = complete(&cluster.http, 5, 40).await;
    let greedy = reqwest::Client::builder().local_address(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))).build().unwrap();
    let ask = || {
        let mut body = body(7, 900);
        (body["n"], body["stream"]) = (128.into(), true.into());
        greedy.post(format!("{}/v1/completions", cluster.http)).json(&body).send()
    };
    let (first, second) = (ask().await.unwrap(), ask().await.unwrap());
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    let reading = tokio::spawn(async move { tokio::join!(first.bytes(), second.bytes()) });
    let metrics = &cluster.coordinator_metrics;
    until("all turns are taken", async || metric(metrics, "cosec_active_sessions").await >= 64.0).await;
    let third = ask().await.unwrap();
    assert_eq!(third.status(), 429, "one client gets no more than its part of the places");
    let began = Instant::now();
    let text = timeout(SERVED_WITHIN, complete(&cluster.http, 5, 40)).await.expect("others are served");
    let served = began.elapsed();
    assert_eq!(text, undisturbed);
    assert!(!reading.is_finished(), "before the greedy one has its answers");
    let span = Duration::from_secs(if in_full() { 10 } else { 2 });
    let seen = Bystander::undisturbed(&cluster.http, None, span).await;
    report(
        "B15",
        "three requests of n 128 by one client",
        &format!("third 429, others served after {:.1} s; {seen}", served.as_secs_f64()),
    );
    reading.abort();
}
