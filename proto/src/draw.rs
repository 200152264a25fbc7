//! From logits to a token: warp, distribution, inverse CDF, and the numbers it is drawn with.
//!
//! All arithmetic is f64 on f32 logits and has one order of operations, so that coordinator and worker, on whatever
//! device, compute the same bits from the same row.
//!
//! **Sums.** The tokens from `512 c` to `512 c + 511` are chunk `c`. A token's number is added to lane `id % 8` of its
//! chunk, in the order of the ids; the lanes of a chunk are added in order, then the sums of the chunks. So chunks are
//! summed side by side, and tokens of weight zero may be left out.

use std::ops::Range;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::exp::exp;

/// How logits become a distribution: temperature, then top-k, then top-p.
///
/// Top-p is Hugging Face's (CoSec's published code uses it): sort ascending, lower ids first among equals; drop every
/// token whose cumulative probability is `<= 1 - top_p`; never drop the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    temperature: f64,
    top_p: f64,
    top_k: u32,
}

impl Warp {
    /// The softmax of the logits as they are.
    pub const RAW: Self = Self { temperature: 1.0, top_p: 1.0, top_k: 0 };

    /// All mass on the arg max.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0 };

    /// Checks the settings. `top_k` 0 keeps everything.
    ///
    /// # Errors
    /// [`InvalidWarp`] unless `temperature` is finite and not negative and `top_p` in (0, 1].
    pub fn new(temperature: f64, top_p: f64, top_k: u32) -> Result<Self, InvalidWarp> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(InvalidWarp::Temperature(temperature));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(InvalidWarp::TopP(top_p));
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

impl TryFrom<crate::worker::Warp> for Warp {
    type Error = InvalidWarp;

    fn try_from(wire: crate::worker::Warp) -> Result<Self, InvalidWarp> {
        Self::new(wire.temperature, wire.top_p, wire.top_k)
    }
}

impl From<Warp> for crate::worker::Warp {
    fn from(warp: Warp) -> Self {
        Self { temperature: warp.temperature, top_p: warp.top_p, top_k: warp.top_k }
    }
}

/// Settings that make no distribution.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidWarp {
    /// Negative, infinite or not a number.
    #[error("temperature is {0}; it must be a finite number of at least 0")]
    Temperature(f64),
    /// Outside (0, 1].
    #[error("top_p is {0}; it must be greater than 0 and at most 1")]
    TopP(f64),
}

/// A row of logits that makes no distribution; the model or its worker is broken.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidLogits {
    /// NaN or +inf.
    #[error("logit {index} is {value}")]
    Value {
        /// Token id.
        index: usize,
        /// What stands there.
        value: f32,
    },
    /// Empty, or every token has probability zero.
    #[error("no token has a finite logit")]
    NoSupport,
}

/// A distribution over token ids: its support in ascending order with probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    ids: Vec<u32>,
    probabilities: Vec<f64>,
    log_normaliser: f64,
}

impl Distribution {
    /// Warps a row of logits `[vocabulary]`.
    ///
    /// # Errors
    /// [`InvalidLogits`] when the row holds NaN or +inf, or nothing above -inf.
    pub fn warped(logits: &[f32], warp: &Warp) -> Result<Self, InvalidLogits> {
        let mut warper = Warper::default();
        warper.warp(logits, warp)?;
        Ok(warper.distribution)
    }

    /// Takes a support that was computed elsewhere.
    ///
    /// # Errors
    /// [`InvalidSupport`] unless `ids` are strictly ascending and as many as `probabilities`, which must be in
    /// [0, 1] and must not all be zero.
    pub fn from_support(ids: Vec<u32>, probabilities: Vec<f64>, log_normaliser: f64) -> Result<Self, InvalidSupport> {
        let ascending = ids.windows(2).all(|pair| pair[0] < pair[1]);
        let proper = probabilities.iter().all(|p| (0.0..=1.0).contains(p));
        let some = probabilities.iter().any(|&p| p > 0.0);
        if ids.len() == probabilities.len() && ascending && proper && some {
            Ok(Self { ids, probabilities, log_normaliser })
        } else {
            Err(InvalidSupport)
        }
    }

