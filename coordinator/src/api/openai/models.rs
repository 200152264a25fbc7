//! `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use cosec_proto::ErrorCode;
use serde_json::{Value, json};

use crate::api::Doors;
use crate::api::error::ApiError;

/// All models, also those that cannot serve now.
pub(super) async fn list(State(doors): State<Arc<Doors>>) -> Json<Value> {
    let models: Vec<Value> = doors.generator.models().iter().map(|info| model(&info.name, &doors)).collect();
    Json(json!({"object": "list", "data": models}))
}

/// One model.
pub(super) async fn retrieve(
    State(doors): State<Arc<Doors>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if doors.generator.models().iter().any(|info| info.name == id) {
        return Ok(Json(model(&id, &doors)));
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("there is no model {id:.100?}")).of("model"))
}

fn model(name: &str, doors: &Doors) -> Value {
    json!({"id": name, "object": "model", "created": doors.started, "owned_by": "cosec"})
}
