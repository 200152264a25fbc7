//! The workers that the configuration names.

use tokio::sync::watch;

use super::{Discovery, Member};

/// Members that never change.
#[derive(Debug)]
pub struct StaticList {
    members: watch::Sender<Vec<Member>>,
}

impl StaticList {
    /// Announces `members` for good.
    #[must_use]
    pub fn new(members: Vec<Member>) -> Self {
        Self { members: watch::Sender::new(members) }
    }
}

impl Discovery for StaticList {
    fn members(&self) -> watch::Receiver<Vec<Member>> {
        self.members.subscribe()
    }
}