    /// Ids of the support, ascending.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Probabilities, in the order of [`Self::ids`].
    #[must_use]
    pub fn probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// Log of the sum of `exp(logit / temperature)` over the support.
    #[must_use]
    pub fn log_normaliser(&self) -> f64 {
        self.log_normaliser
    }

    /// Ids with their probabilities, ascending by id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f64)> + Clone + '_ {
        self.ids.iter().copied().zip(self.probabilities.iter().copied())
    }

    /// Probability of `id`; 0 outside the support.
    #[must_use]
    pub fn probability(&self, id: u32) -> f64 {
        self.ids.binary_search(&id).map_or(0.0, |at| self.probabilities[at])
    }

    /// The draw that belongs to `u` in [0, 1): the first id whose cumulative probability exceeds `u`.
    ///
    /// A token of probability zero is never drawn.
    #[must_use]
    pub fn sample(&self, u: f64) -> u32 {
        draw(&self.ids, &self.probabilities, u)
    }
}

/// Warps one row after the other in the same memory.
#[derive(Debug)]
pub struct Warper {
    distribution: Distribution,
    /// Of every token; unnormalised.
    weights: Vec<f64>,
    /// The same, in the order that top-k needs.
    ordered: Vec<f64>,
    /// Ids with their weights.
    support: Vec<(u32, f64)>,
}

impl Default for Warper {
    fn default() -> Self {
        let distribution = Distribution { ids: Vec::new(), probabilities: Vec::new(), log_normaliser: 0.0 };
        Self { distribution, weights: Vec::new(), ordered: Vec::new(), support: Vec::new() }
    }
}

impl Warper {
    /// What it made last.
    #[must_use]
    pub fn distribution(&self) -> &Distribution {
        &self.distribution
    }

    /// Does what [`Distribution::warped`] does.
    ///
    /// # Errors
    /// As there.
    pub fn warp(&mut self, logits: &[f32], warp: &Warp) -> Result<&Distribution, InvalidLogits> {
        let max = checked_max(logits)?;
        let Self { distribution: Distribution { ids, probabilities, log_normaliser }, weights, ordered, support } =
            self;
        ids.clear();
        probabilities.clear();
        if warp.temperature == 0.0 {
            ids.push(arg_max(logits, max));
            probabilities.push(1.0);
            *log_normaliser = f64::from(max);
            return Ok(&self.distribution);
        }
        weights.clear();
        let mut total = weigh(logits, max, warp, |some| weights.extend_from_slice(some));
        if warp.cuts() {
            let least = least_of_top_k(weights, ordered, warp.top_k as usize);
            take_top_p(support, (weights, least), warp.top_p);
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
        *log_normaliser = f64::from(max) / warp.temperature + total.ln();
        Ok(&self.distribution)
    }

    /// Does what [`Distribution::warped`] does for a row of which only `sums` and some tokens are known, ascending by id,
    /// with their logits.
    ///
    /// A warp that cuts needs the tokens from [`Warp::least_share`] of the total on, and those from the k-th largest on; of one that
    /// does not, the distribution lacks the tokens that are not given. At temperature 0 only the lowest arg max is given.
    pub fn warp_some(&mut self, sums: &RowSums, (given, logits): (&[u32], &[f32]), warp: &Warp) -> &Distribution {
        let Self { distribution: Distribution { ids, probabilities, log_normaliser }, weights, ordered, support } =
            self;
        ids.clear();
        probabilities.clear();
        if warp.temperature == 0.0 {
            ids.extend_from_slice(given);
            probabilities.extend(given.iter().map(|_| 1.0));
            *log_normaliser = f64::from(sums.max);
            return &self.distribution;
        }
        weights.clear();
        weights.resize(logits.len(), 0.0);
        some_weights(logits, sums.max, warp, weights);
        let least = least_of_top_k(weights, ordered, warp.top_k as usize);
        support.clear();
        support.extend(given.iter().copied().zip(weights.iter().copied()).filter(|&(_, weight)| weight >= least));
        let mut total = sums.total;
        if (1..sums.vocabulary).contains(&(warp.top_k as usize)) {
            ids.extend(support.iter().map(|&(id, _)| id));
            probabilities.extend(support.iter().map(|&(_, weight)| weight));
            total = sum(ids, probabilities);
            ids.clear();
            probabilities.clear();
        }
        let least = least_of_top_p(total, sums.vocabulary, warp.top_p);
        support.retain(|&(_, weight)| weight >= least && weight > 0.0);
        cut_to_top_p(support, total, warp.top_p);
        ids.extend(support.iter().map(|&(id, _)| id));
        probabilities.extend(support.iter().map(|&(_, weight)| weight));
        if warp.cuts() {
            total = sum(ids, probabilities);
        }
        probabilities.iter_mut().for_each(|p| *p /= total);
        *log_normaliser = f64::from(sums.max) / warp.temperature + total.ln();
        &self.distribution
    }
}

/// What a device tells of a row of logits in place of the row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSums {
    /// The largest logit; finite.
    pub max: f32,
    /// Of the weights of all tokens under the warp, as the module says.
    pub total: f64,
    /// Length of the row.
    pub vocabulary: usize,
}

