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
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { expert_absent: ExpertAbsent::FailClosed, speculation: SpeculationMode::Adaptive, max_draft: 8 }
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
