//! Which workers can serve a model now, and why the others cannot.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cosec_proto::{ErrorCode, OperationError, WorkerDescription, WorkerRole};
use parking_lot::Mutex;

use super::election::{HostedModel, elect};
use super::matching;
use super::membership::Membership;
use super::metrics::PoolMetrics;
use super::tokenizers::{KnownTokenizer, TokenizerComparisons, TokenizerOwner};
use super::worker::{Worker, WorkerState};
use crate::discovery::Member;

/// What the configured models ask of their workers, by name.
pub type ModelRequirements = HashMap<String, ModelRequirement>;

/// What a model asks of its workers.
#[derive(Clone, Debug, Default)]
pub struct ModelRequirement {
    /// The coordinator's own tokenizer, where it has one.
    pub tokenizer: Option<KnownTokenizer>,
    /// In the order of [`WorkerRole::ALL`].
    pub roles: [RoleRequirement; 3],
}

/// What a model asks of the workers of one role.
#[derive(Clone, Debug, Default)]
pub struct RoleRequirement {
    /// Name of the adapter that sessions apply.
    pub adapter: Option<String>,
    /// What sessions must compute with, where the operator pins it.
    pub fingerprint: Option<String>,
}

/// A worker that can serve.
#[derive(Clone)]
pub struct ReadyWorker {
    /// Its handle.
    pub worker: Arc<Worker>,
    /// What it says of itself.
    pub description: Arc<WorkerDescription>,
}

/// Workers of a model and role, and why the others cannot serve.
#[derive(Default)]
struct SortedWorkers {
    ready: Vec<ReadyWorker>,
    /// Connected, but not what the model asks for.
    mismatched: Vec<(Member, String)>,
    /// Not connected, or not for new sessions.
    absent: Vec<(Member, String)>,
}

/// Workers that are left out, each with the reason.
type LeftOutWorkers = HashMap<Member, String>;

/// Holds workers against what their model asks of them.
pub(super) struct ReadinessCheck {
    pub(super) membership: Arc<Membership>,
    pub(super) requirements: ModelRequirements,
    pub(super) comparisons: Arc<TokenizerComparisons>,
    pub(super) metrics: PoolMetrics,
    /// As they were told last.
    pub(super) told: Mutex<LeftOutWorkers>,
}

impl ReadinessCheck {
    fn role(&self, model: &str, role: WorkerRole) -> Option<&RoleRequirement> {
        self.requirements.get(model).map(|model| &model.roles[role.index()])
    }

    /// Name of the adapter that sessions apply.
    pub(super) fn adapter(&self, model: &str, role: WorkerRole) -> Option<&str> {
        self.role(model, role)?.adapter.as_deref()
    }

    /// The workers that can serve `role` now, whatever of the allowed they host.
    ///
    /// # Errors
    /// When there is none: `ModelMismatch` if one is connected that does not belong here, else `Unavailable` or
    /// `ExpertUnavailable`, each with the reasons.
    pub(super) fn ready_workers(&self, model: &str, role: WorkerRole) -> Result<Vec<ReadyWorker>, OperationError> {
        let SortedWorkers { ready, mismatched, absent } = self.sort(model, role);
        if !ready.is_empty() {
            return Ok(ready);
        }
        let code = match role {
            _ if !mismatched.is_empty() => ErrorCode::ModelMismatch,
            WorkerRole::Base => ErrorCode::Unavailable,
            WorkerRole::Expert | WorkerRole::AntiExpert => ErrorCode::ExpertUnavailable,
        };
        let reasons: Vec<String> = mismatched
            .iter()
            .chain(&absent)
            .map(|(member, reason)| format!("{}: {reason}", member.address))
            .collect();
        let reasons = if reasons.is_empty() { "none is known".to_owned() } else { reasons.join("; ") };
        Err(OperationError::new(code, format!("model {model} has no {} that can serve: {reasons}", role.name())))
    }

    /// The workers that new sessions may go to: those that host what most processes do.
    ///
    /// # Errors
    /// As [`Self::ready_workers`].
    pub(super) fn elected_workers(&self, model: &str, role: WorkerRole) -> Result<Vec<ReadyWorker>, OperationError> {
        let mut ready = self.ready_workers(model, role)?;
        self.retain_elected(model, role, &mut ready);
        Ok(ready)
    }

    /// Keeps the workers that host what most of them do, and returns the others.
    pub(super) fn retain_elected(
        &self,
        model: &str,
        role: WorkerRole,
        ready: &mut Vec<ReadyWorker>,
    ) -> Vec<ReadyWorker> {
        let all = mem::take(ready);
        let (adapter, elected) = (self.adapter(model, role), self.elected(model, role, &all));
        let is_elected = |worker: &ReadyWorker| HostedModel::of(&worker.description, adapter) == elected;
        let (elected, others) = all.iter().cloned().partition(is_elected);
        *ready = elected;
        others
    }

    fn sort(&self, model: &str, role: WorkerRole) -> SortedWorkers {
        let tokenizer = self.tokenizer(model);
        let twin = self.twin(model, role);
        let mut sorted = SortedWorkers::default();
        for worker in self.membership.of(model, role) {
            let member = &worker.member;
            let (description, serving) = match &*worker.state.borrow() {
                WorkerState::Down(why) => {
                    sorted.absent.push((member.clone(), why.clone()));
                    continue;
                }
                WorkerState::Up { description, serving, .. } => (Arc::clone(description), *serving),
            };
            if !serving || description.draining {
                let why = if serving { "it drains" } else { "it says that it does not serve now" };
                sorted.absent.push((member.clone(), why.to_owned()));
                continue;
            }
            match self.check(member, tokenizer.as_ref(), twin.as_ref(), &description) {
                Ok(()) => sorted.ready.push(ReadyWorker { worker: Arc::clone(&worker), description }),
                Err(why) => sorted.mismatched.push((member.clone(), why)),
            }
        }
        sorted
    }

