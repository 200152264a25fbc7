//! Which workers there should be. Feeds the worker pool through one `watch` channel and knows no other room.
//!
//! Only members of configured models are told of, and of each role only so many: whoever can write to the source can
//! name workers that are none.
//!
//! While a source cannot be asked its last answer holds, and the gauge `cosec_discovery_up` says 0.

mod etcd;
mod kubernetes;
mod members_file;
mod static_list;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cosec_proto::WorkerRole;
use cosec_proto::registry::EtcdConfig;
use futures::future::BoxFuture;
use prometheus::{IntGauge, IntGaugeVec};
use rand::Rng;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;

use crate::tasks::TaskSpawner;

pub use etcd::EtcdSource;
pub use kubernetes::KubernetesSource;
pub use members_file::{InvalidMembers, MembersFile};
pub use static_list::StaticList;

/// Most workers of one role of a model.
pub const MAX_MEMBERS: usize = 256;

/// A worker that should be connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Name of the model that it takes part in.
    pub model: String,
    /// What its model is for.
    pub role: WorkerRole,
    /// Its `host:port`; the name of an SRV record before it is resolved.
    pub address: String,
}

/// Where members come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DiscoveryConfig {
    /// The addresses under the models.
    #[default]
    Static,
    /// A TOML file with `[[members]]`, read again when it changes.
    File {
        /// The file; looked at every second.
        path: PathBuf,
    },
    /// Workers register themselves in etcd.
    Etcd(EtcdConfig),
    /// The models' addresses are names of SRV records, as headless services have them.
    Kubernetes {
        /// DNS server. Default: the system's.
        nameserver: Option<SocketAddr>,
    },
}

impl DiscoveryConfig {
    /// Whether members come from the addresses under the models.
    #[must_use]
    pub fn reads_addresses(&self) -> bool {
        matches!(self, Self::Static | Self::Kubernetes { .. })
    }

    /// The source that is configured; `members` have the addresses under the models.
    ///
    /// # Errors
    /// [`InvalidDiscovery`] names the key that makes no sense.
    pub fn build(&self, members: Vec<Member>) -> Result<Box<dyn DiscoverySource>, InvalidDiscovery> {
        let unusable = |key, cause: &dyn Display| InvalidDiscovery(format!("{key} cannot be used: {cause}"));
        Ok(match self {
            Self::Static => Box::new(StaticList(members)),
            Self::File { path } => Box::new(MembersFile::open(path).map_err(|error| unusable("path", &error))?),
            Self::Etcd(etcd) => {
                etcd.check().map_err(|error| InvalidDiscovery(error.to_string()))?;
                Box::new(EtcdSource(etcd.clone()))
            }
            Self::Kubernetes { nameserver } => {
                let resolver = KubernetesSource::new(members, *nameserver);
                Box::new(resolver.map_err(|error| unusable("nameserver", &error))?)
            }
        })
    }
}

/// A source of membership that cannot be used as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("configuration: discovery.{0}")]
pub struct InvalidDiscovery(String);

/// A source of membership.
pub trait DiscoverySource: Send {
    /// Tells `announcer` of the members, now and after every change; does not end by itself.
    fn run(self: Box<Self>, announcer: MemberAnnouncer) -> BoxFuture<'static, ()>;
}

/// Lets `source` run; the channel has the members of `models`, now and after every change.
pub fn follow(
    source: Box<dyn DiscoverySource>,
    models: BTreeSet<String>,
    metrics: DiscoveryMetrics,
    tasks: &TaskSpawner,
) -> watch::Receiver<Vec<Member>> {
    let announcer = MemberAnnouncer::new(models, metrics);
    let (members, shutdown) = (announcer.members(), tasks.shutdown.clone());
    tasks.spawn(async move {
        shutdown.run_until_cancelled(source.run(announcer)).await;
    });
    members
}

