//! One schedule on a runtime of its own: a coordinator, a simulated fleet, clients and faults.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use cosec_coordinator::discovery::{self, DiscoveryMetrics, DiscoverySource, Member, MemberAnnouncer};
use cosec_coordinator::request::{GenerationSettings, SessionEvent, TokenEvent, TokenizedRequest};
use cosec_coordinator::session::service::{ServiceMetrics, SessionService, SessionStream};
use cosec_coordinator::tasks::TaskSpawner;
use cosec_coordinator::worker_pool::WorkerSource;
use cosec_proto::WorkerRole;
use cosec_proto::metrics::MetricRegistry;
use cosec_tests::sim::{Effects, Fault, Phase, Sim};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::generate::{ClientRequest, NAME, OPENING, first_fault, model_at, place, random_schedule};
use super::invariants::{ClientRecord, End, RECOVERY, Violation, check_given_back, check_record, metrics_up, wait};
use crate::cluster::Service;

/// Lease of a session on a worker.
pub(super) const LEASE: Duration = Duration::from_secs(60);

/// Reports the members of a simulated fleet.
pub(super) struct SimulatedFleet(Sim);

impl DiscoverySource for SimulatedFleet {
    fn run(self: Box<Self>, announcer: MemberAnnouncer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut members = self.0.members();
            announcer.up();
            loop {
                let names = members.borrow_and_update().clone();
                let role = |name: &str| match name.split('-').next() {
                    Some("base") => WorkerRole::Base,
                    Some("expert") => WorkerRole::Expert,
                    _ => WorkerRole::AntiExpert,
                };
                let member = |address: String| Member { model: NAME.to_owned(), role: role(&address), address };
                announcer.announce(names.into_iter().map(member));
                if members.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}

pub(super) async fn client(service: Service, sim: Sim, number: usize, asked: ClientRequest) -> ClientRecord {
    tokio::time::sleep(asked.after).await;
    let (opened, deadline) = (Instant::now(), Instant::now() + asked.patience);
    let settings = GenerationSettings { deadline, ..(*asked.request.settings).clone() };
    let request = TokenizedRequest { settings: Arc::new(settings), ..asked.request.clone() };
    let (mut tokens, mut degraded_after) = (Vec::new(), None);
    let end = match service.open(request) {
        Err(error) => End::Refused(error),
        Ok(stream) => read(stream, &sim, number, &asked, &mut tokens, &mut degraded_after).await,
    };
    sim.note(format_args!("client {number}: {end:?} after {} tokens", tokens.len()));
    ClientRecord { asked, opened, ended: Instant::now(), deadline, tokens, degraded_after, end }
}

pub(super) async fn read(
    mut stream: SessionStream,
    sim: &Sim,
    number: usize,
    asked: &ClientRequest,
    tokens: &mut Vec<TokenEvent>,
    degraded_after: &mut Option<usize>,
) -> End {
    let mut end = None;
    loop {
        if asked.leaves_after == Some(tokens.len()) {
            tokio::time::sleep(Duration::from_millis(3)).await;
            return End::Left;
        }
        match stream.next().await {
            Some(event) if end.is_some() => panic!("client {number}: {event:?} after the end"),
            Some(SessionEvent::Token(token)) => {
                sim.note(format_args!("client {number}: token {}", token.decision.id));
                tokens.push(token);
                if tokens.len() == 1 {
                    tokio::time::sleep(asked.rests).await;
                }
            }
            Some(SessionEvent::Degraded) => *degraded_after = Some(tokens.len()),
            Some(SessionEvent::Finished(reason)) => end = Some(End::Finished(reason)),
            Some(SessionEvent::Failed(error)) => end = Some(End::Failed(error)),
            Some(SessionEvent::Prompt(_) | SessionEvent::TakenOver(_)) => {
                panic!("client {number} did not ask for it")
            }
            None => return end.unwrap_or_else(|| panic!("client {number}: the stream ended without an end")),
        }
    }
}

/// What happened in a schedule.
pub(super) struct RunRecord {
    pub(super) trace: u64,
    pub(super) effects: Effects,
    pub(super) ends: BTreeMap<&'static str, u64>,
}

/// Runs the schedule of `seed` on a runtime of its own.
pub(super) fn run_schedule(seed: u64, verbose: bool) -> Result<RunRecord, Violation> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let limit = Duration::from_secs(3600);
        runtime.block_on(async { tokio::time::timeout(limit, run_on_virtual_time(seed, verbose)).await })
    }));
    match outcome {
        Ok(Ok(shown)) => shown,
        Ok(Err(_)) => Err("it does not end".to_owned()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic".to_owned())),
    }
}

