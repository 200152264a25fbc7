//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cosec_proto::ErrorCode;
use tower_http::catch_panic::CatchPanicLayer;

use super::authorized::authorized;
use super::body::OpenAiRequest;
use super::observed::{RequestId, observed};
use super::{chat, completions, models, response};
use crate::api::error::ApiError;
use crate::api::state::ApiState;
use crate::tenant::Tenant;

/// Every path that HTTP serves.
pub fn router(state: Arc<ApiState>) -> Router {
    Router::new()
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(converse))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route_layer(middleware::from_fn_with_state(state.clone(), authorized))
        // Kubelets and load balancers have no key.
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .fallback(async || ApiError::new(ErrorCode::NotFound, "there is no such path; see /v1/models"))
        .method_not_allowed_fallback(async || {
            ApiError::http_only(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
        })
        .layer(CatchPanicLayer::custom(|_| ApiError::new(ErrorCode::Internal, "an internal error").into_response()))
        .layer(middleware::from_fn_with_state(state.clone(), observed))
        .with_state(state)
}

async fn complete(
    State(state): State<Arc<ApiState>>,
    Extension(id): Extension<RequestId>,
    Extension(tenant): Extension<Arc<Tenant>>,
    request: Request,
) -> Result<Response, ApiError> {
    let received = OpenAiRequest::read(tenant, request, &state).await?;
    let (request, shape, delivery) = received.parsed(&state, completions::read).await?;
    response::respond(&state, id, received, request, shape, delivery).await
}

async fn converse(
    State(state): State<Arc<ApiState>>,
    Extension(id): Extension<RequestId>,
    Extension(tenant): Extension<Arc<Tenant>>,
    request: Request,
) -> Result<Response, ApiError> {
    let received = OpenAiRequest::read(tenant, request, &state).await?;
    let (request, shape, delivery) = received.parsed(&state, chat::read).await?;
    response::respond(&state, id, received, request, shape, delivery).await
}

/// Says also which workers are left out, though others serve, to those who may know.
async fn ready(State(state): State<Arc<ApiState>>, headers: HeaderMap) -> Result<String, ApiError> {
    let is_insider = state.auth.is_insider(&headers).await;
    match state.generation.ready() {
        Ok(()) if is_insider => {
            let left_out = state.generation.left_out().map(|worker| format!("left out: {worker}\n"));
            Ok(left_out.fold("ready\n".to_owned(), |text, line| text + &line))
        }
        Ok(()) => Ok("ready\n".to_owned()),
        Err(error) if is_insider => Err(error),
        Err(error) => {
            tracing::debug!(message = error.message, "not ready");
            Err(ApiError::new(error.code, "not ready; the reason is told to those with an API key"))
        }
    }
}
