//! One worker: its connection, kept up for as long as it is a member, and what it says of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cosec_proto::wire::worker;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::{ErrorCode, transport};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::changes::Changes;
use super::circuit_breaker::CircuitBreaker;
use super::connection::{Connection, OUTGOING_OPERATIONS};
use super::matching;
use super::operation::{Ask, Operation};
use super::reply::{Answer, OperationError};
use super::step_time::StepTime;
use crate::discovery::Member;
use crate::session::metrics::SessionMetrics;

/// Pauses between attempts to connect grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// For Describe, the health check and the opening of the stream.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Name of the worker's service in the health protocol.
const HEALTH_SERVICE: &str = "cosec.worker.v1.Worker";

/// How long sessions may give their caches back after shutdown.
const LAST_RELEASES: Duration = Duration::from_secs(1);

/// An operation that feeds more tokens than this takes time by its length, which the measured time of short ones does not
/// tell.
const SHORT_TOKENS: usize = 16;

/// Least time of a short operation before it counts as hung: what a busy machine may pause for.
const LEAST_DEADLINE: Duration = Duration::from_secs(2);

/// How a worker stands.
#[derive(Clone)]
pub(super) enum State {
    /// Not reached, and why.
    Down(String),
    /// Connected.
    Up {
        connection: Arc<Connection>,
        description: Arc<worker::DescribeResponse>,
        /// By its health service.
        serving: bool,
    },
}

/// Handle of a worker.
pub struct Worker {
    pub(super) member: Member,
    pub(super) state: watch::Sender<State>,
    /// Whether it is a member no more. Sessions that sit there may go on.
    pub(super) leaving: watch::Sender<bool>,
    /// Whether its sessions should move: it leaves or drains, and another worker hosts the same model.
    pub(super) hands_over: AtomicBool,
    circuit: Mutex<CircuitBreaker>,
    short_operations: Mutex<StepTime>,
    /// Sessions of this coordinator that the worker holds.
    pub(super) load: AtomicUsize,
    metrics: Arc<SessionMetrics>,
}

