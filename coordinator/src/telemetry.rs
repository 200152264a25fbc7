//! Tells what happens, at best: log lines on standard error, and spans to an OpenTelemetry collector where one is named.
//!
//! A trace is a request: its sessions, each with its operations at the workers (those that were withdrawn, too) and its
//! merges. Side by side they show the expert drafting while the base verifies, and what a rejection took back.

use std::io::IsTerminal;
use std::time::Duration;

use axum::http::{HeaderMap, Uri};
use clap::ValueEnum;
use cosec_proto::log_lines::{self, LogLines};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// How the collector knows this program.
const SERVICE: &str = "cosec-coordinator";

/// Time for the last spans to leave at shutdown.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

cosec_proto::metrics! {
    /// Metrics of what is told.
    pub struct TelemetryMetrics {
        /// Log lines that could not be written in time, or at all.
        pub dropped_lines: IntCounter = "cosec_log_lines_dropped_total";
    }
}

/// Where spans go.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Collector that takes OTLP over gRPC, such as `http://collector:4317`. Without one there are no spans.
    pub otlp_endpoint: Option<String>,
    /// Share of the traces that are kept of those that begin here, in [0, 1]. A caller's `traceparent` decides
    /// for itself.
    pub trace_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, trace_ratio: 1.0 }
    }
}

impl TelemetryConfig {
    /// What is wrong with it, by key.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(format!("telemetry.trace_ratio is {}; it must be from 0 to 1", self.trace_ratio));
        }
        let Some(endpoint) = &self.otlp_endpoint else { return Ok(()) };
        match endpoint.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Ok(()),
            Ok(_) | Err(_) => {
                Err(format!("telemetry.otlp_endpoint is {endpoint:?}; it must be like http://collector:4317"))
            }
        }
    }
}

/// The way to the collector; log lines need no closing.
#[derive(Debug)]
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter does not take the endpoint.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Called twice.
    #[error(transparent)]
    Init(#[from] TryInitError),
}

impl Telemetry {
    /// Begins to tell. `RUST_LOG` chooses what is logged, by default everything from `info` on; spans are always whole.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn start(log_format: LogFormat, config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let spans = config.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, config.trace_ratio));
        let spans = spans.transpose()?;
        let exported = spans.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(SERVICE))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::DEBUG))
        });
        let lines = fmt::layer()
            .with_writer(LogLines::standard_error)
            .with_ansi(std::io::stderr().is_terminal())
            .log_internal_errors(false);
        let lines: Box<dyn Layer<Registry> + Send + Sync> = match log_format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        let logged = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        tracing_subscriber::registry().with(lines.with_filter(logged)).with(exported).try_init()?;
        log_lines::log_panics();
        Ok(Self { spans })
    }

    /// Sends the last spans, for a moment at most.
    pub async fn stop(self) {
        let Some(spans) = self.spans else { return };
        let stopped = tokio::task::spawn_blocking(move || spans.shutdown_with_timeout(LAST_SPANS)).await;
        if let Ok(Err(cause)) = stopped {
            tracing::warn!(%cause, "the last spans were not sent");
        }
    }
}

fn provider(endpoint: &str, ratio: f64) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    // The queue of the batch exporter is bounded; what a slow collector does not take is dropped, and counted in the
    // log.
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_resource(Resource::builder().with_service_name(SERVICE).build())
        .build())
}

/// Makes `span` a part of the trace that a request's headers name (`traceparent`, W3C Trace Context).
pub(crate) fn continue_trace(span: &Span, headers: &HeaderMap) {
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Without a collector there are no traces to continue.
    let _ = span.set_parent(context);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let check = |endpoint: Option<&str>, trace_ratio: f64, named: Option<&str>| {
            let config = TelemetryConfig { otlp_endpoint: endpoint.map(str::to_owned), trace_ratio };
            match (config.validate(), named) {
                (Ok(()), None) => {}
                (Err(message), Some(named)) => assert!(message.contains(named), "{message}"),
                (outcome, named) => panic!("{outcome:?}, not {named:?}"),
            }
        };
        check(None, 0.0, None);
        check(Some("http://collector:4317"), 1.0, None);
        check(Some("collector:4317"), 1.0, Some("collector:4317"));
        check(Some("https://collector:4317"), 1.0, Some("otlp_endpoint"));
        check(Some("http://"), 1.0, Some("otlp_endpoint"));
        check(None, 1.5, Some("1.5"));
        check(None, f64::NAN, Some("trace_ratio"));
    }
}
