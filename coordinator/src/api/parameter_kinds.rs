//! How the values of parameters are read: from JSON, where endpoints may spell a parameter in their own way, and from
//! gRPC.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::Deserialize;

use super::error::ApiError;
use super::json_fields::{BoundedList, JsonFields, typed};

/// Stop strings that are read; fewer are allowed.
const READ_STOPS: usize = 64;

/// Most entries of `logit_bias`.
pub(super) const MAX_BIASES: usize = 1024;

/// Most alternatives per token.
pub(super) const MAX_LOGPROBS: u32 = 20;

/// The two routes that spell some parameters differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonEndpoint {
    Completions,
    Chat,
}

/// Reads the values of a parameter.
pub(crate) trait ParameterKind {
    type Value: for<'a> Deserialize<'a>;

    /// What a value must be, in words.
    const EXPECTED: &'static str;

    /// Takes the parameter `name` out of a request's JSON.
    fn read(fields: &mut JsonFields<'_>, name: &str, _: JsonEndpoint) -> Result<Option<Self::Value>, ApiError> {
        fields.take(name, Self::EXPECTED)
    }
}

macro_rules! plain_kinds {
    ($($kind:ident: $value:ty, $expected:literal;)+) => {
        $(pub(crate) enum $kind {}

        impl ParameterKind for $kind {
            type Value = $value;
            const EXPECTED: &'static str = $expected;
        })+
    };
}

plain_kinds! {
    Number: f64, "a number";
    Count: u32, "a whole number of at least 0";
    TopK: u32, "a whole number of at least 0 (0 keeps every token)";
    Flag: bool, "true or false";
    Text: String, "a string";
}

/// A whole number of 64 bits; negative ones are those with the same bits.
pub(crate) enum SeedNumber {}

impl ParameterKind for SeedNumber {
    type Value = u64;
    const EXPECTED: &'static str = "a whole number of 64 bits";

    fn read(fields: &mut JsonFields<'_>, name: &str, _: JsonEndpoint) -> Result<Option<u64>, ApiError> {
        let Some(raw) = fields.raw(name) else { return Ok(None) };
        let seed: i128 = typed(name.to_owned(), raw, Self::EXPECTED)?;
        let unsigned = u64::try_from(seed).or_else(|_| i64::try_from(seed).map(i64::cast_unsigned));
        unsigned.map(Some).map_err(|_| ApiError::value(name, seed, Self::EXPECTED))
    }
}

/// One string or several.
pub(crate) enum StopStrings {}

impl ParameterKind for StopStrings {
    type Value = Vec<String>;
    const EXPECTED: &'static str = "a string or a list of strings, at most 16";

    fn read(fields: &mut JsonFields<'_>, name: &str, _: JsonEndpoint) -> Result<Option<Vec<String>>, ApiError> {
        let Some(raw) = fields.raw(name) else { return Ok(None) };
        if raw.get().starts_with('"') {
            return Ok(Some(vec![typed(name.to_owned(), raw, Self::EXPECTED)?]));
        }
        let stops: BoundedList<String, READ_STOPS> = typed(name.to_owned(), raw, Self::EXPECTED)?;
        Ok(Some(stops.0))
    }
}

/// Numbers by token id.
pub(crate) enum TokenBiases {}

impl ParameterKind for TokenBiases {
    type Value = BTreeMap<u32, f64>;
    const EXPECTED: &'static str = "a number from -100 to 100";

    fn read(fields: &mut JsonFields<'_>, name: &str, _: JsonEndpoint) -> Result<Option<Self::Value>, ApiError> {
        let Some(raw) = fields.raw(name) else { return Ok(None) };
        let object = JsonFields::of(fields.path_of(name), raw, MAX_BIASES)?;
        let entry = |(path, key, raw): (String, String, _)| {
            // One spelling per id, so that none can be named twice.
            let id = key.parse::<u32>().ok().filter(|id| id.to_string() == key).ok_or_else(|| {
                let message = format!("{name} has the key {key:.60?}; it must be a token id, such as \"50256\"");
                ApiError::field(name, message)
            })?;
            Ok((id, typed(path, raw, Self::EXPECTED).map_err(|error: ApiError| error.of(name))?))
        };
        object.rest().map(entry).collect::<Result<_, _>>().map(Some)
    }
}