pub(super) async fn run_on_virtual_time(seed: u64, verbose: bool) -> Result<RunRecord, Violation> {
    let mut chance = StdRng::seed_from_u64(seed);
    let schedule = random_schedule(&mut chance);
    let sim = Sim::new(seed, verbose);
    for (role, replicas) in WorkerRole::ALL.into_iter().zip(schedule.replicas) {
        (0..replicas).for_each(|_| sim.add(place(role), model_at(place(role))));
    }
    let registry = MetricRegistry::default();
    let metrics = ServiceMetrics::register(&registry).unwrap();
    let (tracker, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let config = schedule.config.clone();
    let tasks = TaskSpawner::new(tracker.clone(), shutdown.clone());
    let source = Box::new(SimulatedFleet(sim.clone()));
    let members =
        discovery::follow(source, [NAME.to_owned()].into(), DiscoveryMetrics::register(&registry).unwrap(), &tasks);
    let source = WorkerSource { members, connect: sim.network().connector() };
    let service = Service(SessionService::start(config, HashMap::new(), source, metrics.clone(), tasks));
    let up = || metrics_up(&metrics, &sim) == sim.hosts().len();
    wait("all workers are up", RECOVERY, up).await?;

    let (fault, at, phase) = first_fault(seed);
    let mut faults = vec![sim.plan(fault, Some(at), Some(phase), OPENING)];
    for _ in 1..schedule.faults {
        let fault = *Fault::ALL.choose(&mut chance).unwrap();
        let phase = chance.random_bool(0.5).then(|| *Phase::ALL.choose(&mut chance).unwrap());
        faults.push(sim.plan(fault, None, phase, OPENING));
    }
    let faults: Vec<_> = faults
        .into_iter()
        .flatten()
        .map(|planned| {
            sim.note(format_args!("planned: {planned:?}"));
            let sim = sim.clone();
            tokio::spawn(async move { sim.inject(planned).await })
        })
        .collect();
    let clients: Vec<_> = schedule
        .requests
        .iter()
        .enumerate()
        .map(|(number, asked)| tokio::spawn(client(service.clone(), sim.clone(), number, asked.clone())))
        .collect();
    let mut ends = BTreeMap::new();
    for (number, seen) in join_all(clients).await.into_iter().enumerate() {
        let seen = seen.map_err(|panic| panic.to_string())?;
        check_record(&sim, &schedule, &seen).map_err(|wrong| format!("client {number}: {wrong}"))?;
        let name = match &seen.end {
            End::Refused(error) | End::Failed(error) => error.code.name(),
            End::Finished(_) if seen.degraded_after.is_some() => "finished without its expert",
            End::Finished(_) => "finished",
            End::Left => "left",
        };
        *ends.entry(name).or_default() += 1;
    }
    for fault in join_all(faults).await {
        fault.map_err(|panic| panic.to_string())?;
    }
    check_given_back(&sim, &schedule.config, &service, &metrics).await?;
    sim.dismiss_all();
    // Who follows the membership stays; workers go once no session counts there.
    wait("all workers are let go", RECOVERY, || tracker.len() == 2).await?;
    shutdown.cancel();
    tracker.close();
    let ended = tokio::time::timeout(RECOVERY, tracker.wait()).await;
    ended.map_err(|_| format!("{} tasks outlive the service", tracker.len()))?;
    // What could not be released, and what arrived late.
    tokio::time::sleep(LEASE + RECOVERY).await;
    sim.hosts().iter().for_each(|host| host.expire_leases(LEASE));
    if let Some(host) = sim.hosts().iter().find(|host| host.sessions() > 0) {
        return Err(format!("{} holds {} sessions for ever", host.name, host.sessions()));
    }
    Ok(RunRecord { trace: sim.trace(), effects: sim.effects(), ends })
}
