//! The conservation law: a commutative digest of a set of samples.
//!
//! A digest is a count and two independent 64-bit wrapping sums of a mix over (series hash, time, value bits). Order
//! does not matter; adding, removing and merging take constant time; equal digests mean equal content. It is kept
//! from the first append to the oldest block and compared at every hand-over, so a loss is noticed where it happens.
//!
//! A multiset hash by addition (MSet-Add-Hash, Clarke et al., ASIACRYPT 2003) with a 128-bit sum: it guards against
//! faults, not against somebody who searches for collisions.

use crate::histogram::Histogram;
use crate::time::Millis;

/// Length of a slot: the grain in which digests are kept and compared.
pub const SLOT_MS: i64 = 5 * 60 * 1000;

/// The slot a time lies in: its start.
#[inline]
#[must_use]
pub fn slot_of(at: Millis) -> Millis {
    at.div_euclid(SLOT_MS).saturating_mul(SLOT_MS) // the first slot of time is cut short
}

/// Digest of a set of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Digest {
    /// How many samples.
    pub count: u64,
    /// First sum.
    pub low: u64,
    /// Second sum, of an independent mix.
    pub high: u64,
}

impl Digest {
    /// The digest of nothing.
    pub const EMPTY: Self = Self { count: 0, low: 0, high: 0 };

    /// The digest of one float.
    #[inline]
    #[must_use]
    pub fn of_float(series: u128, at: Millis, value: f64) -> Self {
        Self::of_bits(series, at, value.to_bits())
    }

    /// The digest of one native histogram, over its canonical content (the reset hint and the way it is laid out in
    /// spans with empty buckets do count: replicas keep what the client sent).
    #[must_use]
    pub fn of_histogram(series: u128, at: Millis, histogram: &Histogram) -> Self {
        Self::of_bits(series, at, histogram_bits(histogram))
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the low half of 128 bits is meant")]
    fn of_bits(series: u128, at: Millis, bits: u64) -> Self {
        let at = at.cast_unsigned();
        let (series_low, series_high) = (series as u64, (series >> 64) as u64);
        Self {
            count: 1,
            low: mix(series_low ^ mix(at ^ mix(bits ^ 0x9e37_79b9_7f4a_7c15))),
            high: mix(series_high ^ mix(bits ^ mix(at ^ 0xc2b2_ae3d_27d4_eb4f))),
        }
    }

    /// Adds another set; the two must be disjoint for the result to speak of their union.
    #[inline]
    pub fn add(&mut self, other: Self) {
        self.count = self.count.wrapping_add(other.count);
        self.low = self.low.wrapping_add(other.low);
        self.high = self.high.wrapping_add(other.high);
    }

    /// Removes a set that was added before.
    #[inline]
    pub fn remove(&mut self, other: Self) {
        self.count = self.count.wrapping_sub(other.count);
        self.low = self.low.wrapping_sub(other.low);
        self.high = self.high.wrapping_sub(other.high);
    }
}

impl std::iter::Sum for Digest {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::EMPTY, |mut sum, one| {
            sum.add(one);
            sum
        })
    }
}

/// SplitMix64's finaliser: a bijection whose every output bit depends on every input bit.
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn histogram_bits(h: &Histogram) -> u64 {
    let mut sum = 0_u64;
    let mut put = |word: u64| sum = mix(sum ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    put(u64::from(h.schema.cast_unsigned()));
    for float in [h.zero_threshold, h.zero_count, h.count, h.sum] {
        put(float.to_bits());
    }
    for spans in [&h.positive_spans, &h.negative_spans] {
        put(spans.len() as u64);
        for span in spans {
            put(u64::from(span.offset.cast_unsigned()) << 32 | u64::from(span.length));
        }
    }
    for floats in [&h.positive_buckets, &h.negative_buckets, &h.custom_values] {
        put(floats.len() as u64);
        for float in floats {
            put(float.to_bits());
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_does_not_matter_and_removal_undoes(samples in proptest::collection::vec((any::<u128>(), any::<i64>(), any::<f64>()), 0..50)) {
            let forward: Digest = samples.iter().map(|s| Digest::of_float(s.0, s.1, s.2)).sum();
            let mut back: Digest = samples.iter().rev().map(|s| Digest::of_float(s.0, s.1, s.2)).sum();
            prop_assert_eq!(forward, back);
            for s in &samples { back.remove(Digest::of_float(s.0, s.1, s.2)); }
            prop_assert_eq!(back, Digest::EMPTY);
        }
    }

    #[test]
    fn each_part_counts() {
        let base = Digest::of_float(1, 2, 3.0);
        assert_ne!(base, Digest::of_float(1 << 64 | 1, 2, 3.0));
        assert_ne!(base, Digest::of_float(1, 3, 3.0));
        assert_ne!(base, Digest::of_float(1, 2, 3.000_000_000_000_001));
        assert_ne!(Digest::of_float(1, 0, 0.0), Digest::of_float(1, 0, -0.0));
    }

    #[test]
    fn slots_are_floors_before_the_epoch_too() {
        assert_eq!((slot_of(-1), slot_of(0), slot_of(SLOT_MS)), (-SLOT_MS, 0, SLOT_MS));
    }
}
