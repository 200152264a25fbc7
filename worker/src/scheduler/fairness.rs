//! Fair queueing by tokens, first between coordinators, then between the tenants of each.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) with two levels. A flow is what one tenant of one coordinator
//! asks for. The waiting flow that has been served least is next. A flow that returns after a pause, or got all that it
//! wanted, is set level with those that were left waiting, so no flow saves up service.

/// A coordinator's stream and one of its tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlowId {
    pub(crate) stream: u64,
    pub(crate) tenant: u64,
}

/// Tokens served to every flow that waits, or that has had more than its share.
#[derive(Debug, Default)]
pub(crate) struct FairShares {
    streams: FlowAccounts,
    flows: FlowAccounts,
}

impl FairShares {
    /// Opens a round between the flows in `waiting`, ascending and without repetition.
    pub(crate) fn open_round(&mut self, waiting: impl Iterator<Item = FlowId> + Clone) {
        self.streams.open_round(waiting.clone().map(stream));
        self.flows.open_round(waiting.map(tenant));
    }

    /// Ends the round: those in `left`, ascending and without repetition, wait for more than they got.
    pub(crate) fn close_round(&mut self, left: impl Iterator<Item = FlowId> + Clone) {
        self.streams.keep_waiting(left.clone().map(stream));
        self.flows.keep_waiting(left.map(tenant));
    }

    /// Orders flows by what they were served: the least is next.
    pub(crate) fn served(&self, flow: FlowId) -> (u64, u64) {
        (self.streams.served(stream(flow)), self.flows.served(tenant(flow)))
    }

    /// By how many tokens `flow` is ahead of the least served flow that waits, among streams or among its stream's
    /// tenants.
    pub(crate) fn lead(&self, flow: FlowId) -> u64 {
        self.streams.lead(stream(flow)).max(self.flows.lead(tenant(flow)))
    }

    /// Counts `tokens` as served to `flow`.
    pub(crate) fn charge(&mut self, flow: FlowId, tokens: usize) {
        self.streams.charge(stream(flow), tokens);
        self.flows.charge(tenant(flow), tokens);
    }
}

/// Rivals, and whose account.
type AccountKey = (u64, u64);

fn stream(flow: FlowId) -> AccountKey {
    (0, flow.stream)
}

fn tenant(flow: FlowId) -> AccountKey {
    (flow.stream, flow.tenant)
}

#[derive(Debug)]
struct FlowAccount {
    key: AccountKey,
    served: u64,
    waits: bool,
}

/// Ascending by key.
#[derive(Debug, Default)]
struct FlowAccounts(Vec<FlowAccount>);

impl FlowAccounts {
    /// `waiting` ascends; the same key may come several times in succession.
    fn open_round(&mut self, waiting: impl Iterator<Item = AccountKey> + Clone) {
        self.keep_waiting(waiting.clone());
        for key in waiting {
            let place = self.0.binary_search_by_key(&key, |account| account.key);
            let floor = || self.floor(key.0).unwrap_or(0);
            match place {
                Ok(at) if self.0[at].waits => {}
                Ok(at) => {
                    let served = self.0[at].served.max(floor());
                    self.0[at] = FlowAccount { key, served, waits: true };
                }
                Err(at) => {
                    let served = floor();
                    self.0.insert(at, FlowAccount { key, served, waits: true });
                }
            }
        }
        self.close_idle();
    }

    /// Of the waiting accounts, only those in `waiting` still wait.
    fn keep_waiting(&mut self, waiting: impl Iterator<Item = AccountKey>) {
        let mut waiting = waiting.peekable();
        for account in &mut self.0 {
            while waiting.next_if(|&key| key < account.key).is_some() {}
            account.waits &= waiting.peek() == Some(&account.key);
        }
    }

    /// The least that a waiting account among these rivals was served.
    fn floor(&self, rivals: u64) -> Option<u64> {
        let first = self.0.partition_point(|account| account.key.0 < rivals);
        let group = self.0[first..].iter().take_while(|account| account.key.0 == rivals);
        group.filter(|account| account.waits).map(|account| account.served).min()
    }

    /// Closes accounts whose owners would come back level with the others.
    fn close_idle(&mut self) {
        for at in (0..self.0.len()).rev() {
            let FlowAccount { key, served, waits } = self.0[at];
            if !waits && self.floor(key.0).is_none_or(|floor| served <= floor) {
                self.0.remove(at);
            }
        }
    }

    fn served(&self, key: AccountKey) -> u64 {
        self.0.binary_search_by_key(&key, |account| account.key).map_or(0, |at| self.0[at].served)
    }

    fn lead(&self, key: AccountKey) -> u64 {
        self.served(key).saturating_sub(self.floor(key.0).unwrap_or(0))
    }

    fn charge(&mut self, key: AccountKey, tokens: usize) {
        if let Ok(at) = self.0.binary_search_by_key(&key, |account| account.key) {
            self.0[at].served += tokens as u64;
        }
    }
}
