//! Chunks of native histograms, integer and float, in Prometheus' encodings.
//!
//! Why two kinds: integer counts compress as differences of differences, float counts as XOR; the layout
//! ([`super::layout`]) stands once at the front of either. The pictures are in `docs/formats/chunk.md`.
//!
//! A chunk holds one layout, and never a counter reset but at its start, because readers of the format rely on that:
//! whatever breaks either rule does not *fit* and begins a new chunk. Prometheus rewrites a chunk when a bucket
//! appears; we start a new one, which costs bytes while a histogram is young and no work later. A staleness marker
//! is a histogram with nothing but its sum and ends its chunk. Start timestamps are not kept.
//!
//! Source: `prometheus tsdb/docs/format/chunks.md`, `prometheus tsdb/chunkenc/{histogram,float_histogram}.go`.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::histogram::{Histogram, ResetHint};
use engram_model::sample::STALE_NAN_BITS;

use super::bits::{BitReader, Free, Xor};
use super::layout::{LAYOUT_PARTS_MAX, Layout, buckets_of};
use super::{Chunk, Kind};
use crate::codec::{Broken, Reader};

/// Largest count stored as an integer: above it a float no longer names each whole number.
const INTEGER_MAX: f64 = 9_007_199_254_740_992.0;
/// The two bits of the flags byte that speak of resets.
const FLAG_RESET: u8 = 0b1000_0000;
const FLAG_NO_RESET: u8 = 0b0100_0000;
const FLAG_GAUGE: u8 = 0b1100_0000;

/// Whether a histogram can be stored without changing it: as many counts as its spans say, no boundaries without the
/// schema for them, at most 4096 spans or boundaries.
#[must_use]
pub fn is_storable(h: &Histogram) -> bool {
    let parts = h.positive_spans.len().max(h.negative_spans.len()).max(h.custom_values.len());
    parts <= LAYOUT_PARTS_MAX
        && buckets_of(&h.positive_spans) == h.positive_buckets.len()
        && buckets_of(&h.negative_spans) == h.negative_buckets.len()
        && (h.is_custom() || h.custom_values.is_empty())
}

/// What is stored in place of `h`: a staleness marker loses everything but its mark, as in Prometheus; everything
/// else stays as it is.
#[must_use]
pub fn canonical(h: &Histogram) -> Option<Histogram> {
    h.is_stale().then(|| Histogram { integer: h.integer, sum: h.sum, ..Histogram::default() })
}

/// A count with its last step.
#[derive(Clone, Copy, Debug)]
struct Track {
    value: i64,
    delta: i64,
}

/// The count, the zero count, then the positive and the negative buckets.
#[derive(Clone, Debug)]
enum Numbers {
    /// Buckets as differences to the bucket before.
    Integer(Vec<Track>),
    Float(Vec<Xor>),
}

/// A chunk that still takes histograms.
#[derive(Clone, Debug)]
pub(crate) struct HistogramOpen {
    bytes: Vec<u8>,
    free: Free,
    first: Millis,
    last: Millis,
    delta: i64,
    count: u16,
    gauge: bool,
    layout: Layout,
    sum: Xor,
    numbers: Numbers,
    /// The last one, for the test on resets and for telling a duplicate.
    newest: Arc<Histogram>,
}

