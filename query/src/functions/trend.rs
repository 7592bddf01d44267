//! Trends: `deriv`, `predict_linear`, `double_exponential_smoothing`. They see floats only and say so where histograms
//! are left out.

use engram_model::Millis;

use super::sum::kahan;
use super::{Note, Notes, Point, Window, seconds};

/// Whether there are two floats to draw a line through; speaks of histograms left out.
fn has_line(w: &Window<'_>, notes: &mut Notes) -> bool {
    if !w.values.is_empty() && !w.histograms.is_empty() {
        notes.add(Note::HistogramIgnoredInMixedRange);
    }
    w.values.len() >= 2
}

struct Line {
    slope: f64,
    /// Its value at the time asked for.
    intercept: f64,
}

/// Least squares through the samples; x in seconds from `origin`, which should be near to keep the squares small.
fn regression(times: &[Millis], values: &[f64], origin: Millis) -> Line {
    let first = values[0];
    if values.iter().all(|v| *v == first) {
        return if first.is_infinite() {
            Line { slope: f64::NAN, intercept: f64::NAN }
        } else {
            Line { slope: 0.0, intercept: first }
        };
    }
    let mut sums = [(0.0, 0.0); 4];
    for (at, y) in times.iter().zip(values) {
        let x = seconds(at - origin);
        for (sum, part) in sums.iter_mut().zip([x, *y, x * y, x * x]) {
            *sum = kahan(part, sum.0, sum.1);
        }
    }
    let [x, y, xy, xx] = sums.map(|(sum, lost)| sum + lost);
    let n = values.len() as f64;
    let covariance = xy - x * y / n;
    let variance = xx - x * x / n;
    let slope = covariance / variance;
    Line { slope, intercept: y / n - slope * x / n }
}

pub(super) fn deriv(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    has_line(w, notes).then(|| Point::Float(regression(w.times, w.values, w.times[0]).slope))
}

pub(super) fn predict_linear(w: &Window<'_>, params: &[f64], notes: &mut Notes) -> Option<Point> {
    let ahead = *params.first()?;
    has_line(w, notes).then(|| {
        let line = regression(w.times, w.values, w.at);
        Point::Float(line.slope * ahead + line.intercept)
    })
}

/// Smoothing with a trend (Holt): the first factor weighs new values, the second one new slopes.
pub(super) fn double_exponential_smoothing(w: &Window<'_>, params: &[f64], notes: &mut Notes) -> Option<Point> {
    let (&[smoothing, trend], false) = (params, w.values.is_empty() && w.histograms.is_empty()) else { return None };
    for (factor, name, short) in [(smoothing, "smoothing", "sf"), (trend, "trend", "tf")] {
        if factor <= 0.0 || factor >= 1.0 {
            notes.fail(format!("invalid {name} factor. Expected: 0 < {short} < 1, got: {}", fixed(factor)));
            return None;
        }
    }
    if !has_line(w, notes) {
        return None;
    }
    let mut before = 0.0;
    let mut smooth = w.values[0];
    let mut slope = w.values[1] - w.values[0];
    for (i, value) in w.values.iter().enumerate().skip(1) {
        if i > 1 {
            slope = trend * (smooth - before) + (1.0 - trend) * slope;
        }
        let next = smoothing * value + (1.0 - smoothing) * (smooth + slope);
        (before, smooth) = (smooth, next);
    }
    Some(Point::Float(smooth))
}

/// `%f` of Go.
fn fixed(x: f64) -> String {
    if x.is_finite() { format!("{x:.6}") } else { crate::histogram::text::go_float(x) }
}
