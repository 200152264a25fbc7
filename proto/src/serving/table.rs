//! The connections of a process' clients: which there are, which must go, and who gives way where there is no room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limits::ConnectionLimits;

/// Most requests of all connections together; far more than the queue for the workers takes.
const MOST_REQUESTS: usize = 2048;

/// A request whose answer has not moved for so long may give way where there is no other room.
const STALE: Duration = Duration::from_secs(30);

/// Pause between two looks for connections that must go.
const SWEEP: Duration = Duration::from_millis(500);

/// Time for connections that give way to be gone, before others have to.
const GIVING_WAY: Duration = Duration::from_secs(1);

/// Connections and requests of a process' clients, on all ports that share the table.
///
/// A connection needs a place. Where there is none, the connections that have been without a served request for longest
/// give way, a sixteenth of them at a time; where there are too many requests, those with the most.
#[derive(Debug)]
pub struct ConnectionTable {
    pub(super) limits: ConnectionLimits,
    places: Arc<Semaphore>,
    /// A permit stands for a KiB.
    body_memory: Arc<Semaphore>,
    connections: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    opened: AtomicU64,
    requests: AtomicUsize,
    /// Who waits for a place.
    waiting: AtomicUsize,
    /// When connections last had to give way.
    gave_way: Mutex<Option<Instant>>,
}

impl ConnectionTable {
    /// An empty table, looked after by a task until it is dropped.
    #[must_use]
    pub fn start(limits: ConnectionLimits) -> Arc<Self> {
        let table = Arc::new(Self {
            places: Arc::new(Semaphore::new(limits.places())),
            body_memory: Arc::new(Semaphore::new((limits.body_memory_mib << 10).min(Semaphore::MAX_PERMITS))),
            connections: Mutex::default(),
            opened: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            gave_way: Mutex::default(),
            limits,
        });
        tokio::spawn(sweep(Arc::downgrade(&table)));
        table
    }

    /// A place for one more connection, waiting until there is one.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Some(place);
        }
        let _waiting = WaitingGuard::enter(&self.waiting);
        self.make_place();
        // Closed never.
        places.acquire_owned().await.ok()
    }

    /// Enters a connection that has a place.
    pub(super) fn enter(self: &Arc<Self>, place: OwnedSemaphorePermit, multiplexed: bool) -> OpenConnection {
        let id = self.opened.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(ConnectionState::new(multiplexed));
        self.connections.lock().insert(id, Arc::clone(&state));
        OpenConnection { id, state, table: Arc::clone(self), _place: place }
    }

    /// Memory for `kib` KiB of a body, or none.
    pub(super) fn body_memory(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.body_memory).try_acquire_many_owned(u32::try_from(kib).ok()?).ok()
    }

    fn request_begins(&self) {
        if self.requests.fetch_add(1, Ordering::Relaxed) >= MOST_REQUESTS {
            self.close_first(|activity| {
                let requests = activity.arriving + activity.served;
                (requests > 0).then_some((usize::MAX - requests, activity.since))
            });
        }
    }

    /// Closes those that have been without a served request for longest.
    fn make_place(&self) {
        self.close_first(|activity| {
            (activity.served == 0 || activity.since.elapsed() > STALE).then_some((0, activity.since))
        });
    }

    /// Closes the sixteenth of the connections that `rank` puts first, at least one, of those that it ranks.
    fn close_first(&self, rank: impl Fn(&Activity) -> Option<(usize, Instant)>) {
        let mut gave_way = self.gave_way.lock();
        let mut ranked: Vec<_> = {
            let connections = self.connections.lock();
            let are_leaving = connections.values().any(|state| state.closed.is_cancelled());
            if are_leaving && gave_way.is_some_and(|last| last.elapsed() < GIVING_WAY) {
                return;
            }
            let open = connections.values().filter(|state| !state.closed.is_cancelled());
            open.filter_map(|state| Some((rank(&state.activity.lock())?, Arc::clone(state)))).collect()
        };
        ranked.sort_unstable_by_key(|(rank, _)| *rank);
        for (_, state) in ranked.iter().take(ranked.len().div_ceil(16)) {
            state.closed.cancel();
        }
        *gave_way = Some(Instant::now());
    }

    fn close_overdue(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.make_place();
        }
        for state in self.connections.lock().values() {
            match state.activity.lock().overdue(&self.limits) {
                Overdue::No => {}
                // An idle peer is told before.
                Overdue::Idle if !state.leave.is_cancelled() => state.leave.cancel(),
                Overdue::Idle | Overdue::Stuck => state.closed.cancel(),
            }
        }
    }
}

/// Counts somebody who waits.
struct WaitingGuard<'a>(&'a AtomicUsize);

impl<'a> WaitingGuard<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn sweep(table: Weak<ConnectionTable>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match table.upgrade() {
            Some(table) => table.close_overdue(),
            None => return,
        }
    }
}

/// An entry of the table; dropping it removes it.
#[derive(Debug)]
pub(super) struct OpenConnection {
    id: u64,
    pub(super) state: Arc<ConnectionState>,
    pub(super) table: Arc<ConnectionTable>,
    _place: OwnedSemaphorePermit,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.table.connections.lock().remove(&self.id);
    }
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestStage {
    /// Its body has not arrived as a whole, and no answer has begun.
    Arriving,
    /// It is worked on, or its answer goes out as it is made.
    Served,
    /// A part of its answer waits for the client to read.
    Unread,
}

/// What goes on on one connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    activity: Mutex<Activity>,
    /// The peer is to be told that the connection ends.
    pub(super) leave: CancellationToken,
    /// The connection ends.
    pub(super) closed: CancellationToken,
}

