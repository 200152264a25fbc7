//! What takes the place of settings that clients leave out.

use cosec_proto::sampling::SamplingParams;
use schemars::JsonSchema;
use serde::Deserialize;

use super::violation::{PolicyViolation, rule_named};
use crate::merge::{RuleParameters, SelectedRule};

/// What takes the place of a setting that a client leaves out; also the bound of those that weaken hardening.
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
    /// Checks names and ranges.
    pub(super) fn check(&self) -> Result<(), PolicyViolation> {
        check_parameters(&self.rule_parameters).map_err(|violation| violation.within("defaults."))?;
        rule_named("defaults.rule", &self.rule, &self.rule_parameters)?;
        let sampling = SamplingParams::new(self.expert_temperature, self.expert_top_p, 0).map(|_| ());
        sampling.map_err(|invalid| {
            let message = format!("defaults.expert_{invalid}");
            PolicyViolation { parameter: "defaults".to_owned(), message }
        })
    }
}

/// Holds `values` against the parameters that rules have, and against their ranges.
pub(super) fn check_parameters(values: &RuleParameters) -> Result<(), PolicyViolation> {
    let parameter = |name: &str| SelectedRule::parameters_of_all().find(|parameter| parameter.name == name);
    for (name, &value) in &values.0 {
        let Some(parameter) = parameter(name) else {
            let message = format!("{name:.60} is not a setting");
            return Err(PolicyViolation { parameter: name.clone(), message });
        };
        if !parameter.range.contains(&value) {
            return Err(PolicyViolation::new(name, format_args!("{value:?}"), parameter.allowed));
        }
    }
    Ok(())
}
