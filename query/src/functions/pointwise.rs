//! Functions of one sample: mathematics, dates, and the plain facts of a histogram.
//!
//! Those of numbers skip histograms, those of histograms skip numbers; only `timestamp` takes both.

use engram_model::Millis;
use engram_model::histogram::Histogram;

use super::calendar::Moment;
use super::sum::kahan;
use super::{Point, seconds};
use crate::histogram::buckets;

fn float(point: &Point, f: impl Fn(f64) -> f64) -> Option<Point> {
    match point {
        Point::Float(x) => Some(Point::Float(f(*x))),
        Point::Histogram(_) => None,
    }
}

fn histogram(point: &Point, f: impl Fn(&Histogram) -> f64) -> Option<Point> {
    match point {
        Point::Float(_) => None,
        Point::Histogram(h) => Some(Point::Float(f(h))),
    }
}

macro_rules! of_float {
    ($($name:ident: $f:expr;)*) => {$(
        pub(super) fn $name(point: &Point, _at: Millis, _params: &[f64]) -> Option<Point> {
            float(point, $f)
        }
    )*};
}

of_float! {
    abs: f64::abs;
    acos: f64::acos;
    acosh: f64::acosh;
    asin: f64::asin;
    asinh: asinh_of;
    atan: f64::atan;
    atanh: f64::atanh;
    ceil: f64::ceil;
    cos: f64::cos;
    cosh: f64::cosh;
    deg: |x| x * 180.0 / std::f64::consts::PI;
    exp: f64::exp;
    floor: f64::floor;
    ln: f64::ln;
    log10: f64::log10;
    log2: f64::log2;
    rad: |x| x * std::f64::consts::PI / 180.0;
    sgn: |x| if x < 0.0 { -1.0 } else if x > 0.0 { 1.0 } else { x };
    sin: f64::sin;
    sinh: f64::sinh;
    sqrt: f64::sqrt;
    tan: f64::tan;
    tanh: f64::tanh;
    day_of_month: |x| Moment::from_seconds(x).day_of_month() as f64;
    day_of_week: |x| Moment::from_seconds(x).day_of_week() as f64;
    day_of_year: |x| Moment::from_seconds(x).day_of_year() as f64;
    days_in_month: |x| Moment::from_seconds(x).days_in_month() as f64;
    hour: |x| Moment::from_seconds(x).hour() as f64;
    minute: |x| Moment::from_seconds(x).minute() as f64;
    month: |x| Moment::from_seconds(x).month() as f64;
    year: |x| Moment::from_seconds(x).year() as f64;
}

/// Infinite and signed-zero arguments are themselves.
fn asinh_of(x: f64) -> f64 {
    if x == 0.0 || x.is_infinite() { x } else { x.asinh() }
}

/// The larger one as Go has it: +Inf beats NaN, NaN beats the rest, 0 beats -0.
#[must_use]
pub fn max_of(a: f64, b: f64) -> f64 {
    if a == f64::INFINITY || b == f64::INFINITY {
        f64::INFINITY
    } else if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a == 0.0 && a == b {
        if a.is_sign_negative() { b } else { a }
    } else if a > b {
        a
    } else {
        b
    }
}

/// The smaller one as Go has it: -Inf beats NaN, NaN beats the rest, -0 beats 0.
#[must_use]
pub fn min_of(a: f64, b: f64) -> f64 {
    -max_of(-a, -b)
}

fn clamped(point: &Point, min: f64, max: f64) -> Option<Point> {
    if max < min { None } else { float(point, |x| max_of(min, min_of(max, x))) }
}

fn param(params: &[f64], at: usize, default: f64) -> f64 {
    params.get(at).copied().unwrap_or(default)
}

pub(super) fn clamp(point: &Point, _at: Millis, params: &[f64]) -> Option<Point> {
    clamped(point, param(params, 0, f64::NEG_INFINITY), param(params, 1, f64::INFINITY))
}

pub(super) fn clamp_min(point: &Point, _at: Millis, params: &[f64]) -> Option<Point> {
    clamped(point, param(params, 0, f64::NEG_INFINITY), f64::INFINITY)
}

pub(super) fn clamp_max(point: &Point, _at: Millis, params: &[f64]) -> Option<Point> {
    clamped(point, f64::NEG_INFINITY, param(params, 0, f64::INFINITY))
}

/// Halves are rounded up. The step is inverted first: `round(x, 0.1)` then multiplies by 10, which is exact.
pub(super) fn round(point: &Point, _at: Millis, params: &[f64]) -> Option<Point> {
    let inverse = 1.0 / param(params, 0, 1.0);
    float(point, |x| (x * inverse + 0.5).floor() / inverse)
}

#[allow(clippy::unnecessary_wraps, reason = "one of the table's kernels")]
pub(super) fn timestamp(_point: &Point, at: Millis, _params: &[f64]) -> Option<Point> {
    Some(Point::Float(seconds(at)))
}

pub(super) fn histogram_count(point: &Point, _at: Millis, _params: &[f64]) -> Option<Point> {
    histogram(point, |h| h.count)
}

pub(super) fn histogram_sum(point: &Point, _at: Millis, _params: &[f64]) -> Option<Point> {
    histogram(point, |h| h.sum)
}

pub(super) fn histogram_avg(point: &Point, _at: Millis, _params: &[f64]) -> Option<Point> {
    histogram(point, |h| h.sum / h.count)
}

pub(super) fn histogram_stdvar(point: &Point, _at: Millis, _params: &[f64]) -> Option<Point> {
    histogram(point, variance)
}

pub(super) fn histogram_stddev(point: &Point, _at: Millis, _params: &[f64]) -> Option<Point> {
    histogram(point, |h| variance(h).sqrt())
}

/// Every observation is taken to lie in the middle of its bucket: the geometric one for exponential buckets.
fn variance(h: &Histogram) -> f64 {
    let mean = h.sum / h.count;
    let (mut total, mut lost) = (0.0, 0.0);
    for b in buckets::all(h).filter(|b| b.count != 0.0) {
        let middle = if h.is_custom() {
            (b.upper + b.lower) / 2.0
        } else if b.lower <= 0.0 && b.upper >= 0.0 {
            0.0
        } else {
            let geometric = (b.upper * b.lower).sqrt();
            if b.upper < 0.0 { -geometric } else { geometric }
        };
        let delta = middle - mean;
        (total, lost) = kahan(b.count * delta * delta, total, lost);
    }
    (total + lost) / h.count
}
