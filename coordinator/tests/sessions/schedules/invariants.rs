//! What must hold after a schedule, whatever its faults were.

use std::sync::Arc;
use std::time::Duration;

use cosec_coordinator::merge::{BaseOnly, SelectedRule};
use cosec_coordinator::request::{FinishReason, GenerationSettings, SessionError, TokenEvent, TokenizedRequest};
use cosec_coordinator::session::config::ExpertAbsent;
use cosec_coordinator::session::plan::DecodePlan;
use cosec_coordinator::session::service::{ServiceConfig, ServiceMetrics};
use cosec_proto::ErrorCode;
use cosec_proto::WorkerRole;
use cosec_tests::sim::{Host, Sim, another};
use futures::StreamExt;
use tokio::time::Instant;

use super::generate::{ClientRequest, NAME, PATIENCE, Schedule, model_at, place};
use crate::cluster::{Service, request, settings, tenant};
use crate::harness::decode_plainly;
use crate::reference::{Models, are_as_expected, expected_tokens, expected_tokens_degraded, without_hardening};

/// After so long a worker that was in trouble must be in use again: connection attempts, pauses between them, a look.
pub(super) const RECOVERY: Duration = Duration::from_secs(12);

/// What a client received.
pub(super) struct ClientRecord {
    pub(super) asked: ClientRequest,
    pub(super) opened: Instant,
    pub(super) ended: Instant,
    pub(super) deadline: Instant,
    pub(super) tokens: Vec<TokenEvent>,
    /// New tokens before it.
    pub(super) degraded_after: Option<usize>,
    pub(super) end: End,
}

#[derive(Debug)]
pub(super) enum End {
    Refused(SessionError),
    Finished(FinishReason),
    Failed(SessionError),
    Left,
}

/// What a schedule broke, in words.
pub(super) type Violation = String;

/// The models that a session can have run on: the usual ones, and others where a worker came back with another one.
pub(super) fn possible_models(has_anti_expert: bool) -> impl Iterator<Item = Models> {
    (0..8).filter(move |mask| has_anti_expert || mask & 4 == 0).map(move |mask| {
        let choose = |bit: u32, place| {
            let usual = model_at(place);
            if mask & bit == 0 { usual } else { another(&usual) }
        };
        Models {
            base: choose(1, "base"),
            expert: choose(2, "expert"),
            anti_expert: has_anti_expert.then(|| choose(4, "anti_expert")),
        }
    })
}

pub(super) fn check_record(sim: &Sim, schedule: &Schedule, seen: &ClientRecord) -> Result<(), Violation> {
    let settings = &seen.asked.request.settings;
    check_end(sim, schedule, seen)?;
    let is_whole = matches!(seen.end, End::Finished(_));
    let mut expected = Vec::new();
    let mut wrong_scores = None;
    for models in possible_models(schedule.replicas[2] > 0) {
        let request = &seen.asked.request;
        let wanted = match seen.degraded_after {
            Some(hardened) => expected_tokens_degraded(&models, request, hardened as u32),
            None => expected_tokens(&models, request),
        };
        let reached = if is_whole { wanted.len() } else { seen.tokens.len().min(wanted.len()) };
        let fits = are_as_expected(&seen.tokens, &wanted[..reached]);
        if !fits {
            expected.push(wanted);
            continue;
        }
        if settings.logprobs.is_some() && seen.degraded_after.is_none() {
            let plain = decode_plainly(&models, request).0;
            if !without_hardening(&plain).starts_with(&without_hardening(&seen.tokens)) {
                // Other models can choose the same few tokens.
                wrong_scores.get_or_insert(plain);
                continue;
            }
        }
        if let End::Finished(reason) = seen.end {
            let is_long = wanted.len() == request.max_new_tokens as usize;
            let wanted = if is_long { FinishReason::Length } else { FinishReason::Stop };
            if reason != wanted {
                return Err(format!("it finished by {reason:?}, not {wanted:?}"));
            }
        }
        return Ok(());
    }
    if let Some(plain) = wrong_scores {
        return Err(format!("the scores are {:?} and must be {plain:?}", seen.tokens));
    }
    Err(format!("{:?}, {settings:?}: the tokens are {:?} and must be {:?}", seen.end, seen.tokens, expected[0]))
}