impl RowSums {
    /// What a token with this logit has under `warp`, which must not cut and not be greedy.
    #[must_use]
    pub fn probability(&self, logit: f32, warp: &Warp) -> f64 {
        let mut weight = [0.0];
        some_weights(&[logit], self.max, warp, &mut weight);
        weight[0] / self.total
    }
}

/// The probabilities of some `ids`, with the bits that [`Distribution::probability`] has for them, for less where the
/// warp cuts nothing off.
///
/// # Errors
/// As [`Distribution::warped`].
pub fn probabilities_of(ids: &[u32], logits: &[f32], warp: &Warp) -> Result<Vec<f64>, InvalidLogits> {
    let max = checked_max(logits)?;
    if warp.temperature == 0.0 {
        let best = arg_max(logits, max);
        return Ok(ids.iter().map(|&id| if id == best { 1.0 } else { 0.0 }).collect());
    }
    if warp.cuts() {
        let distribution = Distribution::warped(logits, warp)?;
        return Ok(ids.iter().map(|&id| distribution.probability(id)).collect());
    }
    let sums = RowSums { max, total: weigh(logits, max, warp, |_| ()), vocabulary: logits.len() };
    let logit = |&id: &u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Ok(ids.iter().map(|id| sums.probability(logit(id), warp)).collect())
}

/// Numbers of a chunk that are added side by side.
const LANES: usize = 8;

/// Tokens of a chunk.
const CHUNK: usize = 512;

/// Hands the weights of all tokens to `take`, a chunk at a time, and returns their sum.
fn weigh(logits: &[f32], max: f32, warp: &Warp, mut take: impl FnMut(&[f64])) -> f64 {
    let mut buffer = [0.0; CHUNK];
    let mut total = 0.0;
    for logits in logits.chunks(CHUNK) {
        let weights = &mut buffer[..logits.len()];
        some_weights(logits, max, warp, weights);
        total += sum_of_first(weights);
        take(weights);
    }
    total
}

/// Unnormalised; the arg max has 1.
fn some_weights(logits: &[f32], max: f32, warp: &Warp, weights: &mut [f64]) {
    // Subtracting first keeps tiny temperatures finite: the arg max stays at 0, all else goes to -inf.
    let exponent = |&logit: &f32| (f64::from(logit) - f64::from(max)) / warp.temperature;
    weights.iter_mut().zip(logits.iter().map(exponent)).for_each(|(weight, exponent)| *weight = exponent);
    exp(weights);
}

/// The sum of the numbers of tokens with ascending `ids`; see the module.
fn sum(ids: &[u32], numbers: &[f64]) -> f64 {
    chunks(ids).map(|chunk| sum_of_chunk(&ids[chunk.clone()], &numbers[chunk])).sum()
}