impl HistogramOpen {
    /// A chunk of one histogram that [`is_storable`] and [`canonical`]; `reset` when the one before it was greater.
    pub(crate) fn new(at: Millis, h: &Arc<Histogram>, reset: bool) -> Self {
        let flags = match h.reset_hint {
            ResetHint::Gauge => FLAG_GAUGE,
            ResetHint::Reset => FLAG_RESET,
            _ if reset => FLAG_RESET,
            ResetHint::NoReset => FLAG_NO_RESET,
            ResetHint::Unknown => 0,
        };
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[0, 1, flags]);
        let mut free = Free::default();
        let layout = Layout::of(h);
        layout.put(&mut free, &mut bytes);
        free.put_int(&mut bytes, at);
        let numbers = match integers(h) {
            Some(ints) => {
                free.put_uint(&mut bytes, ints[0].cast_unsigned());
                free.put_uint(&mut bytes, ints[1].cast_unsigned());
                free.put(&mut bytes, h.sum.to_bits(), 64);
                ints[2..].iter().for_each(|int| free.put_int(&mut bytes, *int));
                Numbers::Integer(ints.into_iter().map(|value| Track { value, delta: 0 }).collect())
            }
            None => {
                let all: Vec<_> = floats(h).collect();
                all[..2].iter().for_each(|bits| free.put(&mut bytes, *bits, 64));
                free.put(&mut bytes, h.sum.to_bits(), 64);
                all[2..].iter().for_each(|bits| free.put(&mut bytes, *bits, 64));
                Numbers::Float(all.into_iter().map(Xor::new).collect())
            }
        };
        let gauge = h.reset_hint == ResetHint::Gauge;
        let (sum, newest) = (Xor::new(h.sum.to_bits()), Arc::clone(h));
        Self { bytes, free, first: at, last: at, delta: 0, count: 1, gauge, layout, sum, numbers, newest }
    }

    /// Whether the histogram may follow in this chunk.
    pub(crate) fn fits(&self, h: &Histogram) -> bool {
        !self.newest.is_stale()
            && !h.is_stale()
            && self.gauge == (h.reset_hint == ResetHint::Gauge)
            && self.layout.is_of(h)
            && self.is_integer() == integers(h).is_some()
            && !self.resets(h)
    }

    /// Whether a counter begins anew with `h`: told, or seen by a number that is smaller.
    pub(crate) fn resets(&self, h: &Histogram) -> bool {
        let shrinks = |new: &[f64], old: &[f64]| new.iter().zip(old).any(|(new, old)| new < old);
        !self.gauge
            && h.reset_hint != ResetHint::Gauge
            && !h.is_stale()
            && !self.newest.is_stale()
            && (h.reset_hint == ResetHint::Reset
                || h.count < self.newest.count
                || (self.layout.is_of(h)
                    && (h.zero_count < self.newest.zero_count
                        || shrinks(&h.positive_buckets, &self.newest.positive_buckets)
                        || shrinks(&h.negative_buckets, &self.newest.negative_buckets))))
    }

    /// Appends a histogram that [`Self::fits`], later than all before.
    pub(crate) fn append(&mut self, at: Millis, h: &Arc<Histogram>) {
        assert!(self.count < u16::MAX, "a chunk counts its samples in two bytes");
        let second = self.count == 1;
        let (bytes, free) = (&mut self.bytes, &mut self.free);
        let delta = at.wrapping_sub(self.last);
        free.put_int(bytes, if second { delta } else { delta.wrapping_sub(self.delta) });
        match &mut self.numbers {
            Numbers::Integer(tracks) => {
                let ints = integers(h).unwrap_or_default();
                debug_assert_eq!(ints.len(), tracks.len(), "one layout, one number of counts");
                let put = |track: &mut Track, int: i64, bytes: &mut Vec<u8>, free: &mut Free| {
                    let delta = int - track.value;
                    free.put_int(bytes, if second { delta } else { delta - track.delta });
                    *track = Track { value: int, delta };
                };
                let mut pairs = tracks.iter_mut().zip(ints);
                pairs.by_ref().take(2).for_each(|(track, int)| put(track, int, bytes, free));
                self.sum.put(free, bytes, h.sum.to_bits());
                pairs.for_each(|(track, int)| put(track, int, bytes, free));
            }
            Numbers::Float(xors) => {
                let mut pairs = xors.iter_mut().zip(floats(h));
                pairs.by_ref().take(2).for_each(|(xor, bits)| xor.put(free, bytes, bits));
                self.sum.put(free, bytes, h.sum.to_bits());
                pairs.for_each(|(xor, bits)| xor.put(free, bytes, bits));
            }
        }
        (self.last, self.delta) = (at, delta);
        self.count += 1;
        self.newest = Arc::clone(h);
        self.bytes[..2].copy_from_slice(&self.count.to_be_bytes());
    }

    /// Whether counts are stored as integers.
    pub(crate) fn is_integer(&self) -> bool {
        matches!(self.numbers, Numbers::Integer(_))
    }

    /// Time of the first histogram.
    pub(crate) fn first(&self) -> Millis {
        self.first
    }

    /// Time of the last histogram.
    pub(crate) fn last(&self) -> Millis {
        self.last
    }

    /// The last histogram.
    pub(crate) fn newest(&self) -> &Arc<Histogram> {
        &self.newest
    }

    /// How many histograms.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// The chunk's bytes so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory this takes, about.
    pub(crate) fn capacity(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity() + self.layout.bucket_count() * (16 + 8)
    }
}

