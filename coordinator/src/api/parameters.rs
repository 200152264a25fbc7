//! The parameters of a request in one table, which the JSON endpoints and the gRPC service read.
//!
//! A new parameter is a row here, a field of [`GenerationSettings`] that [`RequestedSettings::checked`] fills, a field
//! of `coordinator.proto`, and a change in the room that obeys it. The parameters of merge rules stand with their
//! rules.

use std::sync::Arc;
use std::time::Duration;

use cosec_proto::sampling::SamplingParams;
use cosec_proto::wire::coordinator as wire;
use cosec_proto::{ErrorCode, WorkerRole};
use tokio::time::Instant;

use super::error::ApiError;
use super::json_fields::JsonFields;
use super::parameter_kinds::{
    CompletionsFlag, Count, Flag, JsonEndpoint, LogprobCount, MAX_BIASES, MAX_LOGPROBS, NewTokens, Number,
    ParameterKind, SeedNumber, StopStrings, Text, TokenBiases, TopK, WireValue, check_range,
};
use crate::merge::{LogitAdjustments, LogitsTransport, RuleParameters, SelectedRule};
use crate::policy::{Policy, rule_named};
use crate::request::GenerationSettings;

/// Most choices of one prompt.
const MAX_N: u32 = 128;
/// Most stop strings, and the longest of them in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// Seeds that the coordinator picks stay below this, so that clients that read JSON numbers as f64 can repeat them.
const SEED_BOUND: u64 = 1 << 53;

