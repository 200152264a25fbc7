//! What programs say on standard error and standard output, at best: nothing that is said stops, slows or ends them.
//!
//! A thread of its own writes the lines of the log. What it cannot keep up with, because a disk is full or nobody reads a
//! pipe, is dropped and counted.

use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntCounter;

/// Most lines that wait to be written, and most bytes of them.
const MAX_WAITING: (usize, usize) = (8192, 4 << 20);

/// Pause between two looks at what is still to be written.
const FLUSH_INTERVAL: Duration = Duration::from_millis(5);

static STANDARD_ERROR: LazyLock<LogLines> = LazyLock::new(|| LogLines::to(io::stderr()));

/// A log that takes a line at once or drops it. Clones share its thread.
#[derive(Clone)]
pub struct LogLines {
    lines: SyncSender<Vec<u8>>,
    state: Arc<LogState>,
}

#[derive(Default)]
struct LogState {
    waiting_bytes: AtomicUsize,
    dropped: AtomicU64,
    counter: Mutex<Option<IntCounter>>,
}

impl LogLines {
    /// The log of this process.
    #[must_use]
    pub fn standard_error() -> Self {
        STANDARD_ERROR.clone()
    }

    /// Begins a thread that writes to `output`.
    fn to(output: impl Write + Send + 'static) -> Self {
        let (lines, waiting) = mpsc::sync_channel(MAX_WAITING.0);
        let state = Arc::new(LogState::default());
        let written = Arc::clone(&state);
        // Without the thread every line is dropped.
        let _ = thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&waiting, output, &written));
        Self { lines, state }
    }

    /// Counts dropped lines in `counter` from now on, and those before at once.
    pub fn count_dropped(&self, counter: IntCounter) {
        let mut place = self.state.counter.lock();
        counter.inc_by(self.state.dropped.load(Ordering::Relaxed));
        *place = Some(counter);
    }

    /// Waits until all lines are written, for `patience` at most.
    pub fn flush(&self, patience: Duration) {
        let began = Instant::now();
        while self.state.waiting_bytes.load(Ordering::Acquire) > 0 && began.elapsed() < patience {
            thread::sleep(FLUSH_INTERVAL);
        }
    }
}

impl LogState {
    fn drop_line(&self) {
        let counter = self.counter.lock();
        self.dropped.fetch_add(1, Ordering::Relaxed);
        counter.iter().for_each(IntCounter::inc);
    }
}

/// Takes one line in each call, as `tracing_subscriber` writes them.
impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let before = self.state.waiting_bytes.fetch_add(line.len(), Ordering::AcqRel);
        let taken = before + line.len() <= MAX_WAITING.1 && self.lines.try_send(line.to_vec()).is_ok();
        if !taken {
            self.state.waiting_bytes.fetch_sub(line.len(), Ordering::AcqRel);
            self.state.drop_line();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(waiting: &Receiver<Vec<u8>>, mut output: impl Write, state: &LogState) {
    for line in waiting {
        if output.write_all(&line).is_err() {
            state.drop_line();
        }
        state.waiting_bytes.fetch_sub(line.len(), Ordering::AcqRel);
    }
}

/// Says `text` on standard output, from a thread of its own: nobody may read there, or it may be closed.
pub fn announce(text: String) {
    let say = move || {
        let mut output = io::stdout().lock();
        let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    };
    // Without a thread it is not said.
    let _ = thread::Builder::new().name("announce".to_owned()).spawn(say);
}

/// Logs panics like all else. What does so by default waits until standard error is read.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%backtrace, "{panic}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes nothing until its channel is closed.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "lines").unwrap()
    }

    #[test]
    fn lines_are_written_in_order() {
        let (input, output) = io::pipe().unwrap();
        let mut log = LogLines::to(output);
        for line in ["one\n", "two\n", "three\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        log.flush(Duration::from_secs(60));
        drop(log);
        assert_eq!(io::read_to_string(input).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn what_nobody_reads_is_bounded_and_counted() {
        let (unblock, blocked) = mpsc::channel();
        let mut log = LogLines::to(Stuck(blocked));
        let line = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            log.write_all(&line).unwrap();
        }
        assert_eq!(log.state.dropped.load(Ordering::Relaxed), 6, "4 MiB wait");
        let counter = counter();
        log.count_dropped(counter.clone());
        assert_eq!(counter.get(), 6);
        log.write_all(&line).unwrap();
        assert_eq!(counter.get(), 7);
        // What cannot be written is dropped, too.
        drop(unblock);
        log.flush(Duration::from_secs(60));
        assert_eq!(counter.get(), 11);
        for _ in 0..MAX_WAITING.0 {
            log.write_all(b"y\n").unwrap();
        }
        log.flush(Duration::from_secs(60));
        assert_eq!(counter.get(), 11 + MAX_WAITING.0 as u64);
    }
}