/// `max_tokens`, which chat may also spell `max_completion_tokens`.
pub(crate) enum NewTokens {}

impl ParameterKind for NewTokens {
    type Value = u32;
    const EXPECTED: &'static str = Count::EXPECTED;

    fn read(fields: &mut JsonFields<'_>, name: &str, endpoint: JsonEndpoint) -> Result<Option<u32>, ApiError> {
        let older: Option<u32> = fields.take(name, Self::EXPECTED)?;
        if endpoint == JsonEndpoint::Completions {
            return Ok(older);
        }
        let newer = fields.take("max_completion_tokens", Self::EXPECTED)?;
        match (older, newer) {
            (Some(older), Some(newer)) if older != newer => {
                let allowed = format!("equal to {name}, {older}, when both are set");
                Err(ApiError::value("max_completion_tokens", newer, allowed))
            }
            _ => Ok(newer.or(older)),
        }
    }
}

/// Alternatives per token: a number in completions; in chat a flag, and `top_logprobs`.
pub(crate) enum LogprobCount {}

impl ParameterKind for LogprobCount {
    type Value = u32;
    const EXPECTED: &'static str = Count::EXPECTED;

    fn read(fields: &mut JsonFields<'_>, name: &str, endpoint: JsonEndpoint) -> Result<Option<u32>, ApiError> {
        if endpoint == JsonEndpoint::Completions {
            return fields.take(name, Self::EXPECTED);
        }
        let wanted = fields.take(name, Flag::EXPECTED)?.unwrap_or(false);
        let top: Option<u32> = fields.take("top_logprobs", Self::EXPECTED)?;
        match top {
            Some(top) if !wanted => {
                let message = format!("top_logprobs is {top}, but {name} is not true");
                Err(ApiError::field("top_logprobs", message))
            }
            Some(top) if top > MAX_LOGPROBS => {
                Err(ApiError::value("top_logprobs", top, format!("from 0 to {MAX_LOGPROBS}")))
            }
            _ => Ok(wanted.then(|| top.unwrap_or(0))),
        }
    }
}

/// A flag that only completions have.
pub(crate) enum CompletionsFlag {}

impl ParameterKind for CompletionsFlag {
    type Value = bool;
    const EXPECTED: &'static str = Flag::EXPECTED;

    fn read(fields: &mut JsonFields<'_>, name: &str, endpoint: JsonEndpoint) -> Result<Option<bool>, ApiError> {
        if endpoint == JsonEndpoint::Completions { fields.take(name, Self::EXPECTED) } else { Ok(None) }
    }
}

/// A field of a gRPC message as the value of a parameter.
pub(super) trait WireValue<T> {
    fn requested(self) -> Option<T>;
}

impl<T> WireValue<T> for Option<T> {
    fn requested(self) -> Option<T> {
        self
    }
}

impl<T> WireValue<Vec<T>> for Vec<T> {
    fn requested(self) -> Option<Vec<T>> {
        (!self.is_empty()).then_some(self)
    }
}

impl WireValue<BTreeMap<u32, f64>> for HashMap<u32, f64> {
    fn requested(self) -> Option<BTreeMap<u32, f64>> {
        (!self.is_empty()).then(|| self.into_iter().collect())
    }
}

/// Refuses a value outside `range`; NaN is in none.
pub(super) fn check_range<T: PartialOrd + Display>(
    name: &str,
    value: T,
    range: RangeInclusive<T>,
    allowed: impl Display,
) -> Result<(), ApiError> {
    if range.contains(&value) { Ok(()) } else { Err(ApiError::value(name, value, allowed)) }
}
