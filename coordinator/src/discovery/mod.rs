//! Which workers there should be. Feeds the worker pool through one `watch` channel and knows nobody else.

mod static_list;

use tokio::sync::watch;

use crate::role::Role;

pub use static_list::StaticList;

/// A worker that should be connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Name of the model that it takes part in.
    pub model: String,
    /// As what.
    pub role: Role,
    /// `host:port`.
    pub address: String,
}

/// A source of membership.
pub trait Discovery {
    /// The members, now and after every change.
    fn members(&self) -> watch::Receiver<Vec<Member>>;
}