    /// The role whose model must not be that of `role`, and what it computes with: an expert that is the base hardens
    /// nothing, nor does one that is compared with itself.
    fn twin(&self, model: &str, role: WorkerRole) -> Option<(WorkerRole, String)> {
        let twin = match role {
            WorkerRole::Base => return None,
            WorkerRole::Expert => WorkerRole::Base,
            WorkerRole::AntiExpert => WorkerRole::Expert,
        };
        let ready = self.ready_workers(model, twin).ok()?;
        let elected = self.elected(model, twin, &ready)?;
        Some((twin, elected.fingerprint.to_owned()))
    }

    /// What most of the workers that are `ready` host.
    fn elected<'a>(&self, model: &str, role: WorkerRole, ready: &'a [ReadyWorker]) -> Option<HostedModel<'a>> {
        let adapter = self.adapter(model, WorkerRole::Expert);
        let of_expert = |worker: &Arc<Worker>| {
            let (description, _) = worker.description()?;
            matching::check(WorkerRole::Expert, adapter, &description).ok().map(str::to_owned)
        };
        let elsewhere = match role {
            WorkerRole::Base => self.membership.of(model, WorkerRole::Expert).iter().filter_map(of_expert).collect(),
            WorkerRole::Expert | WorkerRole::AntiExpert => BTreeSet::new(),
        };
        elect(ready.iter().map(|worker| &*worker.description), self.adapter(model, role), &elsewhere)
    }

    fn check(
        &self,
        member: &Member,
        tokenizer: Option<&KnownTokenizer>,
        twin: Option<&(WorkerRole, String)>,
        description: &WorkerDescription,
    ) -> Result<(), String> {
        let Member { model, role, .. } = member;
        let fingerprint = matching::check(*role, self.adapter(model, *role), description)?;
        let pinned = self.role(model, *role).and_then(|role| role.fingerprint.as_ref());
        if let Some(pinned) = pinned.filter(|pinned| *pinned != fingerprint) {
            return Err(format!("its fingerprint is {fingerprint}; the configuration pins {pinned}"));
        }
        if let Some((twin, _)) = twin.filter(|(_, of_twin)| of_twin == fingerprint) {
            return Err(format!("it computes with the very model of the {twin} ({fingerprint})"));
        }
        match tokenizer {
            Some(expected) if expected.fingerprint != description.tokenizer_fingerprint => {
                Err(self.comparisons.differ(expected, &tokenizer_of(member, description)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The tokenizer that all workers of a model must have: the coordinator's, else the first connected base's.
    fn tokenizer(&self, model: &str) -> Option<KnownTokenizer> {
        self.requirements.get(model).and_then(|model| model.tokenizer.clone()).or_else(|| {
            self.membership.of(model, WorkerRole::Base).iter().find_map(|worker| {
                worker.description().map(|(description, _)| tokenizer_of(&worker.member, &description))
            })
        })
    }

    /// Workers of `model` that are connected and get no new sessions, each with the reason.
    pub(super) fn left_out(&self, model: &str) -> Vec<(Member, String)> {
        let of_role = |role| {
            let SortedWorkers { mut ready, mut mismatched, .. } = self.sort(model, role);
            for ReadyWorker { worker, .. } in self.retain_elected(model, role, &mut ready) {
                mismatched.push((worker.member.clone(), "it hosts another model than most".to_owned()));
            }
            mismatched
        };
        WorkerRole::ALL.into_iter().flat_map(of_role).collect()
    }

    /// Tells of workers that are left out, when that is news.
    pub(super) fn tell_left_out(&self) {
        let now: LeftOutWorkers = self.requirements.keys().flat_map(|model| self.left_out(model)).collect();
        let mut told = self.told.lock();
        let gauge = &self.metrics.worker_left_out;
        for (Member { model, role, address }, why) in
            now.iter().filter(|(member, why)| told.get(*member) != Some(*why))
        {
            tracing::warn!(model, role = role.name(), address, why, "worker left out");
            gauge.with_label_values(&[model.as_str(), role.name(), address.as_str()]).set(1);
        }
        for Member { model, role, address } in told.keys().filter(|member| !now.contains_key(*member)) {
            let _ = gauge.remove_label_values(&[model.as_str(), role.name(), address.as_str()]);
        }
        *told = now;
    }

    /// Decides which workers' sessions should move. A worker that drains keeps its sessions if no other hosts its
    /// model.
    pub(super) fn mark_handovers(&self) {
        let workers = self.membership.all();
        // What a worker hosts, and whether it goes.
        let hosted = |worker: &Worker| {
            let (description, serving) = worker.description()?;
            let goes = *worker.leaving.borrow() || !serving || description.draining;
            let adapter = self.adapter(&worker.member.model, worker.member.role);
            Some((matching::fingerprint(&description, adapter).ok()?.to_owned(), goes))
        };
        for worker in &workers {
            let own = &worker.member;
            let replaceable = hosted(worker).is_some_and(|(fingerprint, goes)| {
                let stays = Some((fingerprint, false));
                let is_like = |other: &&Arc<Worker>| own.model == other.member.model && own.role == other.member.role;
                goes && workers.iter().filter(is_like).any(|other| hosted(other) == stays)
            });
            worker.hands_over.store(replaceable, Ordering::Release);
        }
    }
}

fn tokenizer_of(member: &Member, description: &WorkerDescription) -> KnownTokenizer {
    let owner = TokenizerOwner::Worker(member.address.clone(), member.role);
    KnownTokenizer { fingerprint: description.tokenizer_fingerprint.clone(), owner }
}
