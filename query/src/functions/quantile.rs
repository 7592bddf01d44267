//! Quantiles and fractions: of plain values, of classic buckets, of native histograms.
//!
//! The engine sorts series into classic histograms (series with `le`) and native ones; here is what is computed of one.
//! Within a bucket observations are taken to lie evenly: on a logarithmic scale in exponential buckets, which makes the
//! answer the same as a finer histogram would give on average, and on a plain one elsewhere.
//!
//! Source: `prometheus promql/quantile.go`, Prometheus 3.14.

use engram_model::histogram::Histogram;

use super::notes::Note;
use crate::histogram::buckets::{Bucket, all};

/// The `q` quantile of values, which are reordered: between two, the average weighed by distance. NaN sorts lowest.
/// -Inf below 0, +Inf above 1, NaN for none.
#[must_use]
pub fn of_values(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    let last = values.len() - 1;
    let rank = q * last as f64;
    let weight = rank - rank.floor();
    let below = index(rank, last);
    let order = |a: &f64, b: &f64| b.is_nan().cmp(&a.is_nan()).then_with(|| a.total_cmp(b));
    let (_, low, above) = values.select_nth_unstable_by(below, order);
    let low = *low;
    let high = above.iter().copied().min_by(|a, b| order(a, b)).unwrap_or(low);
    low * (1.0 - weight) + high * weight
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= rank <= last, a length")]
fn index(rank: f64, last: usize) -> usize {
    (rank.floor() as usize).min(last)
}

/// A bucket of a classic histogram: everything at or below a boundary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassicBucket {
    /// The `le` label.
    pub upper: f64,
    /// Observations at or below it.
    pub count: f64,
}

/// The number in an `le` label; `None` for what is no number or too large for one.
#[must_use]
pub fn parse_bound(text: &str) -> Option<f64> {
    let bound: f64 = text.parse().ok()?;
    (bound.is_finite() || text.bytes().any(|b| matches!(b, b'i' | b'I' | b'n' | b'N'))).then_some(bound)
}

/// A quantile of classic buckets, and what had to be done to them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassicQuantile {
    /// The quantile.
    pub value: f64,
    /// Counts that fell from one boundary to the next were raised.
    pub forced: Option<Forced>,
}

/// Where counts were raised so that they grow with the boundary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forced {
    /// Lowest boundary.
    pub bucket_min: f64,
    /// Highest boundary.
    pub bucket_max: f64,
    /// By how much at most.
    pub diff_max: f64,
}

/// Sorts the buckets and joins those of one boundary. False: there are none, or not one for everything.
fn prepare(buckets: &mut Vec<ClassicBucket>) -> bool {
    buckets.sort_by(|a, b| a.upper.total_cmp(&b.upper));
    if buckets.last().is_none_or(|b| b.upper != f64::INFINITY) {
        return false;
    }
    buckets.dedup_by(|b, kept| {
        let same = b.upper == kept.upper;
        if same {
            kept.count += b.count;
        }
        same
    });
    true
}

/// Differences below this share of the counts are rounding and not worth a remark.
const ROUNDING: f64 = 1e-12;

/// Raises counts that fell; differences that are only rounding are levelled in silence.
fn force_growth(buckets: &mut [ClassicBucket]) -> Option<Forced> {
    let (first, rest) = buckets.split_first_mut()?;
    let mut before = first.count;
    let mut forced: Option<Forced> = None;
    for b in rest {
        if b.count == before {
            continue;
        }
        if almost_equal(before, b.count, ROUNDING) {
            b.count = before;
        } else if b.count < before {
            let difference = before - b.count;
            b.count = before;
            let all = forced.get_or_insert(Forced { bucket_min: b.upper, bucket_max: b.upper, diff_max: 0.0 });
            all.bucket_min = all.bucket_min.min(b.upper);
            all.bucket_max = all.bucket_max.max(b.upper);
            all.diff_max = all.diff_max.max(difference);
        } else {
            before = b.count;
        }
    }
    forced
}

/// Whether two floats differ by less than `epsilon` of their sum; NaN equals NaN.
#[must_use]
pub fn almost_equal(a: f64, b: f64, epsilon: f64) -> bool {
    if a == b || (a.is_nan() && b.is_nan()) {
        return true;
    }
    let (sum, difference) = (a.abs() + b.abs(), (a - b).abs());
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < epsilon * f64::MIN_POSITIVE;
    }
    difference / sum.min(f64::MAX) < epsilon
}

