//! A token and how it came about.

/// A token and how it was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Token id.
    pub id: u32,
    /// Who chose it.
    pub chosen_by: ChosenBy,
    /// Probability under the base's distribution that the rule judged by, where the rule looked.
    pub p: Option<f64>,
    /// Probability under the expert's, where the rule looked.
    pub q: Option<f64>,
    /// The expert's proposal that the token stands in for.
    pub rejected: Option<RejectedProposal>,
}

/// A proposal of the expert that the base did not let pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RejectedProposal {
    /// Token id.
    pub id: u32,
    /// Probability under the base's distribution that the rule judged by.
    pub p: f64,
    /// Probability under the expert's.
    pub q: f64,
}

/// Who chose a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChosenBy {
    /// The expert proposed it and the base let it pass.
    Expert,
    /// The base, in place of a rejected proposal (or because the rule is `base_only`).
    Base,
    /// A rule that draws from a blend, whether it kept the expert's proposal or not.
    Merged,
}

impl ChosenBy {
    /// Name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Expert => "expert",
            Self::Base => "base",
            Self::Merged => "merged",
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
