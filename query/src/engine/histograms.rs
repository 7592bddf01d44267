//! What operators do to native histograms, as shared values: a histogram of a column may be another's too, so each
//! operation makes a new one.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::histogram::{Histogram, ResetHint};
use engram_model::series::Columns;

use crate::functions::{HistogramOperation, Note, Notes, Point, Window};
use crate::histogram::{self, Incompatible, Joined};

/// Every count and the sum times `factor`, empty buckets kept.
pub(super) fn scaled(h: &Histogram, factor: f64) -> Arc<Histogram> {
    let mut out = h.clone();
    histogram::multiply(&mut out, factor);
    Arc::new(out)
}

/// `h * factor`.
pub(super) fn times(h: &Histogram, factor: f64) -> Arc<Histogram> {
    let mut out = h.clone();
    histogram::multiply(&mut out, factor);
    histogram::compact(&mut out);
    Arc::new(out)
}

/// `h / divisor`.
pub(super) fn divided(h: &Histogram, divisor: f64) -> Arc<Histogram> {
    let mut out = h.clone();
    histogram::divide(&mut out, divisor);
    histogram::compact(&mut out);
    Arc::new(out)
}

/// `a + b`.
pub(super) fn plus(a: &Histogram, b: &Histogram) -> Result<(Arc<Histogram>, Joined), Incompatible> {
    let mut out = a.clone();
    let joined = histogram::add(&mut out, b)?;
    histogram::compact(&mut out);
    Ok((Arc::new(out), joined))
}

/// `a - b`: always a gauge.
pub(super) fn minus(a: &Histogram, b: &Histogram) -> Result<(Arc<Histogram>, Joined), Incompatible> {
    let mut out = a.clone();
    let joined = histogram::sub(&mut out, b)?;
    out.reset_hint = ResetHint::Gauge;
    histogram::compact(&mut out);
    Ok((Arc::new(out), joined))
}

/// `h </ at`, `h >/ at`.
pub(super) fn trimmed(h: &Histogram, at: f64, side: histogram::Side) -> Arc<Histogram> {
    let mut out = h.clone();
    histogram::trim(&mut out, at, side);
    Arc::new(out)
}

/// The histogram at `time` from those around it; the last one stays as long as the window has it.
pub(super) fn smoothed(window: &Window<'_>, time: Millis, notes: &mut Notes) -> Option<Point> {
    let i = window.histogram_times.partition_point(|t| *t < time);
    let found = match window.histogram_times.get(i) {
        Some(at) if *at == time => Arc::clone(&window.histograms[i]),
        _ if i == 0 => return None,
        Some(_) => between(window, i - 1, i, time, notes)?,
        None => {
            let last = Histogram::clone(&window.histograms[i - 1]);
            Arc::new(Histogram { reset_hint: ResetHint::Unknown, ..last })
        }
    };
    Some(Point::Histogram(found))
}

/// The histogram at `time` between two: a counter that restarted in between grew from nothing.
fn between(window: &Window<'_>, left: usize, right: usize, time: Millis, notes: &mut Notes) -> Option<Arc<Histogram>> {
    let (a, b) = (&window.histograms[left], &window.histograms[right]);
    let (t1, t2) = (window.histogram_times[left], window.histogram_times[right]);
    if a.is_custom() != b.is_custom() {
        notes.add(Note::MixedExponentialCustom);
        return None;
    }
    let is_counter = a.reset_hint != ResetHint::Gauge || b.reset_hint != ResetHint::Gauge;
    let part = (time - t1) as f64 / (t2 - t1) as f64;
    let mut out = Histogram::clone(b);
    if is_counter && histogram::detect_reset(b, a) {
        histogram::multiply(&mut out, part);
        return Some(Arc::new(out));
    }
    let mut join = |out: &mut Histogram, subtract: bool| {
        let (joined, operation) = match subtract {
            true => (histogram::sub(out, a), HistogramOperation::Subtraction),
            false => (histogram::add(out, a), HistogramOperation::Addition),
        };
        match joined {
            Ok(joined) if joined.reconciled => notes.add(Note::MismatchedCustomBuckets(operation)),
            Ok(_) => {}
            Err(Incompatible) => {
                notes.add(Note::MixedExponentialCustom);
                return false;
            }
        }
        true
    };
    if !join(&mut out, true) {
        return None;
    }
    histogram::multiply(&mut out, part);
    join(&mut out, false).then(|| Arc::new(out))
}

/// Leaves count, sum and schema of each histogram. What buckets told of resets becomes a hint, from the first sample in
/// the range on. Source: `prometheus promql/histogram_stats_iterator.go`.
pub(super) fn to_statistics(columns: &mut Columns, start: Millis) {
    let mut last: Option<Arc<Histogram>> = None;
    for (at, histogram) in columns.histogram_times.iter().zip(&mut columns.histograms) {
        let mut reset_hint = histogram.reset_hint;
        let whole = Arc::clone(histogram);
        if !whole.is_stale() {
            if let (ResetHint::Unknown, Some(last)) = (reset_hint, &last) {
                let restarted = histogram::detect_reset(&whole, last);
                reset_hint = if restarted { ResetHint::Reset } else { ResetHint::NoReset };
            }
            if *at >= start {
                last = Some(Arc::clone(&whole));
            }
        }
        let (schema, count, sum) = (whole.schema, whole.count, whole.sum);
        *histogram = Arc::new(Histogram { reset_hint, schema, count, sum, ..Histogram::default() });
    }
}
