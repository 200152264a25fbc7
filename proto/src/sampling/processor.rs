//! From logits to a distribution.

use super::chunked_sum::{CHUNK, sum, sum_from, sum_of_first};
use super::distribution::{Distribution, InvalidLogits, TokenProbability};
use super::exp::exp;
use super::params::{SamplingParams, least_of_top_p};

/// Makes distributions of logits, one after the other in the same memory.
#[derive(Debug)]
pub struct LogitsProcessor {
    distribution: Distribution,
    /// Of every token; unnormalised.
    weights: Vec<f64>,
    /// The same, in the order that top-k needs.
    ordered: Vec<f64>,
    /// Ids with their weights.
    support: Vec<(u32, f64)>,
}

impl Default for LogitsProcessor {
    fn default() -> Self {
        let distribution = Distribution { ids: Vec::new(), probabilities: Vec::new(), log_normaliser: 0.0 };
        Self { distribution, weights: Vec::new(), ordered: Vec::new(), support: Vec::new() }
    }
}

impl Distribution {
    /// Makes a distribution of the logits of a position, `[vocabulary]`.
    ///
    /// # Errors
    /// [`InvalidLogits`] when the logits hold NaN or +inf, or nothing above -inf.
    pub fn from_logits(logits: &[f32], params: &SamplingParams) -> Result<Self, InvalidLogits> {
        let mut processor = LogitsProcessor::default();
        processor.process(logits, params)?;
        Ok(processor.distribution)
    }
}

impl LogitsProcessor {
    /// What it made last.
    #[must_use]
    pub fn distribution(&self) -> &Distribution {
        &self.distribution
    }

    /// Does what [`Distribution::from_logits`] does.
    ///
    /// # Errors
    /// As there.
    pub fn process(&mut self, logits: &[f32], params: &SamplingParams) -> Result<&Distribution, InvalidLogits> {
        let max = checked_max(logits)?;
        let Self { distribution: Distribution { ids, probabilities, log_normaliser }, weights, ordered, support } =
            self;
        ids.clear();
        probabilities.clear();
        if params.temperature() == 0.0 {
            ids.push(arg_max(logits, max));
            probabilities.push(1.0);
            *log_normaliser = f64::from(max);
            return Ok(&self.distribution);
        }
        weights.clear();
        let mut total = weigh(logits, max, params, |some| weights.extend_from_slice(some));
        if params.cuts() {
            let least = least_of_top_k(weights, ordered, params.top_k() as usize);
            take_top_p(support, (weights, least), params.top_p());
            ids.extend(support.iter().map(|&(id, _)| id));
            probabilities.extend(support.iter().map(|&(_, weight)| weight));
            total = sum(ids, probabilities);
        } else if weights.iter().fold(true, |all, &weight| all & (weight > 0.0)) {
            ids.extend((0u32..).zip(&*weights).map(|(id, _)| id));
            probabilities.extend_from_slice(weights);
        } else {
            ids.extend((0u32..).zip(&*weights).filter(|&(_, &weight)| weight > 0.0).map(|(id, _)| id));
            probabilities.extend(weights.iter().copied().filter(|&weight| weight > 0.0));
        }
        probabilities.iter_mut().for_each(|p| *p /= total);
        *log_normaliser = f64::from(max) / params.temperature() + total.ln();
        Ok(&self.distribution)
    }

    /// Does what [`Distribution::from_logits`] does, where only the `sums` of the logits and some tokens are known:
    /// ascending by id, with their logits.
    ///
    /// Where `params` cut, the tokens from [`SamplingParams::least_share`] of the total on are needed, and those from
    /// the k-th largest on. Where they do not, the distribution lacks the tokens that are not given. At temperature 0
    /// only the lowest arg max is given.
    pub fn process_partial(
        &mut self,
        sums: &LogitsSums,
        (given, logits): (&[u32], &[f32]),
        params: &SamplingParams,
    ) -> &Distribution {
        let Self { distribution: Distribution { ids, probabilities, log_normaliser }, weights, ordered, support } =
            self;
        ids.clear();
        probabilities.clear();
        if params.temperature() == 0.0 {
            ids.extend_from_slice(given);
            probabilities.extend(given.iter().map(|_| 1.0));
            *log_normaliser = f64::from(sums.max);
            return &self.distribution;
        }
        weights.clear();
        weights.resize(logits.len(), 0.0);
        some_weights(logits, sums.max, params, weights);
        let least = least_of_top_k(weights, ordered, params.top_k() as usize);
        support.clear();
        support.extend(given.iter().copied().zip(weights.iter().copied()).filter(|&(_, weight)| weight >= least));
        let mut total = sums.total;
        if (1..sums.vocabulary).contains(&(params.top_k() as usize)) {
            ids.extend(support.iter().map(|&(id, _)| id));
            probabilities.extend(support.iter().map(|&(_, weight)| weight));
            total = sum(ids, probabilities);
            ids.clear();
            probabilities.clear();
        }
        let least = least_of_top_p(total, sums.vocabulary, params.top_p());
        support.retain(|&(_, weight)| weight >= least && weight > 0.0);
        cut_to_top_p(support, total, params.top_p());
        ids.extend(support.iter().map(|&(id, _)| id));
        probabilities.extend(support.iter().map(|&(_, weight)| weight));
        if params.cuts() {
            total = sum(ids, probabilities);
        }
        probabilities.iter_mut().for_each(|p| *p /= total);
        *log_normaliser = f64::from(sums.max) / params.temperature() + total.ln();
        &self.distribution
    }
}

/// What a device reports about the logits of a position in place of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitsSums {
    /// The largest logit; finite.
    pub max: f32,
    /// Of the weights of all tokens, summed as the module says.
    pub total: f64,
    /// Number of logits.
    pub vocabulary: usize,
}

