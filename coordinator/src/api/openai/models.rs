//! `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::state::ApiState;
use crate::tenant::Tenant;

/// All models that the tenant may use, also those that cannot serve now.
pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    Extension(tenant): Extension<Arc<Tenant>>,
) -> Json<Value> {
    let models = state.generation.models(&tenant.policy);
    let models: Vec<Value> = models.iter().map(|info| model(&info.name, &state)).collect();
    Json(json!({"object": "list", "data": models}))
}

/// One model.
pub(super) async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Extension(tenant): Extension<Arc<Tenant>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if state.generation.models(&tenant.policy).iter().any(|info| info.name == id) {
        return Ok(Json(model(&id, &state)));
    }
    Err(ApiError::unknown_model(&id))
}

fn model(name: &str, state: &ApiState) -> Value {
    json!({"id": name, "object": "model", "created": state.started, "owned_by": "cosec"})
}
