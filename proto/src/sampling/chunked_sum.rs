//! Sums of per-token numbers in the one order that all devices share; see [`super`].

use std::ops::Range;

/// Numbers of a chunk that are added side by side.
const LANES: usize = 8;

/// Tokens of a chunk.
pub(super) const CHUNK: usize = 512;

/// The sum of the numbers of tokens with ascending `ids`; see the module.
pub(super) fn sum(ids: &[u32], numbers: &[f64]) -> f64 {
    chunks(ids).map(|chunk| sum_of_chunk(&ids[chunk.clone()], &numbers[chunk])).sum()
}

/// Where the ids of each chunk stand; of those that have any.
pub(super) fn chunks(ids: &[u32]) -> impl Iterator<Item = Range<usize>> + '_ {
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
pub(super) fn sum_of_chunk(ids: &[u32], numbers: &[f64]) -> f64 {
    if ids.len() == CHUNK {
        return sum_of_first(numbers);
    }
    let mut lanes = [0.0; LANES];
    ids.iter().zip(numbers).for_each(|(&id, number)| lanes[id as usize % LANES] += number);
    lanes.iter().sum()
}

/// The sum of the numbers of the first tokens of a chunk.
pub(super) fn sum_of_first(numbers: &[f64]) -> f64 {
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

/// The sum of the weights from `least` on.
pub(super) fn sum_from(least: f64, weights: &[f64]) -> f64 {
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
