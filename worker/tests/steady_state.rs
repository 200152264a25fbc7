//! The engine's threads allocate nothing while sessions decode.
//!
//! Counts the allocations of every thread except the test's own, from the moment an operation is in the engine's inbox
//! to its answer: scheduling, batching, the forward pass of a real model, reading the rows, sampling, block tables, the
//! kept row, metrics, the answer. Does not count the caller's own thread: building the request with room for its
//! answer, the channel of the answer, gRPC. Probabilities of a Gather are the message itself: one vector a view.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cosec_proto::metrics::MetricRegistry;
use cosec_proto::sampling::{SamplingParams, SamplingSeed};
use cosec_proto::{LogitsRequest, LogitsView, Operation, OperationKind, OperationOutcome, SessionId};
use cosec_worker::engine::{self, EngineHandle};
use cosec_worker::limits::EngineOptions;
use cosec_worker::metrics::WorkerMetrics;
use cosec_worker::model::{CacheSize, DeviceChoice, DtypeChoice, KvDtype, LoadOptions, ModelRunner};
use cosec_worker::operation::OperationRequest;

thread_local! {
    static IS_CALLER: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `memory` came from `System` with this layout.
        unsafe { System.realloc(memory, layout, size) }
    }
}

fn count() {
    if !IS_CALLER.with(Cell::get) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SESSIONS: usize = 8;

fn start() -> EngineHandle {
    let options = EngineOptions {
        blocks: 512,
        block_tokens: 16,
        step_tokens: 64,
        max_sessions: 64,
        max_operations: 64,
        lease: Duration::from_secs(600),
    };
    let load = LoadOptions {
        tokenizer: None,
        device: DeviceChoice::Cpu,
        adapter: None,
        lora: Vec::new(),
        dtype: DtypeChoice::Auto,
        quantize: None,
        kv_dtype: KvDtype::Auto,
        cache: CacheSize::Blocks(options.blocks),
        block_tokens: options.block_tokens,
        threads: 2,
        cpus: None,
    };
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints/llama-gqa-tied");
    let model = ModelRunner::load(&directory, &load).unwrap();
    engine::start(model, options, Arc::new(WorkerMetrics::register(&MetricRegistry::default()).unwrap())).unwrap()
}

/// Runs one operation on each session at once.
fn run(engine: &EngineHandle, runtime: &tokio::runtime::Runtime, sessions: &[SessionId], operation: &Operation) {
    let now = Instant::now();
    let request = |&session| OperationRequest {
        operation: Operation { session, ..operation.clone() },
        adapter: None,
        stream: 0,
        received: now,
        deadline: now + Duration::from_secs(60),
    };
    let tickets: Vec<_> = sessions.iter().map(|session| engine.submit(request(session)).unwrap()).collect();
    for ticket in tickets {
        let answer = runtime.block_on(EngineHandle::answer(ticket));
        let outcome = answer.result.unwrap();
        assert!(matches!(outcome, OperationOutcome::Extended(_) | OperationOutcome::Drafted { .. }), "{outcome:?}");
    }
}

fn operation(at: u32, tokens: Vec<u32>, kind: OperationKind) -> Operation {
    Operation { session: SessionId::random(), adapter: String::new(), tenant: 0, at, tokens, kind }
}

/// Drafts, verifications and samples after `at`; each is rolled back by the next round.
fn round(at: u32) -> [(Operation, usize); 4] {
    let sampling = SamplingParams::new(0.8, 0.95, 0).unwrap();
    let seed = SamplingSeed { seed: 5, sample: 0 };
    let draft = |at, tokens, k| operation(at, tokens, OperationKind::Draft { k, sampling, seed, logits: Vec::new() });
    let request = |offset, view| LogitsRequest { offset, view };
    let gather = LogitsView::Gather { sampling: SamplingParams::RAW, ids: vec![1, 2] };
    let gathers = (1..4).map(|offset| request(offset, gather.clone())).collect();
    let sample = vec![request(1, LogitsView::Sample { sampling, u: 0.5 })];
    [
        (draft(at, vec![3], 1), 0),
        (draft(at + 1, vec![4, 5], 4), 0),
        (operation(at + 1, vec![6, 7, 8], OperationKind::Extend { logits: gathers }), 3),
        (operation(at + 4, vec![9], OperationKind::Extend { logits: sample }), 0),
    ]
}

#[test]
fn a_step_of_decoding_sessions_allocates_nothing() {
    IS_CALLER.with(|is_caller| is_caller.set(true));
    let engine = start();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let sessions: Vec<SessionId> = (0..SESSIONS).map(|_| SessionId::random()).collect();
    run(&engine, &runtime, &sessions, &operation(0, vec![1; 30], OperationKind::Extend { logits: Vec::new() }));
    let count_round = |at: u32| {
        let (before, mut payloads) = (ALLOCATIONS.load(Ordering::SeqCst), 0);
        for (operation, vectors) in round(at) {
            run(&engine, &runtime, &sessions, &operation);
            payloads += vectors * SESSIONS;
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before - payloads
    };
    println!("{} while buffers grow", (0..40).map(|_| count_round(30)).sum::<usize>());
    // Operations share steps by chance, so a buffer may still reach a new maximum; allocations of every
    // step would show in every stretch.
    let stretches: Vec<usize> =
        (0..4).map(|stretch| (0..8).map(|round| count_round(30 + 5 * (8 * stretch + round))).sum()).collect();
    println!("{stretches:?}");
    assert!(stretches.contains(&0), "{stretches:?}");
}
