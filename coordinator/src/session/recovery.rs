//! How a session survives the failures of its workers: how often it tries again, how long it waits, and which addresses
//! it avoids.
//!
//! A worker that fails is replaced: the session looks for another one, feeds it the whole sequence and goes on. A
//! worker that lost its cache is fed from where its cache ends. Too many of either in a row, without any answer between
//! them, end the session. Workers without room are asked again and again by a session that is under way, and for a
//! moment by one that has not begun.

use std::time::Duration;

use cosec_proto::{ErrorCode, WorkerRole};
use tokio::time::Instant;

use super::config::ExpertAbsent;
use super::event::LocateCause;

/// Failures in a row after which a session gives up.
const MAX_FAILURES: u32 = 4;

/// Times in a row that a worker may have lost its cache.
const MAX_REWINDS: u32 = 8;

/// How long a session looks for another worker after a failure; a worker that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pauses before another worker is asked, after the first failure and at most; doubled with every further one.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long a session that has not begun asks workers without room again.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);

/// What went wrong with a role's workers since one last answered.
#[derive(Debug, Default)]
pub(super) struct FailureCount {
    failures: u32,
    rewinds: u32,
}

impl FailureCount {
    /// A worker failed. Returns the failures in a row; `None` when they are too many. That of workers without room has
    /// no bound but time.
    pub(super) fn failed(&mut self, cause: LocateCause) -> Option<u32> {
        self.failures += 1;
        let is_bounded = match cause {
            LocateCause::Unplaced | LocateCause::Failed => true,
            LocateCause::NoRoom | LocateCause::NoRoomUnderWay => false,
        };
        (!is_bounded || self.failures <= MAX_FAILURES).then_some(self.failures)
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
        self.addresses.retain(|known| known != address);
        self.addresses.push(address.to_owned());
    }

    /// Addresses to avoid, the latest last.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Whether the session has asked workers for room for as long as it does.
    pub(super) fn has_waited_for_room(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now >= since + ROOM_PATIENCE)
    }

    /// A worker answered. Returns when the first one failed, if any did.
    pub(super) fn recovered(&mut self) -> Option<Instant> {
        std::mem::take(self).since
    }
}

/// What a worker's failure means to a session.
pub(super) fn cause_of(code: ErrorCode, is_under_way: bool) -> LocateCause {
    match code {
        ErrorCode::Overloaded | ErrorCode::OutOfBlocks if is_under_way => LocateCause::NoRoomUnderWay,
        ErrorCode::Overloaded => LocateCause::NoRoom,
        _ => LocateCause::Failed,
    }
}

/// When to stop looking for a worker. At first an absent worker is absent; after a failure it gets time to come back.
pub(super) fn give_up_at(
    role: WorkerRole,
    cause: LocateCause,
    expert_absent: ExpertAbsent,
    now: Instant,
    deadline: Instant,
) -> Instant {
    let waits = role != WorkerRole::Base && expert_absent == ExpertAbsent::Wait;
    match cause {
        _ if waits => deadline,
        LocateCause::Unplaced => now,
        LocateCause::Failed | LocateCause::NoRoom => deadline.min(now + PATIENCE),
        LocateCause::NoRoomUnderWay => deadline,
    }
}

/// Pause before a worker is looked for after so many failures in a row; none at first.
pub(super) fn retry_pause(failures: u32) -> Option<Duration> {
    let (first, most) = RETRY_PAUSE;
    let doublings = failures.checked_sub(1)?;
    Some(first.saturating_mul(2u32.saturating_pow(doublings)).min(most))
}
