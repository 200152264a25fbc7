//! Seats for the streams of coordinators.
//!
//! A worker has so many. When all are taken, a newcomer gets that of the peer with the most of them, and of that peer the
//! one whose operations ended the longest ago. So streams that are only held keep nobody out; a coordinator that lost an
//! idle one connects again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Most streams at a time, one per coordinator.
const MAX_STREAMS: usize = 64;

/// The seats of a worker. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamSeats(Arc<Mutex<SeatTable>>);

#[derive(Debug, Default)]
struct SeatTable {
    seats: HashMap<u64, TakenSeat>,
    /// Seats so far.
    opened: u64,
}

#[derive(Debug)]
struct TakenSeat {
    /// Address of the coordinator's machine, where it is known.
    peer: Option<IpAddr>,
    last_used: Instant,
    lost: CancellationToken,
}

impl StreamSeats {
    /// Seats that are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.lock().seats.len()
    }

    /// Takes a seat for a stream of `peer`, from another one where none is left.
    pub(super) fn take(&self, peer: Option<IpAddr>) -> StreamSeat {
        let mut table = self.0.lock();
        if table.seats.len() >= MAX_STREAMS
            && let Some(seat) = table.gives_way().and_then(|number| table.seats.remove(&number))
        {
            tracing::warn!(peer = ?seat.peer, "all {MAX_STREAMS} streams are open; one gives way to a new one");
            seat.lost.cancel();
        }
        let (number, lost) = (table.opened, CancellationToken::new());
        table.opened += 1;
        table.seats.insert(number, TakenSeat { peer, last_used: Instant::now(), lost: lost.clone() });
        StreamSeat { number, lost, seats: self.clone() }
    }
}

impl SeatTable {
    fn gives_way(&self) -> Option<u64> {
        let mut of_peers = HashMap::<_, usize>::new();
        for seat in self.seats.values() {
            *of_peers.entry(seat.peer).or_default() += 1;
        }
        let rank = |seat: &TakenSeat| (of_peers.get(&seat.peer).copied(), std::cmp::Reverse(seat.last_used));
        self.seats.iter().max_by_key(|(_, seat)| rank(seat)).map(|(&number, _)| number)
    }
}

/// A stream's seat; given back by drop.
#[derive(Debug)]
pub(super) struct StreamSeat {
    number: u64,
    lost: CancellationToken,
    seats: StreamSeats,
}

impl StreamSeat {
    /// Tells the streams apart.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// An operation came.
    pub(super) fn used(&self, now: Instant) {
        if let Some(seat) = self.seats.0.lock().seats.get_mut(&self.number) {
            seat.last_used = now;
        }
    }

    /// Waits until another stream took the seat.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// What a coordinator is told that lost its seat.
    pub(super) fn gave_way() -> Status {
        Status::resource_exhausted(format!("{MAX_STREAMS} other streams are open, as many as the worker takes"))
    }
}

impl Drop for StreamSeat {
    fn drop(&mut self) {
        self.seats.0.lock().seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_idlest_of_the_peer_with_the_most_streams_gives_way() {
        let seats = StreamSeats::default();
        let peer = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        let lone = seats.take(peer(1));
        let crowd: Vec<_> = (1..MAX_STREAMS).map(|_| seats.take(peer(2))).collect();
        let now = Instant::now();
        crowd.iter().for_each(|seat| seat.used(now + Duration::from_secs(9)));
        crowd[7].used(now + Duration::from_secs(3));
        let _new = seats.take(peer(3));
        assert_eq!(seats.taken(), MAX_STREAMS);
        let lost: Vec<_> = (0..crowd.len()).filter(|&at| crowd[at].lost.is_cancelled()).collect();
        assert_eq!(lost, [7], "the peer with one stream keeps it, however idle");
        assert!(!lone.lost.is_cancelled());
        drop(crowd);
        assert_eq!(seats.taken(), 2);
    }
}
