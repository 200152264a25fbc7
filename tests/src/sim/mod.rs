//! A fleet of mock workers in one thread and on virtual time: network, workers and faults, all drawn from one seed.
//!
//! Coordinators speak the real protocol to it through the real gRPC stack; only the bytes travel by [`network`] instead
//! of sockets. It must be run on a runtime of one thread whose time is paused. The same seed then gives the same events
//! in the same order, which [`Sim::trace`] hashes.

mod activity;
mod faults;
mod host;
pub mod network;

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::mock_worker::MockModel;
use activity::Activity;
pub use faults::{Effects, Fault, Phase, Planned, another};
pub use host::Host;
use network::Network;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

struct Shared {
    network: Network,
    began: Instant,
    trace: Mutex<DefaultHasher>,
    /// Whether events are printed.
    verbose: bool,
    hosts: Mutex<Vec<Arc<Host>>>,
    members: watch::Sender<BTreeSet<String>>,
    activity: Mutex<Activity>,
    effects: Mutex<Effects>,
    replaced: AtomicBool,
    chance: Mutex<StdRng>,
}

impl Sim {
    /// A fleet without workers.
    #[must_use]
    pub fn new(seed: u64, verbose: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                network: Network::new(seed),
                began: Instant::now(),
                trace: Mutex::new(DefaultHasher::new()),
                verbose,
                hosts: Mutex::default(),
                members: watch::Sender::default(),
                activity: Mutex::default(),
                effects: Mutex::default(),
                replaced: AtomicBool::new(false),
                chance: Mutex::new(StdRng::seed_from_u64(seed.wrapping_add(1))),
            }),
        }
    }

    /// Adds a worker as a member.
    pub fn add(&self, place: &'static str, model: MockModel) {
        let seed = self.shared.chance.lock().random();
        let mut hosts = self.shared.hosts.lock();
        let host = Host::new(self, hosts.len(), place, model.clone(), seed);
        hosts.push(Arc::clone(&host));
        drop(hosts);
        host.start(model);
        self.shared.members.send_modify(|members| {
            members.insert(host.name.clone());
        });
    }

    /// The network between coordinators and workers.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.shared.network
    }

    /// The workers, members or not.
    #[must_use]
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.shared.hosts.lock().clone()
    }

    fn host(&self, index: usize) -> Arc<Host> {
        Arc::clone(&self.shared.hosts.lock()[index])
    }

    /// Names of those that are members, now and after every change.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<BTreeSet<String>> {
        self.shared.members.subscribe()
    }

    /// Removes all members.
    pub fn dismiss_all(&self) {
        self.shared.members.send_modify(BTreeSet::clear);
    }

    /// Enters an event into the trace.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let at = self.shared.began.elapsed();
        let line = format!("{:10.3} {event}", at.as_secs_f64() * 1e3);
        if self.shared.verbose {
            println!("{line}");
        }
        self.shared.trace.lock().write(line.as_bytes());
    }

    /// A hash of all events so far and their order.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.shared.trace.lock().finish()
    }

    /// How often each fault took effect.
    #[must_use]
    pub fn effects(&self) -> Effects {
        self.shared.effects.lock().clone()
    }

    /// Whether at every moment from `from` to `until` some worker of `place` had been healthy for at least `margin`.
    #[must_use]
    pub fn was_served(&self, place: &str, from: Instant, until: Instant, margin: Duration) -> bool {
        let hosts = self.hosts();
        let unhealthy: Vec<_> =
            hosts.iter().filter(|host| host.place == place).map(|host| host.unhealthy(margin)).collect();
        let is_unhealthy = |times: &Vec<(Instant, Option<Instant>)>, at: Instant| {
            times.iter().any(|&(begin, end)| begin <= at && end.is_none_or(|end| at < end))
        };
        let starts =
            unhealthy.iter().flatten().map(|&(begin, _)| begin).filter(|&begin| from < begin && begin <= until);
        starts.chain([from]).all(|at| unhealthy.iter().any(|times| !is_unhealthy(times, at)))
    }

    /// Whether some worker came back with another model.
    #[must_use]
    pub fn was_replaced(&self) -> bool {
        self.shared.replaced.load(Ordering::SeqCst)
    }

    /// Whether a host was always healthy.
    #[must_use]
    pub fn was_always_healthy(&self, host: &Host) -> bool {
        host.unhealthy(Duration::ZERO).is_empty()
    }
}
