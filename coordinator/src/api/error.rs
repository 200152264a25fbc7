//! Failures as clients see them: OpenAI's error object on HTTP, a status on gRPC.
//!
//! Both come from [`ErrorCode`]; nothing else here or in the handlers decides a status, but for the four that only HTTP
//! knows (a wrong method, a wrong content type, a body that does not arrive, a stream that cannot be continued).

use std::fmt::Display;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cosec_proto::ErrorCode;
use serde_json::{Value, json};

use crate::policy::PolicyViolation;
use crate::request::SessionError;
use crate::text_work::TextWorkError;

/// Seconds after which a refused client should try again where nobody knows better: a worker that comes back is found
/// within a few.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A failure with what a client needs to act on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Which status it becomes.
    pub code: ErrorCode,
    /// A plain sentence that names field, value and what is allowed.
    pub message: String,
    /// The request's field, as a path: `logit_bias.50256`, `messages[2].role`.
    pub parameter: Option<String>,
    /// When to try again, where that could be estimated.
    pub retry_after_seconds: Option<u64>,
    http_only: Option<StatusCode>,
}

impl ApiError {
    /// A failure that no single field causes.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), parameter: None, retry_after_seconds: None, http_only: None }
    }

    /// A field whose value is not allowed.
    pub fn value(parameter: impl Into<String>, value: impl Display, allowed: impl Display) -> Self {
        let parameter = parameter.into();
        let message = format!("{parameter} is {value}; it must be {allowed}");
        Self::field(parameter, message)
    }

    /// A field that is wrong for the reason that `message` gives.
    pub fn field(parameter: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message).of(parameter)
    }

    /// A model that there is not, or not for this tenant: nobody learns which.
    #[must_use]
    pub fn unknown_model(name: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no model {name:.100?}")).of("model")
    }

    /// Names the field.
    #[must_use]
    pub fn of(mut self, parameter: impl Into<String>) -> Self {
        self.parameter = Some(parameter.into());
        self
    }

    /// A failure for which HTTP has a status of its own and gRPC has not.
    #[must_use]
    pub(crate) fn http_only(status: StatusCode, message: impl Into<String>) -> Self {
        Self { http_only: Some(status), ..Self::new(ErrorCode::InvalidArgument, message) }
    }

    /// OpenAI's error object.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": openai_type(self.code),
            "param": self.parameter,
            "code": self.code.name(),
        }})
    }

    fn status(&self) -> StatusCode {
        let table = || StatusCode::from_u16(self.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.http_only.unwrap_or_else(table)
    }
}

/// OpenAI's coarse classes, by which their clients choose an exception.
fn openai_type(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidArgument
        | ErrorCode::ContextLengthExceeded
        | ErrorCode::Unauthenticated
        | ErrorCode::NotFound
        | ErrorCode::PayloadTooLarge
        | ErrorCode::Cancelled => "invalid_request_error",
        ErrorCode::Overloaded => "rate_limit_error",
        ErrorCode::OutOfBlocks
        | ErrorCode::DeadlineExceeded
        | ErrorCode::Unavailable
        | ErrorCode::ExpertUnavailable
        | ErrorCode::ModelMismatch => "service_unavailable_error",
        ErrorCode::WorkerFault | ErrorCode::Internal => "server_error",
    }
}

impl From<PolicyViolation> for ApiError {
    fn from(violation: PolicyViolation) -> Self {
        Self::field(violation.parameter, violation.message)
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        Self { retry_after_seconds: error.retry_after_seconds, ..Self::new(error.code, error.message) }
    }
}

impl From<TextWorkError> for ApiError {
    fn from(error: TextWorkError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<ApiError> for tonic::Status {
    fn from(error: ApiError) -> Self {
        let message = match &error.parameter {
            Some(parameter) if !error.message.contains(parameter.as_str()) => {
                format!("{parameter}: {}", error.message)
            }
            _ => error.message,
        };
        Self::new(error.code.grpc(), message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(code = self.code.name(), message = self.message, "request failed");
        } else {
            tracing::debug!(code = self.code.name(), message = self.message, "request refused");
        }
        let retry_after_seconds = self.retry_after_seconds.unwrap_or(RETRY_AFTER_SECONDS);
        let mut response = (status, Json(self.object())).into_response();
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, 11.6.1: a 401 names what it asks for.
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"cosec\""));
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_statuses() {
        let check = |code: ErrorCode, http: u16, class: &str, retry: bool| {
            let error = ApiError::new(code, "no").of("n");
            assert_eq!(
                error.object(),
                json!({"error": {"message": "no", "type": class, "param": "n", "code": code.name()}})
            );
            assert_eq!(tonic::Status::from(error.clone()).code(), code.grpc());
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), http);
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), retry, "{code}");
            assert_eq!(response.headers().contains_key(header::WWW_AUTHENTICATE), http == 401, "{code}");
        };
        check(ErrorCode::InvalidArgument, 400, "invalid_request_error", false);
        check(ErrorCode::ContextLengthExceeded, 400, "invalid_request_error", false);
        check(ErrorCode::Unauthenticated, 401, "invalid_request_error", false);
        check(ErrorCode::NotFound, 404, "invalid_request_error", false);
        check(ErrorCode::PayloadTooLarge, 413, "invalid_request_error", false);
        check(ErrorCode::Overloaded, 429, "rate_limit_error", true);
        check(ErrorCode::OutOfBlocks, 503, "service_unavailable_error", true);
        check(ErrorCode::Cancelled, 499, "invalid_request_error", false);
        check(ErrorCode::DeadlineExceeded, 504, "service_unavailable_error", false);
        check(ErrorCode::Unavailable, 503, "service_unavailable_error", true);
        check(ErrorCode::ExpertUnavailable, 503, "service_unavailable_error", true);
        check(ErrorCode::ModelMismatch, 503, "service_unavailable_error", true);
        check(ErrorCode::WorkerFault, 502, "server_error", false);
        check(ErrorCode::Internal, 500, "server_error", false);
    }

    #[test]
    fn grpc_messages_name_the_field_once() {
        let named = tonic::Status::from(ApiError::value("n", 0, "from 1 to 128"));
        assert_eq!(named.message(), "n is 0; it must be from 1 to 128");
        let unnamed = tonic::Status::from(ApiError::new(ErrorCode::NotFound, "no such thing").of("model"));
        assert_eq!(unnamed.message(), "model: no such thing");
    }
}
