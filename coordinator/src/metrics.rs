//! All metrics of a coordinator.

use std::sync::Arc;

use cosec_proto::metrics::{MetricError, MetricRegistry};

use crate::api::metrics::ApiMetrics;
use crate::discovery::DiscoveryMetrics;
use crate::session::service::ServiceMetrics;
use crate::telemetry::TelemetryMetrics;
use crate::tenant::metrics::TenantMetrics;

/// The metrics of every room.
#[expect(missing_docs, reason = "the field names say it")]
#[derive(Clone)]
pub struct CoordinatorMetrics {
    pub api: Arc<ApiMetrics>,
    pub service: ServiceMetrics,
    pub discovery: DiscoveryMetrics,
    pub telemetry: TelemetryMetrics,
    pub tenants: TenantMetrics,
}

impl CoordinatorMetrics {
    /// Creates and registers all of them.
    ///
    /// # Errors
    /// When two have the same name, which is a defect.
    pub fn register(registry: &MetricRegistry) -> Result<Self, MetricError> {
        Ok(Self {
            api: Arc::new(ApiMetrics::register(registry)?),
            service: ServiceMetrics::register(registry)?,
            discovery: DiscoveryMetrics::register(registry)?,
            telemetry: TelemetryMetrics::register(registry)?,
            tenants: TenantMetrics::register(registry)?,
        })
    }
}
