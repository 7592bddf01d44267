//! What all histograms of one chunk share: schema, zero bucket, where the buckets lie.
//!
//! Why apart from the samples: it is written once a chunk, and a histogram of another layout begins a new chunk.
//!
//! Source: `prometheus tsdb/docs/format/chunks.md` ("Histogram chunk data").

use engram_model::histogram::{BucketSpan, CUSTOM_BUCKETS_SCHEMA, Histogram};

use super::bits::{BitReader, Free};
use crate::codec::Broken;

/// Most spans, and most custom boundaries, of a histogram that is taken. Real ones have tens; the bound keeps what a
/// damaged chunk can make us allocate small.
pub(super) const LAYOUT_PARTS_MAX: usize = 4096;
/// Most spans and boundaries over all samples of one chunk that is read.
const PARTS_OF_CHUNK_MAX: usize = 1 << 22;
/// Largest `boundary * 1000` written as a number instead of as a float.
const BOUND_MAX: f64 = 33_554_430.0;

/// See the module's text. Compared bit by bit.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) schema: i32,
    pub(super) zero_threshold: f64,
    pub(super) positive: Vec<BucketSpan>,
    pub(super) negative: Vec<BucketSpan>,
    pub(super) custom: Vec<f64>,
}

impl Layout {
    pub(super) fn of(h: &Histogram) -> Self {
        Self {
            schema: h.schema,
            zero_threshold: h.zero_threshold,
            positive: h.positive_spans.clone(),
            negative: h.negative_spans.clone(),
            custom: h.custom_values.clone(),
        }
    }

    pub(super) fn is_of(&self, h: &Histogram) -> bool {
        self.schema == h.schema
            && self.zero_threshold.to_bits() == h.zero_threshold.to_bits()
            && self.positive == h.positive_spans
            && self.negative == h.negative_spans
            && self.custom.len() == h.custom_values.len()
            && self.custom.iter().zip(&h.custom_values).all(|(a, b)| a.to_bits() == b.to_bits())
    }

    pub(super) fn positive_buckets(&self) -> usize {
        buckets_of(&self.positive)
    }

    pub(super) fn bucket_count(&self) -> usize {
        buckets_of(&self.positive).saturating_add(buckets_of(&self.negative))
    }

    /// A histogram of this layout with nothing in it.
    pub(super) fn empty_histogram(&self) -> Histogram {
        Histogram {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            positive_spans: self.positive.clone(),
            negative_spans: self.negative.clone(),
            custom_values: self.custom.clone(),
            ..Histogram::default()
        }
    }

    pub(super) fn put(&self, free: &mut Free, bytes: &mut Vec<u8>) {
        put_zero_threshold(self.zero_threshold, free, bytes);
        free.put_int(bytes, i64::from(self.schema));
        for spans in [&self.positive, &self.negative] {
            free.put_uint(bytes, spans.len() as u64);
            for span in spans {
                free.put_uint(bytes, u64::from(span.length));
                free.put_int(bytes, i64::from(span.offset));
            }
        }
        if self.schema == CUSTOM_BUCKETS_SCHEMA {
            free.put_uint(bytes, self.custom.len() as u64);
            for bound in &self.custom {
                put_bound(*bound, free, bytes);
            }
        }
    }

    /// Reads a layout that `count` samples share.
    pub(super) fn read(from: &mut BitReader<'_>, count: usize) -> Result<Self, Broken> {
        let zero_threshold = read_zero_threshold(from);
        let schema = i32::try_from(from.int()).map_err(|_| from.broken("schema is no schema"))?;
        let positive = read_spans(from)?;
        let negative = read_spans(from)?;
        let mut custom = Vec::new();
        if schema == CUSTOM_BUCKETS_SCHEMA {
            let len = read_len(from)?;
            custom.reserve_exact(len);
            for _ in 0..len {
                custom.push(read_bound(from));
            }
        }
        let layout = Self { schema, zero_threshold, positive, negative, custom };
        let parts = layout.positive.len() + layout.negative.len() + layout.custom.len();
        if layout.bucket_count() > from.left() || parts.saturating_mul(count) > PARTS_OF_CHUNK_MAX {
            return Err(from.broken("histogram layout is larger than its chunk"));
        }
        Ok(layout)
    }
}

