//! Sizes and times of an engine, and the limits for operations that follow from them.

use std::time::Duration;

use cosec_proto::WorkerLimits;
use cosec_proto::limits::MAX_OPERATION_TOKENS;

use crate::model::ModelDescription;

/// Sizes and times of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Blocks of the model's KV cache.
    pub blocks: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Most tokens of one forward pass.
    pub step_tokens: usize,
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// Most unanswered operations.
    pub max_operations: usize,
    /// A session that is not heard of for so long is released.
    pub lease: Duration,
}

impl EngineOptions {
    /// What operations on `model` must keep to.
    pub(crate) fn limits(&self, model: &ModelDescription) -> WorkerLimits {
        let capacity = self.blocks.saturating_mul(self.block_tokens);
        let count = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let context_tokens = count(model.context_tokens.min(capacity));
        let operation_tokens = context_tokens.min(MAX_OPERATION_TOKENS);
        WorkerLimits { vocabulary: count(model.vocabulary), context_tokens, operation_tokens }
    }
}
