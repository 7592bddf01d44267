//! Series of the sampled answer: every sample written out.
//!
//! ```text
//! ReadResponse  1 repeated QueryResult, one a query
//! QueryResult   1 repeated TimeSeries
//! TimeSeries    1 repeated Label · 2 repeated Sample{1 double value · 2 ms} · 4 repeated Histogram
//! ```
//!
//! A histogram says its counts as integers (buckets as differences to the one before) or as floats, as it came.
//!
//! Source: `prometheus prompb/types.proto`.

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::series::Columns;
use engram_model::{Labels, Millis};

use super::frames::put_labels;
use super::wire::{
    put_bytes, put_double, put_double_always, put_number, put_number_always, put_varint, put_zigzag, zigzag,
};

/// Appends one series as field 1 of a query's result.
pub(super) fn put_series(out: &mut Vec<u8>, labels: &Labels, columns: &Columns) {
    let mut series = Vec::with_capacity(labels.as_bytes().len() + 32 + 20 * columns.times.len());
    put_labels(&mut series, labels);
    let mut one = Vec::with_capacity(24);
    for (at, value) in columns.times.iter().zip(&columns.values) {
        one.clear();
        put_double(&mut one, 1, *value);
        put_number(&mut one, 2, at.cast_unsigned());
        put_bytes(&mut series, 2, &one);
    }
    for (at, histogram) in columns.histogram_times.iter().zip(&columns.histograms) {
        one.clear();
        put_histogram(&mut one, *at, histogram);
        put_bytes(&mut series, 4, &one);
    }
    put_bytes(out, 1, &series);
}

fn put_histogram(out: &mut Vec<u8>, at: Millis, h: &Histogram) {
    if h.integer {
        put_number_always(out, 1, whole(h.count));
    } else {
        put_double_always(out, 2, h.count);
    }
    put_double(out, 3, h.sum);
    put_zigzag(out, 4, i64::from(h.schema));
    put_double(out, 5, h.zero_threshold);
    if h.integer {
        put_number_always(out, 6, whole(h.zero_count));
    } else {
        put_double_always(out, 7, h.zero_count);
    }
    for (field, spans, buckets) in
        [(8, &h.negative_spans, &h.negative_buckets), (11, &h.positive_spans, &h.positive_buckets)]
    {
        spans.iter().for_each(|span| put_span(out, field, span));
        if h.integer {
            put_deltas(out, field + 1, buckets);
        } else {
            put_doubles(out, field + 2, buckets);
        }
    }
    let hint = match h.reset_hint {
        ResetHint::Unknown => 0,
        ResetHint::Reset => 1,
        ResetHint::NoReset => 2,
        ResetHint::Gauge => 3,
    };
    put_number(out, 14, hint);
    put_number(out, 15, at.cast_unsigned());
    put_doubles(out, 16, &h.custom_values);
}

fn put_span(out: &mut Vec<u8>, field: u32, span: &BucketSpan) {
    let mut one = Vec::new();
    put_zigzag(&mut one, 1, i64::from(span.offset));
    put_number(&mut one, 2, u64::from(span.length));
    put_bytes(out, field, &one);
}

/// Packed differences of whole counts.
fn put_deltas(out: &mut Vec<u8>, field: u32, counts: &[f64]) {
    if counts.is_empty() {
        return;
    }
    let (mut packed, mut before) = (Vec::new(), 0_i64);
    for count in counts {
        let count = whole(*count).cast_signed();
        put_varint(&mut packed, zigzag(count.wrapping_sub(before)));
        before = count;
    }
    put_bytes(out, field, &packed);
}

/// Packed floats.
fn put_doubles(out: &mut Vec<u8>, field: u32, values: &[f64]) {
    if !values.is_empty() {
        let packed: Vec<u8> = values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect();
        put_bytes(out, field, &packed);
    }
}

/// A count of an integer histogram, which is a whole number below 2^53.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number that is not negative; anything else saturates"
)]
fn whole(count: f64) -> u64 {
    count as u64
}
