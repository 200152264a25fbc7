//! What the doors count. Sessions and workers count for themselves, into the same registry.

use std::sync::Arc;
use std::time::Instant;

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Upper bounds of the buckets of a request's time, in seconds.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

/// Requests by door (`http`, `grpc`), route and status.
pub struct DoorMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    in_flight: IntGaugeVec,
    resumed: IntCounter,
}

impl DoorMetrics {
    /// Creates and registers all of them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("cosec_door_requests_total", "Requests by door, route and status."),
            &["door", "route", "status"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("cosec_door_request_seconds", "Time from a request's head to the end of its answer.")
                .buckets(SECONDS.to_vec()),
            &["door", "route"],
        )?;
        let in_flight = IntGaugeVec::new(
            Opts::new("cosec_door_requests_in_flight", "Requests whose answer has not ended."),
            &["door"],
        )?;
        let resumed = IntCounter::new(
            "cosec_door_resumed_streams_total",
            "Streams that a client took up again with Last-Event-ID.",
        )?;
        registry.register(Box::new(resumed.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        Ok(Self { requests, seconds, in_flight, resumed })
    }

    /// Counts a stream that goes on.
    pub fn resumed(&self) {
        self.resumed.inc();
    }

    /// Counts a request until the returned value is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>, door: &'static str, route: String) -> RequestInFlight {
        self.in_flight.with_label_values(&[door]).inc();
        RequestInFlight { metrics: self.clone(), door, route, status: "cancelled".to_owned(), began: Instant::now() }
    }
}

/// One request; counted as `cancelled` until its status is known.
pub struct RequestInFlight {
    metrics: Arc<DoorMetrics>,
    door: &'static str,
    route: String,
    status: String,
    began: Instant,
}

impl RequestInFlight {
    /// Notes how it went.
    pub fn answered(&mut self, status: impl Into<String>) {
        self.status = status.into();
    }

    /// Time since its head was read.
    #[must_use]
    pub fn elapsed_ms(&self) -> u128 {
        self.began.elapsed().as_millis()
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        let (door, route) = (self.door, self.route.as_str());
        self.metrics.in_flight.with_label_values(&[door]).dec();
        self.metrics.requests.with_label_values(&[door, route, self.status.as_str()]).inc();
        self.metrics.seconds.with_label_values(&[door, route]).observe(self.began.elapsed().as_secs_f64());
    }
}
