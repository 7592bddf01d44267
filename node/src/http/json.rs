//! Values as the JSON of Prometheus' API.
//!
//! Why by hand and in pieces: an answer may hold millions of points. A tree of `serde_json` values would be ten times
//! their size, and one long write would hold a thread of the runtime; so [`Pieces`] writes about 64 KiB at a time, and
//! only when the connection wants more.
//!
//! The shapes are a contract: sample values are strings with the shortest digits that read back to the same float,
//! plain between 1e-6 and 1e21 and with an exponent outside; times are seconds with up to three decimals.
//!
//! Source: `prometheus web/api/v1/json_codec.go`, `util/jsonutil/marshal.go`.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use engram_model::histogram::Histogram;
use engram_model::sample::Value as SampleValue;
use engram_model::{Labels, Millis};
use engram_query::histogram::text::api_buckets;
use engram_query::value::{InstantSample, RangeSeries};

/// About how many bytes one piece of an answer has.
pub(crate) const PIECE_BYTES: usize = 64 << 10;
/// Points of one series written before the size of the piece is looked at again.
const POINTS_AT_ONCE: usize = 256;

/// Things that are written one after the other.
pub(crate) trait Items: Send {
    /// Writes the next thing, or a part of it; `false` when there is none left.
    fn put_next(&mut self, out: &mut Vec<u8>) -> bool;
}

/// Head, items, tail, in pieces. Ends after the tail.
pub(crate) struct Pieces<I> {
    head: Vec<u8>,
    items: I,
    tail: Option<Vec<u8>>,
}

impl<I: Items> Pieces<I> {
    /// An answer of `head`, all `items`, `tail`.
    pub(crate) fn new(head: &str, items: I, tail: Vec<u8>) -> Self {
        Self { head: head.as_bytes().to_vec(), items, tail: Some(tail) }
    }
}

impl<I: Items> Iterator for Pieces<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.tail.as_ref()?;
        let mut out = std::mem::take(&mut self.head);
        while out.len() < PIECE_BYTES {
            if !self.items.put_next(&mut out) {
                out.extend_from_slice(&self.tail.take().unwrap_or_default());
                break;
            }
        }
        Some(out.into())
    }
}

/// Items that each are written whole, with commas between them.
pub(crate) struct List<T, F> {
    rest: std::vec::IntoIter<T>,
    put: F,
    started: bool,
}

impl<T, F: Fn(&mut Vec<u8>, &T)> List<T, F> {
    /// A list written by `put`.
    pub(crate) fn new(all: Vec<T>, put: F) -> Self {
        Self { rest: all.into_iter(), put, started: false }
    }
}

impl<T: Send, F: Fn(&mut Vec<u8>, &T) + Send> Items for List<T, F> {
    fn put_next(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(next) = self.rest.next() else { return false };
        if std::mem::replace(&mut self.started, true) {
            out.push(b',');
        }
        (self.put)(out, &next);
        true
    }
}

/// The series of a matrix; a long series is written in several parts.
pub(crate) struct Matrix {
    rest: std::vec::IntoIter<RangeSeries>,
    open: Option<(RangeSeries, usize)>,
    started: bool,
}

impl Matrix {
    /// These series, in this order.
    pub(crate) fn new(series: Vec<RangeSeries>) -> Self {
        Self { rest: series.into_iter(), open: None, started: false }
    }
}

impl Items for Matrix {
    fn put_next(&mut self, out: &mut Vec<u8>) -> bool {
        if self.open.is_none() {
            let Some(series) = self.rest.next() else { return false };
            if std::mem::replace(&mut self.started, true) {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"metric\":");
            put_labels(out, &series.labels);
            self.open = Some((series, 0));
        }
        if let Some((series, at)) = &mut self.open {
            let to = at.saturating_add(POINTS_AT_ONCE).min(series.floats.len() + series.histograms.len());
            for i in *at..to {
                put_point(out, series, i);
            }
            *at = to;
            if to == series.floats.len() + series.histograms.len() {
                out.push(b'}');
                self.open = None;
            }
        }
        true
    }
}

/// Point `i` of a series, the floats counted first, with the brackets around its kind.
fn put_point(out: &mut Vec<u8>, series: &RangeSeries, i: usize) {
    let floats = series.floats.len();
    if let Some((at, value)) = series.floats.get(i) {
        out.extend_from_slice(if i == 0 { b",\"values\":[" } else { b"," });
        put_float_at(out, *at, *value);
        if i + 1 == floats {
            out.push(b']');
        }
    } else if let Some((at, histogram)) = series.histograms.get(i - floats) {
        out.extend_from_slice(if i == floats { b",\"histograms\":[" } else { b"," });
        put_histogram_at(out, *at, histogram);
        if i + 1 - floats == series.histograms.len() {
            out.push(b']');
        }
    }
}

