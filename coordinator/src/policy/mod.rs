//! What the operator allows: which rules clients may name, and how far they may go with whatever weakens hardening.
//!
//! A setting is the one that the tenant's entry in the keys file names, else the model's (`[models.policy]`), else that
//! of `[policy]`, else its default. The first that names it decides alone, so a tenant's may be wider or narrower than
//! its model's, as the operator wrote it. A bound on a knob is by default the operator's own value of it under
//! `[defaults]`: clients may go to the safer side only. Where a bound is stricter than that value, the bound takes its
//! place.

mod config;

mod defaults;

mod tenant;

mod violation;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use cosec_proto::WorkerRole;

use crate::merge::{BaseOnly, DegenerateRule, Judge, MergeRule, RuleParameter, RuleParameters, SelectedRule};

pub use config::{PolicyBounds, PolicyConfig};
pub use defaults::DefaultSettings;
pub use tenant::TenantPolicy;
pub use violation::{PolicyViolation, rule_named};

/// All that the operator set about requests.
#[derive(Clone, Debug, Default)]
pub struct OperatorPolicy {
    defaults: DefaultSettings,
    general: PolicyConfig,
    models: BTreeMap<String, PolicyConfig>,
}

impl OperatorPolicy {
    /// Takes `[defaults]`, `[policy]` and, by model, `[models.policy]`.
    ///
    /// # Errors
    /// Names the key whose value is not allowed, or why a request that names nothing could not be served.
    pub fn new(
        defaults: DefaultSettings,
        general: PolicyConfig,
        models: impl IntoIterator<Item = (String, PolicyConfig)>,
    ) -> Result<Self, PolicyViolation> {
        defaults.check()?;
        general.check().map_err(|violation| violation.within("policy."))?;
        let mut operator = Self { defaults, general, models: BTreeMap::new() };
        let of_requests = Policy { defaults: &operator.defaults, layers: [None, None, Some(&operator.general)] };
        of_requests.check_defaults()?;
        for (index, (name, policy)) in models.into_iter().enumerate() {
            let path = format!("models[{index}].policy.");
            policy.check().map_err(|violation| violation.within(&path))?;
            operator.models.insert(name.clone(), policy);
            let policy = operator.of(&name, TenantPolicy::nobody());
            policy.check_defaults().map_err(|violation| violation.within(&format!("models[{index}]: ")))?;
        }
        Ok(operator)
    }

    /// Checks what an entry of the keys file sets.
    ///
    /// # Errors
    /// Names the key below the entry.
    pub fn check_tenant(&self, tenant: &TenantPolicy) -> Result<(), PolicyViolation> {
        tenant.settings.check().map_err(|violation| violation.within("policy."))?;
        let known = || self.models.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        if let Some(unknown) = tenant.models.iter().flatten().find(|model| !self.models.contains_key(*model)) {
            let allowed = format!("among the configured ones: {}", known());
            return Err(PolicyViolation::new("models", format_args!("{unknown:.100?}"), allowed));
        }
        let own = self.models.keys().filter(|model| tenant.may_use(model));
        own.map(|model| self.of(model, tenant)).try_for_each(|policy| policy.check_defaults())
    }

    /// What holds for the requests of `tenant` for `model`.
    #[must_use]
    pub fn of<'a>(&'a self, model: &str, tenant: &'a TenantPolicy) -> Policy<'a> {
        let layers = [Some(&tenant.settings), self.models.get(model), Some(&self.general)];
        Policy { defaults: &self.defaults, layers }
    }
}

/// What holds for one tenant's requests for one model.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    defaults: &'a DefaultSettings,
    /// The tenant's, the model's and the general one.
    layers: [Option<&'a PolicyConfig>; 3],
}

impl<'a> Policy<'a> {
    /// The first that is named.
    fn setting<T>(&self, read: impl Fn(&'a PolicyConfig) -> Option<T>) -> Option<T> {
        self.layers.into_iter().flatten().find_map(read)
    }

    /// By which distribution of the base proposals are judged.
    #[must_use]
    pub fn judge(&self) -> Judge {
        self.setting(|config| config.judge).unwrap_or_default()
    }

    /// Whether judge and fallback are the base's raw softmax, as in the published code.
    #[must_use]
    pub fn reference_code(&self) -> bool {
        self.setting(|config| config.reference_code).unwrap_or(false)
    }

    /// Whether clients may ask for log-probabilities, which are the base's.
    #[must_use]
    pub fn allows_base_logprobs(&self) -> bool {
        self.setting(|config| config.base_logprobs).unwrap_or(true)
    }

    /// Whether clients may favour and ban tokens.
    #[must_use]
    pub fn allows_logit_bias(&self) -> bool {
        self.setting(|config| config.logit_bias).unwrap_or(true)
    }

    /// Name of the rule where a client names none.
    #[must_use]
    pub fn default_rule(&self) -> &'a str {
        &self.defaults.rule
    }

    /// Values of all rules' parameters where a client names none.
    #[must_use]
    pub fn rule_parameters(&self) -> RuleParameters {
        let value = |parameter: &RuleParameter| {
            parameter.weakens.stricter(self.defaults.rule_parameters.get(parameter), self.bound(parameter))
        };
        let all = SelectedRule::parameters_of_all();
        RuleParameters(all.map(|parameter| (parameter.name.to_owned(), value(parameter))).collect())
    }

