//! The workers that the configuration names.

use futures::future::BoxFuture;

use super::{DiscoverySource, Member, MemberAnnouncer};

/// Members that never change.
#[derive(Debug)]
pub struct StaticList(pub Vec<Member>);

impl DiscoverySource for StaticList {
    fn run(self: Box<Self>, announcer: MemberAnnouncer) -> BoxFuture<'static, ()> {
        announcer.up();
        announcer.announce(self.0);
        Box::pin(async move {
            // The channel lives as long as its source.
            let _announcer = announcer;
            std::future::pending().await
        })
    }
}
