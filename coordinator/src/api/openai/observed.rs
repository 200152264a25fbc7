//! Gives every request an id, a span and its place in the metrics.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tracing::Instrument;
use uuid::Uuid;

use crate::api::metrics::InFlightRequest;
use crate::api::state::ApiState;
use crate::telemetry;

/// Named in the response's `x-request-id` and, after a prefix, in its `id`.
#[derive(Clone, Copy)]
pub(super) struct RequestId(pub(super) Uuid);

/// Gives a request its id, and counts it until its answer's last byte.
pub(super) async fn observed(State(state): State<Arc<ApiState>>, mut request: Request, next: Next) -> Response {
    let request_id = Uuid::new_v4();
    let id = request_id.simple().to_string();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let probe = route.starts_with("/health/");
    let span = tracing::info_span!("request", otel.kind = "server", id, method = %request.method(), route);
    telemetry::continue_trace(&span, request.headers());
    let mut in_flight = state.metrics.begin("http", route);
    request.extensions_mut().insert(RequestId(request_id));
    async move {
        let mut response = next.run(request).await;
        in_flight.answered(response.status().as_str());
        let (status, ms) = (response.status().as_u16(), in_flight.elapsed_ms());
        if probe {
            tracing::debug!(status, ms, "answered");
        } else {
            tracing::info!(status, ms, "answered");
        }
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("x-request-id", value);
        }
        response.map(|body| Body::new(ObservedBody { body, _in_flight: in_flight }))
    }
    .instrument(span)
    .await
}

/// A body that counts as in flight until it is sent or given up.
struct ObservedBody {
    body: Body,
    _in_flight: InFlightRequest,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
