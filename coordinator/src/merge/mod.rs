//! From what is known of base and expert at one position to one token: one trait, one rule per file.
//!
//! Merge knows no worker and no session. A rule reads [`PositionDistributions`], which may be whole distributions or
//! only the points that a worker drew and looked up; where they do not suffice the rule says what is missing. Every
//! rule also states the distribution of its tokens as a function, so that scores and tests can hold the draws against
//! it.
//!
//! A new rule is a file here and its name in the list of `rules!`.

mod rule;

mod evidence;

mod decision;

mod transport;

mod cosec;

mod linear;

mod product;

mod base_only;

mod expert_only;

mod rejection;

mod blend;

mod score;

mod next_token;

mod adjustments;

use std::ops::Deref;

pub use adjustments::{LogitAdjuster, LogitAdjustments, LogitChanges, OverAdjusted};
pub use decision::{Decision, Hardening, RejectedProposal, TokenScore, Verdict};
pub use evidence::{Judge, MergeError, MissingEvidence, ModelEvidence, PositionDistributions, RuleSampling};
pub use next_token::{TokenQuestions, next_token};
pub use rule::{DegenerateRule, MergeRule, RuleDescription, RuleParameter, RuleParameters, WeakeningSide};
pub use score::score;
pub use transport::LogitsTransport;

macro_rules! rules {
    ($($module:ident::$rule:ident),+) => {
        $(pub use $module::$rule;)+

        /// The rule of a request, with its parameters.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum SelectedRule {
            $(#[doc = concat!("See [`", stringify!($rule), "`].")] $rule($rule)),+
        }

        impl SelectedRule {
            /// Every rule, each with its own among `parameters`.
            #[must_use]
            pub fn all(parameters: &RuleParameters) -> Vec<Self> {
                vec![$(Self::$rule($rule::with(parameters))),+]
            }
        }

        impl Deref for SelectedRule {
            type Target = dyn MergeRule;

            fn deref(&self) -> &Self::Target {
                match self { $(Self::$rule(rule) => rule),+ }
            }
        }
    };
}

rules!(cosec::Cosec, linear::Linear, product::Product, base_only::BaseOnly, expert_only::ExpertOnly);

impl SelectedRule {
    /// The rule that is called `name`.
    #[must_use]
    pub fn named(name: &str, parameters: &RuleParameters) -> Option<Self> {
        Self::all(parameters).into_iter().find(|rule| rule.description().name == name)
    }

    /// Its name in requests, reports, metrics and the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.description().name
    }

    /// The names of all rules.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::all(&RuleParameters::default()).into_iter().map(|rule| rule.description().name)
    }

    /// The parameters of all rules.
    pub fn parameters_of_all() -> impl Iterator<Item = &'static RuleParameter> {
        Self::all(&RuleParameters::default()).into_iter().flat_map(|rule| rule.description().parameters)
    }
}
