//! A fleet of mock workers in one thread and on virtual time: network, workers and faults, all drawn from one seed.
//!
//! What runs against it speaks the real protocol through the real gRPC stack; only bytes travel by [`network`] in place of
//! sockets. It must be run on a runtime of one thread whose time is paused. The same seed then gives the same events in
//! the same order, which [`Sim::trace`] tells in a number.

mod host;
pub mod network;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::{StepRequest, StepResponse};
use cosec_proto::{SessionId, transport};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::mock_worker::MockModel;
pub use host::Host;
use network::{Network, Way};

/// Pause between two looks whether a session rests.
const IDLE_POLL: Duration = Duration::from_millis(20);

/// A session rests that no worker has heard of, or answered, for longer than anything is on its way.
const REST: Duration = Duration::from_millis(8);

/// Coordinators ask every worker for its description more often.
const DESCRIPTION: Duration = Duration::from_secs(8);

/// A fault that waits for longer for its phase does not happen.
const OCCASION: Duration = Duration::from_secs(4);

/// What can happen to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// It is killed, and started again without its caches.
    Crash,
    /// It is killed, and started again with another model.
    Replace,
    /// It stops in mid-air, and goes on.
    Hang,
    /// Nothing reaches it or comes from it.
    Partition,
    /// Nothing reaches it.
    Deaf,
    /// Nothing comes from it.
    Mute,
    /// It takes its time.
    Slow,
    /// An answer is never given.
    Lose,
    /// An answer comes twice.
    Repeat,
    /// An answer cannot be true.
    Garble,
    /// Its connections carry noise.
    Corrupt,
    /// An operation fails.
    Refuse,
    /// It loses its caches.
    Evict,
    /// It drains, ends, and starts again.
    Drain,
    /// It is no member for a while.
    Leave,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Crash,
        Self::Replace,
        Self::Hang,
        Self::Partition,
        Self::Deaf,
        Self::Mute,
        Self::Slow,
        Self::Lose,
        Self::Repeat,
        Self::Garble,
        Self::Corrupt,
        Self::Refuse,
        Self::Evict,
        Self::Drain,
        Self::Leave,
    ];

    /// Whether a worker is well all the same: its sessions may notice, and need no other one.
    fn is_harmless(self) -> bool {
        matches!(self, Self::Repeat | Self::Evict)
    }

    /// Whether it is a matter of one answer.
    fn spoils_answers(self) -> bool {
        matches!(self, Self::Lose | Self::Repeat | Self::Garble | Self::Refuse)
    }
}

/// What a session is about, as workers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// A prompt is fed, for the first time or again.
    Prefill,
    /// The expert drafts.
    Draft,
    /// The base reads.
    Verify,
    /// Nothing is under way for it.
    Idle,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Prefill, Self::Draft, Self::Verify, Self::Idle];
}

/// A fault to come.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// To which host.
    pub host: usize,
    /// In which phase of a session there; `None` does not wait for one.
    pub phase: Option<Phase>,
    /// Since the beginning.
    pub after: Duration,
    /// How long it lasts, where it lasts.
    pub lasts: Duration,
}

/// How often a fault took effect, by place and phase.
pub type Effects = BTreeMap<(Fault, &'static str, Phase), u64>;

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
    tells: bool,
    hosts: Mutex<Vec<Arc<Host>>>,
    members: watch::Sender<BTreeSet<String>>,
    activity: Mutex<Activity>,
    effects: Mutex<Effects>,
    replaced: AtomicBool,
    chance: Mutex<StdRng>,
}

/// What goes on at the workers.
#[derive(Default)]
struct Activity {
    next: u64,
    under_way: BTreeMap<u64, UnderWay>,
    /// Caches by host and session, and whether all of the prompt is there.
    held: BTreeMap<(usize, Vec<u8>), bool>,
    /// By session, in the order of their appearance: their ids are drawn by the system.
    ordinals: HashMap<Vec<u8>, Ordinal>,
    awaited: Vec<Awaited>,
}

struct Ordinal {
    number: usize,
    /// When an operation began or ended.
    active: Instant,
}

struct UnderWay {
    host: usize,
    session: Vec<u8>,
    phase: Phase,
}

struct Awaited {
    host: usize,
    phase: Phase,
    came: oneshot::Sender<()>,
}

