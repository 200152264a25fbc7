//! What a role's workers compute with, by a vote of their processes.
//!
//! Every coordinator that sees the same workers comes to the same result, whatever it served before and whoever started
//! when. Sessions that run keep the model that they began on; the vote is about new ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cosec_proto::WorkerDescription;

use super::matching;

/// What a worker computes with, as far as sessions can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostedModel<'a> {
    /// Of the model with the adapter that sessions apply.
    pub(super) fingerprint: &'a str,
    pub(super) vocabulary: u32,
    pub(super) end_token_ids: &'a [u32],
}

impl<'a> HostedModel<'a> {
    /// What sessions under `adapter` get from this worker; `None` without that adapter.
    pub(super) fn of(description: &'a WorkerDescription, adapter: Option<&str>) -> Option<Self> {
        let fingerprint = matching::fingerprint(description, adapter).ok()?;
        let WorkerDescription { limits, end_token_ids, .. } = description;
        Some(Self { fingerprint, vocabulary: limits.vocabulary, end_token_ids })
    }
}

/// What most processes host. A process counts once, however many addresses lead to it.
///
/// Among equals one wins that no worker of another role hosts (`elsewhere`), as somebody may have mixed roles up; then
/// the larger vocabulary, which can serve more requests; then the first fingerprint in the order of its digits.
pub(super) fn elect<'a>(
    workers: impl IntoIterator<Item = &'a WorkerDescription>,
    adapter: Option<&str>,
    elsewhere: &BTreeSet<String>,
) -> Option<HostedModel<'a>> {
    let mut voters = BTreeMap::<HostedModel<'a>, BTreeSet<u64>>::new();
    for worker in workers {
        if let Some(hosted) = HostedModel::of(worker, adapter) {
            voters.entry(hosted).or_default().insert(worker.instance);
        }
    }
    let rank = |(hosted, voters): &(HostedModel<'a>, BTreeSet<u64>)| {
        (voters.len(), !elsewhere.contains(hosted.fingerprint), hosted.vocabulary, Reverse(*hosted))
    };
    voters.into_iter().max_by_key(rank).map(|(hosted, _)| hosted)
}

/// The longest sequence that at least half of the processes hold. Sessions that fit into fewer go there as well.
pub(super) fn context_tokens<'a>(workers: impl IntoIterator<Item = &'a WorkerDescription>) -> u32 {
    let mut of_process = BTreeMap::<u64, u32>::new();
    for worker in workers {
        let most = of_process.entry(worker.instance).or_default();
        *most = (*most).max(worker.limits.context_tokens);
    }
    let mut contexts: Vec<u32> = of_process.into_values().collect();
    contexts.sort_unstable_by_key(|&tokens| Reverse(tokens));
    contexts.get(contexts.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use cosec_proto::{WorkerLimits, WorkerRole};
    use proptest::prelude::*;

    use super::*;

    fn worker(instance: u64, fingerprint: &str, vocabulary: u32, context_tokens: u32) -> WorkerDescription {
        WorkerDescription {
            role: WorkerRole::Base,
            model: String::new(),
            instance,
            fingerprint: fingerprint.to_owned(),
            tokenizer_fingerprint: String::new(),
            limits: WorkerLimits { vocabulary, context_tokens, operation_tokens: 1 },
            block_tokens: 0,
            total_blocks: 0,
            free_blocks: 0,
            sessions: 0,
            end_token_ids: vec![0],
            adapters: Vec::new(),
            queued_tokens: 0,
            draining: false,
            zone: String::new(),
        }
    }

    fn elected(workers: &[WorkerDescription]) -> (&str, u32) {
        let hosted = elect(workers, None, &BTreeSet::new()).unwrap();
        (hosted.fingerprint, hosted.vocabulary)
    }

    #[test]
    fn one_process_has_one_vote() {
        // The same fake under two names, beside the true one.
        let fake = [worker(7, "fake", 64, 99), worker(7, "fake", 64, 99)];
        let mut workers = vec![worker(1, "a", 64, 99), worker(2, "a", 64, 99)];
        workers.extend(fake);
        assert_eq!(elected(&workers), ("a", 64));
        workers.push(worker(8, "fake", 64, 99));
        workers.push(worker(9, "fake", 64, 99));
        assert_eq!(elected(&workers), ("fake", 64));
        assert!(elect(&workers, Some("no such adapter"), &BTreeSet::new()).is_none());
    }

    #[test]
    fn equals_are_told_apart_by_what_they_host_alone() {
        let workers = [worker(9, "b", 64, 99), worker(1, "a", 64, 99)];
        assert_eq!(elected(&workers), ("a", 64));
        // The model of the other role was started in this one.
        assert_eq!(elect(&workers, None, &["a".to_owned()].into()).unwrap().fingerprint, "b");
    }

    #[test]
    fn one_odd_worker_changes_nothing() {
        assert_eq!(elected(&[worker(1, "b", 64, 99), worker(2, "a", 1, 99)]), ("b", 64));
        assert_eq!(elected(&[worker(1, "b", 64, 99), worker(2, "b", 1, 99)]), ("b", 64));
        let contexts = |contexts: &[u32]| {
            let workers = contexts.iter().zip(0..).map(|(&tokens, instance)| worker(instance, "a", 64, tokens));
            context_tokens(&workers.collect::<Vec<_>>())
        };
        assert_eq!(contexts(&[64, 1024]), 1024);
        assert_eq!(contexts(&[1024, 1, 1024]), 1024);
        assert_eq!(contexts(&[4096, 1024, 1024]), 1024);
        assert_eq!(contexts(&[1024, 1024, 64, 64]), 1024);
        assert_eq!((contexts(&[7]), contexts(&[])), (7, 0));
        // Two addresses of one process.
        assert_eq!(context_tokens(&[worker(1, "a", 64, 10), worker(1, "a", 64, 10), worker(2, "a", 64, 20)]), 20);
    }

    proptest! {
        #[test]
        fn the_order_of_the_workers_does_not_matter(
            mut workers in prop::collection::vec((0u64..4, "[ab]", 1u32..3), 1..8), by in 0usize..8,
        ) {
            let of = |workers: &[(u64, String, u32)]| -> Vec<WorkerDescription> {
                workers.iter().map(|(instance, name, size)| worker(*instance, name, *size, *size)).collect()
            };
            let before = of(&workers);
            let count = workers.len();
            workers.rotate_left(by % count);
            let after = of(&workers);
            let none = BTreeSet::new();
            prop_assert_eq!(elect(&before, None, &none), elect(&after, None, &none));
            prop_assert_eq!(context_tokens(&before), context_tokens(&after));
        }
    }
}
