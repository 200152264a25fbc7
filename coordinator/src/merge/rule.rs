//! What a merge rule says of itself.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeInclusive;

use cosec_proto::sampling::Distribution;
use serde::Deserialize;

use super::decision::Verdict;
use super::evidence::{MergeError, PositionDistributions};
use super::transport::LogitsTransport;
use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

/// How distributions become one token.
pub trait MergeRule: Debug + Send + Sync {
    /// The rule with its own among `parameters`.
    fn with(parameters: &RuleParameters) -> Self
    where
        Self: Sized;

    /// What the rule says of itself, whatever its parameters.
    fn description(&self) -> &'static RuleDescription;

    /// Which model alone it comes to, by the value of which parameter; `None` while both have a say.
    fn degenerate(&self) -> Option<DegenerateRule> {
        None
    }

    /// The distribution of the next token.
    ///
    /// # Errors
    /// [`MergeError::Missing`] unless whole distributions are known.
    fn distribution(&self, models: &PositionDistributions) -> Result<Distribution, MergeError>;

    /// Draws the next token from [`Self::distribution`].
    ///
    /// # Errors
    /// [`MergeError::Missing`] says what to find out before asking again.
    fn decide(&self, models: &PositionDistributions, draws: &PositionRandom) -> Result<Verdict, MergeError>;
}

/// A number that a rule reads, as requests (in the object `cosec`) and the configuration (under `defaults`) name it.
#[derive(Debug)]
pub struct RuleParameter {
    /// As named there.
    pub name: &'static str,
    /// What it does.
    pub documentation: &'static str,
    /// Its value where neither request nor configuration sets one.
    pub default: f64,
    /// The values that it may have.
    pub range: RangeInclusive<f64>,
    /// The range in words.
    pub allowed: &'static str,
    /// Which way weakens hardening: operators bound it there.
    pub weakens: WeakeningSide,
}

/// Which way of a parameter weakens hardening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeakeningSide {
    /// Greater values give the expert less of a say.
    Up,
    /// Smaller values give the expert less of a say.
    Down,
}

impl WeakeningSide {
    /// Whether `value` gives the expert less of a say than `bound`.
    #[must_use]
    pub fn is_weaker(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Up => value > bound,
            Self::Down => value < bound,
        }
    }

    /// The one of both that gives the expert more of a say.
    #[must_use]
    pub fn stricter(self, a: f64, b: f64) -> f64 {
        if self.is_weaker(a, b) { b } else { a }
    }

    /// What a bound is, in words.
    #[must_use]
    pub fn limit(self) -> &'static str {
        match self {
            Self::Up => "at most",
            Self::Down => "at least",
        }
    }
}

/// Values for the parameters of all rules, by name; a parameter that is not there has its default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct RuleParameters(pub BTreeMap<String, f64>);

impl RuleParameters {
    /// The value of `parameter`.
    #[must_use]
    pub fn get(&self, parameter: &RuleParameter) -> f64 {
        self.0.get(parameter.name).copied().unwrap_or(parameter.default)
    }
}

/// What a rule says of itself.
#[derive(Debug)]
pub struct RuleDescription {
    /// Its name in requests, reports, metrics and the configuration.
    pub name: &'static str,
    /// The parameters that it reads.
    pub parameters: &'static [RuleParameter],
    /// Models that it reads; an anti-expert only where the model has one.
    pub roles: &'static [WorkerRole],
    /// Whether the base judges a proposal by a distribution of its own.
    pub judges: bool,
    /// What logits may travel as; `auto` takes the first that suits the request.
    pub transports: &'static [LogitsTransport],
}

/// A rule that comes to one model alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DegenerateRule {
    /// The model that is left.
    pub to: WorkerRole,
    /// The parameter that causes it.
    pub parameter: &'static str,
    /// Its present value.
    pub value: f64,
    /// What it must be for both models to have a say.
    pub required: &'static str,
}
