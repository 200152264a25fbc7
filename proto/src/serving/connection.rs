//! One connection of a client, from its handshake to its end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt;

use super::request::{ReceivedBody, SentBody, ServedRequest};
use super::table::{ConnectionState, OpenConnection, TrackedRequest};
use crate::transport::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};

/// Most bytes of a head of HTTP/1, and of an answer that waits to be sent.
const BUFFER_BYTES: usize = 64 << 10;

/// Most bytes of a head of HTTP/2, as its fields are counted there.
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1 and HTTP/2; handlers mind how long a body takes.
    Http,
    /// HTTP/2 alone. A message must arrive within the time, unless the answer has begun before.
    Grpc {
        /// For the whole message.
        message_timeout: Duration,
    },
}

/// How requests of one connection are served.
pub(super) struct ServedConnection {
    pub(super) routes: Router,
    pub(super) protocol: Protocol,
    pub(super) peer: SocketAddr,
    pub(super) local: Option<SocketAddr>,
    pub(super) connection: OpenConnection,
}

impl ServedConnection {
    /// Serves until the peer goes, the table closes the connection, or all is served after `closing`.
    pub(super) async fn run(
        self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        closing: CancellationToken,
    ) {
        let builder = self.builder();
        let (peer, state) = (self.peer, Arc::clone(&self.connection.state));
        let io = TokioIo::new(ObservedIo { io, state: Arc::clone(&state) });
        let this = Arc::new(self);
        let serve = service_fn(move |request| Arc::clone(&this).serve(request));
        let connection = builder.serve_connection(io, serve);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = state.closed.cancelled() => return,
            () = async { tokio::select! { () = closing.cancelled() => {}, () = state.leave.cancelled() => {} } } => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = state.closed.cancelled() => return,
                }
            }
        };
        if let Err(cause) = ended {
            tracing::debug!(%peer, %cause, "a connection broke");
        }
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        // The table times heads: this timeout would count the time between requests, too.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_concurrent_streams(self.connection.table.limits.max_streams)
            .max_header_list_size(MAX_HEADER_LIST_BYTES);
        match self.protocol {
            Protocol::Http => builder,
            Protocol::Grpc { .. } => builder.http2_only(),
        }
    }

    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, std::convert::Infallible> {
        let (table, state) = (&self.connection.table, &self.connection.state);
        let multiplexed = request.version() == Version::HTTP_2;
        let tracked = TrackedRequest::begin(Arc::clone(table), Arc::clone(state), multiplexed);
        let served = ServedRequest::new(tracked);
        let timeout = match self.protocol {
            Protocol::Http => None,
            Protocol::Grpc { message_timeout } => Some(message_timeout),
        };
        let mut request = request.map(|body| Body::new(ReceivedBody::new(body, Arc::clone(&served), timeout)));
        request.extensions_mut().insert(ConnectInfo(self.peer));
        request.extensions_mut().insert(TcpConnectInfo { local_addr: self.local, remote_addr: Some(self.peer) });
        let response = self.routes.clone().oneshot(request).await?;
        served.answered();
        Ok(response.map(|body| Body::new(SentBody { body, request: served })))
    }
}

/// A connection whose state hears of what arrives.
struct ObservedIo<I> {
    io: I,
    state: Arc<ConnectionState>,
}

impl<I: AsyncRead + Unpin> AsyncRead for ObservedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, into);
        if into.filled().len() > before {
            self.state.heard();
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for ObservedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }
}