/// The `q` quantile of classic buckets, in any order. NaN without observations, without a bucket for everything, and of
/// fewer than two buckets.
#[must_use]
pub fn of_classic(q: f64, buckets: &mut Vec<ClassicBucket>) -> ClassicQuantile {
    let plain = |value| ClassicQuantile { value, forced: None };
    if q.is_nan() {
        return plain(f64::NAN);
    }
    if q < 0.0 {
        return plain(f64::NEG_INFINITY);
    }
    if q > 1.0 {
        return plain(f64::INFINITY);
    }
    if !prepare(buckets) {
        return plain(f64::NAN);
    }
    let forced = force_growth(buckets);
    ClassicQuantile { value: within_classic(q, buckets), forced }
}

fn within_classic(q: f64, buckets: &[ClassicBucket]) -> f64 {
    let [rest @ .., last] = buckets else { return f64::NAN };
    let Some(highest) = rest.last() else { return f64::NAN };
    if last.count == 0.0 {
        return f64::NAN;
    }
    let rank = q * last.count;
    let at = rest.partition_point(|b| b.count < rank || b.count.is_nan());
    let Some(bucket) = rest.get(at) else { return highest.upper };
    let Some(below) = at.checked_sub(1).map(|i| rest[i]) else {
        if bucket.upper <= 0.0 {
            return bucket.upper;
        }
        return bucket.upper * (rank / bucket.count);
    };
    below.upper + (bucket.upper - below.upper) * ((rank - below.count) / (bucket.count - below.count))
}

/// Which share of the observations of classic buckets lies between two values.
#[must_use]
pub fn fraction_of_classic(lower: f64, upper: f64, buckets: &mut Vec<ClassicBucket>) -> f64 {
    if !prepare(buckets) {
        return f64::NAN;
    }
    let total = buckets.last().map_or(0.0, |b| b.count);
    if total == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let mut ranks = Ranks::new(lower, upper);
    let mut begin = if buckets[0].upper <= 0.0 { f64::NEG_INFINITY } else { 0.0 };
    let mut rank = 0.0;
    for b in buckets.iter() {
        let between = |v: f64| {
            if begin == f64::NEG_INFINITY { b.count } else { rank + (b.count - rank) * (v - begin) / (b.upper - begin) }
        };
        if ranks.meet(begin, b.upper, rank, between) {
            break;
        }
        begin = b.upper;
        rank = b.count;
    }
    ranks.share(total) / total
}

/// How many observations lie below each of two values, found bucket by bucket.
struct Ranks {
    values: [f64; 2],
    found: [Option<f64>; 2],
}

impl Ranks {
    fn new(lower: f64, upper: f64) -> Self {
        Self { values: [lower, upper], found: [None; 2] }
    }

    /// Looks at one bucket with `rank` observations before it; true when both are found.
    fn meet(&mut self, begin: f64, end: f64, rank: f64, between: impl Fn(f64) -> f64) -> bool {
        for (value, found) in self.values.iter().zip(&mut self.found) {
            if found.is_none() && begin >= *value {
                *found = Some(rank);
            }
        }
        if self.found.iter().all(Option::is_some) {
            return true;
        }
        for (value, found) in self.values.iter().zip(&mut self.found) {
            if found.is_none() && begin < *value && end > *value {
                *found = Some(between(*value));
            }
        }
        self.found.iter().all(Option::is_some)
    }

    /// Observations between the two, of `count` in all.
    fn share(&self, count: f64) -> f64 {
        let [lower, upper] = self.found.map(|rank| match rank {
            Some(rank) if rank > count => count,
            Some(rank) => rank,
            None => count,
        });
        upper - lower
    }
}

const NOWHERE: Bucket = Bucket { lower: 0.0, upper: 0.0, lower_inclusive: false, upper_inclusive: false, count: 0.0 };

/// A histogram of one sign has only that half of its zero bucket.
fn halve_zero(b: &mut Bucket, h: &Histogram) {
    if h.negative_buckets.is_empty() && !h.positive_buckets.is_empty() {
        b.lower = 0.0;
    } else if h.positive_buckets.is_empty() && !h.negative_buckets.is_empty() {
        b.upper = 0.0;
    }
}

