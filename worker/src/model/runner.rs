//! Batches in, logits out.
//!
//! Owns the weights, the paged KV cache and the scratch memory of a forward pass. Which block belongs to
//! which sequence is decided elsewhere; a batch carries block tables.

use std::ops::Range;
use std::path::Path;
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::load::{LoadOptions, ModelDescription, ModelLoadError};
use super::placed_decoder::PlacedDecoder;
use crate::decoder::{AdaptedRows, DecoderBatch};
use crate::kernels::{KernelError, TokenPlace};
use crate::logits_view::{KeptLogits, LogitsTask};

/// Tokens of one sequence in a batch.
#[derive(Clone, Debug)]
pub struct BatchItem<'a> {
    /// New tokens; at least one.
    pub tokens: &'a [u32],
    /// Tokens of the sequence that are already cached.
    pub start: usize,
    /// Block table covering `start + tokens.len()` tokens.
    pub blocks: &'a [u32],
    /// Indices into `tokens` whose logits are wanted: row i is the distribution after `tokens[i]`.
    pub rows: Range<usize>,
    /// Index into [`ModelDescription::adapters`] of the adapter to apply.
    pub adapter: Option<usize>,
}

/// Logits of one forward pass, in the order of the items, then of their rows.
#[derive(Clone, Copy, Debug)]
pub struct BatchLogits<'a> {
    values: &'a [f32],
    vocabulary: usize,
}

impl<'a> BatchLogits<'a> {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.vocabulary
    }

    /// Whether no row was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Row `index`, `[vocabulary]`.
    ///
    /// # Panics
    /// When `index` is out of range.
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.vocabulary..][..self.vocabulary]
    }
}

/// Why a batch was not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum ForwardError {
    /// The batch contradicts the model or itself: a defect of the caller. Nothing was computed.
    #[error("batch item {item}: {problem}")]
    InvalidItem { item: usize, problem: String },
    /// The device failed; what the cache holds for the new tokens of the batch is undefined.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A model in memory with its KV cache.
pub struct ModelRunner {
    decoder: PlacedDecoder,
    description: ModelDescription,
    /// Memory of the last batch.
    batch: DecoderBatch<'static>,
    logits: Vec<f32>,
    /// Thread of the last forward pass.
    caller: Option<ThreadId>,
}

impl ModelRunner {
    /// Loads the checkpoint at a path: see [`Checkpoint::open`](super::Checkpoint::open).
    ///
    /// # Errors
    /// [`ModelLoadError`] names file, field or tensor, what was found and what is allowed.
    pub fn load(directory: &Path, options: &LoadOptions) -> Result<Self, ModelLoadError> {
        let (option, value) = ("block_tokens", options.block_tokens);
        if !(1..=u32::MAX as usize).contains(&value) {
            return Err(ModelLoadError::Option { option, value, expected: "a number from 1 to 4294967295" });
        }
        let (decoder, description) = PlacedDecoder::load(directory, options)?;
        Ok(Self { decoder, description, batch: DecoderBatch::default(), logits: Vec::new(), caller: None })
    }

