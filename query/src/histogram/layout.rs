//! Which buckets a histogram has: without empty ones, at a lower resolution, with a wider bucket around zero.
//!
//! Everything goes by *cells*, pairs of index and count in order: [`spans_of`] turns them back into spans. Neighbours
//! always end up in one span.

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};

use super::buckets::{Cells, negative, positive, target_index};
use crate::functions::sum::kahan;

/// The spans that number these cells, whose indexes grow.
pub(super) fn spans_of(cells: impl Iterator<Item = i32>) -> Vec<BucketSpan> {
    let mut spans: Vec<BucketSpan> = Vec::new();
    let mut next = 0_i32;
    for index in cells {
        match spans.last_mut() {
            Some(span) if index == next => span.length += 1,
            _ => spans.push(BucketSpan { offset: index.wrapping_sub(next), length: 1 }),
        }
        next = index.wrapping_add(1);
    }
    spans
}

/// Whether both number the same buckets the same way; spans of length 0 only shift the next one.
pub(super) fn same_spans(a: &[BucketSpan], b: &[BucketSpan]) -> bool {
    fn populated(spans: &[BucketSpan]) -> impl Iterator<Item = (i32, u32)> + '_ {
        let mut skipped = 0_i32;
        spans.iter().filter_map(move |span| {
            let offset = skipped.wrapping_add(span.offset);
            if span.length == 0 {
                skipped = offset;
                return None;
            }
            skipped = 0;
            Some((offset, span.length))
        })
    }
    a == b || populated(a).eq(populated(b))
}

/// Takes out empty buckets and joins neighbouring spans.
pub fn compact(h: &mut Histogram) {
    compact_side(&mut h.positive_spans, &mut h.positive_buckets, None);
    compact_side(&mut h.negative_spans, &mut h.negative_buckets, None);
}

/// As [`compact`], one side, with what rounding lost beside it: a bucket is empty when both are 0.
pub(super) fn compact_side(spans: &mut Vec<BucketSpan>, counts: &mut Vec<f64>, mut lost: Option<&mut Vec<f64>>) {
    let full = counts.iter().all(|c| *c != 0.0);
    if full && spans.iter().all(|s| s.offset > 0 && s.length > 0) {
        return;
    }
    let mut indexes = Vec::with_capacity(counts.len());
    let mut kept = Vec::with_capacity(counts.len());
    let mut kept_lost = Vec::new();
    for (at, (index, count)) in Cells::new(spans, counts).enumerate() {
        let lost = lost.as_ref().and_then(|l| l.get(at)).copied().unwrap_or(0.0);
        if count != 0.0 || lost != 0.0 {
            indexes.push(index);
            kept.push(count);
            kept_lost.push(lost);
        }
    }
    *spans = spans_of(indexes.into_iter());
    *counts = kept;
    if let Some(lost) = lost.as_mut() {
        **lost = kept_lost;
    }
}

/// The cells of one side at a lower resolution: counts that fall together are added from low to high.
pub(super) fn reduced(spans: &[BucketSpan], counts: &[f64], from: i32, to: i32) -> Vec<(i32, f64)> {
    let mut out: Vec<(i32, f64)> = Vec::with_capacity(counts.len());
    for (index, count) in Cells::new(spans, counts) {
        let index = target_index(index, from, to);
        match out.last_mut() {
            Some((last, sum)) if *last == index => *sum += count,
            _ => out.push((index, count)),
        }
    }
    out
}

/// As [`reduced`], keeping what rounding loses: `(index, count, lost)`.
pub(super) fn reduced_kahan(
    spans: &[BucketSpan],
    counts: &[f64],
    lost: &[f64],
    from: i32,
    to: i32,
) -> Vec<(i32, f64, f64)> {
    let mut out: Vec<(i32, f64, f64)> = Vec::with_capacity(counts.len());
    for (at, (index, count)) in Cells::new(spans, counts).enumerate() {
        let index = target_index(index, from, to);
        let c = lost.get(at).copied().unwrap_or(0.0);
        match out.last_mut() {
            Some((last, sum, sum_lost)) if *last == index => {
                (*sum, *sum_lost) = kahan(count, *sum, *sum_lost);
                (*sum, *sum_lost) = kahan(c, *sum, *sum_lost);
            }
            _ => out.push((index, count, c)),
        }
    }
    out
}

/// A copy at a lower resolution. The hint is lost with the resolution, as upstream. Custom boundaries have none, and
/// a resolution cannot be raised: the copy is then a plain one.
#[must_use]
pub fn copy_to_schema(h: &Histogram, schema: i32) -> Histogram {
    if schema >= h.schema || h.is_custom() {
        return h.clone();
    }
    let side = |spans: &[BucketSpan], counts: &[f64]| {
        let cells = reduced(spans, counts, h.schema, schema);
        (spans_of(cells.iter().map(|c| c.0)), cells.into_iter().map(|c| c.1).collect::<Vec<_>>())
    };
    let (positive_spans, positive_buckets) = side(&h.positive_spans, &h.positive_buckets);
    let (negative_spans, negative_buckets) = side(&h.negative_spans, &h.negative_buckets);
    Histogram {
        integer: false,
        reset_hint: ResetHint::Unknown,
        schema,
        zero_threshold: h.zero_threshold,
        zero_count: h.zero_count,
        count: h.count,
        sum: h.sum,
        positive_spans,
        negative_spans,
        positive_buckets,
        negative_buckets,
        custom_values: Vec::new(),
    }
}

