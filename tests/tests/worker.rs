//! Real worker processes: what an operation gives, that a malformed one harms nobody, and where their threads run.

use std::path::Path;
use std::time::Duration;

use cosec_launcher::{Cluster, Process};
use cosec_proto::sampling::{Distribution, DrawPurpose, SamplingSeed};
use cosec_proto::transport::with_protocol_version;
use cosec_proto::wire::worker::row::Content;
use cosec_proto::wire::worker::row_request::View;
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::{
    DescribeRequest, Draft, Extend, Full, Gather, NeedPrefix, Nucleus, Precision, Release, Role, RowRequest, Sample,
    SamplingParams, StepRequest, StepResponse,
};
use cosec_proto::{SessionId, transport};
use cosec_worker::cpu_set::CpuSet;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

async fn cluster(logs: &TempDir) -> Cluster {
    Cluster::start(&cosec_tests::cluster::demo(logs.path()), |_| {}).await.unwrap()
}

/// One stream to one worker, used one operation after the other.
struct Wire {
    requests: mpsc::Sender<StepRequest>,
    responses: Streaming<StepResponse>,
    next_op: u64,
}

impl Wire {
    async fn open(channel: Channel) -> Self {
        let (requests, outgoing) = mpsc::channel(16);
        let mut client = WorkerClient::new(channel)
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(transport::MAX_MESSAGE_BYTES);
        let responses = client.step(with_protocol_version(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
        Self { requests, responses, next_op: 0 }
    }

    async fn run(&mut self, operation: Option<Operation>) -> Outcome {
        self.next_op += 1;
        let request = StepRequest { op: self.next_op, deadline_ms: 20_000, operation };
        self.requests.send(request).await.unwrap();
        let response = self.responses.message().await.unwrap().unwrap();
        assert_eq!(response.op, self.next_op);
        response.outcome.unwrap()
    }

    async fn rows(&mut self, extend: Extend) -> Vec<Content> {
        match self.run(Some(Operation::Extend(extend))).await {
            Outcome::Rows(rows) => rows.rows.into_iter().map(|row| row.content.unwrap()).collect(),
            other => panic!("{other:?}"),
        }
    }
}

fn full(offset: u32) -> RowRequest {
    RowRequest { offset, view: Some(View::Full(Full { precision: Precision::F32 as i32 })) }
}

fn logits(content: &Content) -> Vec<f32> {
    match content {
        Content::Full(row) => {
            row.logits.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn warp() -> SamplingParams {
    SamplingParams { temperature: 0.7, top_p: 0.9, top_k: 0 }
}

#[tokio::test]
async fn describes_itself_and_is_healthy() {
    let logs = TempDir::new().unwrap();
    let cluster = cluster(&logs).await;
    for (address, role) in [(&cluster.base_address, Role::Base), (&cluster.expert_address, Role::Expert)] {
        let channel = transport::channel(address).unwrap();
        let described = WorkerClient::new(channel.clone()).describe(DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.role(), role);
        assert_eq!(described.fingerprint.len(), 64);
        assert_eq!(described.tokenizer_fingerprint.len(), 64);
        assert!(described.free_blocks > 0 && described.free_blocks <= described.total_blocks);
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let status = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner().status;
        assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving as i32);
    }
}

#[tokio::test]
async fn malformed_operations_are_refused_by_name_and_the_stream_goes_on() {
    let logs = TempDir::new().unwrap();
    let cluster = cluster(&logs).await;
    let mut wire = Wire::open(transport::channel(&cluster.base_address).unwrap()).await;
    let session = SessionId::random().to_wire();
    let extend = Extend { session: session.clone(), at: 0, tokens: vec![5, 6], rows: vec![], ..Extend::default() };
    let view = |view| Extend { rows: vec![RowRequest { offset: 1, view: Some(view) }], ..extend.clone() };
    let bad_warp = |temperature, top_p| Some(SamplingParams { temperature, top_p, top_k: 0 });
    let draft = Draft {
        session,
        at: 0,
        tokens: vec![5],
        k: 2,
        warp: Some(warp()),
        randomness: Some(Default::default()),
        ..Draft::default()
    };
    let cases = [
        ("operation", None),
        ("session", Some(Operation::Extend(Extend { session: vec![1, 2, 3], ..extend.clone() }))),
        ("session", Some(Operation::Release(Release { session: vec![] }))),
        ("tokens", Some(Operation::Extend(Extend { tokens: vec![1, u32::MAX], ..extend.clone() }))),
        ("at", Some(Operation::Extend(Extend { at: u32::MAX, ..extend.clone() }))),
        ("offset", Some(Operation::Extend(Extend { rows: vec![full(3)], ..extend.clone() }))),
        (
            "view",
            Some(Operation::Extend(Extend { rows: vec![RowRequest { offset: 1, view: None }], ..extend.clone() })),
        ),
        (
            "ids",
            Some(Operation::Extend(view(View::Gather(Gather {
                warp: Some(warp()),
                ids: vec![u32::MAX],
                each: false,
            })))),
        ),
        ("warp", Some(Operation::Extend(view(View::Gather(Gather { warp: None, ids: vec![1], each: false }))))),
        (
            "temperature",
            Some(Operation::Extend(view(View::Nucleus(Nucleus { warp: bad_warp(f64::NAN, 1.0), cap: 0 })))),
        ),
        ("top_p", Some(Operation::Extend(view(View::Nucleus(Nucleus { warp: bad_warp(1.0, 0.0), cap: 0 }))))),
        ("u", Some(Operation::Extend(view(View::Sample(Sample { warp: Some(warp()), u: 1.0 }))))),
        ("u", Some(Operation::Extend(view(View::Sample(Sample { warp: Some(warp()), u: f64::NAN }))))),
        ("precision", Some(Operation::Extend(view(View::Full(Full { precision: 77 }))))),
        ("k", Some(Operation::Draft(Draft { k: 0, ..draft.clone() }))),
        ("k", Some(Operation::Draft(Draft { k: 100_000, ..draft.clone() }))),
        ("randomness", Some(Operation::Draft(Draft { randomness: None, ..draft.clone() }))),
    ];
    for (field, operation) in cases {
        let shown = format!("{operation:?}");
        match wire.run(operation).await {
            Outcome::Failure(failure) => {
                assert_eq!(failure.code, "invalid_argument", "{shown}: {failure:?}");
                assert!(failure.message.contains(field), "{field} is not named: {}", failure.message);
            }
            other => panic!("{shown} was answered {other:?}"),
        }
    }
    assert_eq!(wire.rows(Extend { rows: vec![full(2)], ..extend }).await.len(), 1);
}

#[tokio::test]
async fn a_rollback_is_as_if_it_had_never_been() {
    let logs = TempDir::new().unwrap();
    let cluster = cluster(&logs).await;
    let mut wire = Wire::open(transport::channel(&cluster.expert_address).unwrap()).await;
    let prompt: Vec<u32> = (10..40).collect();
    let fresh = SessionId::random().to_wire();
    let rolled = SessionId::random().to_wire();
    let open = |session: &Vec<u8>| Extend {
        session: session.clone(),
        at: 0,
        tokens: prompt.clone(),
        rows: vec![],
        ..Extend::default()
    };
    wire.rows(open(&fresh)).await;
    wire.rows(open(&rolled)).await;
    let randomness = SamplingSeed { seed: 5, sample: 0 };
    let draft = Draft {
        session: rolled.clone(),
        at: 30,
        tokens: vec![],
        k: 6,
        warp: Some(warp()),
        randomness: Some(randomness.into()),
        ..Draft::default()
    };
    match wire.run(Some(Operation::Draft(draft))).await {
        Outcome::Drafted(drafted) => {
            assert_eq!(drafted.ids.len(), 6);
            assert_eq!(drafted.length, 35);
        }
        other => panic!("{other:?}"),
    }
    let next =
        |session| Extend { session, at: 30, tokens: vec![7, 8], rows: vec![full(1), full(2)], ..Extend::default() };
    let expected = wire.rows(next(fresh.clone())).await;
    assert_eq!(wire.rows(next(rolled)).await, expected);
    // A shorter cache says how short, and changes nothing.
    let ahead = Extend { session: fresh, at: 99, tokens: vec![1], rows: vec![], ..Extend::default() };
    let answer = wire.run(Some(Operation::Extend(ahead))).await;
    assert!(matches!(answer, Outcome::NeedPrefix(NeedPrefix { have: 32 })), "{answer:?}");
}

#[tokio::test]
async fn every_view_is_of_one_distribution() {
    let logs = TempDir::new().unwrap();
    let cluster = cluster(&logs).await;
    let mut wire = Wire::open(transport::channel(&cluster.base_address).unwrap()).await;
    let u = SamplingSeed { seed: 3, sample: 1 }.uniform(DrawPurpose::Fallback, 4);
    let views = [
        View::Full(Full { precision: Precision::F32 as i32 }),
        View::Nucleus(Nucleus { warp: Some(warp()), cap: 0 }),
        View::Sample(Sample { warp: Some(warp()), u }),
        View::Gather(Gather { warp: Some(warp()), ids: vec![0, 9, 300], each: false }),
    ];
    let rows = views.into_iter().map(|view| RowRequest { offset: 4, view: Some(view) }).collect();
    let extend = Extend {
        session: SessionId::random().to_wire(),
        at: 0,
        tokens: vec![3, 50, 70, 9],
        rows,
        ..Extend::default()
    };
    let rows = wire.rows(extend).await;
    let expected = Distribution::from_logits(&logits(&rows[0]), &warp().try_into().unwrap()).unwrap();
    match &rows[1..] {
        [Content::Nucleus(nucleus), Content::Sampled(sampled), Content::Gathered(gathered)] => {
            assert!(nucleus.complete);
            assert_eq!(nucleus.ids, expected.ids());
            assert_eq!(nucleus.probabilities, expected.probabilities());
            assert_eq!(sampled.id, expected.sample(u));
            assert_eq!(sampled.probability, expected.probability(sampled.id));
            assert_eq!(gathered.probabilities, [0, 9, 300].map(|id| expected.probability(id)));
        }
        other => panic!("{other:?}"),
    }
}

/// A worker of the demo's base model that keeps to `cpus`, ready.
async fn worker_on(cpus: &CpuSet, logs: &Path) -> (Process, Channel) {
    let patience = Duration::from_secs(60);
    let mut command = Command::new(cosec_tests::cluster::binaries().join("cosec-worker"));
    command.args(["serve", "--role", "base", "--listen", "127.0.0.1:0", "--cpus", &cpus.to_string(), "--model"]);
    command.arg(cosec_tests::cluster::root().join("deploy/demo-pair/base"));
    let mut worker = Process::start("worker", &mut command, logs).unwrap();
    let address = worker.announced("listening on ", Instant::now() + patience).await.unwrap();
    let channel = transport::channel(&address).unwrap();
    let ready = async {
        while WorkerClient::new(channel.clone()).describe(DescribeRequest {}).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(patience, ready).await.unwrap();
    (worker, channel)
}

/// Names of the threads of a process, and the CPUs that they may run on.
fn threads_of(process: &Process) -> Vec<(String, CpuSet)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id().unwrap())).unwrap();
    // A thread may end meanwhile.
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    let of = |status: String| {
        let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap().trim().to_owned();
        (field("Name:"), field("Cpus_allowed_list:").parse().unwrap())
    };
    statuses.map(of).collect()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn workers_keep_to_their_cpus_and_compute_the_same() {
    let all = CpuSet::available().unwrap();
    let mut answers = Vec::new();
    for cpus in all.each().take(2).chain([all.clone()]) {
        let logs = TempDir::new().unwrap();
        let (worker, channel) = worker_on(&cpus, logs.path()).await;
        let tokens = (10..80).collect();
        let session = SessionId::random().to_wire();
        let extend = Extend { session, at: 0, tokens, rows: vec![full(70)], ..Extend::default() };
        answers.push(Wire::open(channel).await.rows(extend).await);
        let threads = threads_of(&worker);
        assert!(threads.iter().all(|(_, place)| place.is_within(&cpus)), "{threads:?} on {cpus}");
        for (index, cpu) in cpus.each().enumerate() {
            let name = if index == 0 { "engine".to_owned() } else { format!("kernels-{index}") };
            assert!(threads.contains(&(name, cpu)), "{threads:?} on {cpus}");
        }
    }
    assert!(answers.iter().all(|answer| answer == &answers[0]));
}
