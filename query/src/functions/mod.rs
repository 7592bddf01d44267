//! The functions of PromQL: from the samples of one series to one value.
//!
//! Why kernels on slices: the engine decodes a series once and moves a window over its columns; a function sees two
//! flat arrays and can be a tight loop. Floats and histograms lie apart, so a float function does not look at
//! histograms at all where there are none.
//!
//! ```text
//! table.rs      name → kernel and how the engine must treat it      notes.rs      warnings and infos
//! rate.rs       rate, increase, delta, irate, idelta                extended.rs   the same, anchored and smoothed
//! reset.rs      resets, changes, start timestamps                   trend.rs      deriv, predict_linear, smoothing
//! over_time.rs  *_over_time of floats                               merge.rs      sum and avg of histograms
//! pointwise.rs  mathematics                                         calendar.rs   dates
//! quantile.rs   quantiles and fractions of histograms               labels.rs     label_replace, label_join
//! sum.rs        sums that keep what rounding would lose           operators.rs  operators on two floats
//! slide.rs      all windows of a series at once
//! ```
//!
//! Source: `prometheus promql/functions.go`, Prometheus 3.14.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::histogram::Histogram;

use crate::parse::ast::Extension;

pub mod calendar;
pub mod labels;
pub mod notes;
pub mod operators;
pub mod pointwise;
pub mod quantile;
pub(crate) mod slide;
pub mod sum;

mod extended;
mod merge;
mod over_time;
mod rate;
mod reset;
mod table;
mod trend;

pub use notes::{HistogramOperation, Note, Notes};
pub use table::{FUNCTIONS, lookup};

/// A value: a float or a histogram.
pub use engram_model::sample::Value as Point;

/// Samples of one series inside one window, oldest first, staleness markers taken out.
///
/// Without extension the slices hold the samples of `(range_start, range_end]`. With `anchored` they begin a lookback
/// earlier, with `smoothed` they also end a lookback later: the kernel needs what lies just outside.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Times of the floats.
    pub times: &'a [Millis],
    /// The floats.
    pub values: &'a [f64],
    /// Start timestamps of the floats (0: unknown); empty when there are none or they are not to be used.
    pub starts: &'a [Millis],
    /// Times of the histograms.
    pub histogram_times: &'a [Millis],
    /// The histograms.
    pub histograms: &'a [Arc<Histogram>],
    /// Start timestamps of the histograms, as `starts`.
    pub histogram_starts: &'a [Millis],
    /// Where the range begins, itself outside; offset and `@` are applied already.
    pub range_start: Millis,
    /// Where the range ends, itself inside.
    pub range_end: Millis,
    /// Evaluation time.
    pub at: Millis,
    /// `anchored`, `smoothed`.
    pub extension: Extension,
}

impl Window<'_> {
    /// Whether there are both floats and histograms.
    #[inline]
    fn is_mixed(&self) -> bool {
        !self.values.is_empty() && !self.histograms.is_empty()
    }

    /// Length of the range in seconds.
    #[inline]
    fn seconds(&self) -> f64 {
        seconds(self.range_end - self.range_start)
    }
}

/// From a window to at most one value. `params`: the scalar arguments in the order written, the window left out.
/// Not called for a window without any sample.
pub type RangeKernel = fn(&Window<'_>, params: &[f64], notes: &mut Notes) -> Option<Point>;

/// From one sample to at most one value. `at`: the sample's time as `timestamp()` shows it.
pub type VectorKernel = fn(&Point, at: Millis, params: &[f64]) -> Option<Point>;

/// How a function is evaluated.
#[derive(Clone, Copy, Debug)]
pub enum Kernel {
    /// Series by series over windows.
    Range(RangeKernel),
    /// Sample by sample. Called without its vector argument (`hour()`), it gets [`calendar::now`] and no labels.
    Vector(VectorKernel),
    /// By the engine itself: it needs more than one series, labels, or strings.
    Special,
}

/// What the engine must know about a function.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// As written.
    pub name: &'static str,
    /// What it does.
    pub kernel: Kernel,
    /// Whether the answer loses the metric's name (and, where metadata labels are on, type and unit).
    pub drops_name: bool,
    /// Whether `anchored` may stand in its argument.
    pub anchored: bool,
    /// Whether `smoothed` may stand in its argument.
    pub smoothed: bool,
    /// Whether it wants [`Window::starts`] where start timestamps are in use.
    pub reads_starts: bool,
    /// Whether a float series it answers for ought to be named as a counter ([`Note::PossibleNonCounter`]).
    pub wants_counter: bool,
    /// Whether its value depends on the evaluation time even where its arguments do not (`@` may not freeze it).
    pub depends_on_time: bool,
}

/// Whether a metric's name says that it is a counter.
#[must_use]
pub fn is_counter_name(name: &str) -> bool {
    ["_total", "_sum", "_count", "_bucket"].iter().any(|suffix| name.ends_with(suffix))
}

/// Milliseconds as seconds. Times are below 2^53 ms for 285 thousand years, so the cast is exact.
#[inline]
fn seconds(millis: Millis) -> f64 {
    millis as f64 / 1000.0
}

#[cfg(test)]
mod tests;
