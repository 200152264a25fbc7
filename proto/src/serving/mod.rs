//! Serves HTTP and gRPC, in the clear or over TLS, with a bound on whatever a client can hold: connections, heads and
//! bodies that do not arrive, answers that nobody reads.
//!
//! A task for each connection; the [`ConnectionTable`] that ports share says which of them must go.

mod connection;
mod limits;
pub mod pages;
mod port;
mod request;
mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::connection::ServedConnection;
use crate::tls::ServerIdentity;

pub use self::connection::Protocol;
pub use self::limits::{ConnectionLimits, InvalidLimit};
pub use self::port::{Exposure, ListenError, bind};
pub use self::table::ConnectionTable;

/// Pause after a connection could not be accepted, for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port and what it serves.
pub struct ServedPort {
    /// The port.
    pub listener: TcpListener,
    /// Where requests go.
    pub routes: Router,
    /// What it speaks.
    pub protocol: Protocol,
    /// What it presents over TLS, and whom it lets in; in the clear without.
    pub tls: Option<Arc<ServerIdentity>>,
    /// Its connections and those of other ports.
    pub table: Arc<ConnectionTable>,
}

impl ServedPort {
    /// Serves until `closing`, then takes no more connections and returns when those that there are have been served.
    pub async fn serve(self, closing: CancellationToken) {
        let mut connections = JoinSet::new();
        let Self { listener, routes, protocol, tls, table } = self;
        let port = Arc::new(PortService { routes, protocol, tls, table });
        loop {
            let accepted = tokio::select! {
                () = closing.cancelled() => break,
                accepted = accept(&listener, &port.table) => accepted,
            };
            while connections.try_join_next().is_some() {}
            if let Some((stream, peer, place)) = accepted {
                connections.spawn(Arc::clone(&port).connected(stream, peer, place, closing.clone()));
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

/// The next connection, with its place. Nothing that fails here ends the service.
async fn accept(
    listener: &TcpListener,
    table: &ConnectionTable,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, table.place().await?)),
        Err(cause) if is_the_peers(&cause) => None,
        Err(cause) => {
            tracing::warn!(%cause, "a connection cannot be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// What the connections of a port share.
struct PortService {
    routes: Router,
    protocol: Protocol,
    tls: Option<Arc<ServerIdentity>>,
    table: Arc<ConnectionTable>,
}

impl PortService {
    async fn connected(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
        closing: CancellationToken,
    ) {
        // A token must not wait for the next one to fill a packet.
        if let Err(cause) = stream.set_nodelay(true) {
            tracing::debug!(%cause, "cannot set TCP_NODELAY");
        }
        let local = stream.local_addr().ok();
        let connection = self.table.enter(place, self.protocol != Protocol::Http);
        let state = Arc::clone(&connection.state);
        let (routes, protocol) = (self.routes.clone(), self.protocol);
        let served = ServedConnection { routes, protocol, peer, local, connection };
        let Some(identity) = &self.tls else { return served.run(stream, closing).await };
        let handshake = timeout(self.table.limits.head_timeout(), identity.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = state.closed.cancelled() => return,
            () = closing.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => served.run(stream, closing).await,
            Ok(Err(cause)) => tracing::debug!(%peer, %cause, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
        }
    }
}

/// Whether an error of `accept` is that of a connection that is gone already.
fn is_the_peers(cause: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(cause.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}
