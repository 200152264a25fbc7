//! How many tokens the expert drafts at a time, as the operator sets it.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Most tokens of one draft: a worker's limit.
pub const MOST_DRAFTED: u32 = 64;

/// Whether the expert drafts ahead of the base. The tokens are the same in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Speculation {
    /// One position at a time: base and expert compute it side by side.
    Off,
    /// Always this many tokens, 1 to [`MOST_DRAFTED`].
    Fixed(u32),
    /// As many as acceptance and costs make worth while, up to `sessions.max_draft`.
    #[default]
    Adaptive,
}

/// A setting that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("speculation is {0:?}; it must be off, adaptive or fixed:K with K from 1 to {MOST_DRAFTED}")]
pub struct InvalidSpeculation(String);

impl FromStr for Speculation {
    type Err = InvalidSpeculation;

    fn from_str(text: &str) -> Result<Self, InvalidSpeculation> {
        let fixed = || text.strip_prefix("fixed:")?.parse().ok().filter(|k| (1..=MOST_DRAFTED).contains(k));
        match text {
            "off" => Ok(Self::Off),
            "adaptive" => Ok(Self::Adaptive),
            _ => fixed().map(Self::Fixed).ok_or_else(|| InvalidSpeculation(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Speculation {
    type Error = InvalidSpeculation;

    fn try_from(text: String) -> Result<Self, InvalidSpeculation> {
        text.parse()
    }
}

impl fmt::Display for Speculation {
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
        for setting in [Speculation::Off, Speculation::Adaptive, Speculation::Fixed(1), Speculation::Fixed(64)] {
            assert_eq!(setting.to_string().parse(), Ok(setting));
        }
        for wrong in ["", "on", "fixed", "fixed:", "fixed:0", "fixed:65", "fixed:-1", "4"] {
            let error = wrong.parse::<Speculation>().unwrap_err().to_string();
            assert!(error.contains("1 to 64"), "{error}");
        }
    }
}