impl Sim {
    /// A fleet without workers.
    #[must_use]
    pub fn new(seed: u64, tells: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                network: Network::new(seed),
                began: Instant::now(),
                trace: Mutex::new(DefaultHasher::new()),
                tells,
                hosts: Mutex::default(),
                members: watch::Sender::default(),
                activity: Mutex::default(),
                effects: Mutex::default(),
                replaced: AtomicBool::new(false),
                chance: Mutex::new(StdRng::seed_from_u64(seed.wrapping_add(1))),
            }),
        }
    }

    /// Adds a worker that is a member from now on.
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

    /// What carries bytes.
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

    /// From now on nobody is a member.
    pub fn dismiss_all(&self) {
        self.shared.members.send_modify(BTreeSet::clear);
    }

    /// Enters an event into the trace.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let at = self.shared.began.elapsed();
        let line = format!("{:10.3} {event}", at.as_secs_f64() * 1e3);
        if self.shared.tells {
            println!("{line}");
        }
        self.shared.trace.lock().write(line.as_bytes());
    }

    /// A number that stands for all events so far and their order.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.shared.trace.lock().finish()
    }

    /// How often each fault took effect.
    #[must_use]
    pub fn effects(&self) -> Effects {
        self.shared.effects.lock().clone()
    }

    /// Whether at every moment from `from` to `until` some worker of `place` had been well for at least `margin`.
    #[must_use]
    pub fn was_served(&self, place: &str, from: Instant, until: Instant, margin: Duration) -> bool {
        let hosts = self.hosts();
        let unwell: Vec<_> =
            hosts.iter().filter(|host| host.place == place).map(|host| host.unwell(margin)).collect();
        let is_unwell = |times: &Vec<(Instant, Option<Instant>)>, at: Instant| {
            times.iter().any(|&(begin, end)| begin <= at && end.is_none_or(|end| at < end))
        };
        let starts = unwell.iter().flatten().map(|&(begin, _)| begin).filter(|&begin| from < begin && begin <= until);
        starts.chain([from]).all(|at| unwell.iter().any(|times| !is_unwell(times, at)))
    }

    /// Whether some worker came back with another model.
    #[must_use]
    pub fn was_replaced(&self) -> bool {
        self.shared.replaced.load(Ordering::SeqCst)
    }

    /// Whether a host was never unwell.
    #[must_use]
    pub fn was_always_well(&self, host: &Host) -> bool {
        host.unwell(Duration::ZERO).is_empty()
    }

    // === what workers report ===

    fn begin(&self, host: &Host, request: &StepRequest) -> u64 {
        let mut activity = self.shared.activity.lock();
        let activity = &mut *activity;
        let (session, at, fed, drafts) = match &request.operation {
            Some(Operation::Extend(extend)) => (&extend.session, extend.at, extend.tokens.len(), None),
            Some(Operation::Draft(draft)) => (&draft.session, draft.at, draft.tokens.len(), Some(draft.k)),
            Some(Operation::Release(release)) => (&release.session, 0, 0, None),
            Some(Operation::Cancel(_)) | None => return 0,
        };
        let ordinal = activity.ordinal(session);
        let key = (host.index, session.clone());
        if let Some(Operation::Release(_)) = request.operation {
            self.note(format_args!("{} releases session {ordinal}", host.name));
            activity.held.remove(&key);
            return 0;
        }
        self.note(format_args!("{} session {ordinal} at {at} feeds {fed} drafts {drafts:?}", host.name));
        let is_fed = activity.held.entry(key).or_insert(false);
        *is_fed &= at > 0;
        let phase = match *is_fed {
            false => Phase::Prefill,
            true if host.place == "expert" => Phase::Draft,
            true => Phase::Verify,
        };
        activity.next += 1;
        activity.under_way.insert(activity.next, UnderWay { host: host.index, session: session.clone(), phase });
        activity.arrive(session);
        activity.next
    }

    /// Returns what the session was about, nothing for a release.
    fn end(&self, host: &Host, begun: u64, answer: &StepResponse) -> BTreeSet<Phase> {
        let mut activity = self.shared.activity.lock();
        let Some(session) = activity.under_way.get(&begun).map(|under_way| under_way.session.clone()) else {
            return BTreeSet::new();
        };
        let phases = activity.phases_of(&session);
        activity.under_way.remove(&begun);
        let ordinal = activity.ordinal(&session);
        let (feeds, what) = match &answer.outcome {
            Some(Outcome::Rows(rows)) => (!rows.rows.is_empty(), "rows"),
            Some(Outcome::Drafted(_)) => (true, "drafts"),
            Some(Outcome::NeedPrefix(_)) => (false, "needs a prefix"),
            Some(Outcome::Released(_) | Outcome::Failure(_)) | None => (false, "fails"),
        };
        if let Some(is_fed) = activity.held.get_mut(&(host.index, session)) {
            *is_fed |= feeds;
            *is_fed &= !matches!(answer.outcome, Some(Outcome::NeedPrefix(_)));
        }
        self.note(format_args!("{} session {ordinal}: {what}", host.name));
        phases
    }

    /// A host's caches are gone.
    fn forget(&self, host: usize) {
        let mut activity = self.shared.activity.lock();
        activity.held.retain(|(of, _), _| *of != host);
        activity.under_way.retain(|_, under_way| under_way.host != host);
    }

    fn took_effect(&self, fault: Fault, host: &Host, phases: &BTreeSet<Phase>) {
        self.note(format_args!("{}: {fault:?} in {phases:?}", host.name));
        let mut effects = self.shared.effects.lock();
        for &phase in phases {
            *effects.entry((fault, host.place, phase)).or_default() += 1;
        }
    }

    // === faults ===

    /// Lets a fault happen, and ends it.
    pub async fn suffer(&self, planned: Planned) {
        let host = self.host(planned.host);
        tokio::time::sleep(planned.after).await;
        if let Some(phase) = planned.phase
            && tokio::time::timeout(OCCASION, self.occasion(&host, phase)).await.is_err()
        {
            return;
        }
        // Another fault was faster.
        if !host.is_up() {
            return;
        }
        if !planned.fault.is_harmless() {
            host.fell_ill();
        }
        let phases = self.shared.activity.lock().phases_at(host.index);
        let phases = if host.link.connections() > 0 { phases } else { BTreeSet::new() };
        if planned.fault.spoils_answers() {
            self.spoil(&host, planned, &phases).await;
        } else {
            self.disturb(&host, planned, &phases).await;
        }
        if !planned.fault.is_harmless() {
            host.recovered();
        }
    }

    /// Waits until a session on the host is in the phase.
    async fn occasion(&self, host: &Host, phase: Phase) {
        if phase == Phase::Idle {
            while !self.shared.activity.lock().is_idle(host.index) {
                tokio::time::sleep(IDLE_POLL).await;
            }
            return;
        }
        let (came, comes) = oneshot::channel();
        self.shared.activity.lock().awaited.push(Awaited { host: host.index, phase, came });
        let _ = comes.await;
    }

    async fn spoil(&self, host: &Arc<Host>, planned: Planned, phases: &BTreeSet<Phase>) {
        let Planned { fault, phase, lasts, .. } = planned;
        if phase == Some(Phase::Idle) {
            host.spoil_silence(fault);
        } else {
            host.spoil_answer(fault, phase);
        }
        // Whoever is idle is asked what it is now and then, nothing else.
        let until = Instant::now() + if phase == Some(Phase::Idle) { lasts.max(DESCRIPTION) } else { lasts };
        while host.is_spoilt(fault) && Instant::now() < until {
            tokio::time::sleep(IDLE_POLL).await;
        }
        if phase == Some(Phase::Idle) && !host.is_spoilt(fault) {
            self.took_effect(fault, host, phases);
        }
        host.unspoil();
    }

    async fn disturb(&self, host: &Arc<Host>, planned: Planned, phases: &BTreeSet<Phase>) {
        let Planned { fault, lasts, .. } = planned;
        let held = host.link.held();
        match fault {
            Fault::Crash => {
                host.kill();
                tokio::time::sleep(lasts).await;
                host.start(host.model.clone());
            }
            Fault::Replace => {
                host.kill();
                tokio::time::sleep(lasts / 16).await;
                self.shared.replaced.store(true, Ordering::SeqCst);
                host.start(another(&host.model));
                tokio::time::sleep(lasts).await;
                host.kill();
                host.start(host.model.clone());
            }
            Fault::Drain => {
                host.drain().await;
                tokio::time::sleep(lasts).await;
                host.kill();
                host.start(host.model.clone());
            }
            Fault::Hang => {
                host.stop(true);
                tokio::time::sleep(lasts).await;
                host.stop(false);
            }
            Fault::Partition | Fault::Deaf | Fault::Mute => {
                let ways: &[Way] = match fault {
                    Fault::Deaf => &[Way::There],
                    Fault::Mute => &[Way::Back],
                    _ => &[Way::There, Way::Back],
                };
                self.note(format_args!("{}: {fault:?}", host.name));
                host.link.cut(ways);
                tokio::time::sleep(lasts).await;
                host.link.mend();
            }
            Fault::Slow => {
                let slowness = Duration::from_millis(self.shared.chance.lock().random_range(20..3000));
                host.slow_down(slowness);
                tokio::time::sleep(lasts).await;
                host.slow_down(Duration::ZERO);
            }
            Fault::Corrupt => {
                let noise: [u8; 32] = self.shared.chance.lock().random();
                host.link.corrupt(&noise);
                // It may look like the beginning of something; pings find out.
                tokio::time::sleep(transport::KEEPALIVE_INTERVAL + transport::KEEPALIVE_TIMEOUT).await;
            }
            Fault::Evict => host.evict(),
            Fault::Leave => {
                self.note(format_args!("{} leaves", host.name));
                self.shared.members.send_modify(|members| {
                    members.remove(&host.name);
                });
                tokio::time::sleep(lasts).await;
                self.shared.members.send_modify(|members| {
                    members.insert(host.name.clone());
                });
            }
            Fault::Lose | Fault::Repeat | Fault::Garble | Fault::Refuse => return,
        }
        let took = match fault {
            Fault::Partition | Fault::Deaf | Fault::Mute => host.link.held() > held,
            _ => true,
        };
        if took {
            self.took_effect(fault, host, phases);
        }
    }

    /// Draws a fault, for the host and the phase where they are given.
    pub fn plan(&self, fault: Fault, place: Option<&str>, phase: Option<Phase>, within: Duration) -> Option<Planned> {
        let hosts = self.hosts();
        let mut chance = self.shared.chance.lock();
        let fitting: Vec<_> = hosts
            .iter()
            .filter(|host| place.is_none_or(|place| host.place == place))
            .map(|host| host.index)
            .collect();
        let host = *fitting.choose(&mut *chance)?;
        let after = within.mul_f64(chance.random_range(0.0..1.0));
        // From 10 ms to 20 s, each order of magnitude alike.
        let lasts = Duration::from_secs_f64(f64::exp(chance.random_range(f64::ln(0.01)..f64::ln(20.0))));
        Some(Planned { fault, host, phase, after, lasts })
    }
}

