//! Native histograms: one sample that holds a whole distribution.
//!
//! One type serves both forms of the wire: a histogram of integer counts is one whose counts are whole numbers, and
//! `integer` remembers that it came as such, because the chunk encodings of Prometheus differ. Bucket counts are
//! absolute here, never deltas.
//!
//! Source: `prometheus model/histogram/{histogram,float_histogram}.go`, remote-write 2.0 `io.prometheus.write.v2`.

use crate::sample::STALE_NAN_BITS;

/// The schema number that says "custom bucket boundaries".
pub const CUSTOM_BUCKETS_SCHEMA: i32 = -53;
/// Lowest exponential schema.
pub const EXPONENTIAL_SCHEMA_MIN: i32 = -4;
/// Highest exponential schema.
pub const EXPONENTIAL_SCHEMA_MAX: i32 = 8;

/// A run of neighbouring buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BucketSpan {
    /// Distance from the end of the span before (from index 0 for the first, which may be negative).
    pub offset: i32,
    /// How many buckets.
    pub length: u32,
}

/// What a histogram says about a counter reset before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ResetHint {
    /// Nobody looked.
    #[default]
    Unknown,
    /// There was one.
    Reset,
    /// There was none.
    NoReset,
    /// It is a gauge: the word has no meaning.
    Gauge,
}

/// A native histogram at one time.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Whether its counts came as integers.
    pub integer: bool,
    /// What is known of a reset before it.
    pub reset_hint: ResetHint,
    /// -4..=8 exponential (buckets grow by `2^(2^-schema)`), -53 custom boundaries.
    pub schema: i32,
    /// Width of the zero bucket on either side.
    pub zero_threshold: f64,
    /// Observations in the zero bucket.
    pub zero_count: f64,
    /// All observations.
    pub count: f64,
    /// Sum of all observations; the staleness marker here makes the whole sample one.
    pub sum: f64,
    /// Where the positive buckets lie.
    pub positive_spans: Vec<BucketSpan>,
    /// Where the negative buckets lie.
    pub negative_spans: Vec<BucketSpan>,
    /// Absolute counts of the positive buckets.
    pub positive_buckets: Vec<f64>,
    /// Absolute counts of the negative buckets.
    pub negative_buckets: Vec<f64>,
    /// Upper boundaries for [`CUSTOM_BUCKETS_SCHEMA`], without the last (+Inf).
    pub custom_values: Vec<f64>,
}

impl Histogram {
    /// Whether this is a staleness marker.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.sum.to_bits() == STALE_NAN_BITS
    }

    /// Whether the boundaries are custom.
    #[must_use]
    pub fn is_custom(&self) -> bool {
        self.schema == CUSTOM_BUCKETS_SCHEMA
    }
}

/// Equal in content, float for float by bits; the reset hint and the integer mark do not count.
impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        let same =
            |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        self.schema == other.schema
            && self.zero_threshold.to_bits() == other.zero_threshold.to_bits()
            && self.zero_count.to_bits() == other.zero_count.to_bits()
            && self.count.to_bits() == other.count.to_bits()
            && self.sum.to_bits() == other.sum.to_bits()
            && self.positive_spans == other.positive_spans
            && self.negative_spans == other.negative_spans
            && same(&self.positive_buckets, &other.positive_buckets)
            && same(&self.negative_buckets, &other.negative_buckets)
            && same(&self.custom_values, &other.custom_values)
    }
}