cosec_proto::metrics! {
    /// Metrics of discovery.
    pub struct DiscoveryMetrics {
        /// 1 while the source of membership can be asked.
        pub up: IntGauge = "cosec_discovery_up";
        /// Workers that should be connected.
        pub members: IntGaugeVec = "cosec_discovery_members" ["model", "role"];
        /// Workers that are left out, as their model and role have too many.
        pub members_left_out: IntGauge = "cosec_discovery_members_left_out";
    }
}

/// Where a source tells what it knows.
pub struct MemberAnnouncer {
    members: watch::Sender<Vec<Member>>,
    models: BTreeSet<String>,
    metrics: DiscoveryMetrics,
}

impl MemberAnnouncer {
    /// Begins without members; later ones are of `models`.
    #[must_use]
    pub fn new(models: BTreeSet<String>, metrics: DiscoveryMetrics) -> Self {
        Self { members: watch::Sender::default(), models, metrics }
    }

    /// Whether members of this model are told of.
    #[must_use]
    pub fn serves(&self, model: &str) -> bool {
        self.models.contains(model)
    }

    /// The members, now and after every change.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Vec<Member>> {
        self.members.subscribe()
    }

    /// The source was asked and these are all members. Where there are too many, those stay that were there, and the
    /// first of the others come.
    pub fn announce(&self, members: impl IntoIterator<Item = Member>) {
        let members = self.bounded(members.into_iter().filter(|member| self.serves(&member.model)));
        self.metrics.members.reset();
        for Member { model, role, .. } in &members {
            self.metrics.members.with_label_values(&[model.as_str(), role.name()]).inc();
        }
        self.members.send_if_modified(|before| {
            let changed = *before != members;
            if changed {
                tracing::info!(members = members.len(), "membership changed");
                *before = members;
            }
            changed
        });
    }

    /// Sorted, without repetitions, and of each role no more than [`MAX_MEMBERS`].
    fn bounded(&self, members: impl Iterator<Item = Member>) -> Vec<Member> {
        let mut seen = HashSet::new();
        let named: Vec<Member> = members.filter(|member| seen.insert(member.clone())).collect();
        let (stay, come): (Vec<Member>, Vec<Member>) = {
            let before = self.members.borrow();
            named.into_iter().partition(|member| before.binary_search(member).is_ok())
        };
        let mut counts = BTreeMap::<(String, WorkerRole), usize>::new();
        let has_room = |member: &Member| {
            let count = counts.entry((member.model.clone(), member.role)).or_default();
            *count += 1;
            *count <= MAX_MEMBERS
        };
        let (mut members, left_out): (Vec<Member>, Vec<Member>) = stay.into_iter().chain(come).partition(has_room);
        members.sort();
        let left_out = left_out.len() as i64;
        if self.metrics.members_left_out.get() != left_out {
            self.metrics.members_left_out.set(left_out);
            tracing::warn!(left_out, "workers beyond the first {MAX_MEMBERS} of a model and role are left out");
        }
        members
    }

    /// Notes that the source answers.
    pub fn up(&self) {
        if self.metrics.up.get() == 0 {
            self.metrics.up.set(1);
            tracing::info!("the source of membership answers");
        }
    }

    /// Notes that the source does not answer, or not in a way that can be understood.
    pub fn lost(&self, why: &str) {
        self.metrics.up.set(0);
        let members = self.members.borrow().len();
        tracing::warn!(why, members, "the source of membership cannot be asked; its last word holds");
    }
}

/// Pauses between attempts, growing from the first to the second, spread so that coordinators that lost the same source
/// do not come back all at once.
struct Backoff(Duration);

impl Backoff {
    const BOUNDS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

    fn new() -> Self {
        Self(Self::BOUNDS.0)
    }

    async fn pause(&mut self) {
        let jitter = rand::rng().random_range(0.5..1.5);
        tokio::time::sleep(self.0.mul_f64(jitter)).await;
        self.0 = (self.0 * 2).min(Self::BOUNDS.1);
    }
}
