//! TCP as programs see it, in one thread: bytes arrive late but in order; connections are refused, delayed and reset.
//!
//! Every direction of every connection has its own generator of delays, so that what one connection does
//! changes nothing for the others.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use cosec_proto::transport;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

/// Longest delay of bytes or a handshake.
const LATENCY: Duration = Duration::from_millis(2);

/// Longest time after a partition until the kernel sends again what was lost.
const RETRANSMISSION: Duration = Duration::from_secs(8);

/// All hosts, by name. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    hosts: Arc<Mutex<HashMap<String, Arc<Link>>>>,
    seed: u64,
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the coordinator.
    There,
    /// From the worker.
    Back,
}

/// The link to one host.
pub struct Link {
    state: Mutex<LinkState>,
    mended: Notify,
}

struct LinkState {
    /// Connections go to the process that listens; without one they are refused.
    listener: Option<mpsc::UnboundedSender<io::Result<End>>>,
    /// By [`Way`].
    cut: [bool; 2],
    /// The process is stopped: its kernel accepts and keeps bytes.
    stopped: bool,
    connections: Vec<Weak<Connection>>,
    /// Makes generators.
    chance: StdRng,
    /// How often bytes or a handshake were delayed.
    held: u64,
}

struct Connection {
    link: Arc<Link>,
    /// By [`Way`].
    pipes: [Mutex<Pipe>; 2],
}

struct Pipe {
    chunks: VecDeque<Chunk>,
    /// After the last chunk.
    end: Option<(Instant, Ending)>,
    reader: Option<Waker>,
    chance: StdRng,
}

struct Chunk {
    arrives: Instant,
    bytes: Vec<u8>,
    read: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Closed,
    Reset,
}

/// One end of a connection.
pub struct End {
    connection: Arc<Connection>,
    reads: Way,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Network {
    /// A network without hosts whose delays follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { hosts: Arc::default(), seed }
    }

    /// The link to `host`, made at first use.
    #[must_use]
    pub fn link(&self, host: &str) -> Arc<Link> {
        let mut hosts = self.hosts.lock();
        let ordinal = hosts.len() as u64;
        let lay = || Arc::new(Link::new(StdRng::seed_from_u64(self.seed ^ (ordinal + 1) << 32)));
        Arc::clone(hosts.entry(host.to_owned()).or_insert_with(lay))
    }

    /// Makes channels over this network with the settings of real ones.
    #[must_use]
    pub fn connector(&self) -> Arc<transport::Connect> {
        let network = self.clone();
        Arc::new(move |address: &str, _| {
            let link = network.link(address);
            let connect = tower::service_fn(move |_| {
                let link = Arc::clone(&link);
                async move { link.connect().await.map(TokioIo::new) }
            });
            Ok(transport::endpoint(address)?.connect_with_connector_lazy(connect))
        })
    }
}

fn latency(chance: &mut StdRng) -> Duration {
    Duration::from_micros(chance.random_range(0..=LATENCY.as_micros() as u64))
}

impl Link {
    fn new(chance: StdRng) -> Self {
        let state =
            LinkState { listener: None, cut: [false; 2], stopped: false, connections: Vec::new(), chance, held: 0 };
        Self { state: Mutex::new(state), mended: Notify::new() }
    }

    /// A process listens from now on; connections come out of the receiver.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<io::Result<End>> {
        let (listener, accepted) = mpsc::unbounded_channel();
        self.state.lock().listener = Some(listener);
        accepted
    }

    /// The process is killed: its kernel resets its connections.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.listener = None;
        state.stopped = false;
        for connection in std::mem::take(&mut state.connections).iter().filter_map(Weak::upgrade) {
            let mut there = connection.pipes[Way::There as usize].lock();
            there.chunks.clear();
            there.end = Some((Instant::now(), Ending::Reset));
            there.wake();
            drop(there);
            connection.pipes[Way::Back as usize].lock().finish(Ending::Reset);
        }
    }

    /// The process is stopped or goes on.
    pub fn stop(&self, stopped: bool) {
        self.state.lock().stopped = stopped;
        self.wake_readers();
    }

    /// Drops everything in these directions until [`Self::mend`].
    pub fn cut(&self, ways: &[Way]) {
        let mut state = self.state.lock();
        ways.iter().for_each(|&way| state.cut[way as usize] = true);
    }

    /// Everything passes again; what was on its way is sent again after a while.
    pub fn mend(&self) {
        let mut state = self.state.lock();
        let cut = std::mem::take(&mut state.cut);
        for connection in state.connections.iter().filter_map(Weak::upgrade) {
            for (pipe, cut) in connection.pipes.iter().zip(cut) {
                let mut pipe = pipe.lock();
                if cut {
                    pipe.retransmit();
                }
            }
        }
        drop(state);
        self.wake_readers();
        self.mended.notify_waiters();
    }

    /// Sends noise in place of the worker's bytes.
    pub fn corrupt(&self, bytes: &[u8]) {
        let state = self.state.lock();
        for connection in state.connections.iter().filter_map(Weak::upgrade) {
            connection.pipes[Way::Back as usize].lock().push(bytes);
        }
    }

    /// Connections that both ends hold.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.lock().connections.iter().filter(|connection| connection.strong_count() > 1).count()
    }

    /// How often bytes or a handshake were delayed.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.state.lock().held
    }

    fn wake_readers(&self) {
        let state = self.state.lock();
        for connection in state.connections.iter().filter_map(Weak::upgrade) {
            connection.pipes.iter().for_each(|pipe| pipe.lock().wake());
        }
    }

    async fn connect(self: Arc<Self>) -> io::Result<End> {
        let takes = latency(&mut self.state.lock().chance);
        tokio::time::sleep(takes).await;
        loop {
            let mended = self.mended.notified();
            {
                let mut state = self.state.lock();
                if state.cut == [false; 2] {
                    return self.accept(&mut state);
                }
                state.held += 1;
            }
            mended.await;
        }
    }

    fn accept(self: &Arc<Self>, state: &mut LinkState) -> io::Result<End> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let listener = state.listener.clone().ok_or_else(refused)?;
        let mut pipe = || {
            let chance = StdRng::seed_from_u64(state.chance.random());
            Mutex::new(Pipe { chunks: VecDeque::new(), end: None, reader: None, chance })
        };
        let pipes = [pipe(), pipe()];
        let connection = Arc::new(Connection { link: Arc::clone(self), pipes });
        state.connections.retain(|connection| connection.strong_count() > 0);
        state.connections.push(Arc::downgrade(&connection));
        let end = |reads| End { connection: Arc::clone(&connection), reads, sleep: None };
        listener.send(Ok(end(Way::There))).map_err(|_| refused())?;
        Ok(end(Way::Back))
    }
}

