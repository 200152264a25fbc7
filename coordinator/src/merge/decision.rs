//! A token and how it came about.

/// A rule's token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Token id.
    pub id: u32,
    /// Probability under the base's distribution that the rule read: the judge's for a proposal, p for the base's own.
    pub p: Option<f64>,
    /// Probability under the expert's, where the rule looked.
    pub q: Option<f64>,
    /// The expert's proposal that the token stands in for.
    pub rejected: Option<RejectedProposal>,
}

/// A token, how it was chosen, and what hardening did to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Token id.
    pub id: u32,
    /// The token against the base's own draw; `None` where nobody looked.
    pub hardening: Option<Hardening>,
    /// As in [`Verdict`].
    pub p: Option<f64>,
    /// As in [`Verdict`].
    pub q: Option<f64>,
    /// Probability under the rule's distribution, where it was asked for.
    pub law: Option<f64>,
    /// As in [`Verdict`].
    pub rejected: Option<RejectedProposal>,
}

/// A proposal of the expert that did not become the token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RejectedProposal {
    /// Token id.
    pub id: u32,
    /// Probability under the base's distribution that the rule judged by.
    pub p: f64,
    /// Probability under the expert's.
    pub q: f64,
}

/// What hardening did to a token, against the base's own draw: what `base_only` would draw after the same tokens with
/// the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hardening {
    /// Nothing: the rule's token is the base's own draw, and no proposal was rejected for it.
    Agreed,
    /// It is another token, because of the expert.
    Expert,
    /// It is the base's own draw: the expert's proposal was rejected, or nothing was proposed (`base_only`, degraded).
    Base,
}

impl Hardening {
    /// Name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Agreed => "agreed",
            Self::Expert => "expert",
            Self::Base => "base",
        }
    }
}

/// Log-probability of a token and of the most probable others.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm; -inf when the distribution gives the token no mass.
    pub log_probability: f64,
    /// The most probable ids, best first, only those with mass.
    pub alternatives: Vec<(u32, f64)>,
}
