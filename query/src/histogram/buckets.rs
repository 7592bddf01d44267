//! Spans and counts as buckets with boundaries, from either end.
//!
//! Why an iterator and not a list: a quantile reads a few buckets of hundreds. It runs from both ends because the
//! buckets below zero are stored outwards, from zero down.
//!
//! A bucket of index `i` ends at `2^(i · 2^-schema)` and begins where `i - 1` ends; below zero it is mirrored. Custom
//! boundaries number the buckets from 0.

use engram_model::histogram::{BucketSpan, Histogram};

use super::table::FRACTIONS;

/// A bucket with its boundaries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Lower boundary.
    pub lower: f64,
    /// Upper boundary.
    pub upper: f64,
    /// Whether the lower boundary belongs to it.
    pub lower_inclusive: bool,
    /// Whether the upper boundary belongs to it.
    pub upper_inclusive: bool,
    /// Observations.
    pub count: f64,
}

impl Bucket {
    /// What share of the bucket's width lies below `v`, which is strictly inside, both boundaries finite. On a
    /// logarithmic scale unless `linear`.
    #[must_use]
    pub fn fraction_below(&self, v: f64, linear: bool) -> f64 {
        if linear {
            return (v - self.lower) / (self.upper - self.lower);
        }
        let (lower, upper, at) = (self.lower.abs().log2(), self.upper.abs().log2(), v.abs().log2());
        if v > 0.0 { (at - lower) / (upper - lower) } else { 1.0 - ((at - upper) / (lower - upper)) }
    }
}

/// Upper boundary of the bucket `index` of an exponential schema, as an absolute value.
#[must_use]
pub fn exponential_bound(index: i32, schema: i32) -> f64 {
    // The last bucket of finite values would end at 2^1024, which is no float: it ends at the largest one.
    if schema < 0 {
        let shift = u32::try_from(-schema).unwrap_or(0).min(31);
        let exponent = i64::from(index) << shift;
        return if exponent == 1024 { f64::MAX } else { scale(1.0, exponent) };
    }
    let shift = u32::try_from(schema).unwrap_or(0).min(8);
    let step = 256_usize >> shift;
    let within = usize::try_from(index.rem_euclid(1 << shift)).unwrap_or(0);
    let exponent = i64::from(index >> shift) + 1;
    if within == 0 && exponent == 1025 { f64::MAX } else { scale(FRACTIONS[within * step], exponent) }
}

/// `x · 2^exponent`, in two steps where one would leave the range of floats too early.
fn scale(x: f64, exponent: i64) -> f64 {
    let power = |e: i64| 2.0_f64.powi(i32::try_from(e).unwrap_or(0));
    let exponent = exponent.clamp(-2000, 2000);
    let half = exponent / 2;
    x * power(half) * power(exponent - half)
}

/// Boundary of bucket `index` of a histogram: the upper one, `-1` for the lower one of bucket 0.
fn bound(h: &Histogram, index: i32, schema: i32) -> f64 {
    if !h.is_custom() {
        return exponential_bound(index, schema);
    }
    match usize::try_from(index) {
        Ok(at) => h.custom_values.get(at).copied().unwrap_or(f64::INFINITY),
        Err(_) => f64::NEG_INFINITY,
    }
}

/// The bucket an index of a finer schema falls into.
#[must_use]
pub(super) fn target_index(index: i32, from: i32, to: i32) -> i32 {
    let shift = u32::try_from(from.saturating_sub(to)).unwrap_or(0).min(31);
    (index.wrapping_sub(1) >> shift).wrapping_add(1)
}

/// Indexes and counts of one side, in order of the spans, from either end.
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    spans: &'a [BucketSpan],
    counts: &'a [f64],
    front: Cursor,
    back: Cursor,
}

/// `span`: which one; `inside`: how many of its buckets lie before; `index`: of the next bucket.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    span: usize,
    inside: u32,
    index: i32,
}

