//! Which of a model's networks is meant.

use serde::Deserialize;

/// A network that takes part in decoding one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The large code model.
    Base,
    /// The security expert.
    Expert,
    /// What the expert is compared with in the rule `product`.
    AntiExpert,
}

impl Role {
    /// All of them, in order of [`Self::index`].
    pub const ALL: [Self; 3] = [Self::Base, Self::Expert, Self::AntiExpert];

    /// Name in messages, metrics and the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Expert => "expert",
            Self::AntiExpert => "anti_expert",
        }
    }

    /// Place in [`Self::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}
