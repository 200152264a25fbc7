//! The threads of the kernels.
//!
//! A forward pass hands out work hundreds of times, so an idle thread spins for a moment
//! before it sleeps. The thread that hands out work takes part, and never waits for one that did not start: on a
//! busy machine one thread does it all.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cpu_set::CpuSet;
use parking_lot::Mutex;

/// How long an idle thread spins: longer than the time between two matrices of a forward pass.
const SPIN_TIME: Duration = Duration::from_micros(100);

/// Spins between two spins at the clock.
const SPINS: usize = 64;

/// In [`PoolState::state`]: whether work is open. The bits below count the threads at work, those above the rounds.
const OPEN: u64 = 1 << 16;

/// Threads that share the owner's work.
pub(super) struct ThreadPool {
    shared: Arc<PoolState>,
    /// Held while work is handed out, so that there is one at a time.
    workers: Mutex<Vec<JoinHandle<()>>>,
    count: usize,
    /// The CPU that the calling thread may pin itself to.
    place: Option<CpuSet>,
}

struct PoolState {
    state: AtomicU64,
    work: UnsafeCell<PoolWork>,
    next: AtomicUsize,
    asleep: Vec<AtomicBool>,
    ended: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct PoolWork {
    /// Lives as long as the call of [`ThreadPool::each`] that wrote it.
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

#[expect(unsafe_code, reason = "a pointer to work that lives on the stack of the thread that hands it out")]
// SAFETY: `work` is written while no thread is at work and none can begin, and read by threads at work only; the
// closure that it points to may be called from any thread.
unsafe impl Sync for PoolState {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Send for PoolState {}

impl ThreadPool {
    /// The caller's thread only.
    pub(super) fn alone() -> Self {
        Self::waiting(1)
    }

    /// Starts `count - 1` threads; the caller's is the other one. With `cpus` the first is left to the caller, and each
    /// thread runs on the next.
    pub(super) fn new(count: usize, cpus: Option<&CpuSet>) -> std::io::Result<Self> {
        let mut places = cpus.into_iter().flat_map(CpuSet::each);
        // Dropped, and so ended, when one of the threads cannot be started.
        let mut threads = Self::waiting(count);
        threads.place = places.next();
        for index in 1..count {
            let (shared, place) = (Arc::clone(&threads.shared), places.next());
            let worker = thread::Builder::new().name(format!("kernels-{index}")).spawn(move || {
                pin(place.as_ref());
                shared.serve(index - 1);
            });
            threads.workers.get_mut().push(worker?);
        }
        Ok(threads)
    }

    /// Before its threads are started.
    fn waiting(count: usize) -> Self {
        let shared = PoolState {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(PoolWork { task: &|_| (), tasks: 0 }),
            next: AtomicUsize::new(0),
            asleep: (1..count).map(|_| AtomicBool::new(false)).collect(),
            ended: AtomicBool::new(false),
            panic: Mutex::new(None),
        };
        Self { shared: Arc::new(shared), workers: Mutex::new(Vec::new()), count, place: None }
    }

    /// Pins the calling thread to its CPU.
    pub(super) fn pin_caller(&self) {
        pin(self.place.as_ref());
    }

    /// Number of threads, including the caller's.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Calls `task` with every number below `tasks`, on the threads that are free.
    pub(super) fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.count == 1 || tasks == 1 {
            return (0..tasks).for_each(task);
        }
        let workers = self.workers.lock();
        let shared = &*self.shared;
        #[expect(unsafe_code, reason = "forgets how long the closure lives")]
        // SAFETY: `close` below returns only after every thread that took up this work has left it, and after it no
        // other can; the cell is not read meanwhile, because the state is closed and no thread is at work.
        unsafe {
            let task = std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task);
            *shared.work.get() = PoolWork { task, tasks };
        }
        shared.next.store(0, Ordering::Relaxed);
        shared.state.fetch_add(2 * OPEN + OPEN, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&*workers) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.take_part(task, tasks);
        shared.close();
        drop(workers);
        let panic = shared.panic.lock().take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `work` with every piece of `size` elements (the last may be shorter) and its index, on all threads where
    /// `parallel` is set.
    pub(super) fn chunks<T: Send>(
        &self,
        values: &mut [T],
        size: usize,
        parallel: bool,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        if !parallel || self.count == 1 {
            return values.chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk));
        }
        let len = values.len();
        let shares = SharedSlice::new(values);
        self.each(len.div_ceil(size), &|index| {
            let first = index * size;
            #[expect(unsafe_code, reason = "see `Shares`")]
            // SAFETY: pieces of different indices do not overlap, and each index comes once.
            work(index, unsafe { shares.part(first, size.min(len - first)) });
        });
    }
}

