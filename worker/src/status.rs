//! Figures of the engine that others read while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::operation::OperationPermit;

/// Live figures of the engine, and what others ask of it without a message.
#[derive(Debug)]
pub struct EngineStatus {
    free_blocks: AtomicUsize,
    sessions: AtomicUsize,
    queued_tokens: AtomicUsize,
    operations: Arc<AtomicUsize>,
    draining: AtomicBool,
    /// Whether a wake-up lies in the inbox.
    woken: AtomicBool,
}

impl EngineStatus {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            free_blocks: AtomicUsize::new(blocks),
            sessions: AtomicUsize::new(0),
            queued_tokens: AtomicUsize::new(0),
            operations: Arc::default(),
            draining: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        }
    }

    /// Cache blocks that nobody holds.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        self.free_blocks.load(Ordering::Acquire)
    }

    /// Open sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Acquire)
    }

    /// Tokens of unanswered operations that are still to be fed.
    #[must_use]
    pub fn queued_tokens(&self) -> usize {
        self.queued_tokens.load(Ordering::Acquire)
    }

    /// Unanswered operations.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations.load(Ordering::Acquire)
    }

    /// Whether the engine opens no session any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Takes one of `limit` permits for an operation.
    pub(crate) fn permit(&self, limit: usize) -> Option<OperationPermit> {
        OperationPermit::take(&self.operations, limit)
    }

    /// Notes a wake-up; false when one lies in the inbox already.
    pub(crate) fn wake(&self) -> bool {
        !self.woken.swap(true, Ordering::SeqCst)
    }

    /// The wake-up has been taken out of the inbox.
    pub(crate) fn clear_wake(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    pub(crate) fn set_room(&self, free_blocks: usize, sessions: usize, queued_tokens: usize) {
        self.free_blocks.store(free_blocks, Ordering::Release);
        self.sessions.store(sessions, Ordering::Release);
        self.queued_tokens.store(queued_tokens, Ordering::Release);
    }
}
