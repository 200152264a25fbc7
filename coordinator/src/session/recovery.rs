//! How a session survives the failures of its workers: how often it tries again, how long it waits, and which addresses
//! it avoids.
//!
//! A worker that fails is replaced: the session looks for another one, feeds it the whole sequence and goes on. A
//! worker that lost its cache is fed from where its cache ends. Too many of either in a row, without any answer between
//! them, end the session.

use std::time::Duration;

use cosec_proto::WorkerRole;
use tokio::time::Instant;

use super::config::ExpertAbsent;

/// Failures in a row after which a session gives up.
const MAX_FAILURES: u32 = 4;

/// Times in a row that a worker may have lost its cache.
const MAX_REWINDS: u32 = 8;

/// How long a session looks for another worker after a failure; a worker that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause before another worker is asked after the first failure, doubled with every further one.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What went wrong with a role's workers since one last answered.
#[derive(Debug, Default)]
pub(super) struct FailureCount {
    failures: u32,
    rewinds: u32,
}

impl FailureCount {
    /// A worker failed. Returns the failures in a row; `None` when they are too many.
    pub(super) fn failed(&mut self) -> Option<u32> {
        self.failures += 1;
        (self.failures <= MAX_FAILURES).then_some(self.failures)
    }

    /// The worker lost its cache. Returns whether the session may feed it again.
    pub(super) fn rewound(&mut self) -> bool {
        self.rewinds += 1;
        self.rewinds <= MAX_REWINDS
    }
}

/// A role's workers that failed, until one answers.
#[derive(Debug, Default)]
pub(super) struct FailedWorkers {
    since: Option<Instant>,
    addresses: Vec<String>,
}

impl FailedWorkers {
    pub(super) fn add(&mut self, now: Instant, address: &str) {
        self.since.get_or_insert(now);
        self.addresses.push(address.to_owned());
    }

    /// Addresses to avoid, the latest last.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// A worker answered. Returns when the first one failed, if any did.
    pub(super) fn recovered(&mut self) -> Option<Instant> {
        std::mem::take(self).since
    }
}

/// When to stop looking for a worker. At first an absent worker is absent; after a failure it gets time to come back.
pub(super) fn give_up_at(
    role: WorkerRole,
    failures: u32,
    expert_absent: ExpertAbsent,
    now: Instant,
    deadline: Instant,
) -> Instant {
    let waits = role != WorkerRole::Base && expert_absent == ExpertAbsent::Wait;
    match failures {
        _ if waits => deadline,
        0 => now,
        _ => deadline.min(now + PATIENCE),
    }
}

/// Pause before a worker is looked for after so many failures in a row; none at first.
pub(super) fn retry_pause(failures: u32) -> Option<Duration> {
    Some(RETRY_PAUSE * 2u32.saturating_pow(failures.checked_sub(1)?))
}
