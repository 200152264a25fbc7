//! A simulated machine with one mock worker on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use std::time::Duration;

use cosec_proto::ErrorCode;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::worker_server::WorkerServer;
use cosec_proto::wire::worker::{self, row};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::network::Link;
use super::{Fault, Phase, Sim};
use crate::grpc_server;
use crate::mock_worker::{Answers, MockModel, Service, WorkerBehaviour};

/// Longest operation of a healthy worker.
const OPERATION: Duration = Duration::from_millis(4);

/// See the module.
pub struct Host {
    pub(super) index: usize,
    /// `host:port`.
    pub name: String,
    /// Role that its worker has in the model.
    pub place: &'static str,
    /// The model that it hosts unless a fault replaces it.
    pub model: MockModel,
    pub(super) link: Arc<Link>,
    sim: Sim,
    state: Mutex<State>,
    stopped: AtomicBool,
    /// Waiters of a watch channel would be woken in no certain order.
    goes_on: Notify,
}

struct State {
    process: Option<Service<Process>>,
    health: Option<tonic_health::server::HealthReporter>,
    slowness: Duration,
    is_draining: bool,
    /// Faults of the next answers, each in a phase or in any.
    answers: Vec<(Fault, Option<Phase>)>,
    /// Fault of the next description.
    description: Option<Fault>,
    last_answer: Option<(Answers, worker::StepResponse)>,
    chance: StdRng,
    /// Periods in which it was unhealthy; the last may be open.
    unhealthy: Vec<(Instant, Option<Instant>)>,
}

/// A worker from its start to its end.
pub(super) struct Process {
    host: Arc<Host>,
    is_dead: AtomicBool,
    answers: Mutex<Option<Answers>>,
}

impl Host {
    pub(super) fn new(sim: &Sim, index: usize, place: &'static str, model: MockModel, seed: u64) -> Arc<Self> {
        let name = format!("{place}-{index}:9000").replace('_', "-");
        let state = State {
            process: None,
            health: None,
            slowness: Duration::ZERO,
            is_draining: false,
            answers: Vec::new(),
            description: None,
            last_answer: None,
            chance: StdRng::seed_from_u64(seed),
            unhealthy: Vec::new(),
        };
        let link = sim.network().link(&name);
        let (state, stopped, goes_on) = (Mutex::new(state), AtomicBool::new(false), Notify::new());
        Arc::new(Self { index, name, place, model, link, sim: sim.clone(), state, stopped, goes_on })
    }

    /// Starts a worker with empty caches.
    pub(super) fn start(self: &Arc<Self>, model: MockModel) {
        if self.is_up() {
            // Two faults end in a start.
            self.kill();
        }
        self.sim.note(format_args!("{} starts {}", self.name, model.fingerprint));
        let process = Process { host: Arc::clone(self), is_dead: AtomicBool::new(false), answers: Mutex::default() };
        let service = Service::new(model, process);
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut state = self.state.lock();
        (state.process, state.health, state.is_draining) = (Some(service.clone()), Some(health.clone()), false);
        drop(state);
        let accepted = UnboundedReceiverStream::new(self.link.listen());
        tokio::spawn(async move {
            health.set_serving::<WorkerServer<Service<Process>>>().await;
            let server = grpc_server::server().add_service(health_service).add_service(service.server());
            let _ = server.serve_with_incoming(accepted).await;
        });
    }

    pub(super) fn kill(&self) {
        self.sim.note(format_args!("{} is killed", self.name));
        let mut state = self.state.lock();
        if let Some(process) = state.process.take() {
            process.behaviour().is_dead.store(true, Ordering::SeqCst);
        }
        state.last_answer = None;
        drop(state);
        self.stopped.store(false, Ordering::SeqCst);
        self.goes_on.notify_waiters();
        self.link.kill();
        self.sim.forget(self.index);
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().process.is_some()
    }