#[derive(Debug)]
struct Activity {
    arriving: usize,
    /// Also those whose answers are unread.
    served: usize,
    unread: usize,
    /// When a request last began, moved on or ended.
    since: Instant,
    /// When the first byte of the next request's head came.
    head_begun: Option<Instant>,
    /// Requests do not follow one another, so bytes between them tell of no head.
    multiplexed: bool,
}

enum Overdue {
    No,
    Idle,
    Stuck,
}

impl Activity {
    fn overdue(&self, limits: &ConnectionLimits) -> Overdue {
        if self.arriving + self.served == 0 {
            return match self.head_begun {
                Some(begun) if begun.elapsed() > limits.head_timeout() => Overdue::Stuck,
                _ if self.since.elapsed() > limits.idle_timeout() => Overdue::Idle,
                _ => Overdue::No,
            };
        }
        let is_unread = self.arriving == 0 && self.unread == self.served;
        if is_unread && self.since.elapsed() > limits.write_timeout() { Overdue::Stuck } else { Overdue::No }
    }
}

impl ConnectionState {
    fn new(multiplexed: bool) -> Self {
        let activity =
            Activity { arriving: 0, served: 0, unread: 0, since: Instant::now(), head_begun: None, multiplexed };
        Self { activity: Mutex::new(activity), leave: CancellationToken::new(), closed: CancellationToken::new() }
    }

    /// Notes bytes from the peer.
    pub(super) fn heard(&self) {
        let mut activity = self.activity.lock();
        if !activity.multiplexed && activity.arriving + activity.served == 0 {
            activity.head_begun.get_or_insert_with(Instant::now);
        }
    }

    fn moved(&self, from: Option<RequestStage>, to: Option<RequestStage>) {
        let mut activity = self.activity.lock();
        let activity = &mut *activity;
        let mut count = |stage: Option<RequestStage>, change: fn(&mut usize)| match stage {
            Some(RequestStage::Arriving) => change(&mut activity.arriving),
            Some(RequestStage::Served) => change(&mut activity.served),
            Some(RequestStage::Unread) => {
                change(&mut activity.served);
                change(&mut activity.unread);
            }
            None => {}
        };
        count(to, |requests| *requests += 1);
        count(from, |requests| *requests -= 1);
        (activity.since, activity.head_begun) = (Instant::now(), None);
    }
}

/// A request of a connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct TrackedRequest {
    pub(super) table: Arc<ConnectionTable>,
    connection: Arc<ConnectionState>,
    stage: Mutex<RequestStage>,
}

impl TrackedRequest {
    /// A request whose head has come; `multiplexed` says whether others may come before it has ended.
    pub(super) fn begin(table: Arc<ConnectionTable>, connection: Arc<ConnectionState>, multiplexed: bool) -> Self {
        connection.activity.lock().multiplexed |= multiplexed;
        connection.moved(None, Some(RequestStage::Arriving));
        table.request_begins();
        Self { table, connection, stage: Mutex::new(RequestStage::Arriving) }
    }

    pub(super) fn stage(&self) -> RequestStage {
        *self.stage.lock()
    }

    /// Notes that the request has moved on.
    pub(super) fn moves(&self, to: RequestStage) {
        let from = std::mem::replace(&mut *self.stage.lock(), to);
        self.connection.moved(Some(from), Some(to));
    }
}

impl Drop for TrackedRequest {
    fn drop(&mut self) {
        self.connection.moved(Some(self.stage()), None);
        self.table.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn table(max_connections: usize) -> Arc<ConnectionTable> {
        let limits = ConnectionLimits { max_connections: Some(max_connections), ..ConnectionLimits::default() };
        ConnectionTable::start(limits)
    }

    async fn open(table: &Arc<ConnectionTable>) -> OpenConnection {
        table.enter(table.place().await.unwrap(), false)
    }

    fn request(connection: &OpenConnection) -> TrackedRequest {
        TrackedRequest::begin(Arc::clone(&connection.table), Arc::clone(&connection.state), false)
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_gives_way_and_a_served_one_does_not() {
        let table = table(3).await;
        let served = open(&table).await;
        let running = request(&served);
        running.moves(RequestStage::Served);
        tokio::time::advance(Duration::from_secs(1)).await;
        let idle = open(&table).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        let young = open(&table).await;
        let waiting = tokio::spawn({
            let table = Arc::clone(&table);
            async move { open(&table).await }
        });
        idle.state.closed.cancelled().await;
        assert!(!served.state.closed.is_cancelled() && !young.state.closed.is_cancelled());
        drop(idle);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_overdue_goes() {
        let table = table(8).await;
        let [silent, half, unread, slow] =
            [open(&table).await, open(&table).await, open(&table).await, open(&table).await];
        half.state.heard();
        let stuck = request(&unread);
        stuck.moves(RequestStage::Served);
        stuck.moves(RequestStage::Unread);
        let computing = request(&slow);
        computing.moves(RequestStage::Served);
        tokio::time::sleep(Duration::from_secs(17)).await;
        assert!(half.state.closed.is_cancelled() && !unread.state.closed.is_cancelled());
        tokio::time::sleep(Duration::from_secs(45)).await;
        assert!(unread.state.closed.is_cancelled() && !silent.state.leave.is_cancelled());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(silent.state.leave.is_cancelled() && !slow.state.leave.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_with_the_most_requests_gives_way() {
        let table = table(8).await;
        let (flood, bystander) = (open(&table).await, open(&table).await);
        let one = request(&bystander);
        let many: Vec<_> = (0..MOST_REQUESTS).map(|_| request(&flood)).collect();
        assert!(flood.state.closed.is_cancelled() && !bystander.state.closed.is_cancelled());
        drop((one, many));
        assert_eq!(table.requests.load(Ordering::Relaxed), 0);
    }
}
