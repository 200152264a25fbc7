//! The weighted sum of two distributions.

use cosec_proto::sampling::{Distribution, InvalidSupport};

/// `first(id, x) + second(id, y)` over the union of both supports, where x and y are the probabilities of `id` there;
/// only ids with mass stay.
///
/// # Errors
/// When nothing has mass.
pub(super) fn blend(
    first: (&Distribution, impl Fn(u32, f64) -> f64),
    second: (&Distribution, impl Fn(u32, f64) -> f64),
) -> Result<Distribution, InvalidSupport> {
    let (first, of_first) = first;
    let (second, of_second) = second;
    let mut left = first.iter().peekable();
    let mut right = second.iter().peekable();
    let mut ids = Vec::with_capacity(first.ids().len().max(second.ids().len()));
    let mut probabilities = Vec::with_capacity(ids.capacity());
    loop {
        let id = match (left.peek(), right.peek()) {
            (Some(&(a, _)), Some(&(b, _))) => a.min(b),
            (Some(&(a, _)), None) => a,
            (None, Some(&(b, _))) => b,
            (None, None) => break,
        };
        let x = left.next_if(|&(other, _)| other == id).map_or(0.0, |(_, x)| of_first(id, x));
        let y = right.next_if(|&(other, _)| other == id).map_or(0.0, |(_, y)| of_second(id, y));
        if x + y > 0.0 {
            ids.push(id);
            // Weights of exactly 1 in sum can round to just above it.
            probabilities.push((x + y).min(1.0));
        }
    }
    Distribution::from_support(ids, probabilities, 0.0)
}