/// How many buckets spans hold.
pub(super) fn buckets_of(spans: &[BucketSpan]) -> usize {
    spans.iter().fold(0_usize, |sum, span| sum.saturating_add(span.length as usize))
}

/// Zero is a zero byte, a power of two from 2^-243 to 2^10 one byte, anything else 255 and the float.
fn put_zero_threshold(value: f64, free: &mut Free, bytes: &mut Vec<u8>) {
    let bits = value.to_bits();
    let exponent = i64::try_from(bits >> 52).unwrap_or(0) - 1023; // of a positive float; a sign makes it too large
    if bits == 0 {
        free.put(bytes, 0, 8);
    } else if bits.trailing_zeros() >= 52 && (-243..=10).contains(&exponent) {
        free.put(bytes, (exponent + 244).cast_unsigned(), 8);
    } else {
        free.put(bytes, 255, 8);
        free.put(bytes, bits, 64);
    }
}

fn read_zero_threshold(from: &mut BitReader<'_>) -> f64 {
    match from.read(8) {
        0 => 0.0,
        255 => f64::from_bits(from.read(64)),
        code => f64::from_bits((code + 1023 - 244) << 52),
    }
}

fn read_len(from: &mut BitReader<'_>) -> Result<usize, Broken> {
    match usize::try_from(from.uint()) {
        Ok(len) if len <= from.left() && len <= LAYOUT_PARTS_MAX => Ok(len),
        _ => Err(from.broken("histogram layout counts too many parts")),
    }
}

fn read_spans(from: &mut BitReader<'_>) -> Result<Vec<BucketSpan>, Broken> {
    let len = read_len(from)?;
    let mut spans = Vec::with_capacity(len);
    for _ in 0..len {
        let length = u32::try_from(from.uint()).map_err(|_| from.broken("span length is out of range"))?;
        let offset = i32::try_from(from.int()).map_err(|_| from.broken("span offset is out of range"))?;
        spans.push(BucketSpan { offset, length });
    }
    Ok(spans)
}

/// A boundary a person chose has few decimals and becomes a small number; another stays a float.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in 0..=33554430")]
fn put_bound(value: f64, free: &mut Free, bytes: &mut Vec<u8>) {
    let thousand = value * 1000.0;
    if value.is_sign_positive()
        && (0.0..=BOUND_MAX).contains(&thousand)
        && (thousand.round() / 1000.0).to_bits() == value.to_bits()
    {
        free.put_uint(bytes, thousand.round() as u64 + 1);
    } else {
        free.put(bytes, 0, 1);
        free.put(bytes, value.to_bits(), 64);
    }
}

fn read_bound(from: &mut BitReader<'_>) -> f64 {
    match from.uint() {
        0 => f64::from_bits(from.read(64)),
        #[allow(clippy::cast_precision_loss, reason = "what we and Prometheus write is below 2^25")]
        thousand => (thousand - 1) as f64 / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn thresholds_and_bounds_come_back(raw: u64, small in -5.0..50_000.0_f64, exponent in -300_i32..300) {
            let power = 2.0_f64.powi(exponent);
            for value in [f64::from_bits(raw), small, (small * 100.0).round() / 100.0, power, -power, 0.0, -0.0, 33_554.430] {
                let (mut bytes, mut free) = (Vec::new(), Free::default());
                put_zero_threshold(value, &mut free, &mut bytes);
                put_bound(value, &mut free, &mut bytes);
                let mut r = BitReader::new(&bytes, 0);
                prop_assert_eq!(read_zero_threshold(&mut r).to_bits(), value.to_bits());
                prop_assert_eq!(read_bound(&mut r).to_bits(), value.to_bits());
            }
        }
    }

    #[test]
    fn a_common_threshold_takes_one_byte() {
        let (mut bytes, mut free) = (Vec::new(), Free::default());
        put_zero_threshold(2.0_f64.powi(-128), &mut free, &mut bytes);
        assert_eq!(bytes, [243 - 127]); // 2^-128 = 0.5 * 2^-127, stored as -127 + 243
    }
}
