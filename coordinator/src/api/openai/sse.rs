//! Server-sent events as OpenAI frames them: an `id:` and a `data:` line per chunk, `[DONE]` at the end.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use serde_json::Value;

use crate::api::error::ApiError;

/// Pause after which a comment shows clients and proxies that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Sends `chunks` with their ids, then `[DONE]`; an error becomes the last event instead, so that no stream just breaks
/// off.
pub(super) fn response(chunks: impl Stream<Item = Result<(String, Value), ApiError>> + Send + 'static) -> Response {
    let events = stream::unfold(Some(Box::pin(chunks)), |open| async move {
        let mut chunks = open?;
        let (event, open) = match chunks.next().await {
            Some(Ok((id, chunk))) => (Event::default().id(id).data(chunk.to_string()), Some(chunks)),
            Some(Err(error)) => {
                tracing::warn!(code = error.code.name(), message = error.message, "stream failed");
                (Event::default().data(error.object().to_string()), None)
            }
            None => (Event::default().data("[DONE]"), None),
        };
        Some((Ok::<_, Infallible>(event), open))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("still here")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use cosec_proto::ErrorCode;
    use serde_json::json;

    use super::*;

    fn chunk(id: &str, data: Value) -> Result<(String, Value), ApiError> {
        Ok((id.to_owned(), data))
    }

    async fn body(chunks: impl Stream<Item = Result<(String, Value), ApiError>> + Send + 'static) -> String {
        let body = to_bytes(response(chunks).into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn frames_end_with_done() {
        let chunks = stream::iter([chunk("a", json!({"text": "a\nb"})), chunk("b", json!(2))]);
        let framed = "id: a\ndata: {\"text\":\"a\\nb\"}\n\nid: b\ndata: 2\n\ndata: [DONE]\n\n";
        assert_eq!(body(chunks).await, framed);
    }

    #[tokio::test]
    async fn an_error_is_the_last_event() {
        let chunks =
            stream::iter([chunk("a", json!(1)), Err(ApiError::new(ErrorCode::Internal, "no")), chunk("b", json!(2))]);
        let error = r#"{"error":{"code":"internal","message":"no","param":null,"type":"server_error"}}"#;
        assert_eq!(body(chunks).await, format!("id: a\ndata: 1\n\ndata: {error}\n\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments() {
        let slow = stream::once(async {
            tokio::time::sleep(2 * HEARTBEAT + Duration::from_secs(1)).await;
            chunk("a", json!(1))
        });
        assert_eq!(body(slow).await, ": still here\n\n: still here\n\nid: a\ndata: 1\n\ndata: [DONE]\n\n");
    }
}
