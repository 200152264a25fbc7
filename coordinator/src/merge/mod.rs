//! From what is known of base and expert at one position to one token: one trait, one rule per file.
//!
//! Merge knows no worker and no session. A rule reads [`Laws`], which may be whole distributions or only the points
//! that a worker drew and looked up; where they do not suffice the rule says what is lacking. Every rule also states the
//! law of its tokens as a function, so that scores and tests have something to hold the draws against.

mod adjustments;
mod base_only;
mod blend;
mod cosec;
mod expert_only;
mod laws;
mod linear;
mod product;
mod rejection;
mod score;

use cosec_proto::sampling::{Distribution, InvalidLogits, InvalidSupport};

use crate::request::{Decision, RuleSettings};
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

pub use adjustments::{Adjuster, OverAdjusted};
pub use base_only::BaseOnly;
pub use cosec::Cosec;
pub use expert_only::ExpertOnly;
pub use laws::{Evidence, Laws, Warps};
pub use linear::Linear;
pub use product::Product;
pub use score::score;

/// How distributions become one token.
pub trait MergeRule {
    /// The law of the next token.
    ///
    /// # Errors
    /// [`MergeError::Lacking`] unless whole distributions are known.
    fn law(&self, laws: &Laws) -> Result<Distribution, MergeError>;

    /// Draws the next token; its law is [`Self::law`].
    ///
    /// # Errors
    /// [`MergeError::Lacking`] says what to find out before asking again.
    fn decide(&self, laws: &Laws, draws: &PositionRandom) -> Result<Decision, MergeError>;
}

impl RuleSettings {
    /// The rule with these settings.
    #[must_use]
    pub fn rule(&self) -> Box<dyn MergeRule> {
        match *self {
            Self::Cosec { tau } => Box::new(Cosec { tau }),
            Self::Linear { lambda } => Box::new(Linear { lambda }),
            Self::Product { alpha } => Box::new(Product { alpha }),
            Self::BaseOnly => Box::new(BaseOnly),
            Self::ExpertOnly => Box::new(ExpertOnly),
        }
    }
}

/// What a rule must know before it can decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// A draw from the expert.
    #[error("the expert's proposal is not known")]
    Proposal,
    /// The base's probability of this id.
    #[error("the base's probability of token {0} is not known")]
    Judgement(u32),
    /// A draw from the base.
    #[error("the base's own token is not known")]
    Fallback,
    /// A whole row.
    #[error("the row of the {} is not known", .0.name())]
    Row(WorkerRole),
}

/// Why there is no token yet.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// Find it out and ask again.
    #[error(transparent)]
    Lacking(#[from] Lacking),
    /// A row makes no distribution.
    #[error("a row makes no distribution: {0}")]
    Logits(#[from] InvalidLogits),
    /// A blend makes no distribution.
    #[error("the merged law makes no distribution: {0}")]
    Law(#[from] InvalidSupport),
}