/// All counts as integers, buckets as differences; none when they came as floats or one is not exactly an integer.
fn integers(h: &Histogram) -> Option<Vec<i64>> {
    if !h.integer {
        return None;
    }
    let mut all = Vec::with_capacity(2 + h.positive_buckets.len() + h.negative_buckets.len());
    all.push(integer(h.count)?);
    all.push(integer(h.zero_count)?);
    for buckets in [&h.positive_buckets, &h.negative_buckets] {
        let mut before = 0;
        for bucket in buckets {
            let int = integer(*bucket)?;
            all.push(int - before);
            before = int;
        }
    }
    Some(all)
}

#[allow(clippy::cast_possible_truncation, reason = "checked to be at most 2^53")]
fn integer(value: f64) -> Option<i64> {
    ((0.0..=INTEGER_MAX).contains(&value) && value.fract() == 0.0 && value.is_sign_positive()).then_some(value as i64)
}

fn floats(h: &Histogram) -> impl Iterator<Item = u64> + '_ {
    let front = [h.count, h.zero_count].into_iter();
    front.chain(h.positive_buckets.iter().copied()).chain(h.negative_buckets.iter().copied()).map(f64::to_bits)
}

/// What the flags of a chunk say of its first histogram.
pub(crate) fn hint_of(bytes: &[u8]) -> ResetHint {
    match bytes.get(2).map(|flags| flags & FLAG_GAUGE) {
        Some(FLAG_GAUGE) => ResetHint::Gauge,
        Some(FLAG_RESET) => ResetHint::Reset,
        Some(FLAG_NO_RESET) => ResetHint::NoReset,
        _ => ResetHint::Unknown,
    }
}

/// The chunk, saying nothing of a reset before its first histogram; gauges and floats say nothing anyway.
pub(crate) fn without_hint(chunk: &Chunk) -> Chunk {
    let is_counter = chunk.kind != Kind::Xor && hint_of(&chunk.bytes) != ResetHint::Gauge;
    let mut chunk = chunk.clone();
    if is_counter && chunk.bytes.get(2).is_some_and(|flags| flags & FLAG_GAUGE != 0) {
        let mut bytes = chunk.bytes.to_vec();
        bytes[2] &= !FLAG_GAUGE;
        chunk.bytes = bytes.into();
    }
    chunk
}

/// Appends all histograms of a chunk to the two columns; on failure the columns are as before.
///
/// # Errors
/// The bytes are no chunk.
pub(crate) fn decode(
    bytes: &[u8],
    integer: bool,
    times: &mut Vec<Millis>,
    histograms: &mut Vec<Arc<Histogram>>,
) -> Result<(), Broken> {
    let (times_before, histograms_before) = (times.len(), histograms.len());
    let done = Decoder::decode(bytes, integer, times, histograms);
    if done.is_err() {
        times.truncate(times_before);
        histograms.truncate(histograms_before);
    }
    done
}

struct Decoder<'a> {
    bits: BitReader<'a>,
    layout: Layout,
    flags: u8,
    sum: Xor,
    numbers: Numbers,
}

