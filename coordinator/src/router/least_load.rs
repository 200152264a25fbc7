//! The worker with the fewest sessions.

/// Index of the candidate with the least load; the first among equals. One that is to be avoided is taken only when
/// there is no other.
///
/// `candidates` are pairs of load (sessions) and whether to avoid.
pub fn least_load(candidates: impl IntoIterator<Item = (usize, bool)>) -> Option<usize> {
    let ranked = candidates.into_iter().enumerate();
    ranked.min_by_key(|&(_, (load, avoid))| (avoid, load)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_least_loaded_that_is_not_avoided() {
        assert_eq!(least_load([]), None);
        assert_eq!(least_load([(3, false), (1, false), (1, false)]), Some(1));
        assert_eq!(least_load([(3, false), (0, true)]), Some(0));
        assert_eq!(least_load([(3, true)]), Some(0));
    }
}
