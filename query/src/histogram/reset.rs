//! Whether a counter restarted between two histograms.
//!
//! A restart shows as a count that fell, a populated bucket that is gone, a finer resolution or a narrower zero bucket:
//! exporters change the latter two only in the other direction without a restart.

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};

use super::arith::same_bounds;
use super::buckets::{Bucket, Cells, exponential_bound, positive, target_index};
use super::layout::wider_zero;

/// Whether there was a counter reset between `before` and `now`. The hint of `now` decides where it says something.
#[must_use]
pub fn detect_reset(now: &Histogram, before: &Histogram) -> bool {
    match now.reset_hint {
        ResetHint::Reset => return true,
        ResetHint::NoReset => return false,
        // A gauge is not meant for this, but users may ask; it is looked at like a counter.
        ResetHint::Unknown | ResetHint::Gauge => {}
    }
    if now.count < before.count {
        return true;
    }
    if now.is_custom() {
        if !before.is_custom() {
            return true;
        }
        if !same_bounds(now, before) {
            return fell_with_other_bounds(now, before);
        }
        let cells = |h| Cells::new(spans(h), counts(h));
        return fell(cells(now), cells(before));
    }
    if same_layout(now, before) {
        let fell = |now: &[f64], before: &[f64]| now.iter().zip(before).any(|(is, was)| is < was);
        return now.zero_count < before.zero_count
            || fell(&now.positive_buckets, &before.positive_buckets)
            || fell(&now.negative_buckets, &before.negative_buckets);
    }
    if before.is_custom() || now.schema > before.schema || now.zero_threshold < before.zero_threshold {
        // Custom boundaries before: the schema number is lower than any exponential one, which reads as finer now.
        return true;
    }
    let wider = wider_zero(before, now.zero_threshold, None);
    if wider.threshold != now.zero_threshold || now.zero_count < wider.count {
        return true;
    }
    let at = |spans, counts, from| outside(spans, counts, from, now.schema, now.zero_threshold);
    fell(
        at(&now.positive_spans, &now.positive_buckets, now.schema),
        at(&before.positive_spans, &before.positive_buckets, before.schema),
    ) || fell(
        at(&now.negative_spans, &now.negative_buckets, now.schema),
        at(&before.negative_spans, &before.negative_buckets, before.schema),
    )
}

/// Whether bucket stands beside bucket and none lies in the zero bucket: nearly always so between two scrapes.
fn same_layout(a: &Histogram, b: &Histogram) -> bool {
    let outside =
        |spans: &[BucketSpan]| spans.first().is_none_or(|s| exponential_bound(s.offset, a.schema) > a.zero_threshold);
    a.schema == b.schema
        && a.zero_threshold == b.zero_threshold
        && a.positive_spans == b.positive_spans
        && a.negative_spans == b.negative_spans
        && a.positive_buckets.len() == b.positive_buckets.len()
        && a.negative_buckets.len() == b.negative_buckets.len()
        && outside(&a.positive_spans)
        && outside(&a.negative_spans)
}

fn spans(h: &Histogram) -> &[BucketSpan] {
    &h.positive_spans
}

fn counts(h: &Histogram) -> &[f64] {
    &h.positive_buckets
}

/// Cells at a lower resolution, those within the zero bucket left out, without building a list.
fn outside<'a>(
    spans: &'a [BucketSpan],
    counts: &'a [f64],
    from: i32,
    to: i32,
    threshold: f64,
) -> impl Iterator<Item = (i32, f64)> + 'a {
    let mut cells = Cells::new(spans, counts).map(move |(i, c)| (target_index(i, from, to), c)).peekable();
    std::iter::from_fn(move || {
        let (index, mut sum) = cells.next()?;
        while let Some((_, count)) = cells.next_if(|(next, _)| *next == index) {
            sum += count;
        }
        Some((index, sum))
    })
    .skip_while(move |(index, _)| threshold > 0.0 && exponential_bound(*index, to) <= threshold)
}

/// Whether a count is lower now, or populated before and absent now.
fn fell(now: impl Iterator<Item = (i32, f64)>, before: impl Iterator<Item = (i32, f64)>) -> bool {
    let mut now = now.peekable();
    for (index, was) in before {
        while now.next_if(|(i, _)| *i < index).is_some() {}
        match now.peek() {
            Some((i, is)) if *i == index => {
                if *is < was {
                    return true;
                }
            }
            _ => {
                if was != 0.0 {
                    return true;
                }
            }
        }
    }
    false
}

/// As [`fell`] for custom boundaries that differ: counts between the boundaries both have are compared.
fn fell_with_other_bounds(now: &Histogram, before: &Histogram) -> bool {
    fn up_to(buckets: &mut std::iter::Peekable<impl Iterator<Item = Bucket>>, bound: f64) -> f64 {
        let mut sum = 0.0;
        while let Some(b) = buckets.next_if(|b| b.upper <= bound) {
            sum += b.count;
        }
        sum
    }
    let (mut is, mut was) = (positive(now).peekable(), positive(before).peekable());
    let common = super::arith::common_bounds(&now.custom_values, &before.custom_values);
    common.into_iter().chain([f64::INFINITY]).any(|bound| up_to(&mut is, bound) < up_to(&mut was, bound))
}
