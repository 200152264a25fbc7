//! Which workers there are: those that discovery names, and former ones that still have sessions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::{WorkerRole, transport};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::changes::ChangeCount;
use super::metrics::PoolMetrics;
use super::reconnect::Reconnector;
use super::worker::Worker;
use crate::discovery::Member;
use crate::tasks::TaskSpawner;

/// Pause between two checks whether a former member still has sessions.
const PARTING_POLL: Duration = Duration::from_millis(50);

/// The workers, each with a task that keeps its connection up.
pub(super) struct Membership {
    /// In the order of discovery.
    workers: RwLock<Vec<MemberWorker>>,
    /// Models and roles that ever had a member: if the last one leaves, the role is absent, not unknown.
    roles: RwLock<BTreeSet<(String, WorkerRole)>>,
    connect: Arc<transport::Connect>,
    describe_interval: Duration,
    changes: Arc<ChangeCount>,
    metrics: PoolMetrics,
    tasks: TaskSpawner,
}

struct MemberWorker {
    worker: Arc<Worker>,
    leave: CancellationToken,
}

impl Membership {
    pub(super) fn new(
        connect: Arc<transport::Connect>,
        describe_interval: Duration,
        changes: Arc<ChangeCount>,
        metrics: PoolMetrics,
        tasks: TaskSpawner,
    ) -> Arc<Self> {
        let (workers, roles) = (RwLock::default(), RwLock::default());
        Arc::new(Self { workers, roles, connect, describe_interval, changes, metrics, tasks })
    }

    /// Connects to new members, and parts from former ones.
    pub(super) fn reconcile(self: &Arc<Self>, members: &[Member]) {
        self.roles.write().extend(members.iter().map(|member| (member.model.clone(), member.role)));
        let mut workers = self.workers.write();
        let mut before = std::mem::take(&mut *workers);
        for member in members {
            match before.iter().position(|old| old.worker.member == *member) {
                Some(at) => {
                    let stays = before.swap_remove(at);
                    stays.worker.leaving.send_replace(false);
                    workers.push(stays);
                }
                None => workers.extend(self.connect(member)),
            }
        }
        for gone in before {
            if !gone.worker.leaving.send_replace(true) {
                self.tasks.spawn(Arc::clone(self).part(Arc::clone(&gone.worker)));
            }
            workers.push(gone);
        }
        drop(workers);
        self.changes.tell();
    }

    /// Disconnects a former member once it has no session, unless it becomes a member again.
    async fn part(self: Arc<Self>, worker: Arc<Worker>) {
        let mut leaving = worker.leaving.subscribe();
        loop {
            tokio::select! {
                biased;
                () = self.tasks.shutdown.cancelled() => return,
                () = tokio::time::sleep(PARTING_POLL) => {}
                _ = leaving.wait_for(|leaving| !leaving) => return,
            }
            let mut workers = self.workers.write();
            if *leaving.borrow() && worker.load.load(Ordering::Acquire) == 0 {
                for gone in workers.extract_if(.., |member| Arc::ptr_eq(&member.worker, &worker)) {
                    gone.leave.cancel();
                }
                return;
            }
        }
    }

    /// Whether a model has, or had, workers of `role`.
    pub(super) fn has(&self, model: &str, role: WorkerRole) -> bool {
        self.roles.read().contains(&(model.to_owned(), role))
    }

    /// The members, not those that leave.
    pub(super) fn of(&self, model: &str, role: WorkerRole) -> Vec<Arc<Worker>> {
        let is_of = |worker: &&Arc<Worker>| {
            worker.member.model == model && worker.member.role == role && !*worker.leaving.borrow()
        };
        self.workers.read().iter().map(|member| &member.worker).filter(is_of).cloned().collect()
    }

    /// Also those that leave.
    pub(super) fn all(&self) -> Vec<Arc<Worker>> {
        self.workers.read().iter().map(|member| Arc::clone(&member.worker)).collect()
    }

    fn connect(&self, member: &Member) -> Option<MemberWorker> {
        // The channel's own task needs a runtime.
        let channel = match self.tasks.entered(|| (self.connect)(&member.address, member.role)) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::error!(%error, "worker left out");
                return None;
            }
        };
        let worker = Arc::new(Worker::new(member.clone(), self.metrics.clone()));
        let leave = self.tasks.shutdown.child_token();
        let reconnector = Reconnector {
            worker: Arc::clone(&worker),
            channel,
            describe_interval: self.describe_interval,
            shutdown: leave.clone(),
            changes: Arc::clone(&self.changes),
        };
        self.tasks.spawn(reconnector.run());
        Some(MemberWorker { worker, leave })
    }
}
