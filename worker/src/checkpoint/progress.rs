//! How far a download or the reading of weights has come: a bar on a terminal, a log line every tenth otherwise.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// Smaller transfers are not shown.
const SHOWN_BYTES: u64 = 16 << 20;

/// Progress towards a known number of bytes; clones count together, and the last one takes the bar away.
#[derive(Clone, Debug)]
pub struct ByteProgress {
    what: Arc<str>,
    total_bytes: u64,
    done_bytes: Arc<AtomicU64>,
    /// `None` without a terminal.
    bar: Option<ProgressBar>,
}

impl ByteProgress {
    /// Begins to show `what` is done, such as `loading model.safetensors`.
    #[must_use]
    pub fn new(what: &str, total_bytes: u64) -> Self {
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left";
        // The bar is plain where the template would not be understood.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = (total_bytes >= SHOWN_BYTES && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total_bytes).with_style(style.progress_chars("=> "));
            bar.with_message(what.to_owned()).with_finish(ProgressFinish::AndClear)
        });
        Self { what: what.into(), total_bytes, done_bytes: Arc::default(), bar }
    }

    /// Counts `bytes` more.
    pub fn advance(&self, bytes: u64) {
        let before = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        let done_bytes = before.saturating_add(bytes);
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            None if self.total_bytes >= SHOWN_BYTES
                && tenths(done_bytes, self.total_bytes) > tenths(before, self.total_bytes) =>
            {
                let percent = tenths(done_bytes, self.total_bytes) * 10;
                tracing::info!(percent, mib = done_bytes >> 20, of_mib = self.total_bytes >> 20, "{}", self.what);
            }
            None => {}
        }
    }
}

/// Whole tenths of `total` that are done; 10 at the most.
fn tenths(done: u64, total: u64) -> u64 {
    (u128::from(done) * 10 / u128::from(total.max(1))).min(10) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_end_at_ten() {
        assert_eq!([0, 9, 10, 55, 100, 200].map(|done| tenths(done, 100)), [0, 0, 1, 5, 10, 10]);
        assert_eq!((tenths(0, 0), tenths(u64::MAX, u64::MAX)), (0, 10));
    }
}
