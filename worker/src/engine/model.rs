//! What the engine needs of a model.

use crate::model_runner::{BatchItem, ForwardError, ModelDescription, ModelRunner};

/// A model with a paged KV cache: one batch in, logits out.
pub trait Model: Send + 'static {
    /// What the model is.
    fn description(&self) -> &ModelDescription;

    /// Caches the tokens of `batch` and shows the wanted rows of logits, `[vocabulary]` each, to `visit`, in the order
    /// of the items, then of their rows.
    ///
    /// # Errors
    /// [`ForwardError`]; then the cache of the batch's new tokens is undefined and that of all others as it was.
    fn forward(&mut self, batch: &[BatchItem<'_>], visit: &mut dyn FnMut(&[f32])) -> Result<(), ForwardError>;
}

impl Model for ModelRunner {
    fn description(&self) -> &ModelDescription {
        self.description()
    }

    fn forward(&mut self, batch: &[BatchItem<'_>], visit: &mut dyn FnMut(&[f32])) -> Result<(), ForwardError> {
        let logits = self.forward(batch)?;
        (0..logits.len()).for_each(|index| visit(logits.row(index)));
        Ok(())
    }
}
