//! How many sessions decode, and how many may wait for their turn. Refuses the rest at once.

use std::sync::Arc;

use cosec_proto::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::request::SessionError;

/// Places for sessions, some of which decode.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Admission {
    pub(crate) fn new(max_sessions: usize, max_queued_sessions: usize) -> Self {
        let places = Arc::new(Semaphore::new(max_sessions.saturating_add(max_queued_sessions)));
        Self { places, turns: Arc::new(Semaphore::new(max_sessions)) }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// `Overloaded` when there is none.
    pub(crate) fn enter(&self) -> Result<Place, SessionError> {
        let overloaded = |_| SessionError {
            code: ErrorCode::Overloaded,
            message: "too many requests are waiting; try again later".to_owned(),
        };
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(overloaded)?;
        Ok(Place { place, turns: Arc::clone(&self.turns) })
    }
}

/// A place, held until its session ends.
pub(crate) struct Place {
    place: OwnedSemaphorePermit,
    turns: Arc<Semaphore>,
}

/// A place whose session may decode.
pub(crate) struct Turn {
    _place: OwnedSemaphorePermit,
    /// Absent only if the semaphore were closed, which nobody does.
    _turn: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Waits for the turn, first come first served.
    pub(crate) async fn turn(self) -> Turn {
        let turn = self.turns.acquire_owned().await;
        Turn { _place: self.place, _turn: turn.ok() }
    }
}
