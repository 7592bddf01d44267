//! Histograms added, subtracted and scaled.
//!
//! Two exponential ones meet at the lower resolution and the wider zero bucket; two with custom boundaries at the
//! boundaries both have. The two kinds do not mix. Operations change the left operand and return what is to be said
//! about it; empty buckets may stay, see [`super::compact`].

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};

use super::buckets::{Cells, exponential_bound};
use super::layout::{reconcile_zero, reduced, spans_of};
use crate::functions::sum::kahan;

/// One histogram is exponential, the other has custom boundaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot apply this operation on histograms with a mix of exponential and custom bucket schemas")]
pub struct Incompatible;

/// What was noticed while two histograms were put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// One said there was a counter reset, the other that there was none.
    pub collision: bool,
    /// Custom boundaries differed; only the common ones are left.
    pub reconciled: bool,
}

/// Adds `other` to `h`.
///
/// # Errors
/// [`Incompatible`]; `h` is as it was.
pub fn add(h: &mut Histogram, other: &Histogram) -> Result<Joined, Incompatible> {
    join(h, other, 1.0)
}

/// Subtracts `other` from `h`. The hint is joined as for a sum; the `-` of PromQL makes a gauge of the result.
///
/// # Errors
/// [`Incompatible`]; `h` is as it was.
pub fn sub(h: &mut Histogram, other: &Histogram) -> Result<Joined, Incompatible> {
    join(h, other, -1.0)
}

/// Multiplies every count and the sum. A negative factor makes a gauge.
pub fn multiply(h: &mut Histogram, factor: f64) {
    scale(h, |x| x * factor);
    if factor < 0.0 {
        h.reset_hint = ResetHint::Gauge;
    }
}

/// Divides every count and the sum. A negative divisor makes a gauge; 0 makes counts infinite and drops the buckets.
pub fn divide(h: &mut Histogram, divisor: f64) {
    if divisor == 0.0 {
        h.positive_spans.clear();
        h.negative_spans.clear();
        h.positive_buckets.clear();
        h.negative_buckets.clear();
    }
    scale(h, |x| x / divisor);
    if divisor < 0.0 {
        h.reset_hint = ResetHint::Gauge;
    }
}

fn scale(h: &mut Histogram, f: impl Fn(f64) -> f64) {
    h.integer = false;
    h.zero_count = f(h.zero_count);
    h.count = f(h.count);
    h.sum = f(h.sum);
    for count in h.positive_buckets.iter_mut().chain(&mut h.negative_buckets) {
        *count = f(*count);
    }
}

fn join(h: &mut Histogram, other: &Histogram, sign: f64) -> Result<Joined, Incompatible> {
    if h.is_custom() != other.is_custom() {
        return Err(Incompatible);
    }
    h.integer = false;
    let collision = join_hints(h, other);
    if h.is_custom() {
        h.count += sign * other.count;
        h.sum += sign * other.sum;
        return Ok(Joined { collision, reconciled: join_custom(h, other, sign) });
    }
    let (zero, _) = reconcile_zero(h, other, None);
    h.zero_count += sign * zero;
    h.count += sign * other.count;
    h.sum += sign * other.sum;

    let schema = h.schema.min(other.schema);
    let threshold = h.zero_threshold;
    if h.schema > schema {
        let from = h.schema;
        reduce_side(&mut h.positive_spans, &mut h.positive_buckets, from, schema);
        reduce_side(&mut h.negative_spans, &mut h.negative_buckets, from, schema);
        h.schema = schema;
    }
    let at = Level { schema, threshold, from: other.schema };
    join_side(&mut h.positive_spans, &mut h.positive_buckets, &other.positive_spans, &other.positive_buckets, at, sign);
    join_side(&mut h.negative_spans, &mut h.negative_buckets, &other.negative_spans, &other.negative_buckets, at, sign);
    Ok(Joined { collision, reconciled: false })
}

/// Makes of two hints what can be said of both; true when they contradict each other.
pub(super) fn join_hints(h: &mut Histogram, other: &Histogram) -> bool {
    match (h.reset_hint, other.reset_hint) {
        (a, b) if a == b => false,
        (ResetHint::Gauge, _) | (_, ResetHint::Gauge) => {
            h.reset_hint = ResetHint::Gauge;
            false
        }
        (ResetHint::Unknown, _) | (_, ResetHint::Unknown) => {
            h.reset_hint = ResetHint::Unknown;
            false
        }
        _ => {
            h.reset_hint = ResetHint::Unknown;
            true
        }
    }
}

/// At which resolution two sides meet, the end of the zero bucket, and the resolution of the other side.
#[derive(Clone, Copy)]
struct Level {
    schema: i32,
    threshold: f64,
    from: i32,
}

pub(super) fn reduce_side(spans: &mut Vec<BucketSpan>, counts: &mut Vec<f64>, from: i32, to: i32) {
    let cells = reduced(spans, counts, from, to);
    *spans = spans_of(cells.iter().map(|c| c.0));
    counts.clear();
    counts.extend(cells.into_iter().map(|c| c.1));
}

/// How many cells at the start lie within the zero bucket, which holds their counts already.
pub(super) fn inside_zero(indexes: impl Iterator<Item = i32>, schema: i32, threshold: f64) -> usize {
    indexes.take_while(|i| exponential_bound(*i, schema) <= threshold).count()
}

