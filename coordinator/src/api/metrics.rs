//! What the API counts.

use std::sync::Arc;
use std::time::Instant;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};

/// Upper bounds of the buckets of a request's time.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

cosec_proto::metrics! {
    /// Metrics of requests; their protocol is `http` or `grpc`.
    pub struct ApiMetrics {
        /// Requests by route and status.
        requests: IntCounterVec = "cosec_http_requests_total" ["protocol", "route", "status"];
        /// Time from a request's head to the end of its answer.
        seconds: HistogramVec = "cosec_http_request_seconds" ["protocol", "route"] in SECONDS;
        /// Requests whose answer has not ended.
        in_flight: IntGaugeVec = "cosec_http_requests_in_flight" ["protocol"];
        /// Streams that a client took up again with `Last-Event-ID`.
        resumed: IntCounter = "cosec_http_resumed_streams_total";
    }
}

impl ApiMetrics {
    /// Counts a stream that goes on.
    pub fn resumed(&self) {
        self.resumed.inc();
    }

    /// Counts a request until the returned value is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>, protocol: &'static str, route: String) -> InFlightRequest {
        self.in_flight.with_label_values(&[protocol]).inc();
        InFlightRequest {
            metrics: self.clone(),
            protocol,
            route,
            status: "cancelled".to_owned(),
            began: Instant::now(),
        }
    }
}

/// One request; counted as `cancelled` until its status is known.
pub struct InFlightRequest {
    metrics: Arc<ApiMetrics>,
    protocol: &'static str,
    route: String,
    status: String,
    began: Instant,
}

impl InFlightRequest {
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

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let (protocol, route) = (self.protocol, self.route.as_str());
        self.metrics.in_flight.with_label_values(&[protocol]).dec();
        self.metrics.requests.with_label_values(&[protocol, route, self.status.as_str()]).inc();
        self.metrics.seconds.with_label_values(&[protocol, route]).observe(self.began.elapsed().as_secs_f64());
    }
}
