//! Limits and timings of the gRPC connections, shared by both sides.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::tls::{self, MutualTls, PeerRole};
use crate::{PROTOCOL_VERSION, WorkerRole};

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

/// Largest message that a coordinator sends, in bytes: more than the most tokens of an operation take, with requests for the
/// logits of each. What a message may take, every unfinished one may hold.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Makes the channel to a worker at an address that is to have a role, as [`WorkerTransport::channel`] does over TCP.
pub type Connect = dyn Fn(&str, WorkerRole) -> Result<Channel, InvalidAddress> + Send + Sync;

/// How workers are reached.
#[derive(Clone, Debug)]
pub enum WorkerTransport {
    /// Over TLS; certificates say who both are.
    Tls(MutualTls),
    /// In the clear, on this machine alone.
    Loopback,
    /// In the clear, anywhere.
    Insecure,
}

impl WorkerTransport {
    /// Prepares a connection to a worker at `address` that is to have `role`; it comes up at first use and again after a
    /// loss.
    ///
    /// # Errors
    /// When `address` is no valid URI, or leads where only TLS is allowed.
    pub fn channel(&self, address: &str, role: WorkerRole) -> Result<Channel, InvalidAddress> {
        let unusable = |cause: String| InvalidAddress { address: address.to_owned(), cause };
        match self {
            Self::Tls(tls) => {
                let connector = tls::connector(tls, PeerRole::Worker(role));
                let connector = connector.map_err(|cause| unusable(cause.to_string()))?;
                Ok(endpoint(address)?.connect_with_connector_lazy(connector))
            }
            Self::Loopback if !leads_to_loopback(address) => Err(unusable(
                "it is not on this machine and the connection would be in the clear; set workers.tls, or allow it with \
                 --insecure"
                    .to_owned(),
            )),
            Self::Loopback | Self::Insecure => channel(address),
        }
    }
}

/// Whether `address` names this machine, however it spells it.
fn leads_to_loopback(address: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(tls::is_loopback)
}

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
    let endpoint = Endpoint::from_shared(uri).map_err(|cause| not_an_address(address, &cause.to_string()))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
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

/// An address that nothing can be sent to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address:?} cannot be used: {cause}")]
pub struct InvalidAddress {
    address: String,
    cause: String,
}

fn not_an_address(address: &str, cause: &str) -> InvalidAddress {
    let cause = format!("it is not of the form host:port or http://host:port: {cause}");
    InvalidAddress { address: address.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plain_connections_stay_on_this_machine_unless_allowed() {
        for near in ["127.0.0.1:1", "localhost:1", "[::1]:1", "http://127.8.0.1:1", "[::ffff:127.0.0.1]:1"] {
            assert!(WorkerTransport::Loopback.channel(near, WorkerRole::Base).is_ok(), "{near}");
        }
        for far in ["10.0.0.1:1", "worker:1", "http://localhost.example:1", "[2001:db8::1]:1"] {
            let refused = WorkerTransport::Loopback.channel(far, WorkerRole::Base).unwrap_err().to_string();
            assert!(refused.contains("--insecure"), "{refused}");
            assert!(WorkerTransport::Insecure.channel(far, WorkerRole::Base).is_ok(), "{far}");
        }
    }
}
