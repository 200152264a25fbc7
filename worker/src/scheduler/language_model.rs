//! What the scheduler needs of a model.

use std::time::Duration;

use crate::logits_view::{KeptLogits, LogitsTask};
use crate::model::{BatchItem, ForwardError, ModelDescription, ModelRunner};

/// A model with a paged KV cache: one batch in, and out what is wanted of its logits.
pub trait LanguageModel: Send + 'static {
    /// What the model is.
    fn description(&self) -> &ModelDescription;

    /// Caches the tokens of `batch` and reads from the i-th wanted logits what `tasks[i]` wants, in the order of the
    /// items, then of their positions. Returns how much of the time went into reading.
    ///
    /// # Errors
    /// [`ForwardError`]; then the cache of the batch's new tokens is undefined and that of all others as it was.
    fn forward(&mut self, batch: &[BatchItem<'_>], tasks: &mut [LogitsTask<'_>]) -> Result<Duration, ForwardError>;

    /// Takes what `task` wants of logits that were kept.
    ///
    /// # Errors
    /// [`ForwardError::Kernel`].
    fn read_kept(&mut self, row: &KeptLogits, task: &mut LogitsTask<'_>) -> Result<(), ForwardError>;
}

impl LanguageModel for ModelRunner {
    fn description(&self) -> &ModelDescription {
        self.description()
    }

    fn forward(&mut self, batch: &[BatchItem<'_>], tasks: &mut [LogitsTask<'_>]) -> Result<Duration, ForwardError> {
        self.forward_rows(batch, tasks)
    }

    fn read_kept(&mut self, row: &KeptLogits, task: &mut LogitsTask<'_>) -> Result<(), ForwardError> {
        self.read_kept(row, task)
    }
}
