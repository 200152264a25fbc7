//! Metrics, each written once: the field that counts, its name, labels and help.
//!
//! A room declares its own with [`metrics!`](crate::metrics!); the help is the field's doc comment. A
//! [`MetricRegistry`] serves them to Prometheus and lists them for `docs/metrics.md`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use prometheus::{Error as MetricError, TEXT_FORMAT};

/// Declares a struct of metrics with a `register` that creates all of them.
///
/// ```
/// use prometheus::{HistogramVec, IntGauge};
///
/// cosec_proto::metrics! {
///     /// What the kitchen counts.
///     pub struct KitchenMetrics {
///         /// Pots on the stove.
///         pub pots: IntGauge = "kitchen_pots";
///         /// Time of a dish by course: `soup` or `pudding`.
///         pub dish_seconds: HistogramVec = "kitchen_dish_seconds" ["course"] in [1.0, 60.0, 600.0];
///     }
/// }
///
/// let registry = cosec_proto::metrics::MetricRegistry::default();
/// KitchenMetrics::register(&registry)?.pots.set(3);
/// assert!(registry.text()?.contains("kitchen_pots 3"));
/// assert_eq!(registry.families()[1].labels, ["course"]);
/// # Ok::<_, cosec_proto::metrics::MetricError>(())
/// ```
#[macro_export]
macro_rules! metrics {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                $field_visibility:vis $field:ident: $metric:ty
                    = $metric_name:literal $([$($label:literal),+])? $(in $buckets:expr)?;
            )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        $visibility struct $name {
            $($(#[doc = $help])+ $field_visibility $field: $metric,)+
        }

        impl $name {
            /// Creates and registers all of them.
            ///
            /// # Errors
            /// When a name is taken, which is a defect.
            $visibility fn register(
                registry: &$crate::metrics::MetricRegistry,
            ) -> Result<Self, $crate::metrics::MetricError> {
                Ok(Self {
                    $($field: registry.register(
                        $crate::metrics::MetricFamily::new::<$metric>($metric_name, concat!($($help),+), &[$($($label),+)?])
                            $(.in_buckets(&$buckets))?,
                    )?,)+
                })
            }
        }
    };
}

/// What Prometheus calls a family: the series of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricFamily {
    /// Begins with `cosec_`; ends with the unit, counters with `_total`.
    pub name: &'static str,
    /// What its type makes of it.
    pub kind: MetricKind,
    /// One sentence with a full stop; what labels may say stands in backquotes.
    pub help: &'static str,
    /// Names of the labels that a value must give.
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets.
    pub buckets: &'static [f64],
}

impl MetricFamily {
    /// A family of `M` without buckets.
    #[must_use]
    pub const fn new<M: MetricType>(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, kind: M::KIND, help: help.trim_ascii(), labels, buckets: &[] }
    }

    /// Sets the upper bounds of a histogram's buckets.
    #[must_use]
    pub const fn in_buckets(self, buckets: &'static [f64]) -> Self {
        Self { buckets, ..self }
    }

    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn histogram_options(&self) -> HistogramOpts {
        HistogramOpts::from(self.options()).buckets(self.buckets.to_vec())
    }
}

/// How the values of a family behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

impl fmt::Display for MetricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// A type of the fields that [`metrics!`](crate::metrics!) declares.
pub trait MetricType: Collector + Clone + 'static {
    /// What it is to Prometheus.
    const KIND: MetricKind;

    /// Creates the metrics of `family`, not yet registered.
    ///
    /// # Errors
    /// When a name is malformed.
    fn create(family: &MetricFamily) -> Result<Self, MetricError>;
}

macro_rules! metric_types {
    ($($metric:ty: $kind:ident, $create:expr;)+) => {
        $(impl MetricType for $metric {
            const KIND: MetricKind = MetricKind::$kind;

            fn create(family: &MetricFamily) -> Result<Self, MetricError> {
                let create: fn(&MetricFamily) -> Result<Self, MetricError> = $create;
                create(family)
            }
        })+
    };
}

metric_types! {
    IntCounter: Counter, |family| Self::with_opts(family.options());
    IntCounterVec: Counter, |family| Self::new(family.options(), family.labels);
    IntGauge: Gauge, |family| Self::with_opts(family.options());
    IntGaugeVec: Gauge, |family| Self::new(family.options(), family.labels);
    Histogram: Histogram, |family| Self::with_opts(family.histogram_options());
    HistogramVec: Histogram, |family| Self::new(family.histogram_options(), family.labels);
}

/// All metrics of a program. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MetricRegistry {
    registry: Registry,
    families: Arc<Mutex<Vec<MetricFamily>>>,
}

impl MetricRegistry {
    /// Every metric gets the label `name` with `value`.
    ///
    /// # Errors
    /// When the name is malformed.
    pub fn labelled(name: &str, value: &str) -> Result<Self, MetricError> {
        let labels = HashMap::from([(name.to_owned(), value.to_owned())]);
        Ok(Self { registry: Registry::new_custom(None, Some(labels))?, families: Arc::default() })
    }

    /// Creates the metrics of `family` and registers them.
    ///
    /// # Errors
    /// When the name is taken or malformed.
    pub fn register<M: MetricType>(&self, family: MetricFamily) -> Result<M, MetricError> {
        let metric = M::create(&family)?;
        self.registry.register(Box::new(metric.clone()))?;
        self.families.lock().push(family);
        Ok(metric)
    }

    /// What is registered, in that order.
    #[must_use]
    pub fn families(&self) -> Vec<MetricFamily> {
        self.families.lock().clone()
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// When a metric cannot be written.
    pub fn text(&self) -> Result<String, MetricError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
