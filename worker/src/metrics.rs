//! The worker's metrics.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

/// From a tenth of a millisecond to 52 seconds.
const SECONDS: [f64; 20] = doubling(0.000_1);

/// Tokens of a pass, and those whose logits it computes.
const COUNTS: [f64; 13] = doubling(1.0);

cosec_proto::metrics! {
    /// All metrics of a worker.
    pub struct WorkerMetrics {
        /// Operations answered by kind and outcome.
        pub(crate) operations: IntCounterVec = "cosec_worker_operations_total" ["kind", "outcome"];
        /// Time from an operation's receipt to its first forward pass.
        pub(crate) queue_seconds: Histogram = "cosec_worker_queue_seconds" in SECONDS;
        /// Time of a forward pass: `prefill` (prompts only), `decode` (short operations only) or `mixed`.
        pub(crate) step_seconds: HistogramVec = "cosec_worker_step_seconds" ["phase"] in SECONDS;
        /// The part of a forward pass's time that went into views of its logits.
        pub(crate) logits_seconds: Histogram = "cosec_worker_logits_seconds" in SECONDS;
        /// Tokens fed by a forward pass.
        pub(crate) step_tokens: Histogram = "cosec_worker_step_tokens" in COUNTS;
        /// Tokens whose logits a forward pass computed.
        pub(crate) step_logits: Histogram = "cosec_worker_step_logits" in COUNTS;
        /// Open sessions.
        pub(crate) sessions: IntGauge = "cosec_worker_sessions";
        /// Open streams of coordinators.
        pub(crate) streams: IntGauge = "cosec_worker_streams";
        /// Blocks of the KV cache.
        pub(crate) total_blocks: IntGauge = "cosec_worker_blocks";
        /// Blocks of the KV cache that no session holds.
        pub(crate) free_blocks: IntGauge = "cosec_worker_blocks_free";
        /// Tokens of operations that are still to be fed; the manifests scale by it.
        pub(crate) queued_tokens: IntGauge = "cosec_worker_queued_tokens";
        /// Bytes of logits sent by view.
        pub(crate) logits_bytes: IntCounterVec = "cosec_worker_logits_bytes_total" ["view"];
        /// Tokens found in the cache instead of computed.
        pub(crate) shared_tokens: IntCounter = "cosec_worker_shared_prefix_tokens_total";
        /// Sessions that lost their blocks to an older one.
        pub(crate) preemptions: IntCounter = "cosec_worker_preemptions_total";
        /// Log lines that could not be written in time, or at all.
        pub(crate) dropped_lines: IntCounter = "cosec_worker_log_lines_dropped_total";
        /// Sessions that lost their place to another one while all were taken.
        pub(crate) displacements: IntCounter = "cosec_worker_displaced_sessions_total";
        /// 1 while the worker's entry is in etcd.
        pub(crate) registered: IntGauge = "cosec_worker_registered";
    }
}

/// `first`, and each of the others twice the one before.
const fn doubling<const N: usize>(first: f64) -> [f64; N] {
    let mut bounds = [first; N];
    let mut at = 1;
    while at < N {
        bounds[at] = 2.0 * bounds[at - 1];
        at += 1;
    }
    bounds
}
