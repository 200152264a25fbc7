//! Limits and timings of the gRPC connections, shared by both sides.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};

use crate::PROTOCOL_VERSION;

/// Largest message that either side takes or sends, in bytes.
///
/// A full f32 row of a vocabulary of 262,144 tokens is 1 MiB, so a block of 48 such rows still fits.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Time for a TCP connection to a peer to come up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval of HTTP/2 pings, and how long an answer may take before the connection counts as dead.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// See [`KEEPALIVE_INTERVAL`].
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the channel to an address, as [`channel`] does over TCP.
pub type Connect = dyn Fn(&str) -> Result<Channel, InvalidAddress> + Send + Sync;

/// Prepares a connection to `address` (`host:port` or a URI); it comes up at first use and again after a loss.
///
/// # Errors
/// When `address` is no valid URI.
pub fn channel(address: &str) -> Result<Channel, InvalidAddress> {
    Ok(endpoint(address)?.connect_lazy())
}

/// Describes connections to `address`, whatever they run over.
///
/// # Errors
/// As [`channel`].
pub fn endpoint(address: &str) -> Result<Endpoint, InvalidAddress> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|cause| InvalidAddress { address: address.to_owned(), cause: cause.to_string() })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

/// Starts the description of a server with the settings that [`channel`] expects of its peer.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

/// Metadata of a Step stream in which a coordinator names its [`PROTOCOL_VERSION`].
const PROTOCOL_VERSION_KEY: &str = "cosec-protocol-version";

/// Names this program's protocol version in the metadata of a request.
pub fn with_protocol_version<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(PROTOCOL_VERSION_KEY, PROTOCOL_VERSION.into());
    request
}

/// Refuses a coordinator of another protocol version; 0 stands for one that names none.
///
/// # Errors
/// `FailedPrecondition`, with both versions.
pub fn check_protocol_version<T>(request: &Request<T>) -> Result<(), Status> {
    let named = request.metadata().get(PROTOCOL_VERSION_KEY).and_then(|value| value.to_str().ok()?.parse().ok());
    let version: u32 = named.unwrap_or(0);
    if version == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the coordinator speaks protocol version {version} and this worker version {PROTOCOL_VERSION}"
    )))
}

/// An address that is no URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address:?} is not of the form host:port or http://host:port: {cause}")]
pub struct InvalidAddress {
    address: String,
    cause: String,
}