impl Pipe {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// When what is sent now arrives: not before what was sent earlier.
    fn arrival(&mut self) -> Instant {
        let arrives = Instant::now() + latency(&mut self.chance);
        self.chunks.back().map_or(arrives, |last| last.arrives.max(arrives))
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.end.is_none() {
            let arrives = self.arrival();
            self.chunks.push_back(Chunk { arrives, bytes: bytes.to_vec(), read: 0 });
            self.wake();
        }
    }

    fn finish(&mut self, ending: Ending) {
        if self.end.is_none() {
            self.end = Some((self.arrival(), ending));
            self.wake();
        }
    }

    fn retransmit(&mut self) {
        if self.chunks.is_empty() && self.end.is_none() {
            return;
        }
        let millis = self.chance.random_range(0.0..(RETRANSMISSION.as_millis() as f64).ln());
        let earliest = Instant::now() + Duration::from_secs_f64(f64::exp(millis) / 1e3);
        self.chunks.iter_mut().for_each(|chunk| chunk.arrives = chunk.arrives.max(earliest));
        if let Some((arrives, _)) = &mut self.end {
            *arrives = earliest.max(*arrives);
        }
    }
}

impl End {
    fn writes(&self) -> &Mutex<Pipe> {
        &self.connection.pipes[1 - self.reads as usize]
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { connection, reads, sleep } = self.get_mut();
        let mut link = connection.link.state.lock();
        let mut pipe = connection.pipes[*reads as usize].lock();
        loop {
            // A kill is not held up by anything at the worker's own end.
            let is_dead = *reads == Way::There && matches!(pipe.end, Some((_, Ending::Reset)));
            let is_held = link.cut[*reads as usize] || (*reads == Way::There && link.stopped);
            if is_held && !is_dead {
                link.held += u64::from(!pipe.chunks.is_empty());
                pipe.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            let now = Instant::now();
            let end = pipe.end;
            let arrives = match (pipe.chunks.front_mut(), end) {
                (Some(chunk), _) if chunk.arrives <= now => {
                    let length = buffer.remaining().min(chunk.bytes.len() - chunk.read);
                    buffer.put_slice(&chunk.bytes[chunk.read..chunk.read + length]);
                    chunk.read += length;
                    if chunk.read == chunk.bytes.len() {
                        pipe.chunks.pop_front();
                    }
                    return Poll::Ready(Ok(()));
                }
                (None, Some((at, ending))) if at <= now => {
                    return Poll::Ready(match ending {
                        Ending::Closed => Ok(()),
                        Ending::Reset => Err(io::ErrorKind::ConnectionReset.into()),
                    });
                }
                (Some(Chunk { arrives, .. }), _) => *arrives,
                (None, Some((at, _))) => at,
                (None, None) => {
                    pipe.reader = Some(context.waker().clone());
                    return Poll::Pending;
                }
            };
            pipe.reader = Some(context.waker().clone());
            let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(arrives)));
            if sleep.deadline() != arrives {
                sleep.as_mut().reset(arrives);
            }
            ready!(sleep.as_mut().poll(context));
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // What is written to a closed peer is lost; reading reports that it is closed.
        self.writes().lock().push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writes().lock().finish(Ending::Closed);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.writes().lock().finish(Ending::Closed);
    }
}

impl Connected for End {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}
