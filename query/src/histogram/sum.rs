//! Sums and means of many histograms that keep what rounding would lose.
//!
//! Beside each count lies what its additions lost; at the end it is added back. Used by `sum` and `avg`, over series
//! and over time alike.

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};

use super::arith::{
    Incompatible, Joined, common_bounds, divide, inside_zero, join_hints, multiply, pour, same_bounds, settle,
};
use super::buckets::Cells;
use super::has_overflow;
use super::layout::{Lost, reconcile_zero, reduced_kahan, spans_of};
use crate::functions::sum::kahan;

/// What the reset hints of everything taken in say together.
#[derive(Clone, Copy, Debug, Default)]
struct Hints {
    reset: bool,
    no_reset: bool,
}

impl Hints {
    fn see(&mut self, h: &Histogram) {
        self.reset |= h.reset_hint == ResetHint::Reset;
        self.no_reset |= h.reset_hint == ResetHint::NoReset;
    }
}

/// A sum of histograms.
#[derive(Clone, Debug)]
pub struct HistogramSum {
    total: Histogram,
    lost: Lost,
    hints: Hints,
    reconciled: bool,
}

impl HistogramSum {
    /// The sum of one.
    #[must_use]
    pub fn new(first: &Histogram) -> Self {
        let mut hints = Hints::default();
        hints.see(first);
        Self { total: float(first), lost: no_loss(first), hints, reconciled: false }
    }

    /// Adds a further one.
    ///
    /// # Errors
    /// [`Incompatible`]: the sum has no meaning any more.
    pub fn add(&mut self, other: &Histogram) -> Result<(), Incompatible> {
        self.hints.see(other);
        self.reconciled |= kahan_add(&mut self.total, &mut self.lost, other)?.reconciled;
        Ok(())
    }

    /// Whether some said there was a counter reset and others that there was none, and whether custom boundaries
    /// differed.
    #[must_use]
    pub fn joined(&self) -> Joined {
        Joined { collision: self.hints.reset && self.hints.no_reset, reconciled: self.reconciled }
    }

    /// The sum; empty buckets may be in it.
    #[must_use]
    pub fn finish(self) -> Histogram {
        regain(self.total, self.lost)
    }
}

/// A mean of histograms: the sum divided at the end while everything in it is finite, else a mean that moves.
#[derive(Clone, Debug)]
pub struct HistogramMean {
    /// The sum, or the mean once the sum overflowed.
    value: Histogram,
    lost: Lost,
    count: f64,
    moving: bool,
    hints: Hints,
    reconciled: bool,
}

impl HistogramMean {
    /// The mean of one.
    #[must_use]
    pub fn new(first: &Histogram) -> Self {
        let mut hints = Hints::default();
        hints.see(first);
        Self { value: float(first), lost: no_loss(first), count: 1.0, moving: false, hints, reconciled: false }
    }

    /// Takes a further one in.
    ///
    /// # Errors
    /// [`Incompatible`]: the mean has no meaning any more.
    pub fn add(&mut self, other: &Histogram) -> Result<(), Incompatible> {
        self.hints.see(other);
        self.count += 1.0;
        if !self.moving {
            let (mut sum, mut lost) = (self.value.clone(), self.lost.clone());
            self.reconciled |= kahan_add(&mut sum, &mut lost, other)?.reconciled;
            if !has_overflow(&sum) {
                (self.value, self.lost) = (sum, lost);
                return Ok(());
            }
            self.moving = true;
            divide(&mut self.value, self.count - 1.0);
            self.lost.scale(|x| x / (self.count - 1.0));
        }
        let keep = (self.count - 1.0) / self.count;
        multiply(&mut self.value, keep);
        self.lost.scale(|x| x * keep);
        let mut part = float(other);
        divide(&mut part, self.count);
        self.reconciled |= kahan_add(&mut self.value, &mut self.lost, &part)?.reconciled;
        Ok(())
    }

    /// As [`HistogramSum::joined`].
    #[must_use]
    pub fn joined(&self) -> Joined {
        Joined { collision: self.hints.reset && self.hints.no_reset, reconciled: self.reconciled }
    }

    /// The mean; empty buckets may be in it.
    #[must_use]
    pub fn finish(mut self) -> Histogram {
        if !self.moving {
            divide(&mut self.value, self.count);
            self.lost.scale(|x| x / self.count);
        }
        regain(self.value, self.lost)
    }
}

fn float(h: &Histogram) -> Histogram {
    Histogram { integer: false, ..h.clone() }
}

fn no_loss(h: &Histogram) -> Lost {
    Lost {
        positive: vec![0.0; h.positive_buckets.len()],
        negative: vec![0.0; h.negative_buckets.len()],
        ..Lost::default()
    }
}

impl Lost {
    fn scale(&mut self, f: impl Fn(f64) -> f64) {
        self.zero_count = f(self.zero_count);
        self.count = f(self.count);
        self.sum = f(self.sum);
        for x in self.positive.iter_mut().chain(&mut self.negative) {
            *x = f(*x);
        }
    }
}

