//! Whole coordinators against simulated fleets under random schedules of faults: nothing lost, repeated or changed,
//! everything ended and given back. One seed determines a schedule.
//!
//! `COSEC_SIM_SCHEDULES` is how many are run, `COSEC_SIM_FIRST` the first seed; `COSEC_SIM_SEED` runs one seed alone and
//! prints what happens in it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cosec_coordinator::core::{Core, CoreConfig, ExpertAbsent, ModelConfig, SessionStream};
use cosec_coordinator::discovery::{Announcer, Discovery, Member};
use cosec_coordinator::request::{
    Adjustments, FinishReason, RuleSettings, SessionError, SessionEvent, Settings, TokenEvent, TokenizedRequest,
    Transport,
};
use cosec_coordinator::role::Role;
use cosec_coordinator::session::metrics::SessionMetrics;
use cosec_coordinator::session::plan::Plan;
use cosec_coordinator::session::speculation::Speculation;
use cosec_coordinator::tenant::Tenant;
use cosec_coordinator::worker_pool::Fleet;
use cosec_proto::ErrorCode;
use cosec_proto::draw::Warp;
use cosec_tests::mock_worker::MockModel;
use cosec_tests::sim::{Effects, Fault, Phase, Sim, another};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{anti_expert, prompt, request, settings};
use crate::simulation::{Models, simulate, simulate_degraded};
use crate::world::decode_plainly;

/// Schedules that are run unless the environment says otherwise.
const SCHEDULES: u64 = 2_000;

/// Time in which requests come and faults begin.
const OPENING: Duration = Duration::from_millis(1500);

/// After so long a worker that was in trouble must be in use again: connection attempts, pauses between them, a look.
const RECOVERY: Duration = Duration::from_secs(12);

/// Lease of a session on a worker.
const LEASE: Duration = Duration::from_secs(60);

/// Longest time of a request that may wait.
const PATIENCE: Duration = Duration::from_secs(90);

const NAME: &str = "mock";

/// All that is done in one schedule.
struct Schedule {
    config: CoreConfig,
    /// Workers by place.
    replicas: [usize; 3],
    requests: Vec<Asked>,
    faults: usize,
}

/// One choice of a request, and how its client behaves.
#[derive(Clone)]
struct Asked {
    request: TokenizedRequest,
    after: Duration,
    patience: Duration,
    /// Leaves after so many tokens.
    leaves_after: Option<usize>,
    /// Reads nothing for so long after the first token.
    rests: Duration,
}

/// What a client saw.
struct Seen {
    asked: Asked,
    opened: Instant,
    ended: Instant,
    deadline: Instant,
    tokens: Vec<TokenEvent>,
    /// New tokens before it.
    degraded_after: Option<usize>,
    end: End,
}

#[derive(Debug)]
enum End {
    Refused(SessionError),
    Finished(FinishReason),
    Failed(SessionError),
    Left,
}

/// What is wrong.
type Wrong = String;

fn model(model: MockModel) -> MockModel {
    MockModel { vocabulary: 32, ..model }
}

fn place(role: Role) -> &'static str {
    role.name()
}

fn model_at(place: &str) -> MockModel {
    match place {
        "base" => model(MockModel::base()),
        "expert" => model(MockModel::expert()),
        _ => model(anti_expert()),
    }
}

/// Tells the core what the simulated fleet tells.
struct Simulated(Sim);