    pub(super) fn stop(&self, stopped: bool) {
        self.sim.note(format_args!("{} {}", self.name, if stopped { "hangs" } else { "goes on" }));
        self.stopped.store(stopped, Ordering::SeqCst);
        self.goes_on.notify_waiters();
        self.link.stop(stopped);
    }

    pub(super) fn slow_down(&self, slowness: Duration) {
        self.sim.note(format_args!("{} takes {slowness:?} more", self.name));
        self.state.lock().slowness = slowness;
    }

    pub(super) fn evict(&self) {
        self.sim.note(format_args!("{} evicts", self.name));
        if let Some(process) = &self.state.lock().process {
            process.engine().evict();
        }
        self.sim.forget(self.index);
    }

    pub(super) async fn drain(&self) {
        self.sim.note(format_args!("{} drains", self.name));
        let health = {
            let mut state = self.state.lock();
            state.is_draining = true;
            state.health.clone()
        };
        if let Some(health) = health {
            health.set_not_serving::<WorkerServer<Service<Process>>>().await;
        }
    }

    /// Applies `fault` to the next answer in this phase, or in any.
    pub(super) fn tamper_with_answer(&self, fault: Fault, phase: Option<Phase>) {
        self.state.lock().answers.push((fault, phase));
    }

    /// Applies `fault` while no operation is in flight: to a repeated or stray answer, or to the next description.
    pub(super) fn tamper_while_idle(&self, fault: Fault) {
        self.sim.note(format_args!("{}: {fault:?} while idle", self.name));
        let mut state = self.state.lock();
        let unasked = state.chance.random_bool(0.5);
        match (fault, &state.last_answer) {
            (Fault::Repeat, Some((answers, last))) => {
                let _ = answers.try_send(Ok(last.clone()));
            }
            (Fault::Garble, Some((answers, last))) if unasked => {
                let _ = answers.try_send(Ok(worker::StepResponse { op: last.op + 1000, ..last.clone() }));
            }
            _ => state.description = Some(fault),
        }
    }

    pub(super) fn is_tampering(&self, fault: Fault) -> bool {
        let state = self.state.lock();
        state.description == Some(fault) || state.answers.iter().any(|&(pending, _)| pending == fault)
    }

    pub(super) fn clear_tampering(&self) {
        let mut state = self.state.lock();
        (state.answers, state.description) = (Vec::new(), None);
    }

    pub(super) fn mark_unhealthy(&self) {
        self.state.lock().unhealthy.push((Instant::now(), None));
    }

    pub(super) fn mark_healthy(&self) {
        if let Some((_, until)) = self.state.lock().unhealthy.iter_mut().rev().find(|(_, until)| until.is_none()) {
            *until = Some(Instant::now());
        }
    }

    /// Periods in which it was unhealthy, each extended by `margin`.
    pub(super) fn unhealthy(&self, margin: Duration) -> Vec<(Instant, Option<Instant>)> {
        self.state.lock().unhealthy.iter().map(|&(from, until)| (from, until.map(|until| until + margin))).collect()
    }

    /// Sessions that hold a cache there.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.state.lock().process.as_ref().map_or(0, |process| process.engine().sessions())
    }

    /// Drops the sessions that have been idle for `lease`.
    pub fn expire_leases(&self, lease: Duration) {
        if let Some(process) = &self.state.lock().process {
            process.engine().expire_leases(lease);
        }
    }

    fn takes(&self) -> Duration {
        let mut state = self.state.lock();
        let micros = state.chance.random_range(200..=OPERATION.as_micros() as u64);
        let slowness = state.slowness.mul_f64(state.chance.random_range(0.3..1.0));
        Duration::from_micros(micros) + slowness
    }
}