/// An end before the end needs a reason.
pub(super) fn check_end(sim: &Sim, schedule: &Schedule, seen: &ClientRecord) -> Result<(), Violation> {
    let plan = DecodePlan::new(&seen.asked.request.settings, schedule.replicas[2] > 0).unwrap();
    let was_served = |role: WorkerRole| sim.was_served(place(role), seen.opened, seen.ended, RECOVERY);
    // What a session may say at all, its base says, whatever the rule reads.
    let needs = |role: &WorkerRole| *role == WorkerRole::Base || plan.reads(*role);
    let all_served = WorkerRole::ALL.into_iter().filter(needs).all(was_served);
    let absent = schedule.config.sessions.expert_absent;
    if seen.degraded_after.is_some() {
        let may = absent == ExpertAbsent::Degrade
            && !(was_served(WorkerRole::Expert) && was_served(WorkerRole::AntiExpert));
        if !may {
            return Err(format!("it was degraded with experts there and expert_absent = {absent:?}"));
        }
    }
    match &seen.end {
        End::Finished(_) | End::Left => Ok(()),
        End::Refused(error) if error.code == ErrorCode::Overloaded => {
            let all = schedule.requests.len();
            let places = schedule.config.admission.max_sessions + schedule.config.admission.max_queued_sessions;
            let is_full = all > places
                || error.message.contains("of this client")
                || schedule.config.admission.max_queued_tokens < 1_000;
            if is_full { Ok(()) } else { Err(format!("{places} places are too few for {all} choices: {error}")) }
        }
        End::Failed(error) if error.code == ErrorCode::DeadlineExceeded && seen.ended >= seen.deadline => Ok(()),
        // It began on a model that a worker hosted for a while.
        End::Failed(error) if error.code == ErrorCode::ModelMismatch && sim.was_replaced() => Ok(()),
        End::Refused(error) | End::Failed(error) => {
            let may = matches!(
                error.code,
                ErrorCode::Unavailable
                    | ErrorCode::ExpertUnavailable
                    | ErrorCode::ModelMismatch
                    | ErrorCode::DeadlineExceeded
                    | ErrorCode::WorkerFault
                    | ErrorCode::OutOfBlocks
            );
            if may && !all_served && !error.message.is_empty() {
                Ok(())
            } else {
                Err(format!("{} while every role was served: {error}", error.code.name()))
            }
        }
    }
}

/// Nothing is held any more, by anybody.
pub(super) async fn check_given_back(
    sim: &Sim,
    config: &ServiceConfig,
    service: &Service,
    metrics: &ServiceMetrics,
) -> Result<(), Violation> {
    let step = Duration::from_millis(config.workers.step_deadline_ms) + RECOVERY;
    let counts = || {
        [
            ("active", metrics.sessions.active_sessions.get()),
            ("queued", metrics.sessions.queued_sessions.get()),
            ("stalled", metrics.admission.stalled_sessions.get()),
            ("queued tokens", metrics.admission.queued_tokens.get()),
        ]
    };
    let zero = wait("all counts are zero", step, || counts().iter().all(|&(_, count)| count == 0)).await;
    zero.map_err(|wrong| format!("{wrong}: {:?}", counts()))?;
    let is_left = |host: &Arc<Host>| sim.was_always_healthy(host) && host.sessions() > 0;
    let released = wait("workers that were always well have no session", step, || !sim.hosts().iter().any(is_left));
    released.await?;
    wait("all workers are up", 3 * RECOVERY, || metrics_up(metrics, sim) == sim.hosts().len()).await?;
    check_places(service, config).await
}

/// As many sessions fit as at the beginning.
pub(super) async fn check_places(service: &Service, config: &ServiceConfig) -> Result<(), Violation> {
    let places = config.admission.max_sessions + config.admission.max_queued_sessions;
    // Each a client of its own: one alone does not get all places.
    let mut clients = 0;
    let mut one = || {
        clients += 1;
        let deadline = Instant::now() + PATIENCE;
        let settings =
            GenerationSettings { deadline, max_tokens: Some(1), ..settings(SelectedRule::BaseOnly(BaseOnly)) };
        let tenant = tenant(&format!("client {clients}"));
        service.open(TokenizedRequest { tenant, ..request(settings, &[1]) })
    };
    let mut streams = Vec::new();
    for taken in 0..places {
        streams.push(one().map_err(|error| format!("only {taken} of {places} places are free: {error}"))?);
    }
    match one() {
        Err(error) if error.code == ErrorCode::Overloaded => {}
        Err(error) => return Err(error.to_string()),
        Ok(_) => return Err(format!("there are more than {places} places")),
    }
    for mut stream in streams {
        while stream.next().await.is_some() {}
    }
    Ok(())
}

pub(super) fn metrics_up(metrics: &ServiceMetrics, sim: &Sim) -> usize {
    let is_up =
        |host: &&Arc<Host>| metrics.pool.worker_up.with_label_values(&[NAME, host.place, &host.name]).get() == 1;
    sim.hosts().iter().filter(is_up).count()
}

pub(super) async fn wait(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<(), Violation> {
    let until = Instant::now() + limit;
    while !holds() {
        if Instant::now() > until {
            return Err(format!("{what}: not within {limit:?}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
