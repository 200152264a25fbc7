//! What Prometheus scrapes.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder, exponential_buckets,
};

/// All figures of a worker.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(crate) operations: IntCounterVec,
    pub(crate) queue_seconds: Histogram,
    pub(crate) step_seconds: HistogramVec,
    pub(crate) rows_seconds: Histogram,
    pub(crate) step_tokens: Histogram,
    pub(crate) step_rows: Histogram,
    pub(crate) sessions: IntGauge,
    pub(crate) streams: IntGauge,
    pub(crate) total_blocks: IntGauge,
    pub(crate) free_blocks: IntGauge,
    pub(crate) queued_tokens: IntGauge,
    pub(crate) row_bytes: IntCounterVec,
    pub(crate) shared_tokens: IntCounter,
    pub(crate) preemptions: IntCounter,
    pub(crate) registered: IntGauge,
}

impl Metrics {
    /// Registers every figure in a registry of its own, labelled with the worker's `role`.
    ///
    /// # Errors
    /// When two figures have the same name, which is a defect.
    pub fn new(role: &str) -> Result<Self, prometheus::Error> {
        let labels = HashMap::from([("role".to_owned(), role.to_owned())]);
        let registry = Registry::new_custom(None, Some(labels))?;
        let seconds = exponential_buckets(0.000_1, 2.0, 20)?;
        let counts = exponential_buckets(1.0, 2.0, 13)?;
        let metrics = Self {
            operations: IntCounterVec::new(
                Opts::new("cosec_worker_operations_total", "Operations answered, by kind and outcome."),
                &["kind", "outcome"],
            )?,
            queue_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "cosec_worker_queue_seconds",
                    "Time of operations from receipt to their first forward pass.",
                )
                .buckets(seconds.clone()),
            )?,
            step_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "cosec_worker_step_seconds",
                    "Time of a forward pass, by phase: prefill (prompts only), decode (short operations only), mixed.",
                )
                .buckets(seconds.clone()),
                &["phase"],
            )?,
            rows_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "cosec_worker_rows_seconds",
                    "Time of a forward pass that went into views of its rows; part of cosec_worker_step_seconds.",
                )
                .buckets(seconds),
            )?,
            step_tokens: Histogram::with_opts(
                HistogramOpts::new("cosec_worker_step_tokens", "Tokens fed by a forward pass.").buckets(counts.clone()),
            )?,
            step_rows: Histogram::with_opts(
                HistogramOpts::new("cosec_worker_step_rows", "Rows of logits computed by a forward pass.")
                    .buckets(counts),
            )?,
            sessions: IntGauge::new("cosec_worker_sessions", "Open sessions.")?,
            streams: IntGauge::new("cosec_worker_streams", "Open streams of coordinators.")?,
            total_blocks: IntGauge::new("cosec_worker_blocks", "Blocks of the KV cache.")?,
            free_blocks: IntGauge::new("cosec_worker_blocks_free", "Blocks of the KV cache that no session holds.")?,
            queued_tokens: IntGauge::new("cosec_worker_queued_tokens", "Tokens of operations that are still to be fed.")?,
            row_bytes: IntCounterVec::new(
                Opts::new("cosec_worker_row_bytes_total", "Bytes of rows sent, by view."),
                &["view"],
            )?,
            shared_tokens: IntCounter::new(
                "cosec_worker_shared_prefix_tokens_total",
                "Tokens found in the cache instead of computed.",
            )?,
            preemptions: IntCounter::new(
                "cosec_worker_preemptions_total",
                "Sessions that lost their blocks to an older one.",
            )?,
            registered: IntGauge::new("cosec_worker_registered", "Whether the worker's entry stands in etcd.")?,
            registry,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(self.operations.clone()))?;
        self.registry.register(Box::new(self.queue_seconds.clone()))?;
        self.registry.register(Box::new(self.step_seconds.clone()))?;
        self.registry.register(Box::new(self.rows_seconds.clone()))?;
        self.registry.register(Box::new(self.step_tokens.clone()))?;
        self.registry.register(Box::new(self.step_rows.clone()))?;
        self.registry.register(Box::new(self.sessions.clone()))?;
        self.registry.register(Box::new(self.streams.clone()))?;
        self.registry.register(Box::new(self.total_blocks.clone()))?;
        self.registry.register(Box::new(self.free_blocks.clone()))?;
        self.registry.register(Box::new(self.queued_tokens.clone()))?;
        self.registry.register(Box::new(self.row_bytes.clone()))?;
        self.registry.register(Box::new(self.shared_tokens.clone()))?;
        self.registry.register(Box::new(self.preemptions.clone()))?;
        self.registry.register(Box::new(self.registered.clone()))
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// When a figure cannot be written.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Routes `GET /metrics`.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().route("/metrics", get(async move || self.response()))
    }

    fn response(&self) -> axum::response::Response {
        match self.text() {
            Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
            Err(error) => {
                tracing::error!(%error, "metrics cannot be written");
                axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}
