//! What can happen to a worker, and how it is injected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::transport;
use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::activity::Awaited;
use super::network::Way;
use super::{Host, Sim};
use crate::mock_worker::MockModel;

/// Interval at which idleness is polled.
const IDLE_POLL: Duration = Duration::from_millis(20);

/// Longer than the interval at which coordinators ask for descriptions.
const DESCRIPTION: Duration = Duration::from_secs(8);

/// Longest wait for the phase of a fault; after it, the fault is dropped.
const OCCASION: Duration = Duration::from_secs(4);

/// What can happen to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// It is killed, and started again without its caches.
    Crash,
    /// It is killed, and started again with another model.
    Replace,
    /// It stops, and continues later.
    Hang,
    /// Nothing reaches it or comes from it.
    Partition,
    /// Nothing reaches it.
    Deaf,
    /// Nothing comes from it.
    Mute,
    /// It is slow.
    Slow,
    /// An answer is not sent.
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
    /// It is not a member for a while.
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

    /// Whether the worker stays healthy: its sessions may notice, but need no other worker.
    fn is_harmless(self) -> bool {
        matches!(self, Self::Repeat | Self::Evict)
    }

    /// Whether it changes one answer.
    fn tampers_with_answers(self) -> bool {
        matches!(self, Self::Lose | Self::Repeat | Self::Garble | Self::Refuse)
    }
}

/// What a session is doing, as workers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// A prompt is fed, for the first time or again.
    Prefill,
    /// The expert drafts.
    Draft,
    /// The base verifies.
    Verify,
    /// Nothing is in flight for it.
    Idle,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Prefill, Self::Draft, Self::Verify, Self::Idle];
}

/// A scheduled fault.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// Kind.
    pub fault: Fault,
    /// Index of the host.
    pub host: usize,
    /// Phase of a session there to wait for, if any.
    pub phase: Option<Phase>,
    /// Since the beginning.
    pub after: Duration,
    /// How long it lasts, if it does.
    pub lasts: Duration,
}

/// How often a fault took effect, by place and phase.
pub type Effects = BTreeMap<(Fault, &'static str, Phase), u64>;

impl Sim {
    /// Injects a fault, and ends it.
    pub async fn inject(&self, planned: Planned) {
        let host = self.host(planned.host);
        tokio::time::sleep(planned.after).await;
        if let Some(phase) = planned.phase
            && tokio::time::timeout(OCCASION, self.occasion(&host, phase)).await.is_err()
        {
            return;
        }
        // Another fault came first.
        if !host.is_up() {
            return;
        }
        if !planned.fault.is_harmless() {
            host.mark_unhealthy();
        }
        let phases = self.shared.activity.lock().phases_at(host.index);
        let phases = if host.link.connections() > 0 { phases } else { BTreeSet::new() };
        if planned.fault.tampers_with_answers() {
            self.tamper(&host, planned, &phases).await;
        } else {
            self.disturb(&host, planned, &phases).await;
        }
        if !planned.fault.is_harmless() {
            host.mark_healthy();
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

    async fn tamper(&self, host: &Arc<Host>, planned: Planned, phases: &BTreeSet<Phase>) {
        let Planned { fault, phase, lasts, .. } = planned;
        if phase == Some(Phase::Idle) {
            host.tamper_while_idle(fault);
        } else {
            host.tamper_with_answer(fault, phase);
        }
        // An idle worker is only asked for its description.
        let until = Instant::now() + if phase == Some(Phase::Idle) { lasts.max(DESCRIPTION) } else { lasts };
        while host.is_tampering(fault) && Instant::now() < until {
            tokio::time::sleep(IDLE_POLL).await;
        }
        if phase == Some(Phase::Idle) && !host.is_tampering(fault) {
            self.took_effect(fault, host, phases);
        }
        host.clear_tampering();
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
                // The noise may look like the start of a frame; keepalive pings find out.
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
        // Log-uniform from 10 ms to 20 s.
        let lasts = Duration::from_secs_f64(f64::exp(chance.random_range(f64::ln(0.01)..f64::ln(20.0))));
        Some(Planned { fault, host, phase, after, lasts })
    }

    pub(super) fn took_effect(&self, fault: Fault, host: &Host, phases: &BTreeSet<Phase>) {
        self.note(format_args!("{}: {fault:?} in {phases:?}", host.name));
        let mut effects = self.shared.effects.lock();
        for &phase in phases {
            *effects.entry((fault, host.place, phase)).or_default() += 1;
        }
    }
}

/// The model of a worker that comes back with another one.
#[must_use]
pub fn another(model: &MockModel) -> MockModel {
    MockModel { salt: model.salt + 100, fingerprint: format!("another {}", model.fingerprint), ..model.clone() }
}
