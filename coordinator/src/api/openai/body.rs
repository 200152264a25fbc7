//! A request as it arrives: whose it is, its body, and what the client has of the answer already.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use cosec_proto::ErrorCode;
use futures::StreamExt;
use http_body::Body;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::resume::ReceivedEvents;
use crate::api::error::ApiError;
use crate::api::json_fields::JsonFields;
use crate::api::state::ApiState;
use crate::tenant::Tenant;

/// A request whose body is still to be parsed.
pub(super) struct OpenAiRequest {
    pub(super) tenant: Arc<Tenant>,
    pub(super) body: Bytes,
    /// What the client has of the answer already.
    pub(super) received: Option<ReceivedEvents>,
}

impl OpenAiRequest {
    pub(super) async fn read(tenant: Arc<Tenant>, request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let received = ReceivedEvents::read(request.headers(), &state.resume_key, &tenant.name)?;
        Ok(Self { tenant, received, body: json_body(request, state).await? })
    }
}

/// Longest body that is parsed on the spot, in bytes: that takes less time than the way to another thread and back.
const SHORT_BODY: usize = 16 << 10;

impl OpenAiRequest {
    /// Has the body parsed by `read`, on another thread where that takes time.
    ///
    /// # Errors
    /// As `read` says, or when there is no time for it.
    pub(super) async fn parsed<T: Send + 'static>(
        &self,
        state: &ApiState,
        read: fn(JsonFields<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let body = self.body.clone();
        let parse = move || read(JsonFields::parse(&body)?);
        if self.body.len() <= SHORT_BODY {
            return parse();
        }
        let until = Instant::now() + Duration::from_secs(state.config.request_timeout_seconds);
        state.generation.text_workers().run(&self.tenant, self.body.len(), until, move |_| parse()).await?
    }
}

/// Reads a body of JSON, no more of it and no longer than the configuration allows.
async fn json_body(request: Request, state: &ApiState) -> Result<Bytes, ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or("missing").trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let message = format!("content-type is {media_type:.60}; it must be application/json");
        return Err(ApiError::http_only(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let limit = state.config.body_bytes(state.generation.longest_context());
    let too_large = || ApiError::new(ErrorCode::PayloadTooLarge, format!("the body has more than {limit} bytes"));
    let body = request.into_body();
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let read = async {
        let mut bytes = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|cause| broken_off(&cause))?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(bytes))
    };
    let seconds = state.config.body_timeout_seconds;
    let late = |_| {
        let message = format!("the body did not arrive within {seconds} seconds");
        ApiError::http_only(StatusCode::REQUEST_TIMEOUT, message)
    };
    tokio::time::timeout(Duration::from_secs(seconds), read).await.map_err(late)?
}

/// Why a body did not arrive: the server had no room for it, or the client left.
fn broken_off(cause: &(dyn Error + 'static)) -> ApiError {
    let mut source = Some(cause);
    let mut refusal = None;
    while let (Some(cause), None) = (source, refusal) {
        refusal = cause.downcast_ref::<Status>();
        source = cause.source();
    }
    match refusal {
        Some(status) if status.code() == Code::ResourceExhausted => {
            ApiError::new(ErrorCode::Overloaded, status.message())
        }
        Some(_) | None => ApiError::new(ErrorCode::InvalidArgument, format!("the body broke off: {cause}")),
    }
}
