//! Samples: a time and a value.

use std::sync::Arc;

use crate::histogram::Histogram;
use crate::time::Millis;

/// The NaN that says "this series ended here". A sample with exactly these bits is never shown to a user.
/// Source: `prometheus model/value/value.go`.
pub const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;
/// The NaN Prometheus makes for a value that is not a number.
pub const NORMAL_NAN_BITS: u64 = 0x7ff8_0000_0000_0001;

/// The staleness marker as a float.
#[must_use]
pub fn stale_nan() -> f64 {
    f64::from_bits(STALE_NAN_BITS)
}

/// Whether a float is the staleness marker (another NaN is not).
#[inline]
#[must_use]
pub fn is_stale(value: f64) -> bool {
    value.to_bits() == STALE_NAN_BITS
}

/// A float at a time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When.
    pub at: Millis,
    /// What.
    pub value: f64,
}

/// What a sample can hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A float, compared by its bits where content is compared.
    Float(f64),
    /// A native histogram.
    Histogram(Arc<Histogram>),
}

/// An exemplar: a sample with labels of its own (a trace id, mostly) beside a series' samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// Labels of the exemplar itself, not of the series.
    pub labels: crate::Labels,
    /// Its value.
    pub value: f64,
    /// When, in milliseconds.
    pub at: Millis,
}

/// What a metric is, from its exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum MetricKind {
    /// Not said.
    #[default]
    Unknown,
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Buckets of a distribution.
    Histogram,
    /// A gauge of buckets.
    GaugeHistogram,
    /// Quantiles made by the client.
    Summary,
    /// Labels as information, value 1.
    Info,
    /// One of several states.
    StateSet,
}

impl MetricKind {
    /// The word of the exposition format.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
        }
    }

    /// The kind of remote write's number (1.0 and 2.0 use the same ones); unknown numbers are [`Self::Unknown`].
    #[must_use]
    pub fn from_wire(number: u64) -> Self {
        match number {
            1 => Self::Counter,
            2 => Self::Gauge,
            3 => Self::Histogram,
            4 => Self::GaugeHistogram,
            5 => Self::Summary,
            6 => Self::Info,
            7 => Self::StateSet,
            _ => Self::Unknown,
        }
    }
}

/// What is known of a metric beside its samples.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Metadata {
    /// Its type.
    pub kind: MetricKind,
    /// Its help text.
    pub help: String,
    /// Its unit.
    pub unit: String,
}