/// Where the ids of each chunk stand; of those that have any.
fn chunks(ids: &[u32]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &ids[start..];
        let chunk = rest.first()? / CHUNK as u32;
        let rest = &rest[..rest.len().min(CHUNK)];
        let end = start + rest.partition_point(|id| id / CHUNK as u32 == chunk);
        Some(std::mem::replace(&mut start, end)..end)
    })
}

/// The sum of the numbers of some tokens of one chunk.
fn sum_of_chunk(ids: &[u32], numbers: &[f64]) -> f64 {
    if ids.len() == CHUNK {
        return sum_of_first(numbers);
    }
    let mut lanes = [0.0; LANES];
    ids.iter().zip(numbers).for_each(|(&id, number)| lanes[id as usize % LANES] += number);
    lanes.iter().sum()
}

/// The sum of the numbers of the first tokens of a chunk.
fn sum_of_first(numbers: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = numbers.as_chunks::<LANES>();
    for some in whole {
        for i in 0..LANES {
            lanes[i] += some[i];
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, number)| *lane += number);
    lanes.iter().sum()
}

/// The lowest id with the logit `max`.
fn arg_max(logits: &[f32], max: f32) -> u32 {
    (0u32..).zip(logits).find(|&(_, &logit)| logit == max).map_or(0, |(id, _)| id)
}

/// Draws from unnormalised `weights`, ascending by id, by inverse CDF: the first id whose cumulative weight exceeds `u` of
/// the total.
///
/// Never draws a weight of zero while another is positive.
pub fn inverse_cdf(weights: impl IntoIterator<Item = (u32, f64)>, u: f64) -> u32 {
    let (ids, weights): (Vec<_>, Vec<_>) = weights.into_iter().unzip();
    draw(&ids, &weights, u)
}

/// See [`inverse_cdf`]. Cumulative weights are the sums of the chunks before, then one token after the other.
fn draw(ids: &[u32], weights: &[f64], u: f64) -> u32 {
    let target = u * sum(ids, weights);
    let mut before = 0.0;
    for chunk in chunks(ids) {
        let (ids, weights) = (&ids[chunk.clone()], &weights[chunk]);
        let through = before + sum_of_chunk(ids, weights);
        if through > target {
            return walk(ids, weights, before, target);
        }
        before = through;
    }
    // There is no number between the target and the total.
    walk(ids, weights, 0.0, f64::INFINITY)
}

/// The first id whose weight and those before it and the weight `before` exceed `target`.
fn walk(ids: &[u32], weights: &[f64], before: f64, target: f64) -> u32 {
    let mut cumulative = before;
    let mut last_possible = 0;
    for (&id, &weight) in ids.iter().zip(weights) {
        cumulative += weight;
        if weight > 0.0 {
            if cumulative > target {
                return id;
            }
            // Rounding can leave the last sum at or below the target.
            last_possible = id;
        }
    }
    last_possible
}