/// What rounding lost in each part of a histogram; the sides lie beside its buckets.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost {
    pub(super) zero_count: f64,
    pub(super) count: f64,
    pub(super) sum: f64,
    pub(super) positive: Vec<f64>,
    pub(super) negative: Vec<f64>,
}

/// What a zero bucket would hold were it wider.
pub(super) struct WiderZero {
    pub(super) count: f64,
    pub(super) threshold: f64,
    pub(super) lost: f64,
}

/// What the zero bucket would hold up to `threshold`, which is not below the present one. Where that lies within a
/// populated bucket, the bucket is taken in whole and the threshold moves to its end.
pub(super) fn wider_zero(h: &Histogram, threshold: f64, lost: Option<&Lost>) -> WiderZero {
    let mut out = WiderZero { count: h.zero_count, threshold, lost: lost.map_or(0.0, |l| l.zero_count) };
    if threshold <= h.zero_threshold {
        return out;
    }
    let take = |out: &mut WiderZero, count: f64, side: Option<&Vec<f64>>, at: usize| {
        (out.count, out.lost) = kahan(count, out.count, out.lost);
        if let Some(c) = side.and_then(|s| s.get(at)) {
            (out.count, out.lost) = kahan(*c, out.count, out.lost);
        }
    };
    // Each pass that starts over has moved the threshold to the end of a further bucket, so there are not more passes
    // than buckets.
    'again: loop {
        out.count = h.zero_count;
        for (at, b) in positive(h).enumerate() {
            if b.lower >= out.threshold {
                break;
            }
            take(&mut out, b.count, lost.map(|l| &l.positive), at);
            if b.upper > out.threshold {
                if b.count != 0.0 {
                    out.threshold = b.upper;
                }
                break;
            }
        }
        for (at, b) in negative(h).enumerate() {
            if b.upper <= -out.threshold {
                break;
            }
            take(&mut out, b.count, lost.map(|l| &l.negative), at);
            if b.lower < -out.threshold {
                if b.count != 0.0 {
                    out.threshold = -b.lower;
                    continue 'again;
                }
                break;
            }
        }
        return out;
    }
}

/// Widens the zero bucket of `h` until it ends, in both histograms, at a boundary and not below either threshold.
/// `h` is changed; what `other`'s zero bucket would hold is returned, with what rounding lost on the way.
pub(super) fn reconcile_zero(h: &mut Histogram, other: &Histogram, mut lost: Option<&mut Lost>) -> (f64, f64) {
    let (mut count, mut threshold, mut other_lost) = (other.zero_count, other.zero_threshold, 0.0);
    // A threshold that is not a number equals nothing: leave it rather than loop.
    while threshold != h.zero_threshold && !threshold.is_nan() && !h.zero_threshold.is_nan() {
        if h.zero_threshold > threshold {
            let wider = wider_zero(other, h.zero_threshold, None);
            (count, threshold, other_lost) = (wider.count, wider.threshold, wider.lost);
        }
        if threshold > h.zero_threshold {
            let wider = wider_zero(h, threshold, lost.as_deref());
            h.zero_count = wider.count;
            h.zero_threshold = wider.threshold;
            if let Some(lost) = lost.as_deref_mut() {
                lost.zero_count = wider.lost;
            }
            drop_inside_zero(h, lost.as_deref_mut());
        }
    }
    (count, other_lost)
}

/// Empties the buckets within the zero bucket, whose counts it holds already, and takes them out.
fn drop_inside_zero(h: &mut Histogram, lost: Option<&mut Lost>) {
    let above = positive(h).take_while(|b| b.lower < h.zero_threshold).count();
    let below = negative(h).take_while(|b| b.upper > -h.zero_threshold).count();
    let clear = |counts: &mut [f64], n: usize| counts.iter_mut().take(n).for_each(|c| *c = 0.0);
    clear(&mut h.positive_buckets, above);
    clear(&mut h.negative_buckets, below);
    let (mut positive_lost, mut negative_lost) = (None, None);
    if let Some(lost) = lost {
        clear(&mut lost.positive, above);
        clear(&mut lost.negative, below);
        positive_lost = Some(&mut lost.positive);
        negative_lost = Some(&mut lost.negative);
    }
    compact_side(&mut h.positive_spans, &mut h.positive_buckets, positive_lost);
    compact_side(&mut h.negative_spans, &mut h.negative_buckets, negative_lost);
}
