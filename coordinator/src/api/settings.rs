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
use crate::request::{Adjustments, RuleSettings, Settings, Transport};

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
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// cosec, linear, product, base_only or expert_only. Default cosec.
    pub rule: RuleName,
    /// Acceptance threshold of `cosec`. Default 0.3 (CoSec's).
    pub tau: f64,
    /// Default 0.4 (CoSec's). A client that asks for temperature 0 gets 0 here, too.
    pub expert_temperature: f64,
    /// Default 0.95 (CoSec's).
    pub expert_top_p: f64,
    /// Weight of the expert in `linear`. Default 0.5.
    pub lambda: f64,
    /// Weight of the expert's logits in `product`. Default 1.
    pub alpha: f64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { rule: RuleName::Cosec, tau: 0.3, expert_temperature: 0.4, expert_top_p: 0.95, lambda: 0.5, alpha: 1.0 }
    }
}

impl Defaults {
    /// Checks the values as if clients had sent them.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self, allowed: &AllowedRules) -> Result<(), ApiError> {
        allowed.check_name(self.rule)?;
        for rule in RuleName::ALL {
            let settings = self.rule_settings(rule, &RawCosec::default())?;
            if allowed.0.contains(&rule) {
                allowed.check(&settings)?;
            }
        }
        expert_warp(self.expert_temperature, self.expert_top_p, 0).map(|_| ())
    }

    fn rule_settings(&self, rule: RuleName, cosec: &RawCosec) -> Result<RuleSettings, ApiError> {
        Ok(match rule {
            RuleName::Cosec => {
                let tau = cosec.tau.unwrap_or(self.tau);
                RuleSettings::Cosec { tau: within("cosec.tau", tau, 0.0..=f64::MAX, "a number of at least 0")? }
            }
            RuleName::Linear => {
                let lambda = cosec.lambda.unwrap_or(self.lambda);
                RuleSettings::Linear { lambda: within("cosec.lambda", lambda, 0.0..=1.0, "from 0 to 1")? }
            }
            RuleName::Product => {
                let alpha = cosec.alpha.unwrap_or(self.alpha);
                let alpha = within("cosec.alpha", alpha, f64::MIN..=f64::MAX, "a finite number")?;
                RuleSettings::Product { alpha }
            }
            RuleName::BaseOnly => RuleSettings::BaseOnly,
            RuleName::ExpertOnly => RuleSettings::ExpertOnly,
        })
    }
}

/// A merge rule without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleName {
    /// See [`RuleSettings::Cosec`].
    Cosec,
    /// See [`RuleSettings::Linear`].
    Linear,
    /// See [`RuleSettings::Product`].
    Product,
    /// See [`RuleSettings::BaseOnly`].
    BaseOnly,
    /// See [`RuleSettings::ExpertOnly`].
    ExpertOnly,
}

impl RuleName {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Cosec, Self::Linear, Self::Product, Self::BaseOnly, Self::ExpertOnly];

    /// As requests and responses spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cosec => "cosec",
            Self::Linear => "linear",
            Self::Product => "product",
            Self::BaseOnly => "base_only",
            Self::ExpertOnly => "expert_only",
        }
    }
}

impl From<&RuleSettings> for RuleName {
    fn from(rule: &RuleSettings) -> Self {
        match rule {
            RuleSettings::Cosec { .. } => Self::Cosec,
            RuleSettings::Linear { .. } => Self::Linear,
            RuleSettings::Product { .. } => Self::Product,
            RuleSettings::BaseOnly => Self::BaseOnly,
            RuleSettings::ExpertOnly => Self::ExpertOnly,
        }
    }
}

/// The rules that clients may name. Where `base_only` is not among them, settings that come to the same are refused, too.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct AllowedRules(pub Vec<RuleName>);

impl Default for AllowedRules {
    /// All under which the expert has a say.
    fn default() -> Self {
        Self(RuleName::ALL.into_iter().filter(|&rule| rule != RuleName::BaseOnly).collect())
    }
}

impl AllowedRules {
    fn check_name(&self, rule: RuleName) -> Result<(), ApiError> {
        if self.0.contains(&rule) {
            return Ok(());
        }
        let all = self.0.iter().map(|rule| rule.as_str()).collect::<Vec<_>>().join(", ");
        let allowed = format!("one of those that the operator allows: {all}");
        Err(ApiError::value("cosec.rule", rule.as_str(), allowed))
    }

    fn check(&self, rule: &RuleSettings) -> Result<(), ApiError> {
        self.check_name(rule.into())?;
        let (field, value, allowed) = match *rule {
            RuleSettings::Cosec { tau } if tau >= 1.0 => ("cosec.tau", tau, "less than 1"),
            RuleSettings::Linear { lambda } if lambda <= 0.0 => ("cosec.lambda", lambda, "greater than 0"),
            RuleSettings::Product { alpha } if alpha <= 0.0 => ("cosec.alpha", alpha, "greater than 0"),
            RuleSettings::Cosec { .. }
            | RuleSettings::Linear { .. }
            | RuleSettings::Product { .. }
            | RuleSettings::BaseOnly
            | RuleSettings::ExpertOnly => return Ok(()),
        };
        if self.0.contains(&RuleName::BaseOnly) {
            return Ok(());
        }
        Err(ApiError::value(field, value, format!("{allowed}, as the operator does not allow the base alone")))
    }
}

