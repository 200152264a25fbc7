//! gRPC servers of fakes, with the timings of the real ones.

use cosec_proto::transport::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use tonic::transport::Server;

/// Starts the description of a server.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}