impl Discovery for Simulated {
    fn run(self: Box<Self>, announcer: Announcer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut members = self.0.members();
            announcer.up();
            loop {
                let names = members.borrow_and_update().clone();
                let role = |name: &str| match name.split('-').next() {
                    Some("base") => Role::Base,
                    Some("expert") => Role::Expert,
                    _ => Role::AntiExpert,
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

// === drawing a schedule ===

fn any_warp(chance: &mut StdRng) -> Warp {
    let temperature = if chance.random_bool(0.2) { 0.0 } else { chance.random_range(0.3..1.3) };
    let top_p = if chance.random_bool(0.4) { 1.0 } else { chance.random_range(0.4..1.0) };
    let top_k = if chance.random_bool(0.8) { 0 } else { chance.random_range(1..8) };
    Warp::new(temperature, top_p, top_k).unwrap()
}

fn any_settings(chance: &mut StdRng) -> Settings {
    let rule = match chance.random_range(0..10) {
        0..5 => RuleSettings::Cosec { tau: *[0.0, 0.3, 0.3, 0.8].choose(chance).unwrap() },
        5 | 6 => RuleSettings::Linear { lambda: chance.random_range(0.0..1.0) },
        7 => RuleSettings::Product { alpha: chance.random_range(-0.5..1.5) },
        8 => RuleSettings::BaseOnly,
        _ => RuleSettings::ExpertOnly,
    };
    let is_adjusted = chance.random_bool(0.1);
    let is_long = chance.random_bool(0.15);
    let max_tokens = if is_long { chance.random_range(36..48) } else { chance.random_range(1..14) };
    let mut settings = Settings {
        seed: chance.random(),
        n: *[1, 1, 1, 2, 3].choose(chance).unwrap(),
        max_tokens: Some(max_tokens),
        min_tokens: if is_adjusted { max_tokens / 2 } else { 0 },
        base: any_warp(chance),
        expert: any_warp(chance),
        reference_code: chance.random_bool(0.1),
        logprobs: chance.random_bool(0.1).then(|| chance.random_range(0..3)),
        ..settings(rule)
    };
    if is_adjusted {
        let logit_bias = BTreeMap::from([(0, 1.0), (5, -1.0)]);
        settings.adjustments = Adjustments { presence_penalty: 0.5, logit_bias, ..Adjustments::default() };
    }
    let transports = [Transport::Auto, Transport::Gather, Transport::Nucleus, Transport::Sample, Transport::Full];
    settings.transport = *transports.choose(chance).unwrap();
    if Plan::new(&settings, true).is_err() {
        settings.transport = Transport::Auto;
    }
    settings
}

fn any_schedule(chance: &mut StdRng) -> Schedule {
    let replicas = [chance.random_range(1..=3), chance.random_range(1..=3), chance.random_range(0..=1)];
    let speculation = match chance.random_range(0..3) {
        0 => Speculation::Off,
        1 => Speculation::Fixed(chance.random_range(2..=6)),
        _ => Speculation::Adaptive,
    };
    let absences = [ExpertAbsent::FailClosed, ExpertAbsent::FailClosed, ExpertAbsent::Wait, ExpertAbsent::Degrade];
    let mut requests = Vec::new();
    for number in 0..chance.random_range(2..=4) {
        let settings = any_settings(chance);
        let prompt: Vec<u32> = prompt(chance.random_range(1..60)).into_iter().map(|id| 1 + id % 31).collect();
        let mut tenant = Tenant::default();
        (tenant.name, tenant.id) = (format!("tenant {}", number % 2), number % 2);
        let tenant = Arc::new(tenant);
        let after = OPENING.mul_f64(chance.random_range(0.0..1.0));
        let patience = match chance.random_bool(0.1) {
            true => Duration::from_millis(chance.random_range(20..3000)),
            false => PATIENCE,
        };
        let rests = match settings.max_tokens > Some(35) {
            true => Duration::from_millis(chance.random_range(500..4000)),
            false => Duration::from_millis(chance.random_range(0..5)),
        };
        let leaves_after = chance.random_bool(0.15).then(|| chance.random_range(0..10));
        for sample in 0..settings.n {
            let mut request = TokenizedRequest { sample, ..request(settings.clone(), &prompt) };
            request.tenant = Arc::clone(&tenant);
            requests.push(Asked { request, after, patience, leaves_after, rests });
        }
    }
    let addresses = |role: Role| (0..replicas[role.index()]).map(|_| "host:9000".to_owned()).collect();
    let config = CoreConfig {
        models: vec![ModelConfig {
            name: NAME.to_owned(),
            tokenizer: "no such directory".into(),
            base: addresses(Role::Base),
            expert: addresses(Role::Expert),
            anti_expert: Vec::new(),
            base_adapter: None,
            expert_adapter: None,
        }],
        max_sessions: chance.random_range(2..8),
        max_queued_sessions: chance.random_range(2..8),
        max_queued_tokens: if chance.random_bool(0.2) { 150 } else { 1_000_000 },
        step_deadline_ms: *[500, 2_000, 5_000].choose(chance).unwrap(),
        describe_interval_ms: *[2_000, 5_000].choose(chance).unwrap(),
        expert_absent: *absences.choose(chance).unwrap(),
        speculation,
        max_draft: chance.random_range(1..=6),
        ..CoreConfig::default()
    };
    Schedule { config, replicas, requests, faults: chance.random_range(1..=4) }
}

/// Every fault in every phase at every place comes first in one of so many schedules; those after it are drawn.
fn first_fault(seed: u64) -> (Fault, &'static str, Phase) {
    let cells = || {
        Fault::ALL.into_iter().flat_map(|fault| {
            Phase::ALL.into_iter().flat_map(move |phase| ["base", "expert"].map(|place| (fault, place, phase)))
        })
    };
    cells().nth(seed as usize % cells().count()).unwrap()
}

// === running it ===

async fn client(core: Core, sim: Sim, number: usize, asked: Asked) -> Seen {
    tokio::time::sleep(asked.after).await;
    let (opened, deadline) = (Instant::now(), Instant::now() + asked.patience);
    let settings = Settings { deadline, ..(*asked.request.settings).clone() };
    let request = TokenizedRequest { settings: Arc::new(settings), ..asked.request.clone() };
    let (mut tokens, mut degraded_after) = (Vec::new(), None);
    let end = match core.open(request).await {
        Err(error) => End::Refused(error),
        Ok(stream) => read(stream, &sim, number, &asked, &mut tokens, &mut degraded_after).await,
    };
    sim.note(format_args!("client {number}: {end:?} after {} tokens", tokens.len()));
    Seen { asked, opened, ended: Instant::now(), deadline, tokens, degraded_after, end }
}

async fn read(
    mut stream: SessionStream,
    sim: &Sim,
    number: usize,
    asked: &Asked,
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
            Some(SessionEvent::Prompt(_)) => panic!("client {number} did not ask for scores"),
            None => return end.unwrap_or_else(|| panic!("client {number}: the stream ended without an end")),
        }
    }
}

/// What a schedule showed.
struct Shown {
    trace: u64,
    effects: Effects,
    ends: BTreeMap<&'static str, u64>,
}

/// Runs the schedule of `seed` on a runtime of its own.
fn run(seed: u64, tells: bool) -> Result<Shown, Wrong> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let played = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let limit = Duration::from_secs(3600);
        runtime.block_on(async { tokio::time::timeout(limit, play(seed, tells)).await })
    }));
    match played {
        Ok(Ok(shown)) => shown,
        Ok(Err(_)) => Err("it does not end".to_owned()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic".to_owned())),
    }
}

