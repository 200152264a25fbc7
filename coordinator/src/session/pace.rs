//! Keeps a session at its client's pace: what it decodes next waits until the client has taken what came before.
//!
//! Meanwhile it holds less and less. First it gives its turn to others, then its caches on the workers, and in the end
//! it fails. A client that reads again before that goes on where it was: the session waits for a turn and, where the
//! caches are gone, feeds the workers again. The same happens between two tokens when another client should have the
//! turn.

use std::pin::Pin;
use std::time::Duration;

use cosec_proto::ErrorCode;
use prometheus::IntGauge;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::config::SessionConfig;
use crate::admission::{ActivePermit, StalledPermit};
use crate::request::{SessionError, SessionEvent};

/// How long a client may lag behind until what happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientPatience {
    turn: Duration,
    caches: Duration,
    end: Duration,
}

impl ClientPatience {
    pub(crate) fn of(config: &SessionConfig) -> Self {
        let [turn, caches, end] = [config.slow_client_turn_ms, config.slow_client_cache_ms, config.write_timeout_ms];
        Self {
            turn: Duration::from_millis(turn),
            caches: Duration::from_millis(caches),
            end: Duration::from_millis(end),
        }
    }
}

/// The way to the client, and the turn that depends on it.
pub(super) struct ClientPace {
    events: mpsc::Sender<SessionEvent>,
    patience: ClientPatience,
    turn: HeldTurn,
    active_sessions: IntGauge,
    /// Whether the client has taken the last event and the session was not told yet.
    is_taken: bool,
    /// What the client has no room for, and since when.
    untaken: Option<(SessionEvent, Instant)>,
}

/// What the session has of the right to decode.
enum HeldTurn {
    Held(ActivePermit),
    /// The client does not read.
    Stalled {
        permit: StalledPermit,
        has_caches: bool,
    },
    /// Waits in the line again.
    Returning(Pin<Box<dyn Future<Output = ActivePermit> + Send>>),
    /// Only while it changes.
    Changing,
}

/// What happens next on the client's side.
pub(super) enum PaceStep {
    /// The client took the event, and the session may go on.
    Emitted,
    /// The client does not read; the caches on the workers are to be given back.
    GiveCachesBack,
    /// The session is over.
    Failed(SessionError),
}

impl ClientPace {
    pub(super) fn new(
        events: mpsc::Sender<SessionEvent>,
        patience: ClientPatience,
        permit: ActivePermit,
        active_sessions: &IntGauge,
    ) -> Self {
        active_sessions.inc();
        let (turn, active_sessions) = (HeldTurn::Held(permit), active_sessions.clone());
        Self { events, patience, turn, active_sessions, is_taken: false, untaken: None }
    }

    /// The session has one more token.
    pub(super) fn grow(&mut self) {
        if let HeldTurn::Held(permit) = &mut self.turn {
            permit.grow();
        }
    }

    /// Hands an event to the client; [`Self::step`] says what comes of it. Returns whether the session has to wait, for
    /// the client or for another turn.
    pub(super) fn emit(&mut self, event: SessionEvent) -> bool {
        match self.events.try_send(event) {
            // A client that is gone cancels the session by itself.
            Ok(()) | Err(TrySendError::Closed(_)) => self.taken(),
            Err(TrySendError::Full(event)) => self.untaken = Some((event, Instant::now())),
        }
        self.untaken.is_some() || matches!(self.turn, HeldTurn::Returning(_))
    }

    fn taken(&mut self) {
        self.is_taken = true;
        let is_recalled = matches!(&self.turn, HeldTurn::Held(permit) if permit.is_recalled());
        self.turn = match std::mem::replace(&mut self.turn, HeldTurn::Changing) {
            HeldTurn::Held(permit) if is_recalled => {
                self.active_sessions.dec();
                HeldTurn::Returning(Box::pin(permit.give_way()))
            }
            HeldTurn::Stalled { permit, .. } => HeldTurn::Returning(Box::pin(permit.activate())),
            other => other,
        };
    }

    /// Waits for what happens next; for ever while there is nothing to wait for. May be dropped at any time.
    pub(super) async fn step(&mut self) -> PaceStep {
        loop {
            if self.is_taken {
                if let HeldTurn::Returning(turn) = &mut self.turn {
                    self.turn = HeldTurn::Held(turn.await);
                    self.active_sessions.inc();
                }
                self.is_taken = false;
                return PaceStep::Emitted;
            }
            let Some((_, since)) = &self.untaken else { return std::future::pending().await };
            let (patience, evicted) = match &self.turn {
                HeldTurn::Held(_) | HeldTurn::Returning(_) | HeldTurn::Changing => (self.patience.turn, None),
                HeldTurn::Stalled { permit, has_caches: true } => (self.patience.caches, Some(permit)),
                HeldTurn::Stalled { permit, has_caches: false } => (self.patience.end, Some(permit)),
            };
            let evicted = async {
                match evicted {
                    Some(permit) => permit.evicted().await,
                    None => std::future::pending().await,
                }
            };
            let reads = tokio::select! {
                biased;
                room = self.events.reserve() => {
                    if let (Ok(room), Some((event, _))) = (room, self.untaken.take()) {
                        room.send(event);
                    }
                    true
                }
                () = evicted => return PaceStep::Failed(too_slow("its place was needed")),
                () = tokio::time::sleep_until(*since + patience) => false,
            };
            if reads {
                self.taken();
            } else if let Some(step) = self.lags() {
                return step;
            }
        }
    }

    /// The client has not read for as long as it may in this state.
    fn lags(&mut self) -> Option<PaceStep> {
        let (turn, step) = match std::mem::replace(&mut self.turn, HeldTurn::Changing) {
            HeldTurn::Held(permit) => {
                self.active_sessions.dec();
                (HeldTurn::Stalled { permit: permit.stall(), has_caches: true }, None)
            }
            HeldTurn::Stalled { mut permit, has_caches: true } => {
                permit.give_caches_back();
                (HeldTurn::Stalled { permit, has_caches: false }, Some(PaceStep::GiveCachesBack))
            }
            over @ HeldTurn::Stalled { has_caches: false, .. } => {
                (over, Some(PaceStep::Failed(too_slow(format_args!("{:?} passed", self.patience.end)))))
            }
            other @ (HeldTurn::Returning(_) | HeldTurn::Changing) => (other, None),
        };
        self.turn = turn;
        step
    }
}

fn too_slow(why: impl std::fmt::Display) -> SessionError {
    SessionError::new(ErrorCode::DeadlineExceeded, format!("the client did not read what it was sent, and {why}"))
}

impl Drop for ClientPace {
    fn drop(&mut self) {
        if matches!(self.turn, HeldTurn::Held(_)) {
            self.active_sessions.dec();
        }
    }
}