/// The `q` quantile of a native histogram, and what is to be said about it: observations that were NaN are in its count
/// but in no bucket.
#[must_use]
pub fn of_histogram(q: f64, h: &Histogram) -> (f64, Option<Note>) {
    if q < 0.0 {
        return (f64::NEG_INFINITY, None);
    }
    if q > 1.0 {
        return (f64::INFINITY, None);
    }
    if h.count == 0.0 || q.is_nan() {
        return (f64::NAN, None);
    }
    // NaN counts as higher than everything: with it, ranks can only be told from below.
    if h.sum.is_nan() || q < 0.5 {
        in_buckets(q * h.count, h, &mut all(h), true)
    } else {
        in_buckets((1.0 - q) * h.count, h, &mut all(h).rev(), false)
    }
}

fn in_buckets(
    rank: f64,
    h: &Histogram,
    buckets: &mut dyn Iterator<Item = Bucket>,
    upwards: bool,
) -> (f64, Option<Note>) {
    let (mut bucket, mut count) = (NOWHERE, 0.0);
    for b in &mut *buckets {
        bucket = b;
        if b.count == 0.0 {
            continue;
        }
        count += b.count;
        if count >= rank {
            break;
        }
    }
    if h.is_custom() {
        if bucket.lower == f64::NEG_INFINITY {
            if bucket.upper <= 0.0 {
                return (bucket.upper, None);
            }
            bucket.lower = 0.0;
        } else if bucket.upper == f64::INFINITY {
            return (bucket.lower, None);
        }
    } else if bucket.lower < 0.0 && bucket.upper > 0.0 {
        halve_zero(&mut bucket, h);
    }
    // Rounding may have given the buckets more than there is in all.
    count = count.min(h.count);
    if count < rank {
        return if h.sum.is_nan() { (f64::NAN, Some(Note::QuantileNanResult)) } else { (bucket.upper, None) };
    }
    let inside = if upwards { rank - (count - bucket.count) } else { count - rank };
    let mut note = None;
    if h.sum.is_nan() {
        // Upstream interpolates in the bucket it looked at last, which with NaN around is the highest one: the answer
        // is "skewed higher", as the remark says. Dashboards that move here must not show another number.
        let mut total = count;
        for b in buckets {
            total += b.count;
            bucket = b;
        }
        note = (total < h.count).then_some(Note::QuantileNanSkew);
    }
    let fraction = inside / bucket.count;
    if h.is_custom() || (bucket.lower <= 0.0 && bucket.upper >= 0.0) {
        return (bucket.lower + (bucket.upper - bucket.lower) * fraction, note);
    }
    let (lower, upper) = (bucket.lower.abs().log2(), bucket.upper.abs().log2());
    let value = if bucket.lower > 0.0 {
        (lower + (upper - lower) * fraction).exp2()
    } else {
        -(upper + (lower - upper) * (1.0 - fraction)).exp2()
    };
    (value, note)
}

/// Which share of the observations of a native histogram lies between two values, and what is to be said about it.
#[must_use]
pub fn fraction_of_histogram(lower: f64, upper: f64, h: &Histogram) -> (f64, Option<Note>) {
    if h.count == 0.0 || lower.is_nan() || upper.is_nan() {
        return (f64::NAN, None);
    }
    if lower >= upper {
        return (0.0, None);
    }
    let mut ranks = Ranks::new(lower, upper);
    let (mut rank, mut count) = (0.0, 0.0);
    let mut buckets = all(h);
    for mut b in buckets.by_ref() {
        count += b.count;
        let zero = b.lower <= 0.0 && b.upper >= 0.0;
        if zero {
            halve_zero(&mut b, h);
        }
        let linear = h.is_custom() || zero;
        let between = |v: f64| {
            if linear && b.lower == f64::NEG_INFINITY { b.count } else { rank + b.count * b.fraction_below(v, linear) }
        };
        if ranks.meet(b.lower, b.upper, rank, between) {
            break;
        }
        rank += b.count;
    }
    let mut note = None;
    if h.sum.is_nan() {
        count = buckets.fold(count, |sum, b| sum + b.count);
        if count < h.count {
            note = Some(Note::FractionNans);
        }
    } else {
        count = h.count;
    }
    (ranks.share(count) / h.count, note)
}
