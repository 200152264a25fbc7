//! Bounds of what is taken in, as the operator sets them.

use schemars::JsonSchema;
use serde::Deserialize;

/// `[admission]` in the configuration: bounds of what is taken in.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionLimits {
    /// Most sessions (choices) that decode at the same time. While others wait, a client keeps no more of these turns
    /// than its fair part.
    pub max_sessions: usize,
    /// Most sessions that wait for their turn; one more is refused as overloaded. A single client gets at most four
    /// times what is free, so four fifths of these places when it is alone.
    pub max_queued_sessions: usize,
    /// Most tokens (prompts, and the most new ones) of the sessions that wait; a session that would add more is
    /// refused. A single client gets at most four times what is free.
    pub max_queued_tokens: u64,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self { max_sessions: 64, max_queued_sessions: 256, max_queued_tokens: 1_000_000 }
    }
}
