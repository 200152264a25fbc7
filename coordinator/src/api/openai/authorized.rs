//! Lets in only those who may ask, before anything of their body is read.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::api::error::ApiError;
use crate::api::state::ApiState;

/// Hands on the request with its tenant as an extension.
pub(super) async fn authorized(
    State(state): State<Arc<ApiState>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let tenant = state.auth.authorize(request.headers(), peer).await?;
    request.extensions_mut().insert(tenant);
    Ok(next.run(request).await)
}
