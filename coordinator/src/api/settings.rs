//! From what a client set to settings whose every value has been checked; the same for every door.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::sampling::{InvalidSamplingParams, SamplingParams};
use serde::Deserialize;
use tokio::time::Instant;

use super::error::ApiError;
use crate::merge::{
    BaseOnly, DegenerateRule, LogitAdjustments, LogitsTransport, MergeRule, RuleParameter, RuleParameters,
    SelectedRule,
};
use crate::request::GenerationSettings;
use cosec_proto::WorkerRole;

/// Most choices of one prompt.
const MAX_N: u32 = 128;
/// Most stop strings, and the longest of them in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// Most alternatives per token.
const MAX_LOGPROBS: u32 = 20;
/// Most entries of `logit_bias`.
const MAX_BIASES: usize = 1024;
/// Seeds that the coordinator picks stay below this, so that clients that read JSON numbers as f64 can repeat them.
const SEED_BOUND: u64 = 1 << 53;

/// What takes the place of a setting that a client leaves out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct DefaultSettings {
    /// cosec, linear, product, base_only or expert_only. Default cosec.
    pub rule: String,
    /// Default 0.4 (CoSec's). A client that asks for temperature 0 gets 0 here, too.
    pub expert_temperature: f64,
    /// Default 0.95 (CoSec's).
    pub expert_top_p: f64,
    /// Parameters of the rules by name: `tau`, `lambda`, `alpha`. Default: what each rule says.
    #[serde(flatten)]
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
        let known = |name: &String| rule_parameters().any(|parameter| parameter.name == name);
        if let Some(name) = self.rule_parameters.0.keys().find(|name| !known(name)) {
            return Err(ApiError::field(name, format!("there is no parameter {name:.60?}")));
        }
        for name in &allowed.0 {
            allowed.check(&rule_named("api.allowed_rules", name, &self.rule_parameters)?)?;
        }
        for rule in SelectedRule::all(&self.rule_parameters) {
            check_parameters(&rule, &self.rule_parameters)?;
        }
        allowed.check(&rule_named("cosec.rule", &self.rule, &self.rule_parameters)?)?;
        expert_warp(self.expert_temperature, self.expert_top_p, 0).map(|_| ())
    }
}

/// The parameters of all rules.
pub(crate) fn rule_parameters() -> impl Iterator<Item = &'static RuleParameter> {
    SelectedRule::all(&RuleParameters::default()).into_iter().flat_map(|rule| rule.parameters())
}

fn rule_named(field: &str, name: &str, parameters: &RuleParameters) -> Result<SelectedRule, ApiError> {
    SelectedRule::named(name, parameters).ok_or_else(|| {
        let all = SelectedRule::names().collect::<Vec<_>>().join(", ");
        ApiError::value(field, format_args!("{name:.60?}"), format_args!("one of {all}"))
    })
}

fn check_parameters(rule: &SelectedRule, values: &RuleParameters) -> Result<(), ApiError> {
    rule.parameters().iter().try_for_each(|parameter| {
        let Some(&value) = values.0.get(parameter.name) else { return Ok(()) };
        within(format!("cosec.{}", parameter.name), value, parameter.range.clone(), parameter.allowed).map(|_| ())
    })
}

/// The rules that clients may name. Where `base_only` is not among them, settings that come to the same are refused, too.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct AllowedRules(pub Vec<String>);

impl Default for AllowedRules {
    /// All under which the expert has a say.
    fn default() -> Self {
        Self(SelectedRule::names().filter(|&name| name != BaseOnly.name()).map(str::to_owned).collect())
    }
}

impl AllowedRules {
    fn allows(&self, rule: &dyn MergeRule) -> bool {
        self.0.iter().any(|name| name == rule.name())
    }

    fn check(&self, rule: &SelectedRule) -> Result<(), ApiError> {
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

/// Settings as a client sent them; their types are right, their values unchecked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawSettings {
    pub(crate) n: Option<u32>,
    pub(crate) seed: Option<u64>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) min_tokens: Option<u32>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<u32>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) logit_bias: BTreeMap<u32, f64>,
    pub(crate) stop: Vec<String>,
    pub(crate) logprobs: Option<u32>,
    pub(crate) echo: bool,
    pub(crate) cosec: RawCosec,
}

