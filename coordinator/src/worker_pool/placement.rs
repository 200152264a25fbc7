//! Chooses the worker that most likely has a session's prefix cached, while its load allows: rendezvous hashing (Thaler
//! and Ravishankar, 1998) with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018). Does no I/O.

use std::hash::{DefaultHasher, Hash, Hasher};

/// A candidate may have so many times the mean load before the next in order is taken.
const BOUND: f64 = 1.25;

/// Prompt tokens that name a prefix: sessions that share them go to the same worker.
const PREFIX_TOKENS: usize = 64;

/// A worker that can serve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlacementCandidate<'a> {
    /// Its `host:port`, which the hash goes over.
    pub address: &'a str,
    /// Has the very tokens of the session in its cache.
    pub holds: bool,
    /// Sessions that it holds, and queued work in units of sessions.
    pub load: f64,
    /// Has no room for another session's cache.
    pub full: bool,
    /// Failed a moment ago, if not 0; the latest failure ranks highest.
    pub avoid: usize,
    /// Stands in another zone than the coordinator.
    pub far: bool,
}

/// Names the prefix of `prompt`, apart from those of other `tenant`s, which share no cache.
#[must_use]
pub fn prefix_hash(prompt: &[u32], tenant: u64) -> u64 {
    hash(&(tenant, &prompt[..prompt.len().min(PREFIX_TOKENS)]))
}

/// Index of the worker to take; `None` only when there is no candidate. One that failed, does not hold the session's
/// tokens, is full or stands in another zone is taken only where there is no better, in this order.
#[must_use]
pub fn choose(candidates: &[PlacementCandidate<'_>], prefix: u64) -> Option<usize> {
    let rank = |of: &PlacementCandidate<'_>| (of.avoid, !of.holds, of.full, of.far);
    let best = candidates.iter().map(rank).min()?;
    let equals = || candidates.iter().enumerate().filter(|(_, of)| rank(of) == best);
    let mean = equals().map(|(_, of)| of.load).sum::<f64>() / equals().count() as f64;
    // With the session to come, so that idle workers have room.
    let in_bounds = |of: &PlacementCandidate<'_>| of.load + 1.0 <= (BOUND * (mean + 1.0)).ceil();
    let preferred = equals().filter(|(_, of)| in_bounds(of)).max_by_key(|(_, of)| weight(prefix, of.address));
    preferred.or_else(|| equals().min_by(|(_, a), (_, b)| a.load.total_cmp(&b.load))).map(|(index, _)| index)
}

/// How much a worker is preferred for a prefix, before loads are looked at.
#[must_use]
pub fn weight(prefix: u64, address: &str) -> u64 {
    hash(&(prefix, address))
}

/// The same in every coordinator: the hasher has no keys.
fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idle(address: &str) -> PlacementCandidate<'_> {
        PlacementCandidate { address, holds: false, load: 0.0, full: false, avoid: 0, far: false }
    }

    #[test]
    fn what_is_worse_is_taken_only_where_there_is_no_better() {
        assert_eq!(choose(&[], 7), None);
        let (failed, full, far) = (
            PlacementCandidate { avoid: 1, ..idle("a") },
            PlacementCandidate { full: true, ..idle("b") },
            PlacementCandidate { far: true, load: 40.0, ..idle("c") },
        );
        assert_eq!(choose(&[failed, full, far], 7), Some(2));
        assert_eq!(choose(&[failed, full], 7), Some(1));
        assert_eq!(choose(&[failed], 7), Some(0));
        let failed_later = PlacementCandidate { avoid: 2, ..idle("e") };
        assert_eq!(choose(&[failed_later, failed], 7), Some(1));
        assert_eq!(choose(&[far, PlacementCandidate { load: 90.0, ..idle("d") }], 7), Some(1));
        let holder = PlacementCandidate { holds: true, load: 90.0, ..full };
        assert_eq!(choose(&[far, holder, idle("d")], 7), Some(1));
        assert_eq!(choose(&[PlacementCandidate { avoid: 1, ..holder }, far], 7), Some(1));
    }

    #[test]
    fn a_prefix_keeps_its_worker_when_another_comes_or_goes() {
        let addresses = ["a:1", "b:1", "c:1", "d:1"];
        let all: Vec<PlacementCandidate<'_>> = addresses.iter().map(|address| idle(address)).collect();
        let mut moved = 0;
        for prefix in 0..1000 {
            let (of_all, of_three) = (choose(&all, prefix).unwrap(), choose(&all[..3], prefix).unwrap());
            assert!(of_all == of_three || of_all == 3);
            moved += usize::from(of_all == 3);
        }
        assert!((150..350).contains(&moved), "{moved} of 1000 went to one of four workers");
        assert_eq!(prefix_hash(&[1; 80], 3), prefix_hash(&[1; 64], 3));
        assert_ne!(prefix_hash(&[1; 80], 3), prefix_hash(&[1; 80], 4));
    }

    proptest! {
        #[test]
        fn no_worker_gets_far_above_the_mean(
            workers in 1usize..8,
            prefixes in prop::collection::vec(0u64..3, 1..200),
        ) {
            let names: Vec<String> = (0..workers).map(|index| format!("w{index}:1")).collect();
            let mut loads = vec![0.0; workers];
            for prefix in &prefixes {
                let candidates: Vec<_> =
                    names.iter().zip(&loads).map(|(name, &load)| PlacementCandidate { load, ..idle(name) }).collect();
                loads[choose(&candidates, *prefix).unwrap()] += 1.0;
            }
            let mean = prefixes.len() as f64 / workers as f64;
            let most = loads.iter().copied().fold(0.0, f64::max);
            prop_assert!(most <= (BOUND * (mean + 1.0)).ceil(), "{loads:?}");
        }
    }
}