/// Pins the calling thread to `place`, if there is one.
fn pin(place: Option<&CpuSet>) {
    if let Some(Err(error)) = place.map(CpuSet::keep_to) {
        // It computes the same anywhere.
        tracing::warn!(%error, "a thread could not be pinned");
    }
}

/// A slice that several threads write at once, each its own elements.
#[derive(Clone, Copy)]
pub(super) struct SharedSlice<'a, T> {
    values: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "what threads write interleaves in memory, so that no safe split gives each its own")]
// SAFETY: elements are only reached by `part`, whose callers keep to their own.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(super) fn new(values: &'a mut [T]) -> Self {
        Self { values: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    /// The `len` elements from `first` on.
    ///
    /// # Safety
    /// No two parts that live at once may overlap.
    #[inline(always)]
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "see the type")]
    pub(super) unsafe fn part(&self, first: usize, len: usize) -> &mut [T] {
        assert!(first <= self.len && len <= self.len - first, "{len} elements from {first} of {}", self.len);
        // SAFETY: within the borrowed slice, and the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(first), len) }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for worker in self.workers.get_mut().drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics.
            let _ = worker.join();
        }
    }
}

impl PoolState {
    fn serve(&self, index: usize) {
        let mut done = 0;
        while let Some(state) = self.wait(index, done) {
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            done = state / OPEN;
            #[expect(unsafe_code, reason = "reads what `each` wrote")]
            // SAFETY: this thread has just entered the open work, so `each` waits for it before the closure ends or
            // the cell is written again.
            let (task, tasks) = unsafe {
                let work = *self.work.get();
                (&*work.task, work.tasks)
            };
            self.take_part(task, tasks);
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// A state with work that is not the one that was `done`; `None` at the end.
    fn wait(&self, index: usize, done: u64) -> Option<u64> {
        let mut since = Instant::now();
        loop {
            for _ in 0..SPINS {
                let state = self.state.load(Ordering::SeqCst);
                if state & OPEN != 0 && state / OPEN != done {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.ended.load(Ordering::SeqCst) {
                return None;
            }
            if since.elapsed() > SPIN_TIME {
                // A thread that opens work after this store sees it; this thread sees work opened before.
                self.asleep[index].store(true, Ordering::SeqCst);
                let state = self.state.load(Ordering::SeqCst);
                if (state & OPEN == 0 || state / OPEN == done) && !self.ended.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.asleep[index].store(false, Ordering::SeqCst);
                since = Instant::now();
            }
        }
    }

    fn take_part(&self, task: &(dyn Fn(usize) + Sync), tasks: usize) {
        let run = AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    return;
                }
                task(index);
            }
        });
        if let Err(panic) = catch_unwind(run) {
            *self.panic.lock() = Some(panic);
        }
    }

    /// Closes the work and waits for the threads at work.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut spins = 0_usize;
        while !state.is_multiple_of(OPEN) {
            spins += 1;
            if spins.is_multiple_of(1024) {
                // The machine may have other work for this core.
                thread::yield_now();
            }
            std::hint::spin_loop();
            state = self.state.load(Ordering::Acquire);
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads").field("count", &self.count).finish()
    }
}
