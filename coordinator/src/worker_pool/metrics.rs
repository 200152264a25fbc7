//! What the worker pool counts.

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

/// From half a millisecond to half a minute.
pub(crate) const LATENCY_SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

cosec_proto::metrics! {
    /// Metrics of the workers and of what is exchanged with them.
    pub struct PoolMetrics {
        /// 1 while a worker is connected and serves.
        pub worker_up: IntGaugeVec = "cosec_worker_up" ["model", "role", "address"];
        /// 1 while a worker is connected and gets no new session, as it is not what its model asks for or not what most
        /// workers host.
        pub worker_left_out: IntGaugeVec = "cosec_worker_left_out" ["model", "role", "address"];
        /// 1 while a worker fails so often that it is avoided.
        pub circuit_open: IntGaugeVec = "cosec_worker_circuit_open" ["model", "role", "address"];
        /// Time of an operation by phase: `queue` and `compute` as the worker measured them, `wire` is the rest.
        pub step_seconds: HistogramVec = "cosec_step_seconds" ["role", "phase"] in LATENCY_SECONDS;
        /// Payload of operations by direction and by the view of the logits that was asked for.
        pub wire_bytes: IntCounterVec = "cosec_wire_bytes_total" ["model", "role", "direction", "view"];
    }
}
