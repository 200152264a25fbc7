//! TLS: who a process is to its peers, and whom it takes for what.
//!
//! The public half is a server's certificate for clients ([`ServerTls`]); the internal half is an identity that
//! coordinators and workers have for each other ([`MutualTls`]), whose certificate names a [`PeerRole`].

mod client;
mod pem_files;
mod role;
mod server;
mod settings;

pub(crate) use self::client::connector;
pub use self::pem_files::InvalidTls;
pub use self::role::PeerRole;
pub use self::server::{ServerIdentity, is_loopback};
pub use self::settings::{MutualTls, ServerTls};