fn join_side(
    spans: &mut Vec<BucketSpan>,
    counts: &mut Vec<f64>,
    other_spans: &[BucketSpan],
    other_counts: &[f64],
    at: Level,
    sign: f64,
) {
    if other_counts.is_empty() {
        return;
    }
    let same = at.schema == at.from && spans.as_slice() == other_spans && counts.len() == other_counts.len();
    if same && other_spans.first().is_some_and(|s| exponential_bound(s.offset, at.schema) > at.threshold) {
        for (a, b) in counts.iter_mut().zip(other_counts) {
            *a += sign * b;
        }
        return;
    }
    let lower;
    let cells: Vec<(i32, f64)> = if at.schema == at.from {
        Cells::new(other_spans, other_counts).collect()
    } else {
        lower = reduced(other_spans, other_counts, at.from, at.schema);
        lower
    };
    let skip = inside_zero(cells.iter().map(|c| c.0), at.schema, at.threshold);
    let merged = merge(Cells::new(spans, counts), cells[skip..].iter().map(|(i, c)| (*i, sign * c)));
    *spans = spans_of(merged.iter().map(|c| c.0));
    counts.clear();
    counts.extend(merged.into_iter().map(|c| c.1));
}

/// Cells of both in order of index, counts of the same index added.
fn merge(a: impl Iterator<Item = (i32, f64)>, b: impl Iterator<Item = (i32, f64)>) -> Vec<(i32, f64)> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    let mut out = Vec::with_capacity(a.size_hint().0.max(b.size_hint().0));
    loop {
        match (a.peek().copied(), b.peek().copied()) {
            (Some((i, x)), Some((j, y))) if i == j => {
                out.push((i, x + y));
                a.next();
                b.next();
            }
            (Some(cell), Some((j, _))) if cell.0 < j => {
                out.push(cell);
                a.next();
            }
            (Some(cell), None) => {
                out.push(cell);
                a.next();
            }
            (_, Some(cell)) => {
                out.push(cell);
                b.next();
            }
            (None, None) => return out,
        }
    }
}

/// Whether both have the same custom boundaries.
pub(super) fn same_bounds(a: &Histogram, b: &Histogram) -> bool {
    a.custom_values == b.custom_values
}

/// Joins two of custom boundaries; true when those differed.
fn join_custom(h: &mut Histogram, other: &Histogram, sign: f64) -> bool {
    if same_bounds(h, other) {
        let merged = if h.positive_spans == other.positive_spans {
            for (a, b) in h.positive_buckets.iter_mut().zip(&other.positive_buckets) {
                *a += sign * b;
            }
            return false;
        } else {
            merge(
                Cells::new(&h.positive_spans, &h.positive_buckets),
                Cells::new(&other.positive_spans, &other.positive_buckets).map(|(i, c)| (i, sign * c)),
            )
        };
        h.positive_spans = spans_of(merged.iter().map(|c| c.0));
        h.positive_buckets = merged.into_iter().map(|c| c.1).collect();
        return false;
    }
    let common = common_bounds(&h.custom_values, &other.custom_values);
    let mut cells = vec![(0.0, 0.0); common.len() + 1];
    pour(h, None, &common, 1.0, &mut cells);
    pour(other, None, &common, sign, &mut cells);
    settle(h, None, common, cells);
    true
}

/// The boundaries that are in both, which are sorted.
pub(super) fn common_bounds(a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        if x == y {
            out.push(*x);
            i += 1;
            j += 1;
        } else if x < y {
            i += 1;
        } else {
            j += 1;
        }
    }
    out
}

/// Adds each bucket of `h` to the bucket of the common boundaries that holds it; `cells` are counts with their loss.
pub(super) fn pour(h: &Histogram, lost: Option<&[f64]>, common: &[f64], sign: f64, cells: &mut [(f64, f64)]) {
    let mut at = 0;
    for (n, (index, count)) in Cells::new(&h.positive_spans, &h.positive_buckets).enumerate() {
        let bound = usize::try_from(index).ok().and_then(|i| h.custom_values.get(i));
        let target = match bound {
            Some(bound) => {
                while common.get(at).is_some_and(|c| c < bound) {
                    at += 1;
                }
                at
            }
            None => common.len(),
        };
        let cell = &mut cells[target];
        *cell = kahan(sign * count, cell.0, cell.1);
        if let Some(c) = lost.and_then(|l| l.get(n)) {
            *cell = kahan(*c, cell.0, cell.1);
        }
    }
}

/// Gives `h` the common boundaries and the cells that are not empty.
pub(super) fn settle(h: &mut Histogram, lost: Option<&mut Vec<f64>>, common: Vec<f64>, cells: Vec<(f64, f64)>) {
    let kept = || (0_i32..).zip(cells.iter().copied()).filter(|(_, (count, lost))| *count != 0.0 || *lost != 0.0);
    h.positive_spans = spans_of(kept().map(|c| c.0));
    h.positive_buckets = kept().map(|c| c.1.0).collect();
    if let Some(lost) = lost {
        *lost = kept().map(|c| c.1.1).collect();
    }
    h.custom_values = common;
}
