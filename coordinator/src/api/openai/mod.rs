//! The HTTP door: routes, bodies, request ids; what a request and an answer look like is told by the files beside.

mod completions;

mod chat;

mod models;

mod parameters;

mod answer;

mod resume;

mod sse;

pub use resume::{InvalidResumeKey, ResumeKey};

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cosec_proto::ErrorCode;
use cosec_proto::metrics::MetricRegistry;
use futures::StreamExt;
use http_body::{Frame, SizeHint};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use uuid::Uuid;

use self::resume::Received;
use super::Doors;
use super::error::ApiError;
use super::fields::Fields;
use crate::api::metrics::RequestInFlight;
use crate::telemetry;
use crate::tenant::Tenant;

/// Named in the response's `x-request-id` and, behind a prefix, in its `id`.
#[derive(Clone, Copy)]
struct RequestId(Uuid);

/// A request for an answer.
struct Asked {
    tenant: Arc<Tenant>,
    body: Bytes,
    /// What the client has of the answer already.
    received: Option<Received>,
}

impl Asked {
    async fn read(request: Request, doors: &Doors) -> Result<Self, ApiError> {
        let key = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let tenant = doors.tenant(key)?;
        let received = Received::read(request.headers(), &doors.resume_key)?;
        Ok(Self { tenant, received, body: json_body(request, doors).await? })
    }
}

/// All routes.
pub fn router(doors: Arc<Doors>, registry: MetricRegistry) -> Router {
    Router::new()
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(converse))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(move || async move { exposition(&registry) }))
        .fallback(async || ApiError::new(ErrorCode::NotFound, "there is no such path; see /v1/models"))
        .method_not_allowed_fallback(async || {
            ApiError::http_only(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
        })
        .layer(CatchPanicLayer::custom(|_| ApiError::new(ErrorCode::Internal, "an internal error").into_response()))
        .layer(middleware::from_fn_with_state(doors.clone(), observed))
        .with_state(doors)
}

async fn complete(
    State(doors): State<Arc<Doors>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::read(request, &doors).await?;
    let (raw, shape, delivery) = completions::read(Fields::parse(&asked.body)?)?;
    answer::respond(&doors, id, raw, shape, delivery, asked).await
}

async fn converse(
    State(doors): State<Arc<Doors>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::read(request, &doors).await?;
    let (raw, shape, delivery) = chat::read(Fields::parse(&asked.body)?)?;
    answer::respond(&doors, id, raw, shape, delivery, asked).await
}

async fn ready(State(doors): State<Arc<Doors>>) -> Result<&'static str, ApiError> {
    doors.ready().map(|()| "ready\n")
}

fn exposition(registry: &MetricRegistry) -> Result<String, ApiError> {
    let failed = |cause| ApiError::new(ErrorCode::Internal, format!("the metrics cannot be written: {cause}"));
    registry.text().map_err(failed)
}

/// Reads a body of JSON, no more of it and no longer than the configuration allows.
async fn json_body(request: Request, doors: &Doors) -> Result<Bytes, ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or("missing").trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let message = format!("content-type is {media_type:.60}; it must be application/json");
        return Err(ApiError::http_only(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let limit = doors.config.max_body_bytes;
    let too_large = || ApiError::new(ErrorCode::PayloadTooLarge, format!("the body has more than {limit} bytes"));
    let body = request.into_body();
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let read = async {
        let mut bytes = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let broken = |cause| ApiError::new(ErrorCode::InvalidArgument, format!("the body broke off: {cause}"));
            let chunk = chunk.map_err(broken)?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(bytes))
    };
    let seconds = doors.config.body_timeout_seconds;
    let late = |_| {
        let message = format!("the body did not arrive within {seconds} seconds");
        ApiError::http_only(StatusCode::REQUEST_TIMEOUT, message)
    };
    tokio::time::timeout(Duration::from_secs(seconds), read).await.map_err(late)?
}

/// Gives a request its id, and counts it until its answer's last byte.
async fn observed(State(doors): State<Arc<Doors>>, mut request: Request, next: Next) -> Response {
    let request_id = Uuid::new_v4();
    let id = request_id.simple().to_string();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let probe = route.starts_with("/health/") || route == "/metrics";
    let span = tracing::info_span!("request", otel.kind = "server", id, method = %request.method(), route);
    telemetry::continue_trace(&span, request.headers());
    let mut in_flight = doors.metrics.begin("http", route);
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
    _in_flight: RequestInFlight,
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