/// What a worker hosts after it was started with another model.
#[must_use]
pub fn another(model: &MockModel) -> MockModel {
    MockModel { salt: model.salt + 100, fingerprint: format!("another {}", model.fingerprint), ..model.clone() }
}

/// The part of a session's name that all its seats have.
fn shared(session: &[u8]) -> &[u8] {
    &session[..SessionId::SHARED_BYTES]
}

impl Activity {
    /// Number of a session in which something begins or ends.
    fn ordinal(&mut self, session: &[u8]) -> usize {
        let next = self.ordinals.len();
        let ordinal =
            self.ordinals.entry(shared(session).to_vec()).or_insert(Ordinal { number: next, active: Instant::now() });
        ordinal.active = Instant::now();
        ordinal.number
    }

    /// Nothing while everything is on its way.
    fn phases_of(&self, session: &[u8]) -> BTreeSet<Phase> {
        let of_session = |under_way: &&UnderWay| shared(&under_way.session) == shared(session);
        let phases: BTreeSet<Phase> =
            self.under_way.values().filter(of_session).map(|under_way| under_way.phase).collect();
        let rests = self.ordinals.get(shared(session)).is_some_and(|of| of.active.elapsed() >= REST);
        if phases.is_empty() && rests { [Phase::Idle].into() } else { phases }
    }

    /// Of all sessions that sit on a host.
    fn phases_at(&self, host: usize) -> BTreeSet<Phase> {
        self.held.keys().filter(|(of, _)| *of == host).flat_map(|(_, session)| self.phases_of(session)).collect()
    }

    /// Whether a session sits there and nothing is under way for it.
    fn is_idle(&self, host: usize) -> bool {
        self.phases_at(host).contains(&Phase::Idle)
    }

    /// An operation of a session begins.
    fn arrive(&mut self, session: &[u8]) {
        let phases = self.phases_of(session);
        let held = &self.held;
        for awaited in self.awaited.extract_if(.., |awaited| {
            let sits_there =
                |(host, other): &(usize, Vec<u8>)| *host == awaited.host && shared(other) == shared(session);
            phases.contains(&awaited.phase) && held.keys().any(sits_there)
        }) {
            let _ = awaited.came.send(());
        }
    }
}
