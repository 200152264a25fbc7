//! Time on the GPU by kernel, for tuning.
//!
//! `COSEC_KERNEL_TIMES=1` turns it on. Events around every launch take time themselves, so only shares are meaningful.

use std::collections::BTreeMap;
use std::time::Duration;

use super::timing::StreamEvent;
use crate::kernels::KernelError;

/// The figures are logged every so many waits.
const WAITS: u32 = 64;

/// Launches since the figures were last logged.
#[derive(Default)]
pub(super) struct KernelProfile {
    launched: Vec<(&'static str, StreamEvent, StreamEvent)>,
    /// Launches and time, by kernel.
    totals: BTreeMap<&'static str, (u32, Duration)>,
    waits: u32,
}

impl KernelProfile {
    /// A profile where one is asked for.
    pub(super) fn from_environment() -> Option<Self> {
        std::env::var_os("COSEC_KERNEL_TIMES").map(|_| Self::default())
    }

    pub(super) fn launched(&mut self, name: &'static str, began: StreamEvent, ended: StreamEvent) {
        self.launched.push((name, began, ended));
    }

    /// Adds up the launches so far; the stream must be idle.
    pub(super) fn add_up(&mut self) -> Result<(), KernelError> {
        for (name, began, ended) in self.launched.drain(..) {
            let (launches, time) = self.totals.entry(name).or_default();
            *launches += 1;
            *time += began.until(&ended)?;
        }
        self.waits += 1;
        if self.waits == WAITS {
            let all: Duration = self.totals.values().map(|(_, time)| *time).sum();
            for (kernel, (launches, time)) in std::mem::take(&mut self.totals) {
                let share = time.as_secs_f64() / all.as_secs_f64();
                let microseconds = time.as_secs_f64() * 1e6 / f64::from(launches);
                tracing::info!(kernel, launches, microseconds, share, waits = WAITS, "time on the GPU");
            }
            self.waits = 0;
        }
        Ok(())
    }
}
