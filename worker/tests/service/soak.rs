//! Ten thousand short sessions on a worker process, after which it is what it was.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::{DescribeRequest, DescribeResponse};
use cosec_proto::{SessionId, transport};
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::transport::Channel;

use crate::harness::{Wire, draft, extend, full_rows, release};

/// Sessions at a time, each on its own stream.
const AT_A_TIME: usize = 16;

const SESSIONS: usize = 10_000;

/// What an allocator may keep for itself.
const ALLOWANCE_KIB: u64 = 8 << 10;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// A worker with a tiny model and few blocks; its address.
    fn start() -> (Self, String) {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints/llama-gqa-tied");
        let mut child = Command::new(env!("CARGO_BIN_EXE_cosec-worker"))
            .args(["serve", "--role", "base", "--listen", "127.0.0.1:0", "--blocks", "96", "--block-tokens", "4"])
            .args(["--threads", "1", "--model"])
            .arg(model)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process = Self(child);
        let line = lines.next().unwrap().unwrap();
        (process, line.strip_prefix("listening on ").unwrap().to_owned())
    }

    /// Resident memory.
    fn kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

async fn sessions(channel: Channel, count: usize, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut wire = Wire::open(channel).await;
    for _ in 0..count {
        let session = SessionId::random();
        let prompt: Vec<u32> = (0..random.random_range(1..12)).map(|_| random.random_range(0..200)).collect();
        let length = prompt.len() as u32;
        // Without waiting, so that a preemption can fall between them.
        let ops = [
            wire.send(extend(session, 0, &prompt, &[length]), 0).await,
            wire.send(draft(session, length, &[7], 3), 0).await,
            wire.send(release(session), 0).await,
        ];
        assert!(full_rows(&wire.answer(ops[0]).await).is_some());
        assert!(matches!(wire.answer(ops[1]).await, Outcome::Drafted(_) | Outcome::NeedPrefix(_)));
        assert!(matches!(wire.answer(ops[2]).await, Outcome::Released(_)));
    }
}

async fn describe(channel: &Channel) -> Option<DescribeResponse> {
    Some(WorkerClient::new(channel.clone()).describe(DescribeRequest {}).await.ok()?.into_inner())
}

#[tokio::test]
async fn after_ten_thousand_sessions_memory_and_blocks_are_what_they_were() {
    let (process, address) = Process::start();
    let channel = transport::channel(&address).unwrap();
    let before = loop {
        if let Some(described) = describe(&channel).await {
            break described;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let run = async |count: usize, seed: u64| {
        join_all((0..AT_A_TIME as u64).map(|at| sessions(channel.clone(), count / AT_A_TIME, seed + at))).await;
    };
    // Buffers grow to what they need.
    run(1600, 0).await;
    let kib = process.kib();
    run(SESSIONS, 100).await;
    let after = describe(&channel).await.unwrap();
    assert_eq!((after.sessions, after.queued_tokens), (0, 0));
    assert_eq!((after.free_blocks, after.total_blocks), (before.free_blocks, 96));
    let grown = process.kib().saturating_sub(kib);
    println!("{kib} KiB, and {grown} KiB more after {SESSIONS} sessions");
    assert!(grown <= ALLOWANCE_KIB, "{grown} KiB more than {kib}");
}