const TRANSPORTS: [(&str, Transport); 5] = [
    ("auto", Transport::Auto),
    ("gather", Transport::Gather),
    ("nucleus", Transport::Nucleus),
    ("sample", Transport::Sample),
    ("full", Transport::Full),
];

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
    pub(crate) tau: Option<f64>,
    pub(crate) expert_temperature: Option<f64>,
    pub(crate) expert_top_p: Option<f64>,
    pub(crate) reference_code: Option<bool>,
    pub(crate) lambda: Option<f64>,
    pub(crate) alpha: Option<f64>,
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
    pub(crate) fn check(self, defaults: &Defaults, bounds: Bounds<'_>) -> Result<Arc<Settings>, ApiError> {
        let rule = self.cosec.rule(defaults)?;
        self.cosec.refuse_others_of(rule)?;
        let rule_settings = defaults.rule_settings(rule, &self.cosec)?;
        bounds.rules.check(&rule_settings)?;
        self.check_stops()?;
        let (base, expert) = self.warps(rule, defaults)?;
        let max_tokens = self.max_tokens.or(bounds.max_tokens);
        if max_tokens == Some(0) && !self.echo {
            return Err(ApiError::value("max_tokens", 0, "at least 1, or 0 together with echo"));
        }
        let min_tokens = self.min_tokens.unwrap_or(0);
        if let Some(max) = max_tokens.filter(|&max| min_tokens > max) {
            return Err(ApiError::value("min_tokens", min_tokens, format_args!("at most max_tokens, {max}")));
        }
        let settings = Settings {
            n: within("n", self.n.unwrap_or(1), 1..=MAX_N, format_args!("from 1 to {MAX_N}"))?,
            seed: self.seed.unwrap_or_else(|| rand::random_range(0..SEED_BOUND)),
            max_tokens,
            min_tokens,
            base,
            expert,
            reference_code: self.cosec.reference_code.unwrap_or(false),
            rule: rule_settings,
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

    /// The base gets the client's settings, the expert its own. The rule `expert_only` has no base, so there the expert
    /// takes the client's where it has none of its own.
    fn warps(&self, rule: RuleName, defaults: &Defaults) -> Result<(SamplingParams, SamplingParams), ApiError> {
        let base = warp(
            ["temperature", "top_p"],
            self.temperature.unwrap_or(1.0),
            self.top_p.unwrap_or(1.0),
            self.top_k.unwrap_or(0),
        )?;
        let alone = rule == RuleName::ExpertOnly;
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

    fn adjustments(&self, vocabulary: u32) -> Result<Adjustments, ApiError> {
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
        Ok(Adjustments {
            frequency_penalty: penalty("frequency_penalty", self.frequency_penalty)?,
            presence_penalty: penalty("presence_penalty", self.presence_penalty)?,
            logit_bias: self.logit_bias.clone(),
        })
    }
}

impl RawCosec {
    fn rule(&self, defaults: &Defaults) -> Result<RuleName, ApiError> {
        let Some(name) = &self.rule else { return Ok(defaults.rule) };
        RuleName::ALL.into_iter().find(|rule| rule.as_str() == name).ok_or_else(|| {
            let all = RuleName::ALL.map(RuleName::as_str).join(", ");
            ApiError::value("cosec.rule", format_args!("{name:.60?}"), format_args!("one of {all}"))
        })
    }

    fn transport(&self) -> Result<Transport, ApiError> {
        let Some(name) = &self.transport else { return Ok(Transport::Auto) };
        TRANSPORTS.iter().find(|(known, _)| known == name).map(|&(_, transport)| transport).ok_or_else(|| {
            let all = TRANSPORTS.map(|(known, _)| known).join(", ");
            ApiError::value("cosec.transport", format_args!("{name:.60?}"), format_args!("one of {all}"))
        })
    }

    /// Refuses parameters that would have no effect under `rule`.
    fn refuse_others_of(&self, rule: RuleName) -> Result<(), ApiError> {
        use RuleName::{Cosec, ExpertOnly, Linear, Product};
        let with_expert: &[RuleName] = &[Cosec, Linear, Product, ExpertOnly];
        let owners: [(&str, bool, &[RuleName]); 6] = [
            ("tau", self.tau.is_some(), &[Cosec]),
            ("reference_code", self.reference_code.is_some(), &[Cosec]),
            ("lambda", self.lambda.is_some(), &[Linear]),
            ("alpha", self.alpha.is_some(), &[Product]),
            ("expert_temperature", self.expert_temperature.is_some(), with_expert),
            ("expert_top_p", self.expert_top_p.is_some(), with_expert),
        ];
        for (name, set, rules) in owners {
            if set && !rules.contains(&rule) {
                let all = rules.iter().map(|rule| rule.as_str()).collect::<Vec<_>>().join(", ");
                let path = format!("cosec.{name}");
                let message = format!("{path} has no effect under the rule {}; it belongs to {all}", rule.as_str());
                return Err(ApiError::field(path, message));
            }
        }
        Ok(())
    }
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