async fn play(seed: u64, tells: bool) -> Result<Shown, Wrong> {
    let mut chance = StdRng::seed_from_u64(seed);
    let schedule = any_schedule(&mut chance);
    let sim = Sim::new(seed, tells);
    for (role, replicas) in Role::ALL.into_iter().zip(schedule.replicas) {
        (0..replicas).for_each(|_| sim.add(place(role), model_at(place(role))));
    }
    let metrics = Arc::new(SessionMetrics::register(&Registry::new()).unwrap());
    let (tracker, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let fleet = Fleet { discovery: Box::new(Simulated(sim.clone())), connect: sim.network().connector() };
    let config = schedule.config.clone();
    let started = Core::start_in(fleet, config, Arc::clone(&metrics), tracker.clone(), shutdown.clone());
    let core = started.map_err(|error| error.to_string())?;
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
            tokio::spawn(async move { sim.suffer(planned).await })
        })
        .collect();
    let clients: Vec<_> = schedule
        .requests
        .iter()
        .enumerate()
        .map(|(number, asked)| tokio::spawn(client(core.clone(), sim.clone(), number, asked.clone())))
        .collect();
    let mut ends = BTreeMap::new();
    for (number, seen) in join_all(clients).await.into_iter().enumerate() {
        let seen = seen.map_err(|panic| panic.to_string())?;
        check_seen(&sim, &schedule, &seen).map_err(|wrong| format!("client {number}: {wrong}"))?;
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
    check_given_back(&sim, &schedule.config, &core, &metrics).await?;
    sim.dismiss_all();
    // Who follows the membership stays; workers go once no session counts there.
    wait("all workers are let go", RECOVERY, || tracker.len() == 2).await?;
    shutdown.cancel();
    tracker.close();
    let ended = tokio::time::timeout(RECOVERY, tracker.wait()).await;
    ended.map_err(|_| format!("{} tasks outlive the core", tracker.len()))?;
    // What could not be released, and what arrived late.
    tokio::time::sleep(LEASE + RECOVERY).await;
    sim.hosts().iter().for_each(|host| host.expire_leases(LEASE));
    if let Some(host) = sim.hosts().iter().find(|host| host.sessions() > 0) {
        return Err(format!("{} holds {} sessions for ever", host.name, host.sessions()));
    }
    Ok(Shown { trace: sim.trace(), effects: sim.effects(), ends })
}