/// The `cosec` object of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawCosec {
    pub(crate) rule: Option<String>,
    pub(crate) expert_temperature: Option<f64>,
    pub(crate) expert_top_p: Option<f64>,
    pub(crate) reference_code: Option<bool>,
    pub(crate) rule_parameters: RuleParameters,
    pub(crate) transport: Option<String>,
    pub(crate) report: Option<bool>,
}

/// What the settings are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds<'a> {
    /// By the operator.
    pub(crate) rules: &'a AllowedRules,
    /// Token ids below this are valid.
    pub(crate) vocabulary: u32,
    /// Where the client gives none; `None` takes what the context leaves.
    pub(crate) max_tokens: Option<u32>,
    /// How long a request may take.
    pub(crate) patience: Duration,
}

impl RawSettings {
    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub(crate) fn check(
        self,
        defaults: &DefaultSettings,
        bounds: Bounds<'_>,
    ) -> Result<Arc<GenerationSettings>, ApiError> {
        let rule = self.cosec.rule(defaults)?;
        self.cosec.refuse_others_of(&rule)?;
        check_parameters(&rule, &self.cosec.rule_parameters)?;
        bounds.rules.check(&rule)?;
        self.check_stops()?;
        let (base, expert) = self.warps(&rule, defaults)?;
        let max_tokens = self.max_tokens.or(bounds.max_tokens);
        if max_tokens == Some(0) && !self.echo {
            return Err(ApiError::value("max_tokens", 0, "at least 1, or 0 together with echo"));
        }
        let min_tokens = self.min_tokens.unwrap_or(0);
        if let Some(max) = max_tokens.filter(|&max| min_tokens > max) {
            return Err(ApiError::value("min_tokens", min_tokens, format_args!("at most max_tokens, {max}")));
        }
        let settings = GenerationSettings {
            n: within("n", self.n.unwrap_or(1), 1..=MAX_N, format_args!("from 1 to {MAX_N}"))?,
            seed: self.seed.unwrap_or_else(|| rand::random_range(0..SEED_BOUND)),
            max_tokens,
            min_tokens,
            base,
            expert,
            reference_code: self.cosec.reference_code.unwrap_or(false),
            rule,
            adjustments: self.adjustments(bounds.vocabulary)?,
            transport: self.cosec.transport()?,
            logprobs: self
                .logprobs
                .map(|n| within("logprobs", n, 0..=MAX_LOGPROBS, format_args!("from 0 to {MAX_LOGPROBS}")))
                .transpose()?,
            echo: self.echo,
            report: self.cosec.report.unwrap_or(false),
            deadline: Instant::now() + bounds.patience,
            stop: self.stop,
        };
        Ok(Arc::new(settings))
    }

    /// The base gets the client's settings, the expert its own. Where a rule does not read the base, the expert
    /// takes the client's unless it has its own.
    fn warps(
        &self,
        rule: &SelectedRule,
        defaults: &DefaultSettings,
    ) -> Result<(SamplingParams, SamplingParams), ApiError> {
        let base = warp(
            ["temperature", "top_p"],
            self.temperature.unwrap_or(1.0),
            self.top_p.unwrap_or(1.0),
            self.top_k.unwrap_or(0),
        )?;
        let alone = !rule.needs().roles.contains(&WorkerRole::Base);
        let inherited = self.temperature.filter(|&temperature| alone || temperature == 0.0);
        let temperature = self.cosec.expert_temperature.or(inherited).unwrap_or(defaults.expert_temperature);
        let top_p = self.cosec.expert_top_p.or(self.top_p.filter(|_| alone)).unwrap_or(defaults.expert_top_p);
        let top_k = if alone { base.top_k() } else { 0 };
        Ok((base, expert_warp(temperature, top_p, top_k)?))
    }

    fn check_stops(&self) -> Result<(), ApiError> {
        if self.stop.len() > MAX_STOPS {
            let count = format!("a list of {} strings", self.stop.len());
            return Err(ApiError::value("stop", count, format_args!("at most {MAX_STOPS} strings")));
        }
        match self.stop.iter().position(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            None => Ok(()),
            Some(at) => {
                let bytes = self.stop[at].len();
                let message = format!("stop string {at} has {bytes} bytes; it must have 1 to {MAX_STOP_BYTES}");
                Err(ApiError::field("stop", message))
            }
        }
    }