    /// The expert's temperature where a client names none.
    #[must_use]
    pub fn expert_temperature(&self) -> f64 {
        within(self.defaults.expert_temperature, self.expert_temperatures())
    }

    /// The expert's nucleus where a client names none.
    #[must_use]
    pub fn expert_top_p(&self) -> f64 {
        within(self.defaults.expert_top_p, self.expert_top_ps())
    }

    /// Refuses a rule that is not allowed, by its name, by a parameter beyond its bound, or by what it comes to.
    ///
    /// # Errors
    /// Names field, value and bound.
    pub fn check_rule(&self, rule: &SelectedRule, parameters: &RuleParameters) -> Result<(), PolicyViolation> {
        if !self.allows(rule.name()) {
            let allowed = SelectedRule::names().filter(|name| self.allows(name)).collect::<Vec<_>>().join(", ");
            let allowed = format!("one of those that the operator allows: {allowed}");
            return Err(PolicyViolation::new("cosec.rule", rule.name(), allowed));
        }
        for parameter in rule.description().parameters {
            let (value, bound) = (parameters.get(parameter), self.bound(parameter));
            if parameter.weakens.is_weaker(value, bound) {
                let allowed = format!("{} {bound:?}, the operator's bound", parameter.weakens.limit());
                let field = format!("cosec.{}", parameter.name);
                return Err(PolicyViolation::new(field, format_args!("{value:?}"), allowed));
            }
        }
        self.check_degenerate(rule)
    }

    /// Refuses a temperature of the expert's own beyond its bounds.
    ///
    /// # Errors
    /// Names field, value and bounds.
    pub fn check_expert_temperature(&self, value: f64) -> Result<(), PolicyViolation> {
        check_within("cosec.expert_temperature", value, self.expert_temperatures())
    }

    /// Refuses a nucleus of the expert's own beyond its bounds.
    ///
    /// # Errors
    /// Names field, value and bounds.
    pub fn check_expert_top_p(&self, value: f64) -> Result<(), PolicyViolation> {
        check_within("cosec.expert_top_p", value, self.expert_top_ps())
    }

    fn allows(&self, rule: &str) -> bool {
        let allowed = self.setting(|config| config.allowed_rules.as_ref());
        allowed.map_or(rule != BaseOnly.description().name, |rules| rules.iter().any(|name| name == rule))
    }

    /// The weakest value of `parameter`.
    fn bound(&self, parameter: &RuleParameter) -> f64 {
        let own = self.setting(|config| config.bounds.rule_parameters.0.get(parameter.name).copied());
        own.unwrap_or_else(|| self.defaults.rule_parameters.get(parameter))
    }

    fn expert_temperatures(&self) -> [f64; 2] {
        let fixed = self.defaults.expert_temperature;
        self.setting(|config| config.bounds.expert_temperature).unwrap_or([fixed, fixed])
    }

    fn expert_top_ps(&self) -> [f64; 2] {
        let fixed = self.defaults.expert_top_p;
        self.setting(|config| config.bounds.expert_top_p).unwrap_or([fixed, fixed])
    }

    fn check_degenerate(&self, rule: &SelectedRule) -> Result<(), PolicyViolation> {
        match rule.degenerate() {
            Some(DegenerateRule { to: WorkerRole::Base, parameter, value, required })
                if !self.allows(BaseOnly.description().name) =>
            {
                let allowed = format!("{required}, as the operator does not allow the base alone");
                Err(PolicyViolation::new(format!("cosec.{parameter}"), format_args!("{value:?}"), allowed))
            }
            _ => Ok(()),
        }
    }

    /// Whether requests that name nothing, or an allowed rule alone, can be served.
    fn check_defaults(&self) -> Result<(), PolicyViolation> {
        let parameters = self.rule_parameters();
        let default = rule_named("cosec.rule", self.default_rule(), &parameters)?;
        let others = SelectedRule::all(&parameters).into_iter().filter(|rule| self.allows(rule.name()));
        let mut rules = std::iter::once(default).chain(others);
        let checked = rules.try_for_each(|rule| self.check_rule(&rule, &parameters));
        // Clients know these settings as the `cosec` object's.
        checked.map_err(|PolicyViolation { parameter, message }| PolicyViolation {
            parameter: parameter.replace("cosec.", "defaults."),
            message: message.replace("cosec.", "defaults."),
        })
    }
}

impl fmt::Display for Policy<'_> {
    /// All that an answer depends on where a request leaves it out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Named one by one, so that a new field does not change the text of an earlier version.
        let (rule, temperature, top_p) = (self.default_rule(), self.expert_temperature(), self.expert_top_p());
        write!(f, "rule={rule} temperature={temperature} top_p={top_p}")?;
        write!(f, " judge={:?} reference_code={}", self.judge(), self.reference_code())?;
        self.rule_parameters().0.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// `value`, or the end of `range` that is nearest to it.
fn within(value: f64, [least, greatest]: [f64; 2]) -> f64 {
    value.max(least).min(greatest)
}

fn check_within(field: &str, value: f64, range: [f64; 2]) -> Result<(), PolicyViolation> {
    let [least, greatest] = range;
    if (least..=greatest).contains(&value) {
        return Ok(());
    }
    let value = format!("{value:?}");
    if least == greatest {
        return Err(PolicyViolation::new(field, value, format_args!("{least:?}, which the operator keeps fixed")));
    }
    Err(PolicyViolation::new(field, value, format_args!("from {least:?} to {greatest:?}, the operator's bounds")))
}
