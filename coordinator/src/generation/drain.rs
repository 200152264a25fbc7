//! Requests in flight, and how they end at shutdown.

use std::time::Duration;

use cosec_proto::ErrorCode;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::api::error::ApiError;

/// Counts requests in flight.
#[derive(Default)]
pub(super) struct RequestTracker {
    /// Set when no new request is taken.
    draining: CancellationToken,
    /// Set when requests in flight end with an error.
    halted: CancellationToken,
    in_flight: TaskTracker,
}

/// A request in flight.
pub(super) struct RequestGuard {
    halted: CancellationToken,
    /// What its response may take, where it is kept as a whole.
    response_memory: Option<OwnedSemaphorePermit>,
    _in_flight: TaskTrackerToken,
}

impl RequestTracker {
    /// Counts a request until the guard is dropped.
    ///
    /// # Errors
    /// When no new request is taken.
    pub(super) fn begin(&self) -> Result<RequestGuard, ApiError> {
        // Counted before the look at `draining`: a request is either counted or refused.
        let guard =
            RequestGuard { halted: self.halted.clone(), response_memory: None, _in_flight: self.in_flight.token() };
        self.refuse_while_draining()?;
        Ok(guard)
    }

    pub(super) fn refuse_while_draining(&self) -> Result<(), ApiError> {
        if self.draining.is_cancelled() {
            return Err(ApiError::new(ErrorCode::Unavailable, "this coordinator is shutting down; try another"));
        }
        Ok(())
    }

    /// Refuses new requests, waits `grace` for those in flight, and ends the rest with an error.
    pub(super) async fn drain(&self, grace: Duration) {
        self.draining.cancel();
        self.in_flight.close();
        if tokio::time::timeout(grace, self.in_flight.wait()).await.is_err() {
            tracing::warn!(requests = self.in_flight.len(), "the grace period is over; requests in flight end now");
        }
        self.halted.cancel();
    }
}

impl RequestGuard {
    /// Keeps `memory` until the request ends.
    pub(super) fn keep(&mut self, memory: OwnedSemaphorePermit) {
        self.response_memory = Some(memory);
    }

    /// Waits until the request must end.
    pub(super) async fn halted(&self) {
        self.halted.cancelled().await;
    }
}