fn checked_max(logits: &[f32]) -> Result<f32, InvalidLogits> {
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
fn least_of_top_k(weights: &[f64], ordered: &mut Vec<f64>, k: usize) -> f64 {
    if k == 0 || k >= weights.len() {
        return 0.0;
    }
    ordered.clear();
    ordered.extend_from_slice(weights);
    *ordered.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Far more than what rounding adds up to in the cumulative sums of [`cut_to_top_p`].
const ROUNDING: f64 = 1e-9;

/// Tokens that [`cut_to_top_p`] sorts at once.
const SORTED: usize = 64;

/// Takes of the weights from `least` on the top-p, see [`Warp`], into `support`.
fn take_top_p(support: &mut Vec<(u32, f64)>, (weights, least): (&[f64], f64), top_p: f64) {
    let total = sum_from(least, weights);
    let least = least.max(least_of_top_p(total, weights.len(), top_p));
    support.clear();
    support.extend((0u32..).zip(weights.iter().copied()).filter(|&(_, weight)| weight >= least && weight > 0.0));
    cut_to_top_p(support, total, top_p);
}

/// The sum of the weights from `least` on.
fn sum_from(least: f64, weights: &[f64]) -> f64 {
    let sum_of_chunk = |weights: &[f64]| {
        let mut lanes = [0.0; LANES];
        for some in weights.chunks(LANES) {
            for (lane, &weight) in lanes.iter_mut().zip(some) {
                *lane += if weight >= least { weight } else { 0.0 };
            }
        }
        lanes.iter().sum::<f64>()
    };
    weights.chunks(CHUNK).map(sum_of_chunk).sum()
}

/// A weight below which no token of `vocabulary` is in the top-p of the `total`: together these weigh at most half of what
/// is left out, and nobody needs to sort them.
fn least_of_top_p(total: f64, vocabulary: usize, top_p: f64) -> f64 {
    let spare = 1.0 - top_p;
    if spare > ROUNDING { 0.5 * spare * total / vocabulary as f64 } else { 0.0 }
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
    // Those before `kept` stay and have the mass `above`; those from `end` on go. The cut is sought by halves, so that only
    // the few around it are sorted.
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

/// A support that is no distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ids must ascend and pair with probabilities in [0, 1] that are not all zero")]
pub struct InvalidSupport;

/// What a random number is for; part of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The expert's proposal.
    Draft = 0,
    /// The token in place of a rejected proposal.
    Fallback = 1,
    /// Whether a rule that keeps proposals by chance keeps this one.
    Acceptance = 2,
}

/// The random numbers of one sample of one request.
///
/// Counter-based (ChaCha with 12 rounds, keyed by the request's seed): there is no state, so any process computes any
/// number, in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Randomness {
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's samples.
    pub sample: u32,
}

/// Keeps these numbers apart from other uses of the same seed; the seed takes the last eight bytes.
const DOMAIN: &[u8; 32] = b"cosec draws, version 1..........";

impl Randomness {
    /// The number in [0, 1) for the token at `position` of the sequence (the prompt counts).
    #[must_use]
    pub fn uniform(&self, purpose: Purpose, position: u32) -> f64 {
        let mut key = *DOMAIN;
        key[24..].copy_from_slice(&self.seed.to_le_bytes());
        let mut numbers = ChaCha12Rng::from_seed(key);
        numbers.set_stream(u64::from(self.sample) << 8 | purpose as u64);
        numbers.set_word_pos(2 * u128::from(position));
        // 53 bits fill the mantissa exactly.
        (numbers.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl From<crate::worker::Randomness> for Randomness {
    fn from(wire: crate::worker::Randomness) -> Self {
        Self { seed: wire.seed, sample: wire.sample }
    }
}

impl From<Randomness> for crate::worker::Randomness {
    fn from(randomness: Randomness) -> Self {
        Self { seed: randomness.seed, sample: randomness.sample }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Top-p as Hugging Face writes it: ascending, stable, cumulative.
    fn reference_top_p(logits: &[f32], temperature: f64, top_p: f64) -> Vec<u32> {
        let z: Vec<f64> = logits.iter().map(|&l| f64::from(l) / temperature).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = z.iter().map(|z| (z - max).exp()).sum();
        let mut order: Vec<usize> = (0..z.len()).collect();
        order.sort_by(|&a, &b| z[a].total_cmp(&z[b]));
        let mut cumulative = 0.0;
        let mut kept = Vec::new();
        for (rank, &at) in order.iter().enumerate() {
            cumulative += (z[at] - max).exp() / total;
            if cumulative > 1.0 - top_p || rank + 1 == order.len() {
                kept.push(at as u32);
            }
        }
        kept.sort_unstable();
        kept
    }

    proptest! {
        #[test]
        fn nucleus_is_the_ascending_rule(
            logits in proptest::collection::vec(-20f32..20.0, 1..1500),
            temperature in 0.1f64..3.0,
            top_p in 0.001f64..1.0,
        ) {
            let warp = Warp::new(temperature, top_p, 0).unwrap();
            let warped = Distribution::warped(&logits, &warp).unwrap();
            let expected = reference_top_p(&logits, temperature, top_p);
            prop_assert_eq!(warped.ids(), &expected[..]);
            prop_assert!((warped.probabilities().iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }

        #[test]
        fn impossible_tokens_are_never_drawn(
            weights in proptest::collection::vec(prop_oneof![Just(0.0), 1e-300f64..1.0], 1..1500),
            u in 0f64..1.0,
        ) {
            prop_assume!(weights.iter().any(|&w| w > 0.0));
            let id = inverse_cdf((0u32..).zip(weights.iter().copied()), u);
            prop_assert!(weights[id as usize] > 0.0);
        }

        #[test]
        fn any_row_makes_a_distribution_or_an_error(bits in proptest::collection::vec(any::<u32>(), 0..64), t in 0f64..2.0) {
            let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            if let Ok(d) = Distribution::warped(&logits, &Warp::new(t, 0.9, 3).unwrap()) {
                prop_assert!((d.probabilities().iter().sum::<f64>() - 1.0).abs() < 1e-9);
                prop_assert!(d.probability(d.sample(0.999_999)) > 0.0);
            }
        }
    }

    proptest! {
        #[test]
        fn a_warper_gives_the_same_bits_whatever_it_did_before(
            rows in proptest::collection::vec(proptest::collection::vec(-20f32..20.0, 1..900), 1..5),
            temperature in prop_oneof![Just(0.0), Just(1.0), 0.1f64..3.0],
            top_p in prop_oneof![Just(1.0), 0.001f64..1.0],
            top_k in prop_oneof![Just(0), 0..50_u32],
        ) {
            let warp = Warp::new(temperature, top_p, top_k).unwrap();
            let mut warper = Warper::default();
            for row in &rows {
                let fresh = Distribution::warped(row, &warp).unwrap();
                prop_assert_eq!(warper.warp(row, &warp).unwrap(), &fresh);
                let ids: Vec<u32> = (0..row.len() as u32 + 1).collect();
                let expected: Vec<u64> = ids.iter().map(|&id| fresh.probability(id).to_bits()).collect();
                let found = probabilities_of(&ids, row, &warp).unwrap();
                prop_assert_eq!(found.iter().map(|p| p.to_bits()).collect::<Vec<_>>(), expected);
            }
        }
    }

    proptest! {
        /// Chunks and lanes as the module has them, one number after the other.
        #[test]
        fn sums_go_by_chunk_and_lane(
            tokens in proptest::collection::btree_map(0u32..3000, prop_oneof![Just(0.0), 0f64..1.0], 1..2500),
            u in 0f64..1.0,
        ) {
            let mut chunks = vec![[0.0; 8]; 6];
            tokens.iter().for_each(|(&id, weight)| chunks[id as usize / 512][id as usize % 8] += weight);
            let chunks: Vec<f64> = chunks.iter().map(|lanes| lanes.iter().fold(0.0, |sum, lane| sum + lane)).collect();
            let total = chunks.iter().fold(0.0, |sum, chunk| sum + chunk);
            let (ids, weights): (Vec<u32>, Vec<f64>) = tokens.iter().unzip();
            prop_assert_eq!(sum(&ids, &weights).to_bits(), total.to_bits());
            let dense: Vec<f64> = (0..3000).map(|id| *tokens.get(&id).unwrap_or(&0.0)).collect();
            prop_assert_eq!(sum_from(0.0, &dense).to_bits(), total.to_bits());
            prop_assert_eq!(sum(&(0..3000).collect::<Vec<_>>(), &dense).to_bits(), total.to_bits());

            prop_assume!(total > 0.0);
            let (mut through, mut chunk) = (chunks[0], 0);
            while through <= u * total {
                chunk += 1;
                through += chunks[chunk];
            }
            let mut cumulative = chunks[..chunk].iter().fold(0.0, |sum, chunk| sum + chunk);
            let of_chunk = 512 * chunk as u32..512 * (chunk as u32 + 1);
            let possible = tokens.range(of_chunk).filter(|&(_, &weight)| weight > 0.0);
            let mut candidates = possible.clone().skip_while(|&(_, weight)| { cumulative += weight; cumulative <= u * total });
            let expected = candidates.next().or(possible.clone().next_back()).map(|(&id, _)| id);
            prop_assert_eq!(Some(inverse_cdf(tokens, u)), expected);
        }

        #[test]
        fn the_tokens_that_matter_make_the_whole_distribution(
            logits in proptest::collection::vec(prop_oneof![8 => -20f32..20.0, 1 => Just(3.0), 1 => Just(f32::NEG_INFINITY)], 1..1500),
            temperature in prop_oneof![Just(1.0), 0.01f64..3.0],
            top_p in prop_oneof![Just(1.0), 0.001f64..1.0],
            top_k in prop_oneof![Just(0), 1..50_u32],
        ) {
            let warp = Warp::new(temperature, top_p, top_k).unwrap();
            let Ok(whole) = Distribution::warped(&logits, &warp) else { return Ok(()) };
            let max = checked_max(&logits).unwrap();
            let mut weights = Vec::new();
            let total = weigh(&logits, max, &warp, |some| weights.extend_from_slice(some));
            let least = match top_k {
                0 => warp.least_share(logits.len()) * total * 0.999,
                k => least_of_top_k(&weights, &mut Vec::new(), k as usize),
            };
            let given: Vec<u32> = (0..logits.len() as u32).filter(|&id| weights[id as usize] >= least).collect();
            let some: Vec<f32> = given.iter().map(|&id| logits[id as usize]).collect();
            let sums = RowSums { max, total, vocabulary: logits.len() };
            let mut warper = Warper::default();
            prop_assert_eq!(warper.warp_some(&sums, (&given, &some), &warp), &whole);
        }
    }

    #[test]
    fn in_ties_the_lower_id_goes_first() {
        let warped = Distribution::warped(&[0.0; 8], &Warp::new(1.0, 0.5, 0).unwrap()).unwrap();
        assert_eq!(warped.ids(), [4, 5, 6, 7]);
        let top = Distribution::warped(&[1.0, 3.0, 3.0, 2.0], &Warp::new(1.0, 1.0, 1).unwrap()).unwrap();
        assert_eq!(top.ids(), [1, 2], "equals of the k-th stay");
    }

    #[test]
    fn greedy_takes_the_lowest_arg_max_and_tiny_temperatures_agree() {
        let logits = [1.0, 7.5, -3.0, 7.5];
        assert_eq!(Distribution::warped(&logits, &Warp::GREEDY).unwrap().ids(), [1]);
        let cold = Distribution::warped(&[1.0, 7.5, 7.4], &Warp::new(1e-300, 1.0, 0).unwrap()).unwrap();
        assert_eq!(cold.ids(), [1]);
    }

    #[test]
    fn draws_differ_by_every_part_of_their_name_and_repeat() {
        let base = Randomness { seed: 7, sample: 0 };
        let u = base.uniform(Purpose::Draft, 5);
        assert_eq!(u.to_bits(), base.uniform(Purpose::Draft, 5).to_bits());
        assert_ne!(u, base.uniform(Purpose::Fallback, 5));
        assert_ne!(u, base.uniform(Purpose::Draft, 6));
        assert_ne!(u, Randomness { seed: 8, sample: 0 }.uniform(Purpose::Draft, 5));
        assert_ne!(u, Randomness { seed: 7, sample: 1 }.uniform(Purpose::Draft, 5));
    }

    #[test]
    fn draws_are_uniform() {
        let count = 100_000;
        let numbers = Randomness { seed: 3407, sample: 2 };
        let mut bins = [0u32; 16];
        for position in 0..count {
            bins[(numbers.uniform(Purpose::Fallback, position) * 16.0) as usize] += 1;
        }
        let expected = f64::from(count) / 16.0;
        let chi_square: f64 = bins.iter().map(|&seen| (f64::from(seen) - expected).powi(2) / expected).sum();
        // 15 degrees of freedom: P(chi-square > 56.5) = 1e-6.
        assert!(chi_square < 56.5, "{chi_square}");
    }
}