/// `{"metric":{…},"value":[t,"v"]}` or with `"histogram"`.
pub(crate) fn put_instant(out: &mut Vec<u8>, sample: &InstantSample) {
    out.extend_from_slice(b"{\"metric\":");
    put_labels(out, &sample.labels);
    match &sample.value {
        SampleValue::Float(value) => {
            out.extend_from_slice(b",\"value\":");
            put_float_at(out, sample.at, *value);
        }
        SampleValue::Histogram(histogram) => {
            out.extend_from_slice(b",\"histogram\":");
            put_histogram_at(out, sample.at, histogram);
        }
    }
    out.push(b'}');
}

/// `[t,"v"]`
pub(crate) fn put_float_at(out: &mut Vec<u8>, at: Millis, value: f64) {
    out.push(b'[');
    put_time(out, at);
    out.push(b',');
    put_float(out, value);
    out.push(b']');
}

/// `[t,"v"]` of a scalar: Prometheus writes those without exponents, however many digits that takes.
pub(crate) fn put_scalar_at(out: &mut Vec<u8>, at: Millis, value: f64) {
    if !value.is_finite() {
        return put_float_at(out, at, value);
    }
    out.push(b'[');
    put_time(out, at);
    out.extend_from_slice(format!(",\"{value}\"]").as_bytes());
}

/// `[t,{…}]`
fn put_histogram_at(out: &mut Vec<u8>, at: Millis, histogram: &Arc<Histogram>) {
    out.push(b'[');
    put_time(out, at);
    out.push(b',');
    put_histogram(out, histogram);
    out.push(b']');
}

/// `{"count":"…","sum":"…","buckets":[[rule,"lower","upper","count"],…]}`; empty buckets are left out.
pub(crate) fn put_histogram(out: &mut Vec<u8>, histogram: &Histogram) {
    out.extend_from_slice(b"{\"count\":");
    put_float(out, histogram.count);
    out.extend_from_slice(b",\"sum\":");
    put_float(out, histogram.sum);
    let mut started = false;
    for bucket in api_buckets(histogram) {
        out.extend_from_slice(if started { b",[" } else { b",\"buckets\":[[" });
        started = true;
        out.push(b'0' + bucket.rule);
        for value in [bucket.lower, bucket.upper, bucket.count] {
            out.push(b',');
            put_float(out, value);
        }
        out.push(b']');
    }
    out.extend_from_slice(if started { b"]}" } else { b"}" });
}

/// `{"name":"value",…}`
pub(crate) fn put_labels(out: &mut Vec<u8>, labels: &Labels) {
    out.push(b'{');
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        put_string(out, name);
        out.push(b':');
        put_string(out, value);
    }
    out.push(b'}');
}

/// `["a","b"]`
pub(crate) fn put_strings<S: AsRef<str>>(out: &mut Vec<u8>, all: impl IntoIterator<Item = S>) {
    out.push(b'[');
    for (i, text) in all.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        put_string(out, text.as_ref());
    }
    out.push(b']');
}

/// A text in quotes.
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut from = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[from..i]);
        from = i + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => put(out, format_args!("\\u{other:04x}")),
        }
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

/// Milliseconds as seconds: `1435781430.781`, `1435781430`, `-0.5` as `-0.500`.
pub(crate) fn put_time(out: &mut Vec<u8>, at: Millis) {
    if at < 0 {
        out.push(b'-');
    }
    let at = at.unsigned_abs();
    put_whole(out, at / 1000);
    let millis = at % 1000;
    if millis != 0 {
        out.push(b'.');
        out.extend([millis / 100, millis / 10 % 10, millis % 10].map(digit));
    }
}

/// Without the formatting machinery: twice as fast, and half of an answer is such numbers.
fn put_whole(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [b'0'; 20];
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = digit(number % 10);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[from..]);
}

#[allow(clippy::cast_possible_truncation, reason = "one decimal digit")]
fn digit(value: u64) -> u8 {
    debug_assert!(value < 10, "{value} is no digit");
    b'0' + value as u8
}

/// A float in quotes.
pub(crate) fn put_float(out: &mut Vec<u8>, value: f64) {
    out.push(b'"');
    put_bare_float(out, value);
    out.push(b'"');
}

