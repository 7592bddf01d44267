//! Samples as lines of the OpenMetrics text format, as `promtool tsdb create-blocks-from openmetrics` takes them.
//!
//! ```text
//! name{label="value",…} 1.5 1700000000.123
//! {"a name beyond a-z",label="value"} 2 1700000000.123      names that are not plain stand in quotes
//! # EOF
//! ```
//!
//! What the format has no words for is left out and counted: native histograms, staleness markers, series without a
//! name. Types are not said: blocks do not keep them either.
//!
//! Source: OpenMetrics 1.0, Prometheus' `textparse` for what it takes.

use engram_model::labels::{is_legacy_metric_name, is_legacy_name};
use engram_model::sample::is_stale;
use engram_model::series::Columns;
use engram_model::{Labels, Millis};

use crate::http::put_bare_float;

/// The last line.
pub(super) const END: &[u8] = b"# EOF\n";

/// What could not be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Native histograms.
    pub(super) histograms: u64,
    /// Staleness markers.
    pub(super) markers: u64,
    /// Samples of series without a name.
    pub(super) nameless: u64,
}

/// Appends all samples of a series; says how many.
pub(super) fn put_series(out: &mut Vec<u8>, labels: &Labels, columns: &Columns, left: &mut LeftOut) -> u64 {
    left.histograms += columns.histogram_times.len() as u64;
    if labels.metric_name().is_empty() {
        left.nameless += columns.times.len() as u64;
        return 0;
    }
    let mut front = Vec::new();
    put_front(&mut front, labels);
    let mut count = 0;
    for (at, value) in columns.times.iter().zip(&columns.values) {
        if is_stale(*value) {
            left.markers += 1;
            continue;
        }
        out.extend_from_slice(&front);
        put_bare_float(out, *value);
        out.push(b' ');
        put_time(out, *at);
        out.push(b'\n');
        count += 1;
    }
    count
}

/// `name{…} `.
fn put_front(out: &mut Vec<u8>, labels: &Labels) {
    let name = labels.metric_name();
    let plain = is_legacy_metric_name(name);
    let mut is_first = true;
    let mut separate = |out: &mut Vec<u8>| out.push(if std::mem::take(&mut is_first) { b'{' } else { b',' });
    if plain {
        out.extend_from_slice(name.as_bytes());
    } else {
        separate(out);
        put_quoted(out, name);
    }
    for (label, value) in labels.iter().filter(|(label, _)| *label != "__name__") {
        separate(out);
        if is_legacy_name(label) {
            out.extend_from_slice(label.as_bytes());
        } else {
            put_quoted(out, label);
        }
        out.push(b'=');
        put_quoted(out, value);
    }
    out.extend_from_slice(if is_first { b" " } else { b"} " });
}

fn put_quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            other => out.push(other),
        }
    }
    out.push(b'"');
}

/// Seconds that Prometheus reads as these milliseconds. It multiplies the float by 1000 and cuts off what is behind the
/// point, so that 1.001 may become 1000 ms; then the next float away from zero is written.
fn put_time(out: &mut Vec<u8>, at: Millis) {
    let (sign, whole) = (if at < 0 { "-" } else { "" }, at.unsigned_abs());
    let text = match whole % 1000 {
        0 => format!("{sign}{}", whole / 1000),
        millis => format!("{sign}{}.{millis:03}", whole / 1000),
    };
    let read = text.parse::<f64>().unwrap_or(0.0);
    if as_prometheus(read) == at {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let next = if at < 0 { read.next_down() } else { read.next_up() };
    out.extend_from_slice(format!("{next}").as_bytes());
}

#[allow(clippy::cast_possible_truncation, reason = "what is behind the point is cut off there as well")]
fn as_prometheus(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::sample::stale_nan;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn text(labels: &Labels, columns: &Columns) -> (String, LeftOut) {
        let (mut out, mut left) = (Vec::new(), LeftOut::default());
        let count = put_series(&mut out, labels, columns, &mut left);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count() as u64, count);
        (text, left)
    }

    proptest! {
        #[test]
        fn every_millisecond_is_read_back(at in -4_000_000_000_000_i64..4_000_000_000_000) {
            let mut out = Vec::new();
            put_time(&mut out, at);
            let read: f64 = std::str::from_utf8(&out).unwrap().parse().unwrap();
            prop_assert_eq!(as_prometheus(read), at);
        }
    }

    #[test]
    fn lines_look_as_the_format_says() {
        let columns = Columns { times: vec![1000, 2500], values: vec![1.5, f64::NEG_INFINITY], ..Columns::default() };
        let plain = Labels::from_pairs([("__name__", "a:b"), ("c", "d\\\"\ne")]);
        assert_eq!(text(&plain, &columns).0, "a:b{c=\"d\\\\\\\"\\ne\"} 1.5 1\na:b{c=\"d\\\\\\\"\\ne\"} -Inf 2.500\n");
        let bare = Labels::from_pairs([("__name__", "up")]);
        assert_eq!(text(&bare, &columns).0, "up 1.5 1\nup -Inf 2.500\n");
        let quoted = Labels::from_pairs([("__name__", "a.b"), ("c.d", "e"), ("f", "g")]);
        assert_eq!(text(&quoted, &columns).0.lines().next(), Some("{\"a.b\",\"c.d\"=\"e\",f=\"g\"} 1.5 1"));
    }

    #[test]
    fn what_has_no_words_is_counted() {
        let columns = Columns {
            times: vec![1, 2],
            values: vec![stale_nan(), f64::NAN],
            histogram_times: vec![3],
            histograms: vec![Arc::default()],
            ..Columns::default()
        };
        let (lines, left) = text(&Labels::from_pairs([("__name__", "up")]), &columns);
        assert_eq!((lines.as_str(), left), ("up NaN 0.002\n", LeftOut { histograms: 1, markers: 1, nameless: 0 }));
        let (lines, left) = text(&Labels::from_pairs([("job", "x")]), &columns);
        assert_eq!((lines.as_str(), left), ("", LeftOut { histograms: 1, markers: 0, nameless: 2 }));
    }
}
