//! Start-time fair queueing (Goyal, Vin and Cheng 1996): a client's share follows its weight, whatever the others ask
//! for.

use std::collections::{BTreeMap, VecDeque};

use crate::tenant::ShareKey;

/// What all clients wait with, a line for each.
pub(crate) struct FairQueue<T> {
    /// Start of what was taken out last, in cost by weight.
    now: f64,
    /// Only of clients that wait, or whose share is not used up yet.
    lines: BTreeMap<ShareKey, ClientLine<T>>,
}

struct ClientLine<T> {
    /// Where its next item starts, in cost by weight.
    start: f64,
    items: VecDeque<QueuedItem<T>>,
}

struct QueuedItem<T> {
    id: u64,
    /// By weight.
    cost: f64,
    item: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { now: 0.0, lines: BTreeMap::new() }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.values().all(|line| line.items.is_empty())
    }

    /// Adds an item to the end of its client's line; `id` names it. A weight is above 0.
    pub(crate) fn join(&mut self, share: &ShareKey, (cost, weight): (f64, f64), id: u64, item: T) {
        let now = self.now;
        let line = self.line(share);
        if line.items.is_empty() {
            // Time in which a client asked for nothing is not saved up.
            line.start = line.start.max(now);
        }
        line.items.push_back(QueuedItem { id, cost: cost / weight, item });
    }

    /// Puts an item that was taken out before at the head of its client's line again; it costs nothing more.
    pub(crate) fn rejoin(&mut self, share: &ShareKey, id: u64, item: T) {
        self.line(share).items.push_front(QueuedItem { id, cost: 0.0, item });
    }

    fn line(&mut self, share: &ShareKey) -> &mut ClientLine<T> {
        let now = self.now;
        self.lines.entry(share.clone()).or_insert_with(|| ClientLine { start: now, items: VecDeque::new() })
    }

    /// The clients whose next item `may_go`, in the order of their turns, and how many items each waits with.
    pub(crate) fn ready(&self, mut may_go: impl FnMut(&T) -> bool) -> Vec<(&ShareKey, usize)> {
        let mut lines: Vec<_> = self.lines.iter().collect();
        lines.sort_by(|(_, a), (_, b)| a.start.total_cmp(&b.start));
        lines.retain(|(_, line)| line.items.front().is_some_and(|queued| may_go(&queued.item)));
        lines.into_iter().map(|(share, line)| (share, line.items.len())).collect()
    }

    /// Takes out the next item that `may_go`; of each client only the head of its line is looked at.
    pub(crate) fn next(&mut self, may_go: impl FnMut(&T) -> bool) -> Option<T> {
        let share = self.ready(may_go).first().map(|(share, _)| (*share).clone())?;
        self.next_of(&share)
    }

    /// Takes out the next item of a client.
    pub(crate) fn next_of(&mut self, share: &ShareKey) -> Option<T> {
        let line = self.lines.get_mut(share)?;
        let next = line.items.pop_front()?;
        self.now = self.now.max(line.start);
        line.start += next.cost;
        self.forget_idle();
        Some(next.item)
    }

    /// Takes an item out before it is its turn.
    pub(crate) fn leave(&mut self, share: &ShareKey, id: u64) -> Option<T> {
        let line = self.lines.get_mut(share)?;
        let at = line.items.iter().position(|queued| queued.id == id)?;
        let left = line.items.remove(at);
        self.forget_idle();
        left.map(|queued| queued.item)
    }

    fn forget_idle(&mut self) {
        let now = self.now;
        self.lines.retain(|_, line| !line.items.is_empty() || line.start > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str) -> ShareKey {
        ShareKey::Tenant(name.to_owned())
    }

    #[test]
    fn what_is_taken_follows_the_weights_and_not_the_demand() {
        let mut queue = FairQueue::default();
        (0..40).for_each(|id| queue.join(&share("greedy"), (5.0, 1.0), id, "greedy"));
        (40..60).for_each(|id| queue.join(&share("modest"), (5.0, 3.0), id, "modest"));
        let taken: Vec<_> = (0..20).filter_map(|_| queue.next(|_| true)).collect();
        let modest = taken.iter().filter(|&&name| name == "modest").count();
        assert!((14..=16).contains(&modest), "{taken:?}");
    }

    #[test]
    fn a_head_that_may_not_go_lets_other_clients_pass_and_nobody_of_its_own() {
        let mut queue = FairQueue::default();
        queue.join(&share("a"), (1.0, 1.0), 0, "large");
        queue.join(&share("a"), (1.0, 1.0), 1, "small");
        queue.join(&share("b"), (1.0, 1.0), 2, "small");
        let small = |item: &&str| *item == "small";
        assert_eq!((queue.next(small), queue.next(small)), (Some("small"), None));
        assert_eq!(queue.leave(&share("a"), 0), Some("large"));
        assert_eq!(queue.leave(&share("a"), 0), None);
        assert_eq!(queue.next(small), Some("small"));
        assert!(queue.is_empty());
    }

    #[test]
    fn what_comes_back_goes_first_in_its_own_line_only() {
        let mut queue = FairQueue::default();
        (0..3).for_each(|id| queue.join(&share("a"), (1.0, 1.0), id, id));
        let taken = queue.next(|_| true).unwrap();
        queue.join(&share("b"), (1.0, 1.0), 9, 9);
        queue.rejoin(&share("a"), taken, taken);
        let order: Vec<u64> = std::iter::from_fn(|| queue.next(|_| true)).collect();
        assert_eq!(order, [9, 0, 1, 2]);
        assert!(queue.lines.len() <= 1, "who neither waits nor has used up a share is forgotten");
    }
}
