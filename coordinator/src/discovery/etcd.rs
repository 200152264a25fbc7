//! The workers that register themselves in etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cosec_proto::registry::{EtcdConfig, LEASE, PREFIX, PREFIX_END, Registration};
use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Backoff, DiscoverySource, Member, MemberAnnouncer};

/// Entries that are listed at a time, and the most bytes that they may take; etcd bounds one to 1.5 MiB.
const PAGE: (i64, usize) = (16, 32 << 20);

/// Most entries that are kept; more are as if they were not there.
const MAX_ENTRIES: usize = 4096;

/// For one call to etcd.
const PATIENCE: Duration = Duration::from_secs(3);

/// Follows the entries of the workers.
#[derive(Debug)]
pub struct EtcdSource(pub EtcdConfig);

/// A worker's entry, as it was last seen.
struct RegisteredWorker {
    /// Of the models that it names only those that are served here.
    registration: Registration,
    /// When the entry was made, in etcd's own counting.
    created: i64,
    /// Until when the worker is still a member although the entry is gone. A worker that ends says first that it
    /// drains; where an entry disappears without that, etcd may have lost its memory, and the worker gets a lease's
    /// time to come back. If the worker is dead its connection tells.
    gone_until: Option<Instant>,
}

impl DiscoverySource for EtcdSource {
    fn run(self: Box<Self>, announcer: MemberAnnouncer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut entries = RegisteredWorkers::default();
            let mut backoff = Backoff::new();
            for attempt in 0.. {
                let followed = self.follow(attempt, &mut entries, &announcer).await;
                if announcer.metrics.up.get() == 1 {
                    backoff = Backoff::new();
                }
                if let Err(why) = followed {
                    announcer.lost(&why);
                    backoff.pause().await;
                }
            }
        })
    }
}

impl EtcdSource {
    /// Lists and then watches until the connection is lost; `Ok` asks for another listing at once.
    async fn follow(
        &self,
        attempt: usize,
        entries: &mut RegisteredWorkers,
        announcer: &MemberAnnouncer,
    ) -> Result<(), String> {
        let mut client = self.0.connect(attempt).await?;
        let revision = entries.list(&client, announcer).await?;
        let behind = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let mut watch = within(client.watch(PREFIX, Some(behind))).await?;
        announcer.up();
        loop {
            announcer.announce(entries.members());
            let doubt = entries.0.values().filter_map(|entry| entry.gone_until).min();
            tokio::select! {
                message = watch.message() => match message {
                    Ok(Some(response)) if response.canceled() => {
                        // History that was compacted away is made up for by a listing.
                        if response.compact_revision() > 0 {
                            return Ok(());
                        }
                        return Err(format!("etcd ended the watch: {}", response.cancel_reason()));
                    }
                    Ok(Some(response)) => entries.follow(&response, announcer),
                    Ok(None) => return Err("etcd closed the watch".to_owned()),
                    Err(cause) => return Err(cause.to_string()),
                },
                () = sleep_until(doubt.unwrap_or_else(Instant::now)), if doubt.is_some() => {
                    entries.0.retain(|_, entry| entry.gone_until.is_none_or(|until| until > Instant::now()));
                }
            }
        }
    }
}

/// The entries by their keys in etcd.
#[derive(Default)]
struct RegisteredWorkers(BTreeMap<Vec<u8>, RegisteredWorker>);

impl RegisteredWorkers {
    /// Brings all up to date; returns the revision of what was read.
    async fn list(&mut self, client: &Client, announcer: &MemberAnnouncer) -> Result<i64, String> {
        let mut client = client.kv_client().max_decoding_message_size(PAGE.1);
        let (mut from, mut revision) = (PREFIX.as_bytes().to_vec(), 0);
        let mut gone: BTreeSet<Vec<u8>> = self.0.keys().cloned().collect();
        loop {
            // All pages are of the first one's revision.
            let page = GetOptions::new().with_range(PREFIX_END).with_limit(PAGE.0).with_revision(revision);
            let listed = within(client.get(from, Some(page))).await?;
            let header = listed.header().ok_or_else(|| "etcd named no revision".to_owned())?;
            revision = if revision == 0 { header.revision() } else { revision };
            for entry in listed.kvs() {
                gone.remove(entry.key());
                self.put(entry, announcer);
            }
            match listed.kvs().last() {
                Some(last) if listed.more() => from = [last.key(), &[0]].concat(),
                Some(_) | None => break,
            }
        }
        for key in gone {
            self.remove(&key);
        }
        Ok(revision)
    }

    fn follow(&mut self, response: &WatchResponse, announcer: &MemberAnnouncer) {
        for event in response.events() {
            match (event.event_type(), event.kv()) {
                (EventType::Put, Some(entry)) => self.put(entry, announcer),
                (EventType::Delete, Some(entry)) => self.remove(entry.key()),
                (EventType::Put | EventType::Delete, None) => {}
            }
        }
    }

    fn put(&mut self, entry: &KeyValue, announcer: &MemberAnnouncer) {
        match serde_json::from_slice::<Registration>(entry.value()) {
            Ok(mut registration) => {
                registration.models.retain(|model| announcer.serves(model));
                registration.models.sort();
                registration.models.dedup();
                if registration.models.is_empty() {
                    // Of other coordinators.
                    self.0.remove(entry.key());
                } else if self.0.len() < MAX_ENTRIES || self.0.contains_key(entry.key()) {
                    let worker =
                        RegisteredWorker { registration, created: entry.create_revision(), gone_until: None };
                    self.0.insert(entry.key().to_vec(), worker);
                }
            }
            Err(cause) => {
                let key = String::from_utf8_lossy(entry.key());
                tracing::warn!(%key, %cause, "an entry in etcd is no worker's; it is left out");
                self.0.remove(entry.key());
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        match self.0.get_mut(key) {
            Some(entry) if !entry.registration.draining => {
                entry.gone_until.get_or_insert(Instant::now() + LEASE);
            }
            Some(_) => {
                self.0.remove(key);
            }
            None => {}
        }
    }

    /// One for each model of every worker that does not drain, in the order in which they registered.
    fn members(&self) -> impl Iterator<Item = Member> + '_ {
        let mut entries: Vec<&RegisteredWorker> = self.0.values().collect();
        entries.sort_by_key(|entry| entry.created);
        let registrations = entries.into_iter().map(|entry| &entry.registration);
        registrations.filter(|registration| !registration.draining).flat_map(|registration| {
            let (address, role) = (&registration.endpoint, registration.role);
            registration.models.iter().map(move |model| Member {
                model: model.clone(),
                role,
                address: address.clone(),
            })
        })
    }
}

async fn within<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, String> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => answer.map_err(|cause| cause.to_string()),
        Err(_) => Err(format!("etcd did not answer within {PATIENCE:?}")),
    }
}