impl Worker {
    pub(super) fn new(member: Member, metrics: Arc<SessionMetrics>) -> Self {
        let state = watch::Sender::new(State::Down("not connected yet".to_owned()));
        Self {
            member,
            state,
            leaving: watch::Sender::new(false),
            hands_over: AtomicBool::new(false),
            circuit: Mutex::new(CircuitBreaker::new()),
            short_operations: Mutex::default(),
            load: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Performs an operation of a session that computes with the model `fingerprint`. Dropping the future withdraws it.
    ///
    /// # Errors
    /// As the worker says, `Unavailable` when it is not connected or hosts another model by now, `DeadlineExceeded`, or
    /// `WorkerFault` for an answer that cannot be true.
    pub(super) async fn call(
        &self,
        operation: &Operation,
        fingerprint: &str,
        deadline: Duration,
    ) -> Result<Answer, OperationError> {
        let ends = matches!(operation.ask, Ask::Release);
        let connection = match &*self.state.borrow() {
            State::Up { connection, description, .. } => {
                let adapter = Some(operation.adapter.as_str()).filter(|adapter| !adapter.is_empty());
                if !ends && matching::fingerprint(description, adapter) != Ok(fingerprint) {
                    let message = "the worker came back with another model";
                    return Err(OperationError::new(ErrorCode::Unavailable, message));
                }
                Arc::clone(connection)
            }
            State::Down(why) => {
                return Err(OperationError::new(ErrorCode::Unavailable, format!("the worker is down: {why}")));
            }
        };
        if !ends && self.hands_over.load(Ordering::Acquire) {
            return Err(OperationError::new(ErrorCode::Unavailable, "the worker drains; its sessions move on"));
        }
        // A draft is one forward pass per token.
        let passes = if let Ask::Draft { k, .. } = operation.ask { k } else { 1 };
        let short = operation.tokens.len() <= SHORT_TOKENS && !ends;
        let patience = match short {
            true => self.short_operations.lock().deadline(passes, LEAST_DEADLINE, deadline),
            false => deadline,
        };
        let began = Instant::now();
        let outcome = connection.call(operation, patience, &self.member, &self.metrics).await;
        let ended = Instant::now();
        // One that was given up took so long at least: a worker that has become slow is soon given more time.
        let was_given_up = matches!(&outcome, Err(error) if error.code == ErrorCode::DeadlineExceeded);
        if short && (outcome.is_ok() || was_given_up) {
            self.short_operations.lock().measured((ended - began).as_secs_f64(), passes);
        }
        let mut circuit = self.circuit.lock();
        let was_open = circuit.is_open();
        circuit.ended(ended, outcome.as_ref());
        self.show_circuit(was_open, circuit.is_open());
        drop(circuit);
        outcome
    }

    /// Whether the worker failed so often that a session should rather go elsewhere.
    pub(super) fn is_avoided(&self) -> bool {
        !self.circuit.lock().lets_through(Instant::now())
    }

    /// A session takes its seat here.
    pub(super) fn chosen(&self) {
        self.circuit.lock().sent(Instant::now());
    }

    fn show_circuit(&self, was_open: bool, is_open: bool) {
        let Member { model, role, address } = &self.member;
        let labels = [model.as_str(), role.name(), address.as_str()];
        match (was_open, is_open) {
            (false, true) => tracing::warn!(address, role = role.name(), "worker fails again and again; avoided"),
            (true, false) => tracing::info!(address, role = role.name(), "worker serves again"),
            (true, true) | (false, false) => return,
        }
        self.metrics.circuit_open.with_label_values(&labels).set(i64::from(is_open));
    }
}

/// Keeps a worker's connection up.
pub(super) struct Keeper {
    pub(super) worker: Arc<Worker>,
    pub(super) channel: Channel,
    pub(super) describe_interval: Duration,
    pub(super) shutdown: CancellationToken,
    /// Told of every change of state.
    pub(super) changes: Arc<Changes>,
}

impl Keeper {
    /// Connects, serves, connects again, until shutdown.
    pub(super) async fn run(self) {
        self.keep_up().await;
        let Member { model, role, address } = &self.worker.member;
        for gauge in [&self.worker.metrics.worker_up, &self.worker.metrics.circuit_open] {
            // A worker that is no member any more has no state to show, and may have shown none.
            let _ = gauge.remove_label_values(&[model.as_str(), role.name(), address.as_str()]);
        }
    }

    async fn keep_up(&self) {
        let mut pause = BACKOFF.0;
        loop {
            let began = Instant::now();
            let why = tokio::select! {
                biased;
                why = self.serve() => why,
                () = self.last_releases() => "this coordinator shuts down".to_owned(),
            };
            let was_up = self.set(State::Down(why.clone()));
            let Member { address, role, .. } = &self.worker.member;
            if self.shutdown.is_cancelled() {
                return;
            }
            if was_up {
                tracing::warn!(address, role = role.name(), why, "worker lost");
                pause = BACKOFF.0;
            } else {
                tracing::debug!(address, role = role.name(), why, took = ?began.elapsed(), "worker not reached");
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn last_releases(&self) {
        self.shutdown.cancelled().await;
        let until = Instant::now() + LAST_RELEASES;
        while self.worker.load.load(Ordering::Acquire) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sets the state, closes the connection that it replaces, and says whether there was one.
    fn set(&self, state: State) -> bool {
        let member = &self.worker.member;
        let serving = matches!(state, State::Up { serving: true, .. });
        let labels = [member.model.as_str(), member.role.name(), member.address.as_str()];
        self.worker.metrics.worker_up.with_label_values(&labels).set(i64::from(serving));
        let before = self.worker.state.send_replace(state.clone());
        if let (State::Up { connection, .. }, State::Down(_)) = (&before, &state) {
            connection.close();
        }
        self.changes.tell();
        matches!(before, State::Up { .. })
    }

    /// Connects and delivers until the connection is lost; says why.
    async fn serve(&self) -> String {
        let (description, serving) = match self.look().await {
            Ok(seen) => seen,
            Err(why) => return why,
        };
        let (outgoing, requests) = mpsc::channel(OUTGOING_OPERATIONS);
        let opening = self.client();
        let opened = within(async move { { opening }.step(ReceiverStream::new(requests)).await }).await;
        let responses = match opened {
            Ok(responses) => responses,
            Err(why) => return why,
        };
        let connection = Arc::new(Connection::new(outgoing, description.vocabulary));
        let member = &self.worker.member;
        tracing::info!(address = member.address, role = member.role.name(), model = description.model, "worker up");
        self.set(State::Up { connection: Arc::clone(&connection), description: Arc::new(description), serving });
        tokio::select! {
            biased;
            why = connection.deliver(responses) => why,
            why = self.observe(&connection) => why,
        }
    }

    fn client(&self) -> WorkerClient<Channel> {
        WorkerClient::new(self.channel.clone())
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(transport::MAX_MESSAGE_BYTES)
    }

    /// Looks again and again, and at once when its health changes; ends when the worker has become another one or does not
    /// answer.
    async fn observe(&self, connection: &Arc<Connection>) -> String {
        let mut health = HealthClient::new(self.channel.clone());
        let mut health = match within(health.watch(health_request())).await {
            Ok(health) => health,
            Err(why) => return why,
        };
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(self.describe_interval) => {}
                changed = health.message() => match changed {
                    Ok(Some(_)) => {}
                    Ok(None) => return "it ended the watch of its health".to_owned(),
                    Err(status) => return status.message().to_owned(),
                },
            }
            match self.look().await {
                Ok((description, serving)) => {
                    let before = match &*self.worker.state.borrow() {
                        State::Up { description, .. } => Arc::clone(description),
                        State::Down(why) => return why.clone(),
                    };
                    if hosts(&before) != hosts(&description) {
                        return "it hosts another model now".to_owned();
                    }
                    let description = Arc::new(description);
                    self.set(State::Up { connection: Arc::clone(connection), description, serving });
                }
                Err(why) => return why,
            }
        }
    }

    /// What the worker says of itself, and whether it serves.
    async fn look(&self) -> Result<(worker::DescribeResponse, bool), String> {
        let mut client = self.client();
        let description = within(client.describe(worker::DescribeRequest {})).await?;
        if description.vocabulary == 0 || description.max_operation_tokens == 0 || description.context_tokens == 0 {
            return Err("it describes itself with a vocabulary, context or operation size of 0".to_owned());
        }
        let mut health = HealthClient::new(self.channel.clone());
        let health = within(health.check(health_request())).await?;
        Ok((description, health.status() == ServingStatus::Serving))
    }
}

/// What must not change while sessions run: the model and its adapters.
fn hosts(description: &worker::DescribeResponse) -> (&str, &[String], &[String]) {
    (&description.fingerprint, &description.adapters, &description.adapter_fingerprints)
}

fn health_request() -> HealthCheckRequest {
    HealthCheckRequest { service: HEALTH_SERVICE.to_owned() }
}

async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {CALL_DEADLINE:?}")),
    }
}
