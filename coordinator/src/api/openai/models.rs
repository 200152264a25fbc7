//! `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use cosec_proto::ErrorCode;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::state::ApiState;

/// All models, also those that cannot serve now.
pub(super) async fn list(State(state): State<Arc<ApiState>>) -> Json<Value> {
    let models: Vec<Value> = state.generation.models().iter().map(|info| model(&info.name, &state)).collect();
    Json(json!({"object": "list", "data": models}))
}

/// One model.
pub(super) async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if state.generation.models().iter().any(|info| info.name == id) {
        return Ok(Json(model(&id, &state)));
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("there is no model {id:.100?}")).of("model"))
}

fn model(name: &str, state: &ApiState) -> Value {
    json!({"id": name, "object": "model", "created": state.started, "owned_by": "cosec"})
}
