//! Native histograms as values: what PromQL computes with them.
//!
//! Why apart from `model`: storage carries histograms and must not change them; here they are added, cut down and
//! printed. Every histogram is treated as one of floats. Layouts differ between samples, so each operation first
//! brings both sides to a common one.
//!
//! ```text
//! buckets.rs  spans and counts → buckets with boundaries    layout.rs  compact, lower the resolution, zero bucket
//! arith.rs    add, subtract, scale                          sum.rs     sums and means that keep what rounding loses
//! reset.rs    did the counter restart?                      trim.rs    `</` and `>/`
//! text.rs     as people and the API see it                  table.rs   boundaries as numbers
//! ```
//!
//! A histogram whose spans and counts disagree (damaged on its way) is read as far as both go; nothing here panics.
//!
//! Source: `prometheus model/histogram/float_histogram.go`, Prometheus 3.14.

use engram_model::histogram::Histogram;

pub mod buckets;
pub mod text;

mod arith;
mod layout;
mod reset;
mod sum;
mod table;
mod trim;

pub use arith::{Incompatible, Joined, add, divide, multiply, sub};
pub use layout::{compact, copy_to_schema};
pub use reset::detect_reset;
pub use sum::{HistogramMean, HistogramSum};
pub use trim::{Side, trim};

/// Whether both have the same content: layout, boundaries and counts, float for float by bits. Spans of length 0 and
/// the reset hint do not count.
#[must_use]
pub fn equal(a: &Histogram, b: &Histogram) -> bool {
    let bits = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    a.schema == b.schema
        && a.count.to_bits() == b.count.to_bits()
        && a.sum.to_bits() == b.sum.to_bits()
        && (!a.is_custom() || arith::same_bounds(a, b))
        && a.zero_threshold == b.zero_threshold
        && a.zero_count.to_bits() == b.zero_count.to_bits()
        && layout::same_spans(&a.negative_spans, &b.negative_spans)
        && bits(&a.negative_buckets, &b.negative_buckets)
        && layout::same_spans(&a.positive_spans, &b.positive_spans)
        && bits(&a.positive_buckets, &b.positive_buckets)
}

/// Whether anything in it is infinite: what sums turn into when floats end.
#[must_use]
pub fn has_overflow(h: &Histogram) -> bool {
    h.zero_count.is_infinite()
        || h.count.is_infinite()
        || h.sum.is_infinite()
        || [&h.positive_buckets, &h.negative_buckets, &h.custom_values]
            .into_iter()
            .any(|side| side.iter().any(|v| v.is_infinite()))
}

#[cfg(test)]
mod tests;
