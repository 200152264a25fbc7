//! Which workers can serve a model now, and why the others cannot.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cosec_proto::{ErrorCode, OperationError, WorkerDescription, WorkerRole};

use super::matching;
use super::membership::Membership;
use super::tokenizers::{KnownTokenizer, TokenizerComparisons, TokenizerOwner};
use super::worker::{Worker, WorkerState};
use crate::discovery::Member;

/// What models ask of their workers.
#[derive(Clone, Debug, Default)]
pub struct ModelRequirements {
    /// The coordinator's own tokenizer by model, where it has one.
    pub tokenizers: HashMap<String, KnownTokenizer>,
    /// Name of the adapter that sessions apply by model and role, where there is one.
    pub adapters: HashMap<(String, WorkerRole), String>,
}

/// A worker that can serve.
#[derive(Clone)]
pub struct ReadyWorker {
    /// Its handle.
    pub worker: Arc<Worker>,
    /// What it says of itself.
    pub description: Arc<WorkerDescription>,
}

/// Holds workers against what their model asks of them.
pub(super) struct ReadinessCheck {
    pub(super) membership: Arc<Membership>,
    pub(super) requirements: ModelRequirements,
    pub(super) comparisons: Arc<TokenizerComparisons>,
}

impl ReadinessCheck {
    /// Name of the adapter that sessions apply.
    pub(super) fn adapter(&self, model: &str, role: WorkerRole) -> Option<&str> {
        self.requirements.adapters.get(&(model.to_owned(), role)).map(String::as_str)
    }

    /// The workers that can serve `role` now.
    ///
    /// # Errors
    /// When there is none: `ModelMismatch` if one is connected that does not belong here, else `Unavailable` or
    /// `ExpertUnavailable`, each with the reasons.
    pub(super) fn ready_workers(&self, model: &str, role: WorkerRole) -> Result<Vec<ReadyWorker>, OperationError> {
        let tokenizer = self.tokenizer(model);
        let (mut ready, mut reasons, mut mismatch) = (Vec::new(), Vec::new(), false);
        for worker in self.membership.of(model, role) {
            let state = worker.state.borrow().clone();
            let reason = match state {
                WorkerState::Down(why) => why,
                WorkerState::Up { serving: false, .. } => "it says that it does not serve now".to_owned(),
                WorkerState::Up { description, .. } if description.draining => "it drains".to_owned(),
                WorkerState::Up { description, .. } => {
                    match self.check(&worker.member, tokenizer.as_ref(), &description) {
                        Ok(()) => {
                            ready.push(ReadyWorker { worker, description });
                            continue;
                        }
                        Err(why) => {
                            mismatch = true;
                            why
                        }
                    }
                }
            };
            reasons.push(format!("{}: {reason}", worker.member.address));
        }
        if !ready.is_empty() {
            return Ok(ready);
        }
        let code = match role {
            _ if mismatch => ErrorCode::ModelMismatch,
            WorkerRole::Base => ErrorCode::Unavailable,
            WorkerRole::Expert | WorkerRole::AntiExpert => ErrorCode::ExpertUnavailable,
        };
        let reasons = if reasons.is_empty() { "none is known".to_owned() } else { reasons.join("; ") };
        Err(OperationError::new(code, format!("model {model} has no {} that can serve: {reasons}", role.name())))
    }

    fn check(
        &self,
        member: &Member,
        tokenizer: Option<&KnownTokenizer>,
        description: &WorkerDescription,
    ) -> Result<(), String> {
        matching::check(member.role, self.adapter(&member.model, member.role), description)?;
        match tokenizer {
            Some(expected) if expected.fingerprint != description.tokenizer_fingerprint => {
                Err(self.comparisons.differ(expected, &tokenizer_of(member, description)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The tokenizer that all workers of a model must have: the coordinator's, else the first connected base's.
    fn tokenizer(&self, model: &str) -> Option<KnownTokenizer> {
        self.requirements.tokenizers.get(model).cloned().or_else(|| {
            self.membership.of(model, WorkerRole::Base).iter().find_map(|worker| {
                worker.description().map(|(description, _)| tokenizer_of(&worker.member, &description))
            })
        })
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
