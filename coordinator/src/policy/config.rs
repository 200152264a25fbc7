//! `[policy]` in the configuration, and the same table under a model or a tenant.

use cosec_proto::sampling::SamplingParams;
use schemars::JsonSchema;
use serde::Deserialize;

use super::defaults::check_parameters;
use super::violation::{PolicyViolation, rule_named};
use crate::merge::{Judge, RuleParameters};

/// What clients may ask for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Rules that clients may name. Default: all but `base_only`, under which unhardened code leaves.
    pub allowed_rules: Option<Vec<String>>,
    /// By which distribution of the base the expert's proposals are judged. Default: `raw`.
    pub judge: Option<Judge>,
    /// Whether the base judges and falls back by its raw softmax whatever temperature, top_p and top_k say, as CoSec's
    /// published code does. Default: false.
    pub reference_code: Option<bool>,
    /// Whether clients may ask for `logprobs`, of new tokens and with `echo` of the prompt: they are the base's own.
    /// Default: true.
    pub base_logprobs: Option<bool>,
    /// Whether clients may use `logit_bias`, which can ban the expert's words, too. Default: true.
    pub logit_bias: Option<bool>,
    /// How far clients may go.
    pub bounds: PolicyBounds,
}

/// The weakest values that clients may ask for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PolicyBounds {
    /// Least and greatest temperature of the expert. Default: that of `[defaults]` alone.
    pub expert_temperature: Option<[f64; 2]>,
    /// Least and greatest nucleus of the expert. Default: that of `[defaults]` alone.
    pub expert_top_p: Option<[f64; 2]>,
    /// Of the rules' parameters by name. Default: their values under `[defaults]`.
    #[serde(flatten)]
    #[schemars(skip)]
    pub rule_parameters: RuleParameters,
}

impl PolicyConfig {
    /// Checks what does not depend on other settings.
    pub(super) fn check(&self) -> Result<(), PolicyViolation> {
        for name in self.allowed_rules.iter().flatten() {
            rule_named("allowed_rules", name, &RuleParameters::default())?;
        }
        self.bounds.check().map_err(|violation| violation.within("bounds."))
    }
}

impl PolicyBounds {
    fn check(&self) -> Result<(), PolicyViolation> {
        check_parameters(&self.rule_parameters)?;
        let temperature = |value| SamplingParams::new(value, 1.0, 0).is_ok();
        check_range("expert_temperature", self.expert_temperature, temperature, "numbers of at least 0")?;
        let top_p = |value| SamplingParams::new(1.0, value, 0).is_ok();
        check_range("expert_top_p", self.expert_top_p, top_p, "greater than 0 and at most 1")
    }
}

fn check_range(
    name: &str,
    range: Option<[f64; 2]>,
    is_valid: impl Fn(f64) -> bool,
    allowed: &str,
) -> Result<(), PolicyViolation> {
    match range {
        Some(range) if !(range.into_iter().all(is_valid) && range[0] <= range[1]) => {
            let allowed = format!("[LEAST, GREATEST], both {allowed}");
            Err(PolicyViolation::new(name, format_args!("{range:?}"), allowed))
        }
        Some(_) | None => Ok(()),
    }
}
