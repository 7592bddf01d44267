//! Remote write on the wire: protobuf by hand.
//!
//! Why by hand: the load tool must not cost more than the server it measures. Every sample takes the same 18
//! bytes here, value and time at known places, so a request is built once and then only patched:
//!
//! ```text
//! 12 10 | 09 vvvvvvvv | 10 tttttt      sample: field 2, 16 bytes; value: fixed 64; time: varint of 6 bytes
//! ```
//!
//! A varint takes exactly 6 bytes from 2^35 to 2^42 ms: the years 1971 to 2109.
//!
//! Source: prometheus `prompb/types.proto`, `prompb/io/prometheus/write/v2/types.proto`.

use engram_model::histogram::{BucketSpan, Histogram};
use engram_model::time::Millis;
use std::collections::HashMap;

/// Bytes of a sample after its field tag and length.
const SAMPLE_BYTES: u8 = 16;
/// The times whose varint has six bytes.
const TIMES: std::ops::Range<Millis> = 1 << 35..1 << 42;

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = (value & 0x7f).to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends a field whose content has a length: a message, a string, packed numbers.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// Appends a sample field of value 0 at the first allowed time; returns where its value stands, for [`patch`].
pub(crate) fn put_sample(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0x12, SAMPLE_BYTES, 0x09]);
    let value_at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.push(0x10);
    put_varint(out, TIMES.start.unsigned_abs());
    assert_eq!(out.len(), value_at + 15, "a sample has another size than its tag says");
    value_at
}

/// Overwrites the sample whose value stands at `value_at`.
pub(crate) fn patch(body: &mut [u8], value_at: usize, at: Millis, value: f64) {
    assert!(TIMES.contains(&at), "time {at} needs another varint size");
    body[value_at..value_at + 8].copy_from_slice(&value.to_le_bytes());
    let mut rest = at.unsigned_abs();
    for (i, byte) in body[value_at + 9..value_at + 15].iter_mut().enumerate() {
        let [low, ..] = (rest & 0x7f).to_le_bytes();
        *byte = if i < 5 { low | 0x80 } else { low };
        rest >>= 7;
    }
}

/// One label pair as field 1 of a version 1 series.
pub(crate) fn put_label(out: &mut Vec<u8>, name: &str, value: &str) {
    let mut pair = Vec::with_capacity(name.len() + value.len() + 6);
    put_bytes(&mut pair, 1, name.as_bytes());
    put_bytes(&mut pair, 2, value.as_bytes());
    put_bytes(out, 1, &pair);
}

/// A version 1 series with one sample to patch: appends it to `request`, returns where the value stands.
pub(crate) fn put_series(request: &mut Vec<u8>, pairs: &[(String, String)]) -> usize {
    let mut series = Vec::with_capacity(256);
    for (name, value) in pairs {
        put_label(&mut series, name, value);
    }
    let inside = put_sample(&mut series);
    let tail = series.len() - inside;
    put_bytes(request, 1, &series);
    request.len() - tail
}

/// One series of a request with one sample: a histogram, or the value.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) pairs: Vec<(String, String)>,
    pub(crate) value: f64,
    pub(crate) histogram: Option<Histogram>,
}

impl Content {
    /// Appends the sample to its series' message; `field`: that of histograms.
    fn put(&self, series: &mut Vec<u8>, field: u8, at: Millis) {
        match &self.histogram {
            Some(histogram) => put_bytes(series, field, &histogram_message(histogram, at)),
            None => {
                let value_at = put_sample(series);
                patch(series, value_at, at, self.value);
            }
        }
    }
}

/// A request of version 1, all samples at one time.
pub(crate) fn first(all: &[Content], at: Millis) -> Vec<u8> {
    let mut request = Vec::with_capacity(all.len() * 100);
    for one in all {
        let mut series = Vec::with_capacity(100);
        one.pairs.iter().for_each(|(name, value)| put_label(&mut series, name, value));
        one.put(&mut series, 4, at);
        put_bytes(&mut request, 1, &series);
    }
    request
}