fn metrics_up(metrics: &SessionMetrics, sim: &Sim) -> usize {
    let is_up = |host: &&Arc<cosec_tests::sim::Host>| {
        metrics.worker_up.with_label_values(&[NAME, host.place, &host.name]).get() == 1
    };
    sim.hosts().iter().filter(is_up).count()
}

async fn wait(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<(), Wrong> {
    let until = Instant::now() + limit;
    while !holds() {
        if Instant::now() > until {
            return Err(format!("{what}: not within {limit:?}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

// === what must hold ===

/// The models that a session can have run on: the usual ones, and others where a worker came back with another one.
fn possible_models(has_anti_expert: bool) -> impl Iterator<Item = Models> {
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

fn check_seen(sim: &Sim, schedule: &Schedule, seen: &Seen) -> Result<(), Wrong> {
    let settings = &seen.asked.request.settings;
    check_end(sim, schedule, seen)?;
    let chosen: Vec<_> = seen.tokens.iter().map(|token| (token.decision.id, token.decision.chosen_by)).collect();
    let is_whole = matches!(seen.end, End::Finished(_));
    let mut expected = Vec::new();
    let mut wrong_scores = None;
    for models in possible_models(schedule.replicas[2] > 0) {
        let request = &seen.asked.request;
        let wanted = match seen.degraded_after {
            Some(hardened) => simulate_degraded(&models, request, hardened as u32),
            None => simulate(&models, request),
        };
        let fits = if is_whole { chosen == wanted } else { wanted.starts_with(&chosen) };
        if !fits {
            expected.push(wanted);
            continue;
        }
        if settings.logprobs.is_some() && seen.degraded_after.is_none() {
            let plain = decode_plainly(&models, request).0;
            if !plain.starts_with(&seen.tokens) {
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
    Err(format!("{:?}, {settings:?}: the tokens are {chosen:?} and must be {:?}", seen.end, expected[0]))
}

/// An end before the end needs a reason.
fn check_end(sim: &Sim, schedule: &Schedule, seen: &Seen) -> Result<(), Wrong> {
    let plan = Plan::new(&seen.asked.request.settings, schedule.replicas[2] > 0).unwrap();
    let was_served = |role: Role| sim.was_served(place(role), seen.opened, seen.ended, RECOVERY);
    // What a session may say at all, its base says, whatever the rule reads.
    let needs = |role: &Role| *role == Role::Base || plan.reads(*role);
    let all_served = Role::ALL.into_iter().filter(needs).all(was_served);
    let absent = schedule.config.expert_absent;
    if seen.degraded_after.is_some() {
        let may = absent == ExpertAbsent::Degrade && !(was_served(Role::Expert) && was_served(Role::AntiExpert));
        if !may {
            return Err(format!("it was degraded with experts there and expert_absent = {absent:?}"));
        }
    }
    match &seen.end {
        End::Finished(_) | End::Left => Ok(()),
        End::Refused(error) if error.code == ErrorCode::Overloaded => {
            let all = schedule.requests.len();
            let places = schedule.config.max_sessions + schedule.config.max_queued_sessions;
            let is_full = all > places || schedule.config.max_queued_tokens < 1_000;
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
async fn check_given_back(
    sim: &Sim,
    config: &CoreConfig,
    core: &Core,
    metrics: &SessionMetrics,
) -> Result<(), Wrong> {
    let step = Duration::from_millis(config.step_deadline_ms) + RECOVERY;
    let counts = || {
        [
            ("active", metrics.active_sessions.get()),
            ("queued", metrics.queued_sessions.get()),
            ("queued tokens", metrics.admission.queued_tokens.get()),
        ]
    };
    let zero = wait("all counts are zero", step, || counts().iter().all(|&(_, count)| count == 0)).await;
    zero.map_err(|wrong| format!("{wrong}: {:?}", counts()))?;
    let is_left = |host: &Arc<cosec_tests::sim::Host>| sim.was_always_well(host) && host.sessions() > 0;
    let released = wait("workers that were always well have no session", step, || !sim.hosts().iter().any(is_left));
    released.await?;
    wait("all workers are up", 3 * RECOVERY, || metrics_up(metrics, sim) == sim.hosts().len()).await?;
    check_places(core, config).await
}

/// As many sessions fit as at the beginning.
async fn check_places(core: &Core, config: &CoreConfig) -> Result<(), Wrong> {
    let places = config.max_sessions + config.max_queued_sessions;
    let one = || {
        let deadline = Instant::now() + PATIENCE;
        let settings = Settings { deadline, max_tokens: Some(1), ..settings(RuleSettings::BaseOnly) };
        core.open(request(settings, &[1]))
    };
    let mut streams = Vec::new();
    for taken in 0..places {
        streams.push(one().await.map_err(|error| format!("only {taken} of {places} places are free: {error}"))?);
    }
    match one().await {
        Err(error) if error.code == ErrorCode::Overloaded => {}
        Err(error) => return Err(error.to_string()),
        Ok(_) => return Err(format!("there are more than {places} places")),
    }
    for mut stream in streams {
        while stream.next().await.is_some() {}
    }
    Ok(())
}

// === tests ===

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn random_schedules_of_faults_lose_repeat_and_change_nothing() {
    if let Some(seed) = number("COSEC_SIM_SEED") {
        run(seed, true).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        return;
    }
    let schedules = number("COSEC_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("COSEC_SIM_FIRST").unwrap_or(0);
    println!("seeds {first} to {}", first + schedules - 1);
    let next = AtomicU64::new(first);
    let work = || {
        let (mut effects, mut ends, mut wrong) = (Effects::new(), BTreeMap::<_, u64>::new(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + schedules {
                return (effects, ends, wrong);
            }
            match run(seed, false) {
                Ok(shown) => {
                    // Schedules, not times.
                    shown.effects.into_keys().for_each(|cell| *effects.entry(cell).or_default() += 1);
                    shown.ends.into_iter().for_each(|(end, count)| *ends.entry(end).or_default() += count);
                }
                Err(why) => wrong.push((seed, why)),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let results: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (mut effects, mut ends, mut wrong) = (Effects::new(), BTreeMap::<_, u64>::new(), Vec::new());
    for (of_thread, ends_of_thread, wrong_of_thread) in results {
        of_thread.into_iter().for_each(|(cell, count)| *effects.entry(cell).or_default() += count);
        ends_of_thread.into_iter().for_each(|(end, count)| *ends.entry(end).or_default() += count);
        wrong.extend(wrong_of_thread);
    }
    println!("choices: {ends:?}");
    println!("schedules in which each fault took effect, at base and expert in prefill, draft, verify and idle:");
    let mut missed = Vec::new();
    for fault in Fault::ALL {
        let mut line = format!("{:>10}", format!("{fault:?}"));
        for place in ["base", "expert"] {
            for phase in Phase::ALL {
                let count = effects.get(&(fault, place, phase)).copied().unwrap_or(0);
                line += &format!(" {count:5}");
                if count == 0 {
                    missed.push((fault, place, phase));
                }
            }
            line += "  |";
        }
        println!("{line}");
    }
    for (seed, why) in &wrong {
        println!("seed {seed}: {why}");
    }
    let replay = "COSEC_SIM_SEED=SEED cargo test --release --workspace --test sessions schedules -- --nocapture";
    assert!(wrong.is_empty(), "{} of {schedules} schedules failed; replay one by {replay}", wrong.len());
    assert!(missed.is_empty() || schedules < 1_000, "never took effect: {missed:?}");
}

/// 49: `product` without its anti-expert, which was no member for a moment, was another rule. 178: a worker came back with
/// another model while nothing was under way there, and was asked on. 267: without an anti-expert `cosec` was refused.
/// The others: a session went to and fro between two workers that failed, and gave up beside a third that was well.
const ONCE_WRONG: [u64; 5] = [49, 178, 267, 10223229186482, 10223229189384];

#[test]
fn schedules_that_once_went_wrong_go_right() {
    for seed in ONCE_WRONG {
        run(seed, false).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in 0..60 {
        let traces = [(); 2].map(|()| run(seed, false).map(|shown| shown.trace));
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}
