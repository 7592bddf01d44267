//! `</` and `>/`: the part of a histogram below or above a value.
//!
//! Buckets on the wrong side go; the one the value lies in is split, evenly on a logarithmic scale for exponential
//! ones, evenly for the zero bucket and custom boundaries. The sum is estimated anew from the middles of what is left.
//! A bucket without end cannot be split: it stays or goes as a whole.

use engram_model::histogram::Histogram;

use super::buckets::{self, Bucket};
use super::layout::compact;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `</`: observations below.
    Below,
    /// `>/`: observations above.
    Above,
}

/// What is kept of a bucket, and where its middle lies.
#[derive(Clone, Copy)]
struct Kept {
    count: f64,
    middle: f64,
}

/// Keeps the observations on one side of `at`. Where all of them are, nothing changes, not even the sum.
pub fn trim(h: &mut Histogram, at: f64, side: Side) {
    let custom = h.is_custom();
    let above: Vec<Bucket> = buckets::positive(h).collect();
    let below: Vec<Bucket> = buckets::negative(h).collect();
    let mut total = Total::default();
    let has_positive = total.take(&above, &mut h.positive_buckets, |b| keep(b, at, side, true, custom));
    let has_negative = total.take(&below, &mut h.negative_buckets, |b| keep(b, at, side, false, custom));
    if h.zero_count > 0.0 {
        let kept = keep_zero(&buckets::zero(h), at, side, (has_negative, has_positive));
        total.changed |= h.zero_count != kept.count;
        h.zero_count = kept.count;
        total.sum += kept.middle * kept.count;
        total.count += kept.count;
    }
    if total.changed {
        h.integer = false;
        h.count = total.count;
        h.sum = total.sum;
        compact(h);
    }
}

#[derive(Default)]
struct Total {
    count: f64,
    sum: f64,
    changed: bool,
}

impl Total {
    /// Trims one side; says whether it had anything.
    fn take(&mut self, buckets: &[Bucket], counts: &mut [f64], keep: impl Fn(&Bucket) -> Option<Kept>) -> bool {
        let mut populated = false;
        for (bucket, count) in buckets.iter().zip(counts) {
            if bucket.count == 0.0 {
                continue;
            }
            populated = true;
            if let Some(kept) = keep(bucket) {
                self.count += kept.count;
                self.sum += kept.middle * kept.count;
                self.changed |= *count != kept.count;
                *count = kept.count;
            } else {
                *count = 0.0;
                self.changed = true;
            }
        }
        populated
    }
}

/// `None`: all of it goes.
fn keep(b: &Bucket, at: f64, side: Side, positive: bool, custom: bool) -> Option<Kept> {
    let (whole, split) = match side {
        Side::Below => (b.upper <= at, b.lower < at),
        Side::Above => (b.lower >= at, b.upper > at),
    };
    if whole {
        return Some(Kept { count: b.count, middle: middle(b.lower, b.upper, positive, custom) });
    }
    if !split {
        return None;
    }
    if b.lower == f64::NEG_INFINITY || b.upper == f64::INFINITY {
        return Some(keep_endless(b, at, side));
    }
    let under = if at <= b.lower {
        0.0
    } else if at >= b.upper {
        b.count
    } else {
        b.count * b.fraction_below(at, custom)
    };
    Some(match side {
        Side::Below => Kept { count: under, middle: middle(b.lower, at, positive, custom) },
        Side::Above => Kept { count: b.count - under, middle: middle(at, b.upper, positive, custom) },
    })
}

fn finite_or_zero(x: f64) -> f64 {
    if x.is_infinite() { 0.0 } else { x }
}

/// A bucket with one infinite boundary. One that begins at -Inf and ends above 0 is taken to begin at 0, as the
/// quantiles do.
fn keep_endless(b: &Bucket, at: f64, side: Side) -> Kept {
    let none = |x: f64| Kept { count: 0.0, middle: finite_or_zero(x) };
    let from_zero = b.upper != f64::INFINITY && b.upper > 0.0;
    if b.lower == f64::NEG_INFINITY {
        return match side {
            Side::Below if at >= b.upper => Kept { count: b.count, middle: 0.0 },
            Side::Below if at > 0.0 && from_zero => Kept { count: b.count * at / b.upper, middle: at / 2.0 },
            Side::Below if b.upper <= 0.0 => Kept { count: b.count, middle: at },
            Side::Above if at <= b.lower => Kept { count: b.count, middle: 0.0 },
            Side::Above if at >= 0.0 && b.upper > at && b.upper != f64::INFINITY => {
                Kept { count: b.count * (1.0 - at / b.upper), middle: f64::midpoint(at, b.upper) }
            }
            Side::Below | Side::Above => none(b.upper),
        };
    }
    match side {
        Side::Above if at >= b.lower => Kept { count: b.count, middle: at },
        Side::Below | Side::Above => none(b.lower),
    }
}

/// The zero bucket; a histogram with only one side has only that half of it.
fn keep_zero(b: &Bucket, at: f64, side: Side, (has_negative, has_positive): (bool, bool)) -> Kept {
    let lower = if has_positive && !has_negative { 0.0 } else { b.lower };
    let upper = if has_negative && !has_positive { 0.0 } else { b.upper };
    let none = Kept { count: 0.0, middle: 0.0 };
    let whole = Kept { count: b.count, middle: (lower + upper) / 2.0 };
    match side {
        Side::Below if at <= lower => none,
        Side::Below if at >= upper => whole,
        Side::Below => Kept { count: b.count * ((at - lower) / (upper - lower)), middle: (lower + at) / 2.0 },
        Side::Above if at <= lower => whole,
        Side::Above if at >= upper => none,
        Side::Above => Kept { count: b.count * ((upper - at) / (upper - lower)), middle: (at + upper) / 2.0 },
    }
}

/// Where the observations between two values lie on average: geometrically for exponential buckets.
fn middle(lower: f64, upper: f64, positive: bool, linear: bool) -> f64 {
    match (lower.is_infinite(), upper.is_infinite()) {
        (true, true) => 0.0,
        (true, false) => {
            if upper > 0.0 {
                upper / 2.0
            } else {
                upper
            }
        }
        (false, true) => lower,
        (false, false) if linear => (lower + upper) / 2.0,
        (false, false) => {
            let geometric = (lower * upper).abs().sqrt();
            if positive { geometric } else { -geometric }
        }
    }
}