/// A float as Go's `strconv` writes it with the fewest digits: `f` between 1e-6 and 1e21, `e` outside.
pub(crate) fn put_bare_float(out: &mut Vec<u8>, value: f64) {
    /// Below it every whole float is exact as an integer, and writing one is twice as fast.
    const WHOLE_MAX: f64 = 1e15;
    let abs = value.abs();
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if abs < WHOLE_MAX
        && value.trunc().to_bits() == value.to_bits()
        && (value != 0.0 || value.is_sign_positive())
    {
        if value < 0.0 {
            out.push(b'-');
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number below 1e15")]
        put_whole(out, abs as u64);
    } else if abs != 0.0 && !(1e-6..1e21).contains(&abs) {
        put_exponent(out, value);
    } else {
        put(out, format_args!("{value}"));
    }
}

/// `1.5e-07`, `1e+21`: an exponent always has a sign and at least two digits.
fn put_exponent(out: &mut Vec<u8>, value: f64) {
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    put(out, format_args!("{digits}e{sign}{exponent:0>2}"));
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing into a Vec cannot fail.
    let _written = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn float(value: f64) -> String {
        let mut out = Vec::new();
        put_bare_float(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    fn text(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn floats_look_as_go_writes_them() {
        for (value, want) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e-6, "0.000001"),
            (9.99e-7, "9.99e-07"),
            (1e-7, "1e-07"),
            (5e-324, "5e-324"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (-1.25e21, "-1.25e+21"),
            (f64::MAX, "1.7976931348623157e+308"),
            (123_456_789_012_345_680.0, "123456789012345680"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
        ] {
            assert_eq!(float(value), want);
        }
    }

    proptest! {
        #[test]
        fn floats_read_back_bit_for_bit_and_keep_the_shape(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            let text = float(value);
            if value.is_nan() {
                prop_assert_eq!(text, "NaN");
            } else {
                prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), bits, "{}", text);
                let plain = value == 0.0 || (1e-6..1e21).contains(&value.abs());
                prop_assert_eq!(!text.contains('e'), plain || value.is_infinite(), "{}", text);
                prop_assert!(!text.ends_with(".0") && !text.contains("E"));
            }
        }

        #[test]
        fn strings_read_back(text in any::<String>()) {
            let mut out = Vec::new();
            put_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }

        #[test]
        fn pieces_are_one_json_text_however_they_are_cut(counts in proptest::collection::vec((0_usize..600, 0_usize..3), 0..6)) {
            let histogram = Arc::new(Histogram { count: 2.0, sum: 3.0, ..Histogram::default() });
            let series: Vec<_> = counts.iter().enumerate().map(|(i, (floats, histograms))| RangeSeries {
                labels: Labels::from_pairs([("i", i.to_string())]),
                floats: (0..*floats).map(|t| (t as i64, t as f64 / 7.0)).collect(),
                histograms: (0..*histograms).map(|t| (t as i64, histogram.clone())).collect(),
            }).collect();
            let whole: Vec<u8> = Pieces::new("[", Matrix::new(series), b"]".to_vec()).flatten().collect();
            let tree: serde_json::Value = serde_json::from_slice(&whole).unwrap();
            let got: Vec<_> = tree.as_array().unwrap().iter().map(|s| {
                let count = |name: &str| s.get(name).map_or(0, |v| v.as_array().unwrap().len());
                (count("values"), count("histograms"))
            }).collect();
            prop_assert_eq!(got, counts);
        }
    }

    #[test]
    fn times_are_seconds() {
        for (at, want) in
            [(1_435_781_430_781, "1435781430.781"), (1000, "1"), (5, "0.005"), (-1500, "-1.500"), (0, "0")]
        {
            assert_eq!(text(|out| put_time(out, at)), want);
        }
        assert_eq!(text(|out| put_time(out, i64::MIN)), "-9223372036854775.808");
    }

    #[test]
    fn histograms_list_their_populated_buckets_upwards() {
        use engram_model::histogram::BucketSpan;
        let span = |offset, length| BucketSpan { offset, length };
        let histogram = Histogram {
            count: 46.0,
            sum: 34.5,
            zero_threshold: 0.25,
            zero_count: 3.0,
            positive_spans: vec![span(-1, 2), span(1, 1)],
            positive_buckets: vec![12.0, 21.0, 6.0],
            negative_spans: vec![span(0, 2)],
            negative_buckets: vec![4.0, 0.0],
            ..Histogram::default()
        };
        assert_eq!(
            text(|out| put_histogram(out, &histogram)),
            "{\"count\":\"46\",\"sum\":\"34.5\",\"buckets\":[[1,\"-1\",\"-0.5\",\"4\"],[3,\"-0.25\",\"0.25\",\"3\"],\
             [0,\"0.25\",\"0.5\",\"12\"],[0,\"0.5\",\"1\",\"21\"],[0,\"2\",\"4\",\"6\"]]}"
        );
        assert_eq!(text(|out| put_histogram(out, &Histogram::default())), "{\"count\":\"0\",\"sum\":\"0\"}");
    }

    #[test]
    fn a_large_answer_comes_in_pieces() {
        let names: Vec<String> = (0..100_000).map(|i| format!("name_{i}")).collect();
        let list = List::new(names, |out, name: &String| put_string(out, name));
        let pieces: Vec<Bytes> = Pieces::new("[", list, b"]".to_vec()).collect();
        assert!(pieces.len() > 10 && pieces.iter().all(|p| p.len() < PIECE_BYTES + 100));
    }
}
