//! Values that are not allowed.

use std::fmt;

use crate::merge::{RuleParameters, SelectedRule};

/// A value that the operator, or the configuration's form, does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PolicyViolation {
    /// The field of a request or the key of a configuration, as a path.
    pub parameter: String,
    /// Names it, its value and what is allowed.
    pub message: String,
}

impl PolicyViolation {
    pub(super) fn new(parameter: impl Into<String>, value: impl fmt::Display, allowed: impl fmt::Display) -> Self {
        let parameter = parameter.into();
        let message = format!("{parameter} is {value}; it must be {allowed}");
        Self { parameter, message }
    }

    /// The same below `path`.
    #[must_use]
    pub fn within(self, path: &str) -> Self {
        Self { parameter: format!("{path}{}", self.parameter), message: format!("{path}{}", self.message) }
    }
}

/// The rule that is called `name`; `field` is where the name stands.
///
/// # Errors
/// When there is none.
pub fn rule_named(field: &str, name: &str, parameters: &RuleParameters) -> Result<SelectedRule, PolicyViolation> {
    SelectedRule::named(name, parameters).ok_or_else(|| {
        let all = SelectedRule::names().collect::<Vec<_>>().join(", ");
        PolicyViolation::new(field, format_args!("{name:.60?}"), format_args!("one of {all}"))
    })
}
