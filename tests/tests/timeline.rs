//! What an OpenTelemetry collector is told of a request: one trace, in which the expert drafts while the base verifies.

use std::path::Path;
use std::time::Duration;

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use cosec_tests::fleet::until;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Keeps the spans that it receives.
struct Collector(watch::Sender<Vec<Span>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let spans = resources.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.send_modify(|seen| seen.extend(spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on loopback: its address, and what it was sent so far.
async fn collector() -> (String, watch::Receiver<Vec<Span>>) {
    let (spans, seen) = watch::channel(Vec::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(spans)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (endpoint, seen)
}

/// Three choices, decoded with lookahead.
fn body() -> serde_json::Value {
    let prompt = "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(";
    json!({"model": "demo", "prompt": prompt, "max_tokens": 100, "n": 3, "seed": 3})
}

async fn cluster(logs: &Path, telemetry: &str) -> Cluster {
    let file = logs.join("coordinator.toml");
    std::fs::write(&file, telemetry).unwrap();
    let mut config = demo(logs);
    let file = file.to_str().unwrap().to_owned();
    config.coordinator_flags = ["--speculation", "fixed:3", "--config", &file].map(std::ffi::OsString::from).to_vec();
    Cluster::start(&config, |_| {}).await.unwrap()
}

fn number(span: &Span, key: &str) -> i64 {
    let of_key = span.attributes.iter().find(|attribute| attribute.key == key);
    match of_key.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::IntValue(number)) => *number,
        Some(Value::BoolValue(truth)) => i64::from(*truth),
        other => panic!("{key} of {}: {other:?}", span.name),
    }
}

#[tokio::test]
async fn a_trace_shows_drafting_beside_verifying_and_what_was_withdrawn() {
    let logs = TempDir::new().unwrap();
    let (endpoint, seen) = collector().await;
    let cluster = cluster(logs.path(), &format!("[telemetry]\notlp_endpoint = '{endpoint}'\n")).await;
    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/completions", cluster.http))
        .header("traceparent", format!("00-{trace}-{caller}-01"))
        .json(&body())
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());

    let id = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let ours =
        |spans: &[Span]| -> Vec<Span> { spans.iter().filter(|span| id(&span.trace_id) == trace).cloned().collect() };
    until("the whole trace arrives", async || ours(&seen.borrow()).iter().any(|span| span.name == "request")).await;
    let spans = ours(&seen.borrow());

    // The caller's span is the request's parent, that the session's, and that the operations'.
    let named = |name: &str| -> Vec<&Span> { spans.iter().filter(|span| span.name == name).collect() };
    let (requests, sessions) = (named("request"), named("session"));
    assert_eq!((requests.len(), sessions.len()), (1, 3));
    assert_eq!(id(&requests[0].parent_span_id), caller);
    assert!(sessions.iter().all(|session| session.parent_span_id == requests[0].span_id));
    let (drafts, verifications) = (named("expert draft"), named("base verify"));
    assert!(drafts.len() > 10 && verifications.len() > 10, "{} and {}", drafts.len(), verifications.len());
    for operation in drafts.iter().chain(&verifications) {
        let is_parent = |session: &&Span| session.span_id == operation.parent_span_id;
        assert!(sessions.iter().any(is_parent), "{operation:?}");
    }

    // Pipelining: drafting ahead overlaps the verification of earlier drafts.
    let beside = |draft: &Span| {
        verifications.iter().any(|verification| {
            draft.parent_span_id == verification.parent_span_id
                && draft.start_time_unix_nano < verification.end_time_unix_nano
                && verification.start_time_unix_nano < draft.end_time_unix_nano
                && number(verification, "at") < number(draft, "at")
        })
    };
    assert!(drafts.iter().any(|draft| number(draft, "is_ahead") == 1 && beside(draft)));
    // A rejection withdraws drafts in flight.
    let is_withdrawn = |span: &&&Span| span.events.iter().any(|event| event.name == "withdrawn");
    assert!(drafts.iter().filter(is_withdrawn).count() > 0);
    // The worker's own share of the time is an attribute.
    assert!(verifications.iter().any(|span| span.events.iter().any(|event| event.name == "answer arrived")));
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_answer() {
    let logs = TempDir::new().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let cluster = cluster(logs.path(), &format!("[telemetry]\notlp_endpoint = 'http://{nobody}'\n")).await;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
    let request = client.post(format!("{}/v1/completions", cluster.http)).json(&body());
    assert!(request.send().await.unwrap().status().is_success());
}
