//! How logits become a distribution, as a request says it.

/// How logits become a distribution: temperature, then top-k, then top-p.
///
/// Top-p is Hugging Face's (CoSec's published code uses it): sort ascending, lower ids first among equals; drop every
/// token whose cumulative probability is `<= 1 - top_p`; never drop the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    temperature: f64,
    top_p: f64,
    top_k: u32,
}

impl SamplingParams {
    /// The softmax of the logits as they are.
    pub const RAW: Self = Self { temperature: 1.0, top_p: 1.0, top_k: 0 };

    /// All mass on the arg max.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0 };

    /// Checks the settings. `top_k` 0 keeps everything.
    ///
    /// # Errors
    /// [`InvalidSamplingParams`] unless `temperature` is finite and not negative and `top_p` in (0, 1].
    pub fn new(temperature: f64, top_p: f64, top_k: u32) -> Result<Self, InvalidSamplingParams> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(InvalidSamplingParams::Temperature(temperature));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(InvalidSamplingParams::TopP(top_p));
        }
        Ok(Self { temperature, top_p, top_k })
    }

    /// 0 puts all mass on the arg max.
    #[must_use]
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// In (0, 1].
    #[must_use]
    pub fn top_p(&self) -> f64 {
        self.top_p
    }

    /// 0 keeps everything.
    #[must_use]
    pub fn top_k(&self) -> u32 {
        self.top_k
    }

    /// Whether tokens of positive probability may go.
    #[must_use]
    pub fn cuts(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0
    }

    /// The share of the total that a token of a row of `vocabulary` weighs at least that is in its top-p.
    #[must_use]
    pub fn least_share(&self, vocabulary: usize) -> f64 {
        least_of_top_p(1.0, vocabulary, self.top_p)
    }
}

impl TryFrom<crate::wire::worker::SamplingParams> for SamplingParams {
    type Error = InvalidSamplingParams;

    fn try_from(wire: crate::wire::worker::SamplingParams) -> Result<Self, InvalidSamplingParams> {
        Self::new(wire.temperature, wire.top_p, wire.top_k)
    }
}

impl From<SamplingParams> for crate::wire::worker::SamplingParams {
    fn from(params: SamplingParams) -> Self {
        Self { temperature: params.temperature, top_p: params.top_p, top_k: params.top_k }
    }
}

/// Settings that make no distribution.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidSamplingParams {
    /// Negative, infinite or not a number.
    #[error("temperature is {0}; it must be a finite number of at least 0")]
    Temperature(f64),
    /// Outside (0, 1].
    #[error("top_p is {0}; it must be greater than 0 and at most 1")]
    TopP(f64),
}

/// Far more than what rounding adds up to in the cumulative sums of top-p.
const ROUNDING: f64 = 1e-9;

/// A weight below which no token of `vocabulary` is in the top-p of the `total`: together these weigh at most half of
/// what is left out, and nobody needs to sort them.
pub(super) fn least_of_top_p(total: f64, vocabulary: usize, top_p: f64) -> f64 {
    let spare = 1.0 - top_p;
    if spare > ROUNDING { 0.5 * spare * total / vocabulary as f64 } else { 0.0 }
}
