//! Binds ports, and keeps what is in the clear on this machine.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::tls::is_loopback;

/// What lets a port be reached from other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Nothing: it is in the clear. What to set so that it is not.
    LoopbackOnly(&'static str),
    /// TLS, the operator's word (`insecure`), or that it tells nothing but whether the process is well.
    Anywhere,
}

impl Exposure {
    /// Of a port in the clear or over TLS; `remedy` names the settings that make it the latter.
    #[must_use]
    pub fn of(has_tls: bool, insecure: bool, remedy: &'static str) -> Self {
        if has_tls || insecure { Self::Anywhere } else { Self::LoopbackOnly(remedy) }
    }
}

/// Binds `address` (`HOST:PORT`), the first of its addresses that is free.
///
/// # Errors
/// [`ListenError`] names `setting`.
pub async fn bind(setting: &'static str, address: &str, exposure: Exposure) -> Result<TcpListener, ListenError> {
    let failed = |cause| ListenError::Bind { setting, address: address.to_owned(), cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    match exposure {
        Exposure::LoopbackOnly(remedy) if !is_loopback(bound.ip()) => {
            Err(ListenError::InTheClear { setting, bound, remedy })
        }
        Exposure::LoopbackOnly(_) | Exposure::Anywhere => Ok(listener),
    }
}

/// A port that cannot be served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum ListenError {
    #[error("{setting} is {address}; it cannot be bound: {cause}")]
    Bind { setting: &'static str, address: String, cause: io::Error },
    #[error(
        "{setting} is {bound}, which other machines reach, and everything there would be in the clear; set {remedy}, \
         or allow it with --insecure"
    )]
    InTheClear { setting: &'static str, bound: SocketAddr, remedy: &'static str },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_in_the_clear_stays_on_this_machine() {
        let closed = Exposure::of(false, false, "tls.certificate_file");
        assert!(bind("listen", "127.0.0.1:0", closed).await.is_ok());
        let refused = bind("listen", "0.0.0.0:0", closed).await.unwrap_err().to_string();
        assert!(refused.starts_with("listen is 0.0.0.0:") && refused.contains("tls.certificate_file"), "{refused}");
        for exposure in [Exposure::of(true, false, ""), Exposure::of(false, true, "")] {
            assert!(bind("listen", "0.0.0.0:0", exposure).await.is_ok());
        }
    }
}