/// A request of version 2, all samples at one time.
pub(crate) fn second(all: &[Content], at: Millis) -> Vec<u8> {
    let mut symbols: Vec<&str> = vec![""];
    let (mut known, mut tail) = (HashMap::from([("", 0)]), Vec::new());
    for one in all {
        let mut refs = Vec::new();
        for text in one.pairs.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]) {
            let symbol = *known.entry(text).or_insert(symbols.len());
            if symbol == symbols.len() {
                symbols.push(text);
            }
            put_varint(&mut refs, symbol as u64);
        }
        let mut series = Vec::with_capacity(100);
        put_bytes(&mut series, 1, &refs);
        one.put(&mut series, 3, at);
        put_bytes(&mut tail, 5, &series);
    }
    let mut request = Vec::with_capacity(tail.len() + 200);
    symbols.iter().for_each(|text| put_bytes(&mut request, 4, text.as_bytes()));
    request.extend_from_slice(&tail);
    request
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

/// The message of a native histogram, the same in both versions.
fn histogram_message(histogram: &Histogram, at: Millis) -> Vec<u8> {
    let mut out = Vec::with_capacity(100);
    let varint = |out: &mut Vec<u8>, field: u8, value: u64| {
        put_varint(out, u64::from(field) << 3);
        put_varint(out, value);
    };
    let double = |out: &mut Vec<u8>, field: u8, value: f64| {
        put_varint(out, u64::from(field) << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    };
    let count = |out: &mut Vec<u8>, field: u8, value: f64| match whole(value).filter(|_| histogram.integer) {
        Some(value) => varint(out, field, value.cast_unsigned()),
        None => double(out, field + 1, value),
    };
    count(&mut out, 1, histogram.count);
    double(&mut out, 3, histogram.sum);
    varint(&mut out, 4, zigzag(i64::from(histogram.schema)));
    double(&mut out, 5, histogram.zero_threshold);
    count(&mut out, 6, histogram.zero_count);
    put_side(&mut out, 8, &histogram.negative_spans, (&histogram.negative_buckets, histogram.integer));
    put_side(&mut out, 11, &histogram.positive_spans, (&histogram.positive_buckets, histogram.integer));
    varint(&mut out, 15, at.cast_unsigned());
    let own: Vec<u8> = histogram.custom_values.iter().flat_map(|bound| bound.to_le_bytes()).collect();
    if !own.is_empty() {
        put_varint(&mut out, 16 << 3 | 2);
        put_varint(&mut out, own.len() as u64);
        out.extend_from_slice(&own);
    }
    out
}

/// Spans, and counts: whole ones as differences, others as they are.
fn put_side(out: &mut Vec<u8>, field: u8, spans: &[BucketSpan], (buckets, integer): (&[f64], bool)) {
    for span in spans {
        let mut message = vec![1 << 3];
        put_varint(&mut message, zigzag(i64::from(span.offset)));
        message.push(2 << 3);
        put_varint(&mut message, u64::from(span.length));
        put_bytes(out, field, &message);
    }
    let (mut packed, mut before) = (Vec::new(), 0);
    for count in buckets {
        match whole(*count).filter(|_| integer) {
            Some(count) => {
                put_varint(&mut packed, zigzag(count - before));
                before = count;
            }
            None => packed.extend_from_slice(&count.to_le_bytes()),
        }
    }
    if !packed.is_empty() {
        put_bytes(out, if integer { field + 1 } else { field + 2 }, &packed);
    }
}

/// A count as the whole number it is.
fn whole(count: f64) -> Option<i64> {
    let is_whole = count.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&count);
    #[allow(clippy::cast_possible_truncation, reason = "looked at just before")]
    is_whole.then_some(count as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(message, repeated, tag = "1")]
        series: Vec<Series>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Series {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Pair>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Sample>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Pair {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Sample {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        at: i64,
    }

    #[test]
    fn a_patched_request_decodes_to_what_was_patched() {
        let mut body = Vec::new();
        let name = |text: &str| ("__name__".to_string(), text.to_string());
        let first = put_series(&mut body, &[name("up"), ("job".into(), "x".repeat(300))]);
        let second = put_series(&mut body, &[name("down")]);
        patch(&mut body, first, 1_790_000_000_123, 1.5);
        patch(&mut body, second, TIMES.end - 1, f64::MIN);
        let decoded = Request::decode(body.as_slice()).unwrap();
        assert_eq!(decoded.series[0].labels[1].value.len(), 300);
        assert_eq!(decoded.series[0].samples, [Sample { value: 1.5, at: 1_790_000_000_123 }]);
        assert_eq!(decoded.series[1].samples, [Sample { value: f64::MIN, at: TIMES.end - 1 }]);
    }
}
