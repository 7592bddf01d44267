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

use engram_model::time::Millis;

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
