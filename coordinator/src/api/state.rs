//! What the handlers of HTTP and gRPC share.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::auth::RequestAuth;
use super::config::ApiConfig;
use super::metrics::ApiMetrics;
use super::openai::resume::ResumeKey;
use crate::generation::GenerationService;

/// What the handlers of HTTP and gRPC share.
pub struct ApiState {
    /// Serves the requests that the handlers have read.
    pub generation: GenerationService,
    /// Whose requests are whose.
    pub auth: RequestAuth,
    /// Continues the streams of all coordinators that have it.
    pub resume_key: ResumeKey,
    /// Bounds on bodies.
    pub config: ApiConfig,
    /// What the handlers count.
    pub metrics: Arc<ApiMetrics>,
    /// When, in seconds since 1970.
    pub started: u64,
}

/// Seconds since 1970.
#[must_use]
pub fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