impl LogitsSums {
    /// The probability of a token with this logit under `params`, which must neither cut nor be greedy.
    #[must_use]
    pub fn probability(&self, logit: f32, params: &SamplingParams) -> f64 {
        let mut weight = [0.0];
        some_weights(&[logit], self.max, params, &mut weight);
        weight[0] / self.total
    }
}

/// The probabilities of some `ids`, with the bits that [`Distribution::probability`] has for them. Cheaper where
/// `params` cut nothing off.
///
/// # Errors
/// As [`Distribution::from_logits`].
pub fn token_probabilities(
    ids: &[u32],
    logits: &[f32],
    params: &SamplingParams,
) -> Result<Vec<TokenProbability>, InvalidLogits> {
    let tokens = |probability: &dyn Fn(u32) -> f64| {
        ids.iter().map(|&id| TokenProbability { id, probability: probability(id) }).collect()
    };
    let max = checked_max(logits)?;
    if params.temperature() == 0.0 {
        let best = arg_max(logits, max);
        return Ok(tokens(&|id| if id == best { 1.0 } else { 0.0 }));
    }
    if params.cuts() {
        let distribution = Distribution::from_logits(logits, params)?;
        return Ok(tokens(&|id| distribution.probability(id)));
    }
    let sums = LogitsSums { max, total: weigh(logits, max, params, |_| ()), vocabulary: logits.len() };
    let logit = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Ok(tokens(&|id| sums.probability(logit(id), params)))
}

/// Hands the weights of all tokens to `take`, a chunk at a time, and returns their sum.
pub(super) fn weigh(logits: &[f32], max: f32, params: &SamplingParams, mut take: impl FnMut(&[f64])) -> f64 {
    let mut buffer = [0.0; CHUNK];
    let mut total = 0.0;
    for logits in logits.chunks(CHUNK) {
        let weights = &mut buffer[..logits.len()];
        some_weights(logits, max, params, weights);
        total += sum_of_first(weights);
        take(weights);
    }
    total
}

/// Unnormalised; the arg max has 1.
fn some_weights(logits: &[f32], max: f32, params: &SamplingParams, weights: &mut [f64]) {
    // Subtracting first keeps tiny temperatures finite: the arg max stays at 0, all else goes to -inf.
    let exponent = |&logit: &f32| (f64::from(logit) - f64::from(max)) / params.temperature();
    weights.iter_mut().zip(logits.iter().map(exponent)).for_each(|(weight, exponent)| *weight = exponent);
    exp(weights);
}

/// The lowest id with the logit `max`.
fn arg_max(logits: &[f32], max: f32) -> u32 {
    (0u32..).zip(logits).find(|&(_, &logit)| logit == max).map_or(0, |(id, _)| id)
}

pub(super) fn checked_max(logits: &[f32]) -> Result<f32, InvalidLogits> {
    // Without an early end, so that it is done for several at a time.
    let (mut max, mut is_proper) = (f32::NEG_INFINITY, true);
    for &value in logits {
        is_proper &= value < f32::INFINITY;
        max = if value > max { value } else { max };
    }
    let improper = || logits.iter().position(|&value| value.is_nan() || value == f32::INFINITY);
    if !is_proper && let Some(index) = improper() {
        return Err(InvalidLogits::Value { index, value: logits[index] });
    }
    if max == f32::NEG_INFINITY { Err(InvalidLogits::NoSupport) } else { Ok(max) }
}

/// The `k`-th largest weight: it and whatever equals it stay (Hugging Face's top-k). 0 where all stay.
pub(super) fn least_of_top_k(weights: &[f64], ordered: &mut Vec<f64>, k: usize) -> f64 {
    if k == 0 || k >= weights.len() {
        return 0.0;
    }
    ordered.clear();
    ordered.extend_from_slice(weights);
    *ordered.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Tokens that [`cut_to_top_p`] sorts at once.
const SORTED: usize = 64;

/// Takes of the weights from `least` on the top-p, see [`SamplingParams`], into `support`.
fn take_top_p(support: &mut Vec<(u32, f64)>, (weights, least): (&[f64], f64), top_p: f64) {
    let total = sum_from(least, weights);
    let least = least.max(least_of_top_p(total, weights.len(), top_p));
    support.clear();
    support.extend((0u32..).zip(weights.iter().copied()).filter(|&(_, weight)| weight >= least && weight > 0.0));
    cut_to_top_p(support, total, top_p);
}

/// Leaves of the `support`, ascending by id, the top-p of the `total`.
///
/// Walks from the most probable token down, which is the ascending rule read backwards: a token stays while the mass at
/// and below it is more than `1 - top_p`.
fn cut_to_top_p(support: &mut Vec<(u32, f64)>, total: f64, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    // Higher ids first among equals: the ascending rule drops the lower ones first.
    let descending = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0));
    // Those before `kept` stay and have the mass `above`; those from `end` on go. The cut is sought by halves, so that
    // only the few around it are sorted.
    let (mut kept, mut end, mut above) = (0, support.len(), 0.0);
    let stays = |above: f64| 1.0 - above > 1.0 - top_p;
    while end - kept > SORTED {
        let rest = &mut support[kept..end];
        let half = rest.len() / 2;
        rest.select_nth_unstable_by(half, descending);
        let mass = rest[..half].iter().map(|&(_, w)| w).sum::<f64>() / total;
        if stays(above + mass) {
            kept += half;
            above += mass;
        } else {
            end = kept + half;
        }
    }
    support[kept..end].sort_unstable_by(descending);
    while kept < end && (kept == 0 || stays(above)) {
        above += support[kept].1 / total;
        kept += 1;
    }
    support.truncate(kept);
    support.sort_unstable_by_key(|&(id, _)| id);
}