impl Decoder<'_> {
    fn decode(
        bytes: &[u8],
        integer: bool,
        times: &mut Vec<Millis>,
        out: &mut Vec<Arc<Histogram>>,
    ) -> Result<(), Broken> {
        let mut head = Reader::new(bytes);
        let (count, flags) = (usize::from(head.u16()?), head.u8()?);
        let mut bits = BitReader::new(bytes, head.at());
        let layout = Layout::read(&mut bits, count)?;
        let counts = layout.bucket_count() + 2;
        let numbers = if integer {
            Numbers::Integer(vec![Track { value: 0, delta: 0 }; counts])
        } else {
            Numbers::Float(vec![Xor::new(0); counts])
        };
        let mut this = Decoder { bits, layout, flags, sum: Xor::new(0), numbers };
        let (mut at, mut delta) = (0, 0_i64);
        for i in 0..count {
            match i {
                0 => at = this.bits.int(),
                1 => delta = this.bits.int(),
                _ => delta = delta.wrapping_add(this.bits.int()),
            }
            at = at.wrapping_add(delta);
            this.read_numbers(i)?;
            // Checked for each, not once: a chunk that counts too many must not make us fill memory with zeros.
            this.bits.finish()?;
            times.push(at);
            out.push(Arc::new(this.histogram(i)));
        }
        Ok(())
    }

    /// A staleness marker has no buckets: they are not in the chunk either.
    fn read_numbers(&mut self, i: usize) -> Result<(), Broken> {
        let Self { bits, sum, numbers, .. } = self;
        match numbers {
            Numbers::Integer(tracks) => {
                let (front, buckets) = tracks.split_at_mut(2);
                for track in front {
                    match i {
                        0 => track.value = bits.uint().cast_signed(),
                        _ => track.step(i, bits),
                    }
                }
                read_float(sum, i, bits)?;
                if sum.bits != STALE_NAN_BITS {
                    for track in buckets {
                        match i {
                            0 => track.value = bits.int(),
                            _ => track.step(i, bits),
                        }
                    }
                }
            }
            Numbers::Float(xors) => {
                let (front, buckets) = xors.split_at_mut(2);
                front.iter_mut().try_for_each(|xor| read_float(xor, i, bits))?;
                read_float(sum, i, bits)?;
                if sum.bits != STALE_NAN_BITS {
                    buckets.iter_mut().try_for_each(|xor| read_float(xor, i, bits))?;
                }
            }
        }
        Ok(())
    }

    fn histogram(&self, i: usize) -> Histogram {
        let sum = f64::from_bits(self.sum.bits);
        let integer = matches!(self.numbers, Numbers::Integer(_));
        if self.sum.bits == STALE_NAN_BITS {
            return Histogram { integer, sum, ..Histogram::default() };
        }
        // What the chunk says of a reset before its first is about a neighbour that may since have changed.
        let reset_hint = match self.flags & FLAG_GAUGE {
            FLAG_GAUGE => ResetHint::Gauge,
            _ if i > 0 => ResetHint::NoReset,
            _ => ResetHint::Unknown,
        };
        let mut h = Histogram { integer, reset_hint, sum, ..self.layout.empty_histogram() };
        let split = 2 + self.layout.positive_buckets();
        match &self.numbers {
            Numbers::Integer(tracks) => {
                (h.count, h.zero_count) = (float(tracks[0].value), float(tracks[1].value));
                h.positive_buckets = absolute(&tracks[2..split]);
                h.negative_buckets = absolute(&tracks[split..]);
            }
            Numbers::Float(xors) => {
                let plain = |xors: &[Xor]| xors.iter().map(|xor| f64::from_bits(xor.bits)).collect();
                (h.count, h.zero_count) = (f64::from_bits(xors[0].bits), f64::from_bits(xors[1].bits));
                h.positive_buckets = plain(&xors[2..split]);
                h.negative_buckets = plain(&xors[split..]);
            }
        }
        h
    }
}

impl Track {
    fn step(&mut self, i: usize, bits: &mut BitReader<'_>) {
        let read = bits.int();
        self.delta = if i == 1 { read } else { self.delta.wrapping_add(read) };
        self.value = self.value.wrapping_add(self.delta);
    }
}

fn read_float(xor: &mut Xor, i: usize, bits: &mut BitReader<'_>) -> Result<(), Broken> {
    if i == 0 {
        xor.bits = bits.read(64);
        return Ok(());
    }
    xor.read(bits)
}

#[allow(clippy::cast_precision_loss, reason = "what we write is at most 2^53; Prometheus' readers round alike")]
fn float(value: i64) -> f64 {
    value.cast_unsigned() as f64
}

#[allow(clippy::cast_precision_loss, reason = "what we write is at most 2^53; Prometheus' readers round alike")]
fn absolute(tracks: &[Track]) -> Vec<f64> {
    let mut sum = 0_i64;
    tracks
        .iter()
        .map(|track| {
            sum = sum.wrapping_add(track.value);
            sum as f64
        })
        .collect()
}
