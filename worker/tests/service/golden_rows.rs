//! Real checkpoints behind the socket: the logits that transformers computed, and the same bits in any company.

use std::path::{Path, PathBuf};

use cosec_proto::SessionId;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_worker::limits::EngineOptions;
use cosec_worker::model::{CacheSize, DeviceChoice, DtypeChoice, KvDtype, LoadOptions, ModelRunner};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use crate::harness::{Harness, Wire, draft, extend, full_rows, options, release};

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    input_ids: Vec<u32>,
    last_logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

fn prompts(name: &str) -> Vec<Prompt> {
    let text = std::fs::read_to_string(golden(name).join("expected.json")).unwrap();
    serde_json::from_str::<Expected>(&text).unwrap().prompts
}

pub(crate) fn load_options(options: &EngineOptions) -> LoadOptions {
    LoadOptions {
        device: DeviceChoice::Cpu,
        adapter: None,
        lora: Vec::new(),
        dtype: DtypeChoice::Auto,
        tokenizer: None,
        quantize: None,
        kv_dtype: KvDtype::Auto,
        cache: CacheSize::Blocks(options.blocks),
        block_tokens: options.block_tokens,
        threads: 2,
        cpus: None,
    }
}

async fn serve(name: &str, step_tokens: usize) -> Harness {
    let options = EngineOptions { step_tokens, ..options() };
    Harness::start_model(ModelRunner::load(&golden(name), &load_options(&options)).unwrap(), options).await
}

#[tokio::test]
async fn rows_are_those_of_the_reference() {
    for name in ["llama-linear-rope", "llama-gqa-tied", "codegen"] {
        let harness = serve(name, 8).await;
        let mut wire = harness.wire().await;
        for prompt in prompts(name) {
            let session = SessionId::random();
            let length = prompt.input_ids.len() as u32;
            let rows = wire.rows(session, 0, &prompt.input_ids, &[length]).await;
            let errors = rows[0].iter().zip(&prompt.last_logits).map(|(found, expected)| (found - expected).abs());
            let error = errors.fold(0.0, f32::max);
            assert!(rows[0].len() == prompt.last_logits.len() && error < 1e-4, "{name}: {error}");
            // The greedy continuation token by token, each after a rollback of a wrong one.
            for (position, pair) in (length..).zip(prompt.greedy.windows(2)) {
                wire.rows(session, position, &[1, 2, 3], &[]).await;
                let rows = wire.rows(session, position, &pair[..1], &[1]).await;
                let best = (0..rows[0].len()).max_by(|&a, &b| rows[0][a].total_cmp(&rows[0][b])).unwrap();
                assert_eq!(best as u32, pair[1], "{name}");
            }
        }
    }
}

/// What a session sees: the logits after its prompt, its drafts and the logits after them.
#[derive(Debug, PartialEq)]
struct Seen {
    prompt_row: Vec<f32>,
    drafted: Outcome,
    last_row: Vec<f32>,
}

async fn seen(wire: &mut Wire, ops: [u64; 3]) -> Seen {
    let [prompt, drafted, last] = ops;
    let prompt_row = full_rows(&wire.answer(prompt).await).unwrap().remove(0);
    let drafted = wire.answer(drafted).await;
    let last_row = full_rows(&wire.answer(last).await).unwrap().remove(0);
    Seen { prompt_row, drafted, last_row }
}

async fn ask(wire: &mut Wire, session: SessionId, prompt: &[u32]) -> [u64; 3] {
    let length = prompt.len() as u32;
    [
        wire.send(extend(session, 0, prompt, &[length]), 0).await,
        wire.send(draft(session, length, &[], 6), 0).await,
        wire.send(extend(session, length + 5, &[9], &[1]), 0).await,
    ]
}

#[tokio::test]
async fn a_session_sees_the_same_bits_alone_and_among_fifteen_others() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for name in ["llama-linear-rope", "codegen"] {
        let prompts: Vec<Vec<u32>> = (0..16)
            .map(|_| (0..random.random_range(1..120)).map(|_| random.random_range(0..300)).collect())
            .collect();
        let alone = serve(name, 512).await;
        let mut wire = alone.wire().await;
        let mut expected = Vec::new();
        for prompt in &prompts {
            let session = SessionId::random();
            let ops = ask(&mut wire, session, prompt).await;
            expected.push(seen(&mut wire, ops).await);
            wire.run(release(session)).await;
        }
        for step_tokens in [19, 300] {
            let crowded = serve(name, step_tokens).await;
            let mut wire = crowded.wire().await;
            let mut order: Vec<usize> = (0..prompts.len()).collect();
            order.shuffle(&mut random);
            let mut ops = Vec::new();
            for index in order {
                ops.push((index, ask(&mut wire, SessionId::random(), &prompts[index]).await));
            }
            for (index, ops) in ops {
                assert!(seen(&mut wire, ops).await == expected[index], "{name}, seed {seed}, prompt {index}");
            }
        }
    }
}
