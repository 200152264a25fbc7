//! The machine's read bandwidth, as a decode step can use it: several threads sum a buffer far larger than the caches.

use std::hint::black_box;
use std::time::Instant;

/// A buffer to be read over and over.
pub struct Bandwidth {
    buffer: Vec<u64>,
    threads: usize,
}

const BUFFER_BYTES: usize = 512 << 20;

impl Bandwidth {
    /// Fills the buffer.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        // Zeros might all be the same page.
        Self { buffer: (0..(BUFFER_BYTES / 8) as u64).collect(), threads }
    }

    /// Bytes per second of the fastest of three passes.
    #[must_use]
    pub fn measure(&self) -> f64 {
        let share = self.buffer.len().div_ceil(self.threads);
        let pass = || {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for part in self.buffer.chunks(share) {
                    scope.spawn(move || black_box(part.iter().fold(0u64, |sum, value| sum.wrapping_add(*value))));
                }
            });
            BUFFER_BYTES as f64 / started.elapsed().as_secs_f64()
        };
        (0..3).map(|_| pass()).fold(0.0, f64::max)
    }
}
