//! What the engine needs of a model.

use crate::model_runner::{BatchItem, ForwardError, ModelDescription, ModelRunner};

/// A model with a paged KV cache: one batch in, logits out.
pub trait Model: Send + 'static {
    /// What the model is.
    fn description(&self) -> &ModelDescription;

    /// Caches the tokens of `batch` and shows row i of the wanted rows of logits, `[vocabulary]` each, in the order of the
    /// items, then of their rows, to `read` with `readers[i]`; on as many threads as there are.
    ///
    /// # Errors
    /// [`ForwardError`]; then the cache of the batch's new tokens is undefined and that of all others as it was.
    fn forward<R: Send>(
        &mut self,
        batch: &[BatchItem<'_>],
        readers: &mut [R],
        read: impl Fn(&mut R, &[f32]) + Sync,
    ) -> Result<(), ForwardError>;
}

impl Model for ModelRunner {
    fn description(&self) -> &ModelDescription {
        self.description()
    }

    fn forward<R: Send>(
        &mut self,
        batch: &[BatchItem<'_>],
        readers: &mut [R],
        read: impl Fn(&mut R, &[f32]) + Sync,
    ) -> Result<(), ForwardError> {
        self.forward(batch)?;
        self.read_rows(readers, read);
        Ok(())
    }
}
