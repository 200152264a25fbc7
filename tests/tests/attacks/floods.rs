//! Streams of gRPC without number, and bodies that never end.

use std::time::Duration;

use cosec_launcher::{Cluster, Process};
use cosec_tests::cluster::demo;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::observation::{Bystander, in_full, peak_memory_mib, report};

/// Most that an attack may add to a process's memory, in MiB, besides what the bodies may take.
const SLACK_MIB: u64 = 96;

/// `body_memory_mib` as it is by default.
const BODIES_MIB: u64 = 256;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The kind of frame that begins a request or an answer.
const HEADERS: u8 = 1;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The head of a call of `path`, without its end.
fn head(stream: u32, path: &str) -> Vec<u8> {
    // POST and http by their index, the others as literals.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(4, path), (1, "x")] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    // content-type is number 31, as a literal 15 and 16 more.
    block.extend([0x0f, 0x10, 16]);
    block.extend(b"application/grpc");
    frame(HEADERS, 4, stream, &block)
}

/// The kinds of the frames that have come whole.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, ..] = *bytes {
        let length = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        let Some(rest) = bytes.get(length..) else { break };
        kinds.push(kind);
        bytes = rest;
    }
    kinds
}

/// Opens `streams` streams on one connection as fast as the other side takes them; how many it took before it closed.
async fn flood(address: &str, path: &str, streams: u32) -> u32 {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 1 << 16];
        while reader.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    writer.write_all(PREFACE).await.unwrap();
    let mut opened = 0;
    for batch in (0..streams).collect::<Vec<_>>().chunks(1000) {
        let heads: Vec<u8> = batch.iter().flat_map(|at| head(2 * at + 1, path)).collect();
        if !matches!(timeout(Duration::from_secs(5), writer.write_all(&heads)).await, Ok(Ok(()))) {
            break;
        }
        opened += batch.len() as u32;
    }
    // What has been opened is held for a while.
    tokio::time::sleep(Duration::from_secs(1)).await;
    reading.abort();
    opened
}

async fn streams_on(finding: &str, what: &str, address: &str, path: &str, process: &Process, http: &str) {
    let streams = if in_full() { 100_000 } else { 20_000 };
    let before = peak_memory_mib(process);
    let bystander = Bystander::start(http, None);
    let opened = flood(address, path, streams).await;
    let seen = bystander.stop().await;
    let memory = peak_memory_mib(process);
    report(finding, what, &format!("{opened} of {streams} sent, {before} -> {memory} MiB, {seen}"));
    assert!(memory < before + SLACK_MIB, "{what}: {before} -> {memory} MiB");
}

/// Heads of calls whose messages never come.
#[tokio::test]
async fn heads_of_calls() {
    let logs = TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let (coordinator, base, http) = (&cluster.coordinator, &cluster.base, &cluster.http);
    let generate = "/cosec.coordinator.v1.Coordinator/Generate";
    streams_on("B6", "calls of Generate without a message", &cluster.grpc, generate, coordinator, http).await;
    let watch = "/grpc.health.v1.Health/Watch";
    streams_on("B6", "watches of the coordinator's health", &cluster.grpc, watch, coordinator, http).await;
    let describe = "/cosec.worker.v1.Worker/Describe";
    streams_on("B6", "calls of Describe at a worker", &cluster.base_address, describe, base, http).await;
}

/// Without a key the message is not awaited, let alone read.
#[tokio::test]
async fn a_key_is_asked_for_before_the_message() {
    let logs = TempDir::new().unwrap();
    let mut config = demo(logs.path());
    let (file, keys) = (logs.path().join("coordinator.toml"), logs.path().join("keys.toml"));
    // SHA-256 of "key".
    let digest = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
    std::fs::write(&keys, format!("[[keys]]\nname = \"k\"\nsha256 = \"{digest}\"\n")).unwrap();
    std::fs::write(&file, format!("[api]\nrequire_key = true\nkeys_file = {keys:?}\n")).unwrap();
    config.coordinator_flags.extend(["--config".into(), file.into()]);
    let cluster = Cluster::start(&config, |_| ()).await.unwrap();
    let mut stream = TcpStream::connect(&cluster.grpc).await.unwrap();
    let generate = "/cosec.coordinator.v1.Coordinator/Generate";
    stream.write_all(&[PREFACE, &head(1, generate)].concat()).await.unwrap();
    let mut answer = Vec::new();
    let refused = async {
        while !kinds(&answer).contains(&HEADERS) {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
    };
    timeout(Duration::from_secs(10), refused).await.expect("the message was awaited");
}

/// Bodies that lack their last byte.
#[tokio::test]
async fn unfinished_bodies() {
    let logs = TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let process = &cluster.coordinator;
    // As long as the model's context allows.
    let length = (1 << 20) - 1;
    let bodies = if in_full() { 800 } else { 350 };
    let before = peak_memory_mib(process);
    let bystander = Bystander::start(&cluster.http, None);
    let address = cluster.http.trim_start_matches("http://");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        length + 1
    );
    let mut held = Vec::new();
    for _ in 0..bodies {
        let (address, head) = (address.to_owned(), head.clone());
        held.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = timeout(Duration::from_secs(20), stream.write_all(&vec![b' '; length])).await;
            // Those that are let wait hear nothing; the others an answer, or the end.
            let waits = timeout(Duration::from_secs(2), stream.read(&mut [0; 16])).await.is_err();
            (stream, waits)
        }));
    }
    let mut waiting = Vec::new();
    for one in held {
        let (stream, waits) = one.await.unwrap();
        if waits {
            waiting.push(stream);
        }
    }
    let refused = bodies - waiting.len();
    let seen = bystander.stop().await;
    let memory = peak_memory_mib(process);
    report(
        "B17",
        &format!("{bodies} bodies of 1 MiB less a byte"),
        &format!("{refused} refused, {before} -> {memory} MiB, {seen}"),
    );
    assert!(memory < before + BODIES_MIB + SLACK_MIB, "{before} -> {memory} MiB");
    assert!(refused > 0, "all were taken in");
}
