//! Sessions that lose their cache, are cancelled and go back see the same bits as one that is alone.

use std::path::Path;

use cosec_proto::SessionId;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_worker::limits::EngineOptions;
use cosec_worker::model::ModelRunner;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fake_model::logits;
use crate::golden_rows::load_options;
use crate::harness::{Harness, Wire, draft, extend, full_rows, options, release};

const SESSIONS: usize = 12;

/// A quarter of what the sessions come to need.
const BLOCKS: usize = 72;

/// The tokens of a session, and the lengths at which it reads the logits after them.
#[derive(Debug)]
struct Script {
    tokens: Vec<u32>,
    lengths: Vec<usize>,
}

fn scripts(random: &mut StdRng) -> Vec<Script> {
    let prompts: Vec<Vec<u32>> = (0..4)
        .map(|_| {
            let length = random.random_range(20..60);
            (0..length).map(|_| random.random_range(0..280)).collect()
        })
        .collect();
    (0..SESSIONS)
        .map(|index| {
            let mut tokens = prompts[index % prompts.len()].clone();
            let mut lengths = Vec::new();
            while tokens.len() < 96 {
                lengths.push(tokens.len());
                tokens.extend((0..random.random_range(1..9)).map(|_| random.random_range(0..280_u32)));
            }
            Script { tokens, lengths }
        })
        .collect()
}

/// What a coordinator does: it believes in what it has fed, and feeds again what the worker says is gone.
struct Client {
    wire: Wire,
    session: SessionId,
    cached: usize,
    random: StdRng,
}

impl Client {
    /// Reads the logits after `tokens`.
    async fn row(&mut self, tokens: &[u32]) -> Vec<f32> {
        loop {
            let at = self.cached.min(tokens.len() - 1);
            let to = if self.random.random_bool(0.5) {
                tokens.len()
            } else {
                self.random.random_range(at + 1..=tokens.len())
            };
            let offsets = if to == tokens.len() { vec![(to - at) as u32] } else { Vec::new() };
            match self.wire.run(extend(self.session, at as u32, &tokens[at..to], &offsets)).await {
                Outcome::NeedPrefix(need) => self.rewind(need.have, at),
                outcome => {
                    self.cached = to;
                    let mut rows = full_rows(&outcome).unwrap_or_else(|| panic!("{outcome:?}"));
                    if let Some(row) = rows.pop() {
                        return row;
                    }
                }
            }
        }
    }

    /// Drafts something that will be rolled back, and may think better of it.
    async fn detour(&mut self) {
        let at = self.cached;
        let tokens: Vec<u32> =
            (0..self.random.random_range(1..6)).map(|_| self.random.random_range(0..280)).collect();
        let op = self.wire.send(draft(self.session, at as u32, &tokens, self.random.random_range(1..6)), 0).await;
        if self.random.random_bool(0.5) {
            tokio::task::yield_now().await;
            self.wire.cancel(op).await;
        }
        match self.wire.answer(op).await {
            Outcome::NeedPrefix(need) => self.rewind(need.have, at),
            Outcome::Drafted(_) => {}
            Outcome::Failure(failure) => assert_eq!(failure.code, "cancelled", "{failure:?}"),
            other => panic!("{other:?}"),
        }
    }

    fn rewind(&mut self, have: u32, at: usize) {
        assert!((have as usize) < at, "{have} of {at}");
        self.cached = have as usize;
    }
}

async fn run(wire: Wire, script: &Script, seed: u64) -> Vec<Vec<f32>> {
    let mut client = Client { wire, session: SessionId::random(), cached: 0, random: StdRng::seed_from_u64(seed) };
    let mut rows = Vec::new();
    for &length in &script.lengths {
        rows.push(client.row(&script.tokens[..length]).await);
        if client.random.random_bool(0.4) {
            client.detour().await;
        }
    }
    client.wire.run(release(client.session)).await;
    rows
}

/// Runs all scripts at once, and checks what they see and that nothing is left behind.
async fn check(harness: &Harness, scripts: &[Script], expected: &[Vec<Vec<f32>>], seed: u64) {
    let mut wires = Vec::new();
    for _ in scripts {
        wires.push(harness.wire().await);
    }
    let sessions = wires.into_iter().zip(scripts).zip(seed..).map(|((wire, script), seed)| run(wire, script, seed));
    for (index, rows) in join_all(sessions).await.into_iter().enumerate() {
        assert!(rows == expected[index], "session {index}, seed {seed}");
    }
    let described = harness.describe().await;
    assert_eq!((described.sessions, described.queued_tokens), (0, 0), "seed {seed}");
    assert_eq!(described.free_blocks as usize, BLOCKS, "seed {seed}");
    let figures = harness.metrics().await;
    for figure in ["preemptions_total", "shared_prefix_tokens_total"] {
        let none = format!("cosec_worker_{figure}{{role=\"expert\"}} 0\n");
        assert!(figures.contains(figure) && !figures.contains(&none), "no {figure}, seed {seed}");
    }
}

fn scarce(step_tokens: usize) -> EngineOptions {
    EngineOptions { blocks: BLOCKS, step_tokens, ..options() }
}

#[tokio::test]
async fn no_session_notices_that_the_cache_holds_a_quarter_of_all() {
    for _ in 0..4 {
        let seed: u64 = rand::random::<u32>().into();
        println!("seed {seed}");
        let scripts = scripts(&mut StdRng::seed_from_u64(seed));
        let row = |script: &Script, length: usize| logits(&script.tokens[..length]);
        let expected: Vec<_> =
            scripts.iter().map(|script| script.lengths.iter().map(|&length| row(script, length)).collect()).collect();
        check(&Harness::start(scarce(24)).await, &scripts, &expected, seed).await;
    }
}

#[tokio::test]
async fn a_real_model_gives_the_same_bits_under_any_chunking_sharing_and_preemption() {
    let seed: u64 = rand::random::<u32>().into();
    println!("seed {seed}");
    let scripts = scripts(&mut StdRng::seed_from_u64(seed));
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints/llama-gqa-tied");
    let start = async |options: EngineOptions| {
        let model = ModelRunner::load(&directory, &load_options(&options)).unwrap();
        Harness::start_model(model, options).await
    };
    let alone = start(options()).await;
    let mut wire = alone.wire().await;
    let mut expected = Vec::new();
    for script in &scripts {
        let session = SessionId::random();
        let offsets: Vec<u32> = script.lengths.iter().map(|&length| length as u32).collect();
        expected.push(wire.rows(session, 0, &script.tokens, &offsets).await);
        wire.run(release(session)).await;
    }
    check(&start(scarce(19)).await, &scripts, &expected, seed).await;
}
