//! The gRPC service of a mock worker.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cosec_proto::transport;
use cosec_proto::wire::worker::worker_server::WorkerServer;
use cosec_proto::wire::worker::{self, step_request};
use futures::Stream;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_server::{Health, HealthServer};

use super::batching::{Hosted, Passes};
use super::behaviour::WorkerBehaviour;
use super::model::MockModel;
use super::session_cache::MockEngine;
use crate::grpc_server;

/// Mock workers so far, and one: each counts as a process of its own.
static INSTANCES: AtomicU64 = AtomicU64::new(1);

/// The gRPC service of a mock worker.
pub struct Service<C>(pub(super) Arc<Hosted<C>>);

impl<C> Clone for Service<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: WorkerBehaviour> Service<C> {
    /// Without sessions.
    #[must_use]
    pub fn new(model: MockModel, behaviour: C) -> Self {
        let (engine, cancelled) = (MockEngine::new(model), AtomicU64::new(0));
        let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Hosted { engine, behaviour, instance, cancelled }))
    }

    /// Its caches and model.
    #[must_use]
    pub fn engine(&self) -> &MockEngine {
        &self.0.engine
    }

    /// How it behaves.
    #[must_use]
    pub fn behaviour(&self) -> &C {
        &self.0.behaviour
    }

    /// With the limits of a real worker.
    #[must_use]
    pub fn server(&self) -> WorkerServer<Self> {
        WorkerServer::new(self.clone())
            .max_decoding_message_size(transport::MAX_REQUEST_BYTES)
            .max_encoding_message_size(transport::MAX_MESSAGE_BYTES)
    }

    pub(super) async fn serve(
        &self,
        health: HealthServer<impl Health>,
        listener: TcpListener,
    ) -> Result<(), tonic::transport::Error> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        grpc_server::server().add_service(health).add_service(self.server()).serve_with_incoming(incoming).await
    }
}

#[tonic::async_trait]
impl<C: WorkerBehaviour> worker::worker_server::Worker for Service<C> {
    async fn describe(
        &self,
        _: Request<worker::DescribeRequest>,
    ) -> Result<Response<worker::DescribeResponse>, Status> {
        let model = &self.0.engine.model;
        let truth = worker::DescribeResponse {
            role: worker::Role::from(model.role).into(),
            model: "mock".to_owned(),
            fingerprint: model.fingerprint.clone(),
            tokenizer_fingerprint: model.tokenizer_fingerprint.clone(),
            vocabulary: model.vocabulary,
            context_tokens: model.context_tokens,
            end_token_ids: model.end_token_ids.clone(),
            max_operation_tokens: model.max_operation_tokens,
            sessions: self.0.engine.sessions() as u32,
            protocol_version: model.protocol_version,
            instance: self.0.instance,
            ..worker::DescribeResponse::default()
        };
        Ok(Response::new(self.0.behaviour.describe(truth).await?))
    }

    type TokenizerStream = Pin<Box<dyn Stream<Item = Result<worker::TokenizerResponse, Status>> + Send>>;

    async fn tokenizer(
        &self,
        _: Request<worker::TokenizerRequest>,
    ) -> Result<Response<Self::TokenizerStream>, Status> {
        Err(Status::unimplemented("a mock worker has no tokenizer"))
    }

    type StepStream = Pin<Box<dyn Stream<Item = Result<worker::StepResponse, Status>> + Send>>;

    async fn step(
        &self,
        request: Request<Streaming<worker::StepRequest>>,
    ) -> Result<Response<Self::StepStream>, Status> {
        let mut requests = request.into_inner();
        let (queue, queued) = mpsc::channel(1024);
        let (responses, answered) = mpsc::channel(1024);
        self.0.behaviour.opened(&responses);
        let withdrawn = Arc::new(Mutex::new(HashSet::new()));
        let noted = Arc::clone(&withdrawn);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(step_request::Operation::Cancel(cancel)) = request.operation {
                    noted.lock().insert(cancel.target);
                } else if queue.send((request, Instant::now())).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(Passes { hosted: Arc::clone(&self.0), withdrawn, responses, batch: Vec::new() }.run(queued));
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }
}
