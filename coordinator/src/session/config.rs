//! How sessions decode, as the operator sets it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::speculation::settings::SpeculationMode;

/// `[sessions]` in the configuration.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// What to do while no expert can serve.
    pub expert_absent: ExpertAbsent,
    /// Whether the expert drafts several tokens that the base verifies at once: `off`, `fixed:K` or `adaptive`. It
    /// changes the time, never the tokens.
    pub speculation: SpeculationMode,
    /// Most tokens that an adaptive draft takes, 1 to 64.
    pub max_draft: u32,
    /// How long a client may leave its stream unread before the session gives its turn to others.
    pub slow_client_turn_ms: u64,
    /// The same before it gives its caches on the workers back; at least `slow_client_turn_ms`.
    pub slow_client_cache_ms: u64,
    /// The same before it ends with an error; at least `slow_client_cache_ms`. A client that reads again before goes on
    /// where it was.
    pub write_timeout_ms: u64,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            expert_absent: ExpertAbsent::FailClosed,
            speculation: SpeculationMode::Adaptive,
            max_draft: 8,
            slow_client_turn_ms: 2_000,
            slow_client_cache_ms: 10_000,
            write_timeout_ms: 60_000,
        }
    }
}

/// What to do with a rule that needs the expert while no expert can serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertAbsent {
    /// The request fails with `expert_unavailable`.
    #[default]
    FailClosed,
    /// The request waits until its deadline.
    Wait,
    /// The base decodes alone; the stream says so by a `Degraded` event.
    Degrade,
}