/// Adds back what was lost.
fn regain(mut h: Histogram, lost: Lost) -> Histogram {
    h.zero_count += lost.zero_count;
    h.count += lost.count;
    h.sum += lost.sum;
    for (count, lost) in h.positive_buckets.iter_mut().zip(lost.positive) {
        *count += lost;
    }
    for (count, lost) in h.negative_buckets.iter_mut().zip(lost.negative) {
        *count += lost;
    }
    h
}

fn kahan_add(h: &mut Histogram, lost: &mut Lost, other: &Histogram) -> Result<Joined, Incompatible> {
    if h.is_custom() != other.is_custom() {
        return Err(Incompatible);
    }
    let collision = join_hints(h, other);
    if !h.is_custom() {
        let (zero, zero_lost) = reconcile_zero(h, other, Some(lost));
        (h.zero_count, lost.zero_count) = kahan(zero, h.zero_count, lost.zero_count);
        (h.zero_count, lost.zero_count) = kahan(zero_lost, h.zero_count, lost.zero_count);
    }
    (h.count, lost.count) = kahan(other.count, h.count, lost.count);
    (h.sum, lost.sum) = kahan(other.sum, h.sum, lost.sum);

    if h.is_custom() && !same_bounds(h, other) {
        let common = common_bounds(&h.custom_values, &other.custom_values);
        let mut cells = vec![(0.0, 0.0); common.len() + 1];
        pour(h, Some(&lost.positive), &common, 1.0, &mut cells);
        pour(other, None, &common, 1.0, &mut cells);
        settle(h, Some(&mut lost.positive), common, cells);
        return Ok(Joined { collision, reconciled: true });
    }
    let schema = h.schema.min(other.schema);
    let level =
        Level { schema, zero: (!h.is_custom()).then_some(h.zero_threshold), own: h.schema, other: other.schema };
    let (spans, counts) = (&other.positive_spans, &other.positive_buckets);
    join_side(
        Side { spans: &mut h.positive_spans, counts: &mut h.positive_buckets, lost: &mut lost.positive },
        spans,
        counts,
        level,
    );
    let (spans, counts) = (&other.negative_spans, &other.negative_buckets);
    join_side(
        Side { spans: &mut h.negative_spans, counts: &mut h.negative_buckets, lost: &mut lost.negative },
        spans,
        counts,
        level,
    );
    h.schema = schema;
    Ok(Joined { collision, reconciled: false })
}

struct Side<'a> {
    spans: &'a mut Vec<BucketSpan>,
    counts: &'a mut Vec<f64>,
    lost: &'a mut Vec<f64>,
}

/// Where two sides meet: the common resolution, the end of the zero bucket (exponential ones only), theirs before.
#[derive(Clone, Copy)]
struct Level {
    schema: i32,
    zero: Option<f64>,
    own: i32,
    other: i32,
}

fn join_side(side: Side<'_>, spans: &[BucketSpan], counts: &[f64], at: Level) {
    let outside = |index: Option<i32>| {
        at.zero.is_none_or(|zero| index.is_none_or(|i| super::buckets::exponential_bound(i, at.schema) > zero))
    };
    let same = at.own == at.other && side.spans.as_slice() == spans && side.counts.len() == counts.len();
    if same && outside(spans.first().map(|s| s.offset)) {
        for ((count, lost), x) in side.counts.iter_mut().zip(side.lost.iter_mut()).zip(counts) {
            (*count, *lost) = kahan(*x, *count, *lost);
        }
        return;
    }
    let own: Vec<(i32, f64, f64)> = if at.own > at.schema {
        reduced_kahan(side.spans, side.counts, side.lost, at.own, at.schema)
    } else {
        let lost = side.lost.iter().copied().chain(std::iter::repeat(0.0));
        Cells::new(side.spans, side.counts).zip(lost).map(|((i, count), lost)| (i, count, lost)).collect()
    };
    let other: Vec<(i32, f64, f64)> = if at.other > at.schema {
        reduced_kahan(spans, counts, &[], at.other, at.schema)
    } else {
        Cells::new(spans, counts).map(|(i, count)| (i, count, 0.0)).collect()
    };
    let skip = at.zero.map_or(0, |zero| inside_zero(other.iter().map(|c| c.0), at.schema, zero));
    let merged = merge(&own, &other[skip..]);
    *side.spans = spans_of(merged.iter().map(|c| c.0));
    *side.counts = merged.iter().map(|c| c.1).collect();
    *side.lost = merged.iter().map(|c| c.2).collect();
}

fn merge(a: &[(i32, f64, f64)], b: &[(i32, f64, f64)]) -> Vec<(i32, f64, f64)> {
    let mut out = Vec::with_capacity(a.len().max(b.len()));
    let (mut i, mut j) = (0, 0);
    loop {
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) if x.0 == y.0 => {
                let (mut count, mut lost) = kahan(y.1, x.1, x.2);
                if y.2 != 0.0 {
                    (count, lost) = kahan(y.2, count, lost);
                }
                out.push((x.0, count, lost));
                i += 1;
                j += 1;
            }
            (Some(x), Some(y)) if x.0 < y.0 => {
                out.push(*x);
                i += 1;
            }
            (Some(x), None) => {
                out.push(*x);
                i += 1;
            }
            (_, Some(y)) => {
                out.push(*y);
                j += 1;
            }
            (None, None) => return out,
        }
    }
}