/// Declares a part of the table: a struct of the values that a client set, read from JSON or from a gRPC message.
macro_rules! parameter_table {
    ($(#[doc = $about:literal])+ $table:ident, $wire:ty, $prefix:literal {
        $($(#[doc = $documentation:literal])+ $name:ident: $kind:ident $(in $range:expr, $allowed:expr)?;)+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $table {
            $($(#[doc = $documentation])+ pub(crate) $name: Option<<$kind as ParameterKind>::Value>,)+
        }

        impl $table {
            fn read(fields: &mut JsonFields<'_>, endpoint: JsonEndpoint) -> Result<Self, ApiError> {
                Ok(Self { $($name: $kind::read(fields, stringify!($name), endpoint)?),+ })
            }

            fn take(message: &mut $wire) -> Self {
                Self { $($name: std::mem::take(&mut message.$name).requested()),+ }
            }

            /// Holds every value against its range.
            fn check_ranges(&self) -> Result<(), ApiError> {
                $($(if let Some(value) = self.$name {
                    check_range(concat!($prefix, stringify!($name)), value, $range, $allowed)?;
                })?)+
                Ok(())
            }
        }
    };
}

parameter_table! {
    /// The fields of a request, as far as OpenAI's and vLLM's clients know them.
    GeneralParameters, wire::GenerateRequest, "" {
        /// Choices per prompt. Default 1.
        n: Count in 1..=MAX_N, format_args!("from 1 to {MAX_N}");
        /// Names all random numbers of the request. Default: drawn.
        seed: SeedNumber;
        /// Most new tokens. Default 16 for completions, what the context leaves for chat.
        max_tokens: NewTokens;
        /// No end token and no stop string before so many new tokens. Default 0.
        min_tokens: Count;
        /// The base's temperature. Default 1.
        temperature: Number in 0.0..=f64::MAX, "a finite number of at least 0";
        /// The base's nucleus. Default 1.
        top_p: Number in f64::MIN_POSITIVE..=1.0, "greater than 0 and at most 1";
        /// Most tokens that the base draws from; 0, the default, keeps every token.
        top_k: TopK;
        /// Subtracted once per earlier occurrence in the new tokens. Default 0.
        frequency_penalty: Number in -2.0..=2.0, "from -2 to 2";
        /// Subtracted when the token occurs in the new tokens. Default 0.
        presence_penalty: Number in -2.0..=2.0, "from -2 to 2";
        /// Added to logits, by token id.
        logit_bias: TokenBiases;
        /// Strings that end the text and are not part of it.
        stop: StopStrings;
        /// Alternatives to report per token. Default: no log-probabilities.
        logprobs: LogprobCount in 0..=MAX_LOGPROBS, format_args!("from 0 to {MAX_LOGPROBS}");
        /// Whether the prompt is part of the answer. Default false.
        echo: CompletionsFlag;
    }
}

parameter_table! {
    /// The object `cosec` of a request, without the parameters of rules.
    HardeningParameters, wire::Cosec, "cosec." {
        /// How base and expert become one. Default: the operator's.
        rule: Text;
        /// The expert's temperature. Default: the operator's.
        expert_temperature: Number in 0.0..=f64::MAX, "a finite number of at least 0";
        /// The expert's nucleus. Default: the operator's.
        expert_top_p: Number in f64::MIN_POSITIVE..=1.0, "greater than 0 and at most 1";
        /// What logits travel as. Default auto.
        transport: Text;
        /// Whether every token says what hardening did to it. Default false.
        report: Flag;
    }
}

/// Settings as a client sent them; their types are right, their values unchecked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestedSettings {
    pub(crate) general: GeneralParameters,
    pub(crate) hardening: HardeningParameters,
    pub(crate) rule_parameters: RuleParameters,
}

/// What settings are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SettingsBounds<'a> {
    pub(crate) policy: Policy<'a>,
    /// Token ids below this are valid.
    pub(crate) vocabulary: u32,
    /// Where the client gives none; `None` takes what the context leaves.
    pub(crate) max_tokens: Option<u32>,
    /// How long a request may take.
    pub(crate) timeout: Duration,
}

impl RequestedSettings {
    /// Takes every parameter out of a request's JSON.
    ///
    /// # Errors
    /// Names the first field of a wrong type, or in `cosec` of an unknown name.
    pub(crate) fn read(fields: &mut JsonFields<'_>, endpoint: JsonEndpoint) -> Result<Self, ApiError> {
        // An end user's name changes nothing here; OpenAI's clients may send it.
        fields.take::<String>("user", Text::EXPECTED)?;
        let general = GeneralParameters::read(fields, endpoint)?;
        let Some(mut object) = fields.object("cosec")? else { return Ok(Self { general, ..Self::default() }) };
        let hardening = HardeningParameters::read(&mut object, endpoint)?;
        let mut rule_parameters = RuleParameters::default();
        for parameter in SelectedRule::parameters_of_all() {
            if let Some(value) = Number::read(&mut object, parameter.name, endpoint)? {
                rule_parameters.0.insert(parameter.name.to_owned(), value);
            }
        }
        object.finish(&[])?;
        Ok(Self { general, hardening, rule_parameters })
    }

    /// Takes every parameter out of a gRPC message.
    pub(crate) fn take(message: &mut wire::GenerateRequest) -> Self {
        let general = GeneralParameters::take(message);
        let mut cosec = std::mem::take(&mut message.cosec).unwrap_or_default();
        let hardening = HardeningParameters::take(&mut cosec);
        let of_rules = [("tau", cosec.tau), ("lambda", cosec.lambda), ("alpha", cosec.alpha)];
        let set = of_rules.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Self { general, hardening, rule_parameters: RuleParameters(set.collect()) }
    }

    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub(crate) fn checked(self, bounds: SettingsBounds<'_>) -> Result<Arc<GenerationSettings>, ApiError> {
        let policy = bounds.policy;
        let rule = self.rule(&policy)?;
        self.refuse_logprobs_and_bias(&policy)?;
        self.general.check_ranges()?;
        self.hardening.check_ranges()?;
        self.general.check_stops()?;
        let (base, expert) = self.sampling(&rule, &policy)?;
        let Self { general, hardening, .. } = self;
        let echo = general.echo.unwrap_or(false);
        let max_tokens = general.max_tokens.or(bounds.max_tokens);
        if max_tokens == Some(0) && !echo {
            return Err(ApiError::value("max_tokens", 0, "at least 1, or 0 together with echo"));
        }
        let min_tokens = general.min_tokens.unwrap_or(0);
        if let Some(max) = max_tokens.filter(|&max| min_tokens > max) {
            return Err(ApiError::value("min_tokens", min_tokens, format_args!("at most max_tokens, {max}")));
        }
        let settings = GenerationSettings {
            n: general.n.unwrap_or(1),
            seed: general.seed.unwrap_or_else(|| rand::random_range(0..SEED_BOUND)),
            max_tokens,
            min_tokens,
            base,
            expert,
            judge: policy.judge(),
            reference_code: policy.reference_code(),
            rule,
            adjustments: general.adjustments(bounds.vocabulary)?,
            transport: hardening.transport()?,
            logprobs: general.logprobs,
            echo,
            report: hardening.report.unwrap_or(false),
            deadline: Instant::now() + bounds.timeout,
            stop: general.stop.unwrap_or_default(),
        };
        Ok(Arc::new(settings))
    }

    /// The rule that is asked for, with what is asked for of its parameters.
    fn rule(&self, policy: &Policy<'_>) -> Result<SelectedRule, ApiError> {
        let name = self.hardening.rule.as_deref().unwrap_or(policy.default_rule());
        let mut parameters = policy.rule_parameters();
        parameters.0.extend(self.rule_parameters.0.clone());
        let rule = rule_named("cosec.rule", name, &parameters)?;
        self.refuse_others_of(&rule)?;
        for parameter in rule.description().parameters {
            let value = parameters.get(parameter);
            check_range(&format!("cosec.{}", parameter.name), value, parameter.range.clone(), parameter.allowed)?;
        }
        policy.check_rule(&rule, &parameters)?;
        Ok(rule)
    }

    /// Refuses what the operator may have forbidden.
    fn refuse_logprobs_and_bias(&self, policy: &Policy<'_>) -> Result<(), ApiError> {
        let GeneralParameters { logprobs, logit_bias, .. } = &self.general;
        if let Some(logprobs) = logprobs.filter(|_| !policy.allows_base_logprobs()) {
            let allowed = "left out, as the operator does not allow log-probabilities of the base";
            return Err(ApiError::value("logprobs", logprobs, allowed));
        }
        match logit_bias {
            Some(biases) if !biases.is_empty() && !policy.allows_logit_bias() => {
                let count = format!("a map of {} entries", biases.len());
                Err(ApiError::value("logit_bias", count, "left out, as the operator does not allow it"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses parameters that would have no effect under `rule`.
    fn refuse_others_of(&self, rule: &SelectedRule) -> Result<(), ApiError> {
        let reads_expert = |rule: &SelectedRule| rule.description().roles.contains(&WorkerRole::Expert);
        let refuse_unless = |name: &str, has_effect: &dyn Fn(&SelectedRule) -> bool| {
            if has_effect(rule) {
                return Ok(());
            }
            let owners = SelectedRule::all(&RuleParameters::default()).into_iter().filter(has_effect);
            let owners = owners.map(|rule| rule.name()).collect::<Vec<_>>().join(", ");
            let path = format!("cosec.{name}");
            let message = format!("{path} has no effect under the rule {}; it belongs to {owners}", rule.name());
            Err(ApiError::field(path, message))
        };
        for name in self.rule_parameters.0.keys() {
            refuse_unless(name, &|rule| {
                rule.description().parameters.iter().any(|parameter| parameter.name == name)
            })?;
        }
        if self.hardening.expert_temperature.is_some() {
            refuse_unless("expert_temperature", &reads_expert)?;
        }
        if self.hardening.expert_top_p.is_some() {
            refuse_unless("expert_top_p", &reads_expert)?;
        }
        Ok(())
    }

    /// The base gets the client's sampling, the expert its own, within the operator's bounds. Where a rule does not
    /// read the base, nothing can be weakened: the expert takes the client's unless it has its own.
    fn sampling(
        &self,
        rule: &SelectedRule,
        policy: &Policy<'_>,
    ) -> Result<(SamplingParams, SamplingParams), ApiError> {
        let GeneralParameters { temperature, top_p, top_k, .. } = self.general;
        let HardeningParameters { expert_temperature, expert_top_p, .. } = self.hardening;
        let alone = !rule.description().roles.contains(&WorkerRole::Base);
        let inherited = temperature.filter(|&temperature| alone || temperature == 0.0);
        let top_k = top_k.unwrap_or(0);
        let base = sampling_params(temperature.unwrap_or(1.0), top_p.unwrap_or(1.0), top_k)?;
        if let Some(own) = expert_temperature.filter(|_| !alone).filter(|_| expert_temperature != inherited) {
            policy.check_expert_temperature(own)?;
        }
        if let Some(own) = expert_top_p.filter(|_| !alone) {
            policy.check_expert_top_p(own)?;
        }
        let expert = sampling_params(
            expert_temperature.or(inherited).unwrap_or(policy.expert_temperature()),
            expert_top_p.or(top_p.filter(|_| alone)).unwrap_or(policy.expert_top_p()),
            if alone { top_k } else { 0 },
        )?;
        Ok((base, expert))
    }
}

impl GeneralParameters {
    fn check_stops(&self) -> Result<(), ApiError> {
        let stops = self.stop.as_deref().unwrap_or_default();
        if stops.len() > MAX_STOPS {
            let count = format!("a list of {} strings", stops.len());
            return Err(ApiError::value("stop", count, format_args!("at most {MAX_STOPS} strings")));
        }
        match stops.iter().position(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            None => Ok(()),
            Some(at) => {
                let bytes = stops[at].len();
                let message = format!("stop string {at} has {bytes} bytes; it must have 1 to {MAX_STOP_BYTES}");
                Err(ApiError::field("stop", message))
            }
        }
    }

    fn adjustments(&self, vocabulary: u32) -> Result<LogitAdjustments, ApiError> {
        let logit_bias = self.logit_bias.clone().unwrap_or_default();
        if logit_bias.len() > MAX_BIASES {
            let count = format!("a map of {} entries", logit_bias.len());
            return Err(ApiError::value("logit_bias", count, format_args!("at most {MAX_BIASES} entries")));
        }
        for (&id, &bias) in &logit_bias {
            if id >= vocabulary {
                let message = format!("logit_bias names the token {id}; the model's ids are below {vocabulary}");
                return Err(ApiError::field("logit_bias", message));
            }
            check_range(&format!("logit_bias.{id}"), bias, -100.0..=100.0, "from -100 to 100")
                .map_err(|error| error.of("logit_bias"))?;
        }
        Ok(LogitAdjustments {
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            logit_bias,
        })
    }
}

impl HardeningParameters {
    fn transport(&self) -> Result<LogitsTransport, ApiError> {
        let Some(name) = &self.transport else { return Ok(LogitsTransport::Auto) };
        LogitsTransport::ALL.into_iter().find(|transport| transport.name() == name).ok_or_else(|| {
            let all = LogitsTransport::ALL.map(LogitsTransport::name).join(", ");
            ApiError::value("cosec.transport", format_args!("{name:.60?}"), format_args!("one of {all}"))
        })
    }
}

/// Sampling parameters whose ranges the table or the configuration's check has held.
fn sampling_params(temperature: f64, top_p: f64, top_k: u32) -> Result<SamplingParams, ApiError> {
    SamplingParams::new(temperature, top_p, top_k)
        .map_err(|cause| ApiError::new(ErrorCode::InvalidArgument, cause.to_string()))
}
