//! Keeps the connection to a worker up for as long as it is a member, and learns what the worker says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cosec_proto::transport;
use cosec_proto::wire::worker::DescribeRequest;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::{AdapterDescription, InvalidDescription, WorkerDescription};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::changes::ChangeCount;
use super::connection::{OUTGOING_OPERATIONS, WorkerConnection, beginning};
use super::worker::{Worker, WorkerState};
use crate::discovery::Member;

/// Pauses between attempts to connect grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// For Describe, the health check and the opening of the stream.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Name of the worker's service in the health protocol.
const HEALTH_SERVICE: &str = "cosec.worker.v1.Worker";

/// How long sessions may give their caches back after shutdown.
const LAST_RELEASES: Duration = Duration::from_secs(1);

/// Keeps a worker's connection up.
pub(super) struct Reconnector {
    pub(super) worker: Arc<Worker>,
    pub(super) channel: Channel,
    pub(super) describe_interval: Duration,
    pub(super) shutdown: CancellationToken,
    /// Told of every change of state.
    pub(super) changes: Arc<ChangeCount>,
}

impl Reconnector {
    /// Connects, serves, connects again, until shutdown.
    pub(super) async fn run(self) {
        self.keep_up().await;
        for gauge in [&self.worker.metrics.worker_up, &self.worker.metrics.circuit_open] {
            // A worker that is no member any more has no state to show, and may have shown none.
            let _ = gauge.remove_label_values(&self.worker.labels());
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
            let was_up = self.set(WorkerState::Down(why.clone()));
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
    fn set(&self, state: WorkerState) -> bool {
        let serving = matches!(state, WorkerState::Up { serving: true, .. });
        self.worker.metrics.worker_up.with_label_values(&self.worker.labels()).set(i64::from(serving));
        let before = self.worker.state.send_replace(state.clone());
        if let (WorkerState::Up { connection, .. }, WorkerState::Down(_)) = (&before, &state) {
            connection.close();
        }
        self.changes.tell();
        matches!(before, WorkerState::Up { .. })
    }

    /// Connects and delivers until the connection is lost; says why.
    async fn serve(&self) -> String {
        let (description, serving) = match self.look().await {
            Ok(seen) => seen,
            Err(why) => return why,
        };
        let (outgoing, requests) = mpsc::channel(OUTGOING_OPERATIONS);
        let opening = self.client();
        let opened = within(async move {
            { opening }.step(transport::with_protocol_version(ReceiverStream::new(requests))).await
        })
        .await;
        let responses = match opened {
            Ok(responses) => responses,
            Err(why) => return why,
        };
        let connection = Arc::new(WorkerConnection::new(outgoing, description.limits.vocabulary));
        let member = &self.worker.member;
        let WorkerDescription { model, fingerprint, adapters, .. } = &description;
        tracing::info!(
            address = member.address,
            role = member.role.name(),
            model,
            fingerprint,
            ?adapters,
            "worker up"
        );
        self.set(WorkerState::Up {
            connection: Arc::clone(&connection),
            description: Arc::new(description),
            serving,
        });
        tokio::select! {
            biased;
            why = connection.deliver(responses) => why,
            why = self.observe(&connection) => why,
        }
    }

    fn client(&self) -> WorkerClient<Channel> {
        WorkerClient::new(self.channel.clone())
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(transport::MAX_REQUEST_BYTES)
    }

    /// Looks again and again, and at once when its health changes; ends when the worker has become another one or does
    /// not answer.
    async fn observe(&self, connection: &Arc<WorkerConnection>) -> String {
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
                    Err(status) => return beginning(status.message()).to_owned(),
                },
            }
            match self.look().await {
                Ok((description, serving)) => {
                    let before = self.worker.description();
                    if before.is_none_or(|(before, _)| hosts(&before) != hosts(&description)) {
                        return "it hosts another model now".to_owned();
                    }
                    let description = Arc::new(description);
                    self.set(WorkerState::Up { connection: Arc::clone(connection), description, serving });
                }
                Err(why) => return why,
            }
        }
    }

    /// What the worker says of itself, and whether it serves.
    async fn look(&self) -> Result<(WorkerDescription, bool), String> {
        let mut client = self.client();
        let description = within(client.describe(DescribeRequest {})).await?;
        let description = WorkerDescription::try_from(description).map_err(|error| self.left_out(&error))?;
        let mut health = HealthClient::new(self.channel.clone());
        let health = within(health.check(health_request())).await?;
        Ok((description, health.status() == ServingStatus::Serving))
    }

    /// Why a worker that answers cannot be used; logged when it is news.
    fn left_out(&self, error: &InvalidDescription) -> String {
        let (why, Member { address, role, .. }) = (error.to_string(), &self.worker.member);
        let is_known = matches!(&*self.worker.state.borrow(), WorkerState::Down(before) if *before == why);
        if !is_known {
            tracing::warn!(address, role = role.name(), why, "worker left out");
        }
        why
    }
}

/// What must not change while sessions run: the model and its adapters.
fn hosts(description: &WorkerDescription) -> (&str, &[AdapterDescription]) {
    (&description.fingerprint, &description.adapters)
}

fn health_request() -> HealthCheckRequest {
    HealthCheckRequest { service: HEALTH_SERVICE.to_owned() }
}

async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(beginning(status.message()).to_owned()),
        Err(_) => Err(format!("no answer within {CALL_DEADLINE:?}")),
    }
}
