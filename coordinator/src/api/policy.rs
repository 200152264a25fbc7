//! What the operator decides about requests: which rules clients may name, and what takes the place of what they leave
//! out.

use cosec_proto::sampling::SamplingParams;
use cosec_proto::{ErrorCode, WorkerRole};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::parameter_kinds::check_range;
use crate::merge::{BaseOnly, DegenerateRule, MergeRule, RuleParameters, SelectedRule};

/// What takes the place of a setting that a client leaves out.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DefaultSettings {
    /// The rule: `cosec`, `linear`, `product`, `base_only` or `expert_only`.
    pub rule: String,
    /// Temperature of the expert (0.4 is CoSec's). A client that asks for temperature 0 gets 0 here, too.
    pub expert_temperature: f64,
    /// Nucleus of the expert (0.95 is CoSec's).
    pub expert_top_p: f64,
    /// Parameters of the rules by name: `tau`, `lambda`, `alpha`. Default: what each rule says.
    #[serde(flatten)]
    #[schemars(skip)]
    pub rule_parameters: RuleParameters,
}

impl Default for DefaultSettings {
    fn default() -> Self {
        Self {
            rule: "cosec".to_owned(),
            expert_temperature: 0.4,
            expert_top_p: 0.95,
            rule_parameters: RuleParameters::default(),
        }
    }
}

impl DefaultSettings {
    /// Checks the values as if clients had sent them.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self, allowed: &AllowedRules) -> Result<(), ApiError> {
        let is_known = |name: &str| SelectedRule::parameters_of_all().any(|parameter| parameter.name == name);
        if let Some(name) = self.rule_parameters.0.keys().find(|name| !is_known(name)) {
            return Err(ApiError::field(name, format!("cosec.{name:.60} is not a setting")));
        }
        for name in &allowed.0 {
            allowed.check(&rule_named("api.allowed_rules", name, &self.rule_parameters)?)?;
        }
        for rule in SelectedRule::all(&self.rule_parameters) {
            check_rule_parameters(&rule, &self.rule_parameters)?;
        }
        allowed.check(&rule_named("cosec.rule", &self.rule, &self.rule_parameters)?)?;
        SamplingParams::new(self.expert_temperature, self.expert_top_p, 0)
            .map(|_| ())
            .map_err(|invalid| ApiError::new(ErrorCode::InvalidArgument, format!("cosec.expert_{invalid}")))
    }
}

/// The rule that is called `name`; `field` is where the name stands.
pub(super) fn rule_named(field: &str, name: &str, parameters: &RuleParameters) -> Result<SelectedRule, ApiError> {
    SelectedRule::named(name, parameters).ok_or_else(|| {
        let all = SelectedRule::names().collect::<Vec<_>>().join(", ");
        ApiError::value(field, format_args!("{name:.60?}"), format_args!("one of {all}"))
    })
}

/// Holds those `values` that `rule` reads against their ranges.
pub(super) fn check_rule_parameters(rule: &SelectedRule, values: &RuleParameters) -> Result<(), ApiError> {
    rule.description().parameters.iter().try_for_each(|parameter| {
        let Some(&value) = values.0.get(parameter.name) else { return Ok(()) };
        check_range(&format!("cosec.{}", parameter.name), value, parameter.range.clone(), parameter.allowed)
    })
}

/// The rules that clients may name. Where `base_only` is not among them, settings that come to the same are refused,
/// too.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(transparent)]
pub struct AllowedRules(pub Vec<String>);

impl Default for AllowedRules {
    /// All under which the expert has a say.
    fn default() -> Self {
        Self(SelectedRule::names().filter(|&name| name != BaseOnly.description().name).map(str::to_owned).collect())
    }
}

impl AllowedRules {
    fn allows(&self, rule: &dyn MergeRule) -> bool {
        self.0.iter().any(|name| name == rule.description().name)
    }

    /// Refuses a rule that is not allowed, by its name or by what it comes to.
    pub(super) fn check(&self, rule: &SelectedRule) -> Result<(), ApiError> {
        if !self.allows(&**rule) {
            let allowed = format!("one of those that the operator allows: {}", self.0.join(", "));
            return Err(ApiError::value("cosec.rule", rule.name(), allowed));
        }
        match rule.degenerate() {
            Some(DegenerateRule { to: WorkerRole::Base, parameter, value, required }) if !self.allows(&BaseOnly) => {
                let allowed = format!("{required}, as the operator does not allow the base alone");
                Err(ApiError::value(format!("cosec.{parameter}"), value, allowed))
            }
            _ => Ok(()),
        }
    }
}
