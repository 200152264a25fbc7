//! The workers that the configuration names.

use futures::future::BoxFuture;

use super::{Announcer, Discovery, Member};

/// Members that never change.
#[derive(Debug)]
pub struct StaticList(pub Vec<Member>);

impl Discovery for StaticList {
    fn run(self: Box<Self>, announcer: Announcer) -> BoxFuture<'static, ()> {
        announcer.up();
        announcer.announce(self.0);
        Box::pin(async move {
            // The channel lives as long as its source.
            let _announcer = announcer;
            std::future::pending().await
        })
    }
}
