//! A model whose logits are a hash of the history that it finds through the block table.
//!
//! Tokens live in paged memory of its own, so a block that is shared, lost or in the wrong place changes the logits.
//! The scheduler's tests inside the crate use it, too.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use std::time::Duration;

use cosec_worker::engine::LanguageModel;
use cosec_worker::logits_view::{BufferPool, KeptLogits, LogitsTask};
use cosec_worker::model::{BatchItem, ForwardError, ModelDescription};

pub(crate) const VOCABULARY: usize = 300;
pub(crate) const CONTEXT_TOKENS: usize = 1000;

/// Repeats to a tokenizer of more than two pieces.
pub(crate) const TOKENIZER: &[u8] = b"tokenizer";

/// The logits after it are not numbers.
pub(crate) const NAN_TOKEN: u32 = 290;
/// A batch with it is refused.
pub(crate) const ERROR_TOKEN: u32 = 291;
/// A batch with it kills the engine.
pub(crate) const PANIC_TOKEN: u32 = 292;

/// What the model answers after `history`.
pub(crate) fn logits(history: &[u32]) -> Vec<f32> {
    if history.last() == Some(&NAN_TOKEN) {
        return vec![f32::NAN; VOCABULARY];
    }
    let mut hasher = DefaultHasher::new();
    history.hash(&mut hasher);
    let mut state = hasher.finish();
    (0..VOCABULARY as u32)
        .map(|id| {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            // These tokens are never drafted.
            if id >= NAN_TOKEN { f32::NEG_INFINITY } else { ((mixed >> 40) as f32) / ((1 << 24) as f32) * 8.0 - 4.0 }
        })
        .collect()
}

/// A token that was fed under `adapter`, as it stands in the history.
pub(crate) fn adapted(adapter: Option<usize>, token: u32) -> u32 {
    token + 1000 * adapter.map_or(0, |index| index as u32 + 1)
}

/// Holds forward passes back while it is closed, and counts those that came.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    /// Passes let through although it is closed.
    permits: usize,
    /// Tokens of each item of each pass.
    passes: Vec<Vec<Vec<u32>>>,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().closed = false;
        self.changed.notify_all();
    }

    /// Lets one pass through.
    pub(crate) fn open_once(&self) {
        self.state.lock().permits += 1;
        self.changed.notify_all();
    }

    /// Tokens per item of every pass so far, one that is held back included.
    pub(crate) fn passes(&self) -> Vec<Vec<usize>> {
        self.tokens().iter().map(|pass| pass.iter().map(Vec::len).collect()).collect()
    }

    /// Tokens of each item of every pass so far.
    pub(crate) fn tokens(&self) -> Vec<Vec<Vec<u32>>> {
        self.state.lock().passes.clone()
    }

    /// Waits until so many passes have come.
    pub(crate) async fn reached(&self, passes: usize) {
        while self.state.lock().passes.len() < passes {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn pass(&self, tokens: Vec<Vec<u32>>) {
        let mut state = self.state.lock();
        state.passes.push(tokens);
        while state.closed && state.permits == 0 {
            self.changed.wait(&mut state);
        }
        if state.closed {
            state.permits -= 1;
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FakeModel {
    description: ModelDescription,
    memory: Vec<Option<u32>>,
    block_tokens: usize,
    gate: Arc<Gate>,
    /// How long every pass takes.
    pub(crate) pass_time: Duration,
}

impl FakeModel {
    pub(crate) fn new(blocks: usize, block_tokens: usize, gate: Arc<Gate>) -> Self {
        let description = ModelDescription {
            family: "fake".to_owned(),
            parameters: 0,
            vocabulary: VOCABULARY,
            context_tokens: CONTEXT_TOKENS,
            end_token_ids: vec![0, 7],
            fingerprint: "f".repeat(64),
            tokenizer_fingerprint: "e".repeat(64),
            kv_bytes_per_token: 4,
            adapters: vec!["polite".to_owned(), "terse".to_owned()],
            adapter_fingerprints: vec!["a".repeat(64), "b".repeat(64)],
            tokenizer: Some(TOKENIZER.repeat(300_000).into()),
        };
        Self { description, memory: vec![None; blocks * block_tokens], block_tokens, gate, pass_time: Duration::ZERO }
    }

    fn slot(&self, blocks: &[u32], position: usize) -> usize {
        blocks[position / self.block_tokens] as usize * self.block_tokens + position % self.block_tokens
    }
}

impl LanguageModel for FakeModel {
    fn description(&self) -> &ModelDescription {
        &self.description
    }

    fn forward(&mut self, batch: &[BatchItem<'_>], tasks: &mut [LogitsTask<'_>]) -> Result<Duration, ForwardError> {
        std::thread::sleep(self.pass_time);
        self.gate.pass(batch.iter().map(|item| item.tokens.to_vec()).collect());
        assert!(batch.iter().all(|item| !item.tokens.contains(&PANIC_TOKEN)), "told to panic");
        if let Some(item) = batch.iter().position(|item| item.tokens.contains(&ERROR_TOKEN)) {
            return Err(ForwardError::InvalidItem { item, problem: "told to fail".to_owned() });
        }
        // All are written before any is read: a block in two tables shows.
        for item in batch {
            assert!(!item.tokens.is_empty());
            for (index, &token) in item.tokens.iter().enumerate() {
                let slot = self.slot(item.blocks, item.start + index);
                self.memory[slot] = Some(adapted(item.adapter, token));
            }
        }
        let mut tasks = tasks.iter_mut();
        for item in batch {
            for row in item.rows.clone() {
                let history: Vec<u32> = (0..=item.start + row)
                    .map(|position| self.memory[self.slot(item.blocks, position)].unwrap_or(u32::MAX))
                    .collect();
                tasks.next().unwrap().read(&logits(&history), &BufferPool::default());
            }
        }
        Ok(Duration::ZERO)
    }

    fn read_kept(&mut self, row: &KeptLogits, task: &mut LogitsTask<'_>) -> Result<(), ForwardError> {
        task.read(row.logits().unwrap(), &BufferPool::default());
        Ok(())
    }
}