    fn adjustments(&self, vocabulary: u32) -> Result<LogitAdjustments, ApiError> {
        let penalty = |name, value: Option<f64>| within(name, value.unwrap_or(0.0), -2.0..=2.0, "from -2 to 2");
        if self.logit_bias.len() > MAX_BIASES {
            let count = format!("a map of {} entries", self.logit_bias.len());
            return Err(ApiError::value("logit_bias", count, format_args!("at most {MAX_BIASES} entries")));
        }
        for (&id, &bias) in &self.logit_bias {
            if id >= vocabulary {
                let message = format!("logit_bias names the token {id}; the model's ids are below {vocabulary}");
                return Err(ApiError::field("logit_bias", message));
            }
            within(format!("logit_bias.{id}"), bias, -100.0..=100.0, "from -100 to 100")
                .map_err(|error| error.of("logit_bias"))?;
        }
        Ok(LogitAdjustments {
            frequency_penalty: penalty("frequency_penalty", self.frequency_penalty)?,
            presence_penalty: penalty("presence_penalty", self.presence_penalty)?,
            logit_bias: self.logit_bias.clone(),
        })
    }
}

impl RawCosec {
    fn rule(&self, defaults: &DefaultSettings) -> Result<SelectedRule, ApiError> {
        let mut parameters = defaults.rule_parameters.clone();
        parameters.0.extend(self.rule_parameters.0.clone());
        rule_named("cosec.rule", self.rule.as_ref().unwrap_or(&defaults.rule), &parameters)
    }

    fn transport(&self) -> Result<LogitsTransport, ApiError> {
        let Some(name) = &self.transport else { return Ok(LogitsTransport::Auto) };
        LogitsTransport::ALL.into_iter().find(|transport| transport.name() == name).ok_or_else(|| {
            let all = LogitsTransport::ALL.map(LogitsTransport::name).join(", ");
            ApiError::value("cosec.transport", format_args!("{name:.60?}"), format_args!("one of {all}"))
        })
    }

    /// Refuses parameters that would have no effect under `rule`.
    fn refuse_others_of(&self, rule: &SelectedRule) -> Result<(), ApiError> {
        let reads_expert = |rule: &SelectedRule| rule.needs().roles.contains(&WorkerRole::Expert);
        let judges = |rule: &SelectedRule| rule.needs().judges;
        let general: [(&str, bool, RuleFilter<'_>); 3] = [
            ("reference_code", self.reference_code.is_some(), &judges),
            ("expert_temperature", self.expert_temperature.is_some(), &reads_expert),
            ("expert_top_p", self.expert_top_p.is_some(), &reads_expert),
        ];
        for (name, is_set, has_effect) in general {
            if is_set && !has_effect(rule) {
                return Err(without_effect(name, rule, has_effect));
            }
        }
        for name in self.rule_parameters.0.keys() {
            let reads = |rule: &SelectedRule| rule.parameters().iter().any(|parameter| parameter.name == name);
            if !reads(rule) {
                return Err(without_effect(name, rule, &reads));
            }
        }
        Ok(())
    }
}

/// Rules under which a parameter has an effect.
type RuleFilter<'a> = &'a dyn Fn(&SelectedRule) -> bool;

fn without_effect(name: &str, rule: &SelectedRule, has_effect: RuleFilter<'_>) -> ApiError {
    let rules = SelectedRule::all(&RuleParameters::default()).into_iter().filter(has_effect);
    let rules = rules.map(|rule| rule.name()).collect::<Vec<_>>().join(", ");
    let path = format!("cosec.{name}");
    let message = format!("{path} has no effect under the rule {}; it belongs to {rules}", rule.name());
    ApiError::field(path, message)
}

fn expert_warp(temperature: f64, top_p: f64, top_k: u32) -> Result<SamplingParams, ApiError> {
    warp(["cosec.expert_temperature", "cosec.expert_top_p"], temperature, top_p, top_k)
}

fn warp(names: [&str; 2], temperature: f64, top_p: f64, top_k: u32) -> Result<SamplingParams, ApiError> {
    SamplingParams::new(temperature, top_p, top_k).map_err(|invalid| match invalid {
        InvalidSamplingParams::Temperature(value) => {
            ApiError::value(names[0], value, "a finite number of at least 0")
        }
        InvalidSamplingParams::TopP(value) => ApiError::value(names[1], value, "greater than 0 and at most 1"),
    })
}

/// Passes a value inside `range`; NaN is in none.
fn within<T: PartialOrd + Display>(
    name: impl Into<String>,
    value: T,
    range: RangeInclusive<T>,
    allowed: impl Display,
) -> Result<T, ApiError> {
    if range.contains(&value) { Ok(value) } else { Err(ApiError::value(name, value, allowed)) }
}
