//! Timing events in a GPU's stream.

use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::driver::device;
use crate::kernels::KernelError;

/// An event in the stream.
pub(super) struct StreamEvent(CudaEvent);

impl StreamEvent {
    pub(super) fn new(event: CudaEvent) -> Self {
        Self(event)
    }

    /// Waits for `end` and returns the time from this event to it.
    pub(super) fn until(&self, end: &Self) -> Result<Duration, KernelError> {
        let milliseconds = self.0.elapsed_ms(&end.0).map_err(device)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}
