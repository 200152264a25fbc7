//! What operations must keep to.

/// Most tokens of one draft.
pub const MAX_DRAFT_TOKENS: u32 = 64;

/// Most survivors of a nucleus that names no cap, and to ask for: 48 KiB at 12 bytes each, less than all logits of any
/// code model.
pub const NUCLEUS_CAP: u32 = 4096;

/// Most requests for the logits of one position: more would only repeat views.
pub const REQUESTS_PER_POSITION: usize = 4;

/// Most tokens of one operation on any worker.
pub const MAX_OPERATION_TOKENS: u32 = 8192;

/// What the operations on one worker must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Token ids are below it; also the number of logits of a position.
    pub vocabulary: u32,
    /// Longest sequence: what the model can do and the cache holds.
    pub context_tokens: u32,
    /// Most tokens of one operation.
    pub operation_tokens: u32,
}