impl Process {
    /// Waits while the process is stopped, and for ever once it is dead.
    async fn running(&self) {
        loop {
            let goes_on = self.host.goes_on.notified();
            if !self.host.stopped.load(Ordering::SeqCst) {
                break;
            }
            goes_on.await;
        }
        if self.is_dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

impl WorkerBehaviour for Process {
    fn opened(&self, answers: &Answers) {
        *self.answers.lock() = Some(answers.clone());
    }

    async fn describe(&self, truth: worker::DescribeResponse) -> Result<worker::DescribeResponse, Status> {
        self.running().await;
        let slowness = self.host.state.lock().slowness;
        tokio::time::sleep(slowness).await;
        self.running().await;
        let (fault, draining) = {
            let mut state = self.host.state.lock();
            (state.description.take(), state.is_draining)
        };
        match fault {
            Some(Fault::Lose) => std::future::pending().await,
            Some(Fault::Garble) => Ok(worker::DescribeResponse { vocabulary: 0, ..truth }),
            Some(_) => Err(Status::unavailable("not now")),
            None => Ok(worker::DescribeResponse { draining, ..truth }),
        }
    }

    async fn begin(&self, request: &worker::StepRequest) -> u64 {
        self.running().await;
        let begun = self.host.sim.begin(&self.host, request);
        let takes = self.host.takes();
        tokio::time::sleep(takes).await;
        self.running().await;
        begun
    }

    fn answer(&self, begun: u64, answer: worker::StepResponse) -> Vec<worker::StepResponse> {
        if self.is_dead.load(Ordering::SeqCst) {
            return Vec::new();
        }
        let host = &self.host;
        let phases = host.sim.end(host, begun, &answer);
        let mut state = host.state.lock();
        if let Some(answers) = &*self.answers.lock() {
            state.last_answer = Some((answers.clone(), answer.clone()));
        }
        let fits = |(_, phase): &(Fault, Option<Phase>)| match phase {
            Some(phase) => phases.contains(phase),
            None => !phases.is_empty(),
        };
        let Some(at) = state.answers.iter().position(fits) else {
            return vec![answer];
        };
        let (fault, _) = state.answers.remove(at);
        host.sim.took_effect(fault, host, &phases);
        match fault {
            Fault::Lose => Vec::new(),
            Fault::Repeat => vec![answer.clone(), answer],
            Fault::Refuse => {
                let codes = [ErrorCode::OutOfBlocks, ErrorCode::Unavailable, ErrorCode::WorkerFault];
                let code = codes[state.chance.random_range(0..codes.len())].name().to_owned();
                let failure = worker::Failure { code, message: "not now".to_owned() };
                vec![worker::StepResponse { outcome: Some(Outcome::Failure(failure)), ..answer }]
            }
            _ => vec![garbled(answer, &mut state.chance)],
        }
    }
}

/// An answer that cannot be true.
fn garbled(mut answer: worker::StepResponse, chance: &mut StdRng) -> worker::StepResponse {
    let is_garbled = match (&mut answer.outcome, chance.random_range(0..3)) {
        (Some(Outcome::Rows(rows)), 0) => {
            rows.length += 1;
            true
        }
        (Some(Outcome::Rows(rows)), 1) => {
            rows.rows.iter_mut().filter_map(|row| row.content.as_mut()).any(break_content)
        }
        (Some(Outcome::Drafted(drafted)), 0) => drafted.ids.pop().is_some(),
        (Some(Outcome::Drafted(drafted)), 1) => drafted.ids.first_mut().map(|id| *id = u32::MAX).is_some(),
        _ => false,
    };
    if !is_garbled {
        answer.outcome = match chance.random_range(0..4) {
            0 => None,
            1 => Some(Outcome::Failure(worker::Failure::default())),
            2 => Some(Outcome::NeedPrefix(worker::NeedPrefix { have: u32::MAX })),
            _ => Some(Outcome::Rows(worker::Rows { length: u32::MAX, rows: Vec::new() })),
        };
    }
    answer
}

/// Returns whether there was anything to break.
fn break_content(content: &mut row::Content) -> bool {
    match content {
        row::Content::Gathered(gathered) => gathered.probabilities.pop().is_some(),
        row::Content::Sampled(sampled) => {
            sampled.id = u32::MAX;
            true
        }
        row::Content::Nucleus(nucleus) => nucleus.probabilities.pop().is_some(),
        row::Content::Full(full) => full.logits.pop().is_some(),
    }
}
