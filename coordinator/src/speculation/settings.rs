//! How many tokens the expert drafts at a time, as the operator sets it.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use cosec_proto::limits::MAX_DRAFT_TOKENS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether the expert drafts ahead of the base. The tokens are the same in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum SpeculationMode {
    /// One position at a time: base and expert compute it side by side.
    Off,
    /// Always this many tokens, 1 to [`MAX_DRAFT_TOKENS`].
    Fixed(u32),
    /// As many as measured goodput says, up to `sessions.max_draft`.
    #[default]
    Adaptive,
}

/// A setting that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("speculation is {0:?}; it must be off, adaptive or fixed:K with K from 1 to {MAX_DRAFT_TOKENS}")]
pub struct InvalidSpeculation(String);

impl SpeculationMode {
    /// Numbers of draft tokens that it allows, where `adaptive` may draft up to `max_draft`.
    #[must_use]
    pub fn draft_lengths(self, max_draft: u32) -> RangeInclusive<u32> {
        match self {
            Self::Off => 1..=1,
            Self::Fixed(num_draft_tokens) => num_draft_tokens..=num_draft_tokens,
            Self::Adaptive => 1..=max_draft,
        }
    }
}

impl FromStr for SpeculationMode {
    type Err = InvalidSpeculation;

    fn from_str(text: &str) -> Result<Self, InvalidSpeculation> {
        let fixed = || text.strip_prefix("fixed:")?.parse().ok().filter(|k| (1..=MAX_DRAFT_TOKENS).contains(k));
        match text {
            "off" => Ok(Self::Off),
            "adaptive" => Ok(Self::Adaptive),
            _ => fixed().map(Self::Fixed).ok_or_else(|| InvalidSpeculation(text.to_owned())),
        }
    }
}

impl TryFrom<String> for SpeculationMode {
    type Error = InvalidSpeculation;

    fn try_from(text: String) -> Result<Self, InvalidSpeculation> {
        text.parse()
    }
}

impl From<SpeculationMode> for String {
    fn from(mode: SpeculationMode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for SpeculationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Fixed(k) => write!(f, "fixed:{k}"),
            Self::Adaptive => f.write_str("adaptive"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        for setting in
            [SpeculationMode::Off, SpeculationMode::Adaptive, SpeculationMode::Fixed(1), SpeculationMode::Fixed(64)]
        {
            assert_eq!(setting.to_string().parse(), Ok(setting));
        }
        for wrong in ["", "on", "fixed", "fixed:", "fixed:0", "fixed:65", "fixed:-1", "4"] {
            let error = wrong.parse::<SpeculationMode>().unwrap_err().to_string();
            assert!(error.contains("1 to 64"), "{error}");
        }
    }
}