impl<'a> Cells<'a> {
    /// Walks `counts` as `spans` number them, as far as both go.
    #[must_use]
    pub fn new(spans: &'a [BucketSpan], counts: &'a [f64]) -> Self {
        let mut left = counts.len();
        let mut back = Cursor { span: 0, inside: 0, index: 0 };
        for (at, span) in spans.iter().enumerate() {
            let length = usize::try_from(span.length).unwrap_or(usize::MAX).min(left);
            let inside = u32::try_from(length).unwrap_or(u32::MAX);
            let begin = back.index.wrapping_add(span.offset);
            back = Cursor { span: at, inside, index: begin.wrapping_add_unsigned(inside) };
            left -= length;
            if left == 0 {
                break;
            }
        }
        let counts = &counts[..counts.len() - left];
        let front = Cursor { span: 0, inside: 0, index: spans.first().map_or(0, |s| s.offset) };
        Self { spans, counts, front, back }
    }
}

impl Iterator for Cells<'_> {
    type Item = (i32, f64);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (count, rest) = self.counts.split_first()?;
        while self.front.inside >= self.spans[self.front.span].length {
            self.front.span += 1;
            self.front.inside = 0;
            self.front.index = self.front.index.wrapping_add(self.spans[self.front.span].offset);
        }
        self.counts = rest;
        let index = self.front.index;
        self.front.index = index.wrapping_add(1);
        self.front.inside += 1;
        Some((index, *count))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.counts.len(), Some(self.counts.len()))
    }
}

impl DoubleEndedIterator for Cells<'_> {
    #[inline]
    fn next_back(&mut self) -> Option<Self::Item> {
        let (count, rest) = self.counts.split_last()?;
        while self.back.inside == 0 {
            self.back.index = self.back.index.wrapping_sub(self.spans[self.back.span].offset);
            self.back.span -= 1;
            self.back.inside = self.spans[self.back.span].length;
        }
        self.counts = rest;
        self.back.index = self.back.index.wrapping_sub(1);
        self.back.inside -= 1;
        Some((self.back.index, *count))
    }
}

/// Cells of the side above zero.
#[must_use]
pub fn positive_cells(h: &Histogram) -> Cells<'_> {
    Cells::new(&h.positive_spans, &h.positive_buckets)
}

/// Cells of the side below zero, from zero down.
#[must_use]
pub fn negative_cells(h: &Histogram) -> Cells<'_> {
    Cells::new(&h.negative_spans, &h.negative_buckets)
}

fn bucket_above(h: &Histogram, index: i32, count: f64) -> Bucket {
    let (lower, upper) = (bound(h, index.wrapping_sub(1), h.schema), bound(h, index, h.schema));
    if h.is_custom() {
        return Bucket { lower, upper, lower_inclusive: index == 0, upper_inclusive: true, count };
    }
    Bucket { lower, upper, lower_inclusive: lower < 0.0, upper_inclusive: upper > 0.0, count }
}

fn bucket_below(h: &Histogram, index: i32, count: f64) -> Bucket {
    let (lower, upper) = (-bound(h, index, h.schema), -bound(h, index.wrapping_sub(1), h.schema));
    Bucket { lower, upper, lower_inclusive: lower < 0.0, upper_inclusive: upper > 0.0, count }
}

/// Buckets above zero, upwards; all of them with custom boundaries.
pub fn positive(h: &Histogram) -> impl DoubleEndedIterator<Item = Bucket> + '_ {
    positive_cells(h).map(|(index, count)| bucket_above(h, index, count))
}

/// Buckets below zero, downwards.
pub fn negative(h: &Histogram) -> impl DoubleEndedIterator<Item = Bucket> + '_ {
    negative_cells(h).map(|(index, count)| bucket_below(h, index, count))
}

/// The bucket around zero.
#[must_use]
pub fn zero(h: &Histogram) -> Bucket {
    Bucket {
        lower: -h.zero_threshold,
        upper: h.zero_threshold,
        lower_inclusive: true,
        upper_inclusive: true,
        count: h.zero_count,
    }
}

/// All buckets upwards: below zero, around zero (where it is populated), above. Those that reach into the zero bucket
/// end at it.
pub fn all(h: &Histogram) -> impl DoubleEndedIterator<Item = Bucket> + '_ {
    let threshold = h.zero_threshold;
    let cut = move |mut b: Bucket| {
        if b.upper < 0.0 && b.upper > -threshold {
            b.upper = -threshold;
        } else if b.lower > 0.0 && b.lower < threshold {
            b.lower = threshold;
        }
        b
    };
    let middle = (h.zero_count > 0.0).then(|| zero(h));
    negative(h).rev().map(cut).chain(middle).chain(positive(h).map(cut))
}