    /// What the model is.
    #[must_use]
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// Blocks of the KV cache.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.decoder.cache_shape().blocks
    }

    /// Runs the model over all new tokens of `batch` and caches their keys and values.
    ///
    /// A row's logits are the same bits whatever else is in the batch and however the sequence was chunked. No two
    /// items may write to the same block.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub fn forward(&mut self, batch: &[BatchItem<'_>]) -> Result<BatchLogits<'_>, ForwardError> {
        let mut logits = std::mem::take(&mut self.logits);
        let done = self.run(batch, |decoder, rows| decoder.forward(rows, &mut logits));
        self.logits = logits;
        done?;
        Ok(BatchLogits { values: &self.logits, vocabulary: self.description.vocabulary })
    }

    /// Like [`Self::forward`], but runs `tasks[i]` on the logits of wanted row i. Returns how long that took after the
    /// forward pass.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub fn forward_rows(
        &mut self,
        batch: &[BatchItem<'_>],
        tasks: &mut [LogitsTask<'_>],
    ) -> Result<Duration, ForwardError> {
        self.run(batch, |decoder, rows| decoder.forward_rows(rows, tasks))
    }

    /// Runs `task` on a kept row.
    ///
    /// # Errors
    /// [`ForwardError::Kernel`].
    pub fn read_kept(&mut self, row: &KeptLogits, task: &mut LogitsTask<'_>) -> Result<(), ForwardError> {
        Ok(self.decoder.read_kept(row, task)?)
    }

    /// Checks `batch` and calls `forward` with its rows.
    fn run<T>(
        &mut self,
        batch: &[BatchItem<'_>],
        forward: impl FnOnce(&mut PlacedDecoder, &DecoderBatch<'_>) -> Result<T, KernelError>,
    ) -> Result<T, ForwardError> {
        let mut rows = std::mem::take(&mut self.batch).reused();
        for (index, item) in batch.iter().enumerate() {
            self.check(item).map_err(|problem| ForwardError::InvalidItem { item: index, problem })?;
            let (first, first_wanted) = (rows.tokens.len(), rows.wanted.len());
            rows.wanted.extend(item.rows.clone().map(|row| first + row));
            rows.tokens.extend_from_slice(item.tokens);
            let positions = item.start..item.start + item.tokens.len();
            rows.places.extend(positions.map(|position| TokenPlace { position, blocks: item.blocks }));
            if let Some(adapter) = item.adapter {
                adapt(&mut rows.adapted, adapter, first..rows.tokens.len());
                adapt(&mut rows.adapted_wanted, adapter, first_wanted..rows.wanted.len());
            }
        }
        let caller = thread::current().id();
        if self.caller.replace(caller) != Some(caller) {
            self.decoder.pin_caller();
        }
        let done = forward(&mut self.decoder, &rows);
        self.batch = rows.reused();
        Ok(done?)
    }

    fn check(&self, item: &BatchItem<'_>) -> Result<(), String> {
        let BatchItem { tokens, start, blocks, rows, adapter } = item;
        let ModelDescription { vocabulary, context_tokens, .. } = self.description;
        let cache = self.decoder.cache_shape();
        let end = start.saturating_add(tokens.len());
        if let Some(adapter) = adapter.filter(|&index| index >= self.description.adapters.len()) {
            let adapters = self.description.adapters.len();
            return Err(format!("adapter is {adapter}; the model has {adapters} adapters"));
        }
        if tokens.is_empty() {
            return Err("tokens is empty; at least one is needed".to_owned());
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(format!("tokens has {token}; the vocabulary ends at {vocabulary}"));
        }
        if end > context_tokens {
            return Err(format!("start + tokens is {end}; the context is {context_tokens} tokens"));
        }
        if blocks.len() < end.div_ceil(cache.block_tokens) {
            let (have, size) = (blocks.len(), cache.block_tokens);
            return Err(format!("blocks has {have} of {size} tokens; {end} tokens are to be covered"));
        }
        if let Some(block) = blocks.iter().find(|&&block| block as usize >= cache.blocks) {
            return Err(format!("blocks has {block}; the cache ends at {}", cache.blocks));
        }
        if rows.start > rows.end || rows.end > tokens.len() {
            return Err(format!("rows is {rows:?}; there are {} tokens", tokens.len()));
        }
        Ok(())
    }
}

/// Adds `rows` to those of `adapter`.
fn adapt(adapted: &mut Vec<AdaptedRows>, adapter: usize, rows: Range<usize>) {
    match adapted.iter_mut().find(|known| known.adapter == adapter) {
        Some(known) => known.rows.extend(rows),
        None => adapted.push(AdaptedRows { adapter, rows: rows.collect() }),
    }
}
