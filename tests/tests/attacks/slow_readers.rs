//! Clients that ask for much and read nothing. Once four such sockets took all turns for as long as a request may last.

use std::time::Duration;

use cosec_launcher::Cluster;
use cosec_proto::wire::coordinator as wire;
use cosec_proto::wire::coordinator::coordinator_client::CoordinatorClient;
use cosec_tests::cluster::demo;
use cosec_tests::fleet::{complete, metric, until};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use crate::observation::{Bystander, in_full, peak_memory_mib, report};

/// Far longer than a turn is kept from the others, and far shorter than a request may last.
const SERVED_WITHIN: Duration = Duration::from_secs(90);

/// Sends a request from `address` and never reads the answer.
async fn silent(http: &str, address: &str) -> TcpStream {
    let body = json!({
        "model": "demo", "prompt": "def f(cur, x):\n    cur.execute(", "n": 16, "max_tokens": 900, "stream": true,
        "logprobs": 20, "cosec": {"report": true}, "logit_bias": {"0": -100},
    })
    .to_string();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.bind(address.parse().unwrap()).unwrap();
    let host = http.trim_start_matches("http://");
    let mut connection = socket.connect(host.parse().unwrap()).await.unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body.as_bytes()).await.unwrap();
    connection
}

/// Begins the same over gRPC, and never reads.
async fn silent_stream(grpc: &str) -> tonic::Streaming<wire::GenerateEvent> {
    let mut client = CoordinatorClient::connect(format!("http://{grpc}")).await.unwrap();
    let request = wire::GenerateRequest {
        model: "demo".to_owned(),
        prompt: Some(wire::generate_request::Prompt::Text("def f(cur, x):\n    cur.execute(".to_owned())),
        n: Some(16),
        max_tokens: Some(900),
        logprobs: Some(20),
        logit_bias: [(0, -100.0)].into(),
        ..Default::default()
    };
    client.generate(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn sockets_that_never_read_stop_nobody() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let (sockets, span) = if in_full() { (400, Duration::from_secs(20)) } else { (4, Duration::from_secs(3)) };
    let undisturbed = complete(&cluster.http, 5, 40).await;
    let alone = Bystander::undisturbed(&cluster.http, None, span).await;
    let mut connections = Vec::new();
    for number in 0..sockets {
        // Other addresses: nobody is to wait for them because they are somebody else.
        connections.push(silent(&cluster.http, &format!("127.0.{}.{}:0", 1 + number / 200, 2 + number % 200)).await);
    }
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(silent_stream(&cluster.grpc).await);
    }
    let metrics = &cluster.coordinator_metrics;
    until("turns are given back", async || metric(metrics, "cosec_turns_given_back_total").await > 0.0).await;
    let began = Instant::now();
    let text = timeout(SERVED_WITHIN, complete(&cluster.http, 5, 40)).await.expect("others are served");
    assert_eq!(text, undisturbed);
    let served = began.elapsed();
    let seen = Bystander::undisturbed(&cluster.http, None, span).await;
    let memory = peak_memory_mib(&cluster.coordinator);
    report(
        "B2",
        &format!("{sockets} sockets and 4 gRPC streams of n 16 that never read"),
        &format!(
            "served after {:.1} s; {seen} (alone p99 {} ms), coordinator {memory} MiB",
            served.as_secs_f64(),
            alone.p99.as_millis()
        ),
    );
    assert!(memory < 400, "{memory} MiB");
    drop((connections, streams));
}
