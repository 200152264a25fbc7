//! Memory of a forward pass, kept from one to the next.

use crate::logits_view::{LogitsTask, TaskResult};
use crate::model::BatchItem;

/// Memory of a forward pass, kept from one to the next.
#[derive(Debug, Default)]
pub(crate) struct PassMemory {
    pub(super) batch: Vec<BatchItem<'static>>,
    /// In the order of the slices, then of their tokens.
    pub(super) tasks: Vec<LogitsTask<'static>>,
    /// In the same order; may be longer than the pass has tasks.
    pub(super) found: Vec<TaskResult>,
}
