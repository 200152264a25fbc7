//! What probes and Prometheus read.

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::{MetricRegistry, TEXT_FORMAT};

/// Routes `GET /health/live` and, by what `is_ready` says, `/health/ready`. Neither tells more than that.
pub fn health(is_ready: impl Fn() -> bool + Clone + Send + Sync + 'static) -> Router {
    let ready = move || async move {
        if is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
    };
    Router::new().route("/health/live", get(async || "live\n")).route("/health/ready", get(ready))
}

/// Routes `GET /metrics`.
pub fn metrics(registry: MetricRegistry) -> Router {
    Router::new().route("/metrics", get(async move || exposition(&registry)))
}

fn exposition(registry: &MetricRegistry) -> Response {
    match registry.text() {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
