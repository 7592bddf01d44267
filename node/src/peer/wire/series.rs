//! Series on their way from a replica to a reader: labels, and samples as chunks of the block format.
//!
//! ```text
//! frame  := series*
//! series := hash (u128)  pair count  (name, value)*  chunk count  chunk*  starts of floats  starts of histograms
//! chunk  := kind (u8)  first (time)  length minus first  byte length  bytes
//! starts := count (0: none known)  time*
//! ```
//! The reader keeps frames as they came and decodes a chunk when it is read; a frame lives as long as one of its series.

use std::sync::Arc;

use bytes::Bytes;
use engram_model::digest::Digest;
use engram_model::series::{Columns, ReadError, SampleSource, Series};
use engram_model::{Labels, Millis, TimeRange};
use engram_storage::chunk::{Kind, ValueRef, decode, encode};
use engram_storage::codec::{Broken, Reader, put_prefixed, put_u64, put_u128, put_uvarint, put_varint};

/// No chunk crosses a multiple of this, as in heads and blocks.
const WINDOW_MS: i64 = 2 * 60 * 60 * 1000;

/// Appends one series with its samples of `range`; nothing when it has none there. `columns` is working memory.
///
/// # Errors
/// Stored bytes do not decode.
pub fn put_series(
    out: &mut Vec<u8>,
    series: &Series,
    range: TimeRange,
    columns: &mut Columns,
) -> Result<(), ReadError> {
    columns.clear();
    series.source.read(range, columns)?;
    cut(columns, range);
    if columns.is_empty() {
        return Ok(());
    }
    put_u128(out, series.source.series_hash().unwrap_or_else(|| series.labels.hash128()));
    put_uvarint(out, series.labels.len() as u64);
    for (name, value) in series.labels.iter() {
        put_prefixed(out, name.as_bytes());
        put_prefixed(out, value.as_bytes());
    }
    let chunks = encode(in_order(columns), WINDOW_MS);
    put_uvarint(out, chunks.len() as u64);
    for chunk in &chunks {
        out.push(chunk.kind as u8);
        put_varint(out, chunk.first);
        put_uvarint(out, chunk.last.abs_diff(chunk.first));
        put_prefixed(out, &chunk.bytes);
    }
    for starts in [&columns.starts, &columns.histogram_starts] {
        put_uvarint(out, starts.len() as u64);
        starts.iter().for_each(|start| put_varint(out, *start));
    }
    Ok(())
}

/// Drops what lies outside of the range.
fn cut(columns: &mut Columns, range: TimeRange) {
    fn keep<T>(all: &mut Vec<T>, from: usize, to: usize) {
        if !all.is_empty() {
            all.truncate(to);
            all.drain(..from);
        }
    }
    let bounds =
        |times: &[Millis]| (times.partition_point(|t| *t < range.start), times.partition_point(|t| *t < range.end));
    let (from, to) = bounds(&columns.times);
    keep(&mut columns.values, from, to);
    keep(&mut columns.starts, from, to);
    keep(&mut columns.times, from, to);
    let (from, to) = bounds(&columns.histogram_times);
    keep(&mut columns.histograms, from, to);
    keep(&mut columns.histogram_starts, from, to);
    keep(&mut columns.histogram_times, from, to);
}

/// Floats and histograms of one series in one order of time.
fn in_order(columns: &Columns) -> impl Iterator<Item = (Millis, ValueRef<'_>)> {
    let (mut i, mut j) = (0, 0);
    std::iter::from_fn(move || {
        let (float, histogram) = (columns.times.get(i).copied(), columns.histogram_times.get(j).copied());
        let float_first = match (float, histogram) {
            (Some(a), Some(b)) => a < b,
            (float, _) => float.is_some(),
        };
        if float_first {
            i += 1;
            Some((columns.times[i - 1], ValueRef::Float(columns.values[i - 1])))
        } else {
            let at = histogram?;
            j += 1;
            Some((at, ValueRef::Histogram(&columns.histograms[j - 1])))
        }
    })
}

/// One chunk of a series that has arrived.
struct Piece {
    kind: Kind,
    first: Millis,
    last: Millis,
    bytes: Bytes,
}

/// A series that has arrived.
struct Arrived {
    hash: u128,
    pieces: Vec<Piece>,
    starts: Vec<Millis>,
    histogram_starts: Vec<Millis>,
}

impl SampleSource for Arrived {
    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        // Starts lie beside all samples, so with them all are read.
        let whole = !self.starts.is_empty() || !self.histogram_starts.is_empty();
        for piece in self.pieces.iter().filter(|p| whole || (p.first < range.end && range.start <= p.last)) {
            decode(piece.kind, &piece.bytes, out).map_err(|broken| self.corrupt(&broken.to_string()))?;
        }
        out.starts.extend_from_slice(&self.starts);
        out.histogram_starts.extend_from_slice(&self.histogram_starts);
        let fits = |starts: &[Millis], times: &[Millis]| starts.is_empty() || starts.len() == times.len();
        if !fits(&out.starts, &out.times) || !fits(&out.histogram_starts, &out.histogram_times) {
            return Err(self.corrupt("there are not as many starts as samples"));
        }
        Ok(())
    }

    fn series_hash(&self) -> Option<u128> {
        Some(self.hash)
    }
}

impl Arrived {
    fn corrupt(&self, what: &str) -> ReadError {
        ReadError::Corrupt { series: format!("{:032x}", self.hash), what: format!("from another node: {what}") }
    }
}

/// The series of a frame that has arrived.
///
/// # Errors
/// The bytes are no frame.
pub fn read_series(frame: &Bytes, out: &mut Vec<Series>) -> Result<(), Broken> {
    let mut r = Reader::new(frame);
    while !r.is_empty() {
        let hash = r.u128()?;
        let count = r.length(frame.len() / 2)?;
        let pairs: Vec<(&str, &str)> = (0..count).map(|_| Ok((r.str()?, r.str()?))).collect::<Result<_, Broken>>()?;
        if pairs.windows(2).any(|two| two[0].0 >= two[1].0) {
            return Err(Broken { at: r.at(), what: "labels are not sorted" });
        }
        let labels = Labels::from_sorted(pairs.iter().copied());
        let mut pieces = Vec::new();
        for _ in 0..r.length(frame.len() / 4)? {
            let at = r.at();
            let kind = Kind::from_number(r.u8()?).ok_or(Broken { at, what: "chunk of an unknown kind" })?;
            let first = r.varint()?;
            let last = first.saturating_add_unsigned(r.uvarint()?);
            let bytes = frame.slice_ref(r.prefixed()?);
            pieces.push(Piece { kind, first, last, bytes });
        }
        let mut starts =
            || -> Result<Vec<Millis>, Broken> { (0..r.length(frame.len())?).map(|_| r.varint()).collect() };
        let (starts, histogram_starts) = (starts()?, starts()?);
        out.push(Series { labels, source: Arc::new(Arrived { hash, pieces, starts, histogram_starts }) });
    }
    Ok(())
}

/// Digests by slot: `(slot (time), count (u64), low (u64), high (u64))*`.
#[must_use]
pub fn put_digests(digests: &[(Millis, Digest)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(digests.len() * 30);
    for (slot, digest) in digests {
        put_varint(&mut out, *slot);
        for number in [digest.count, digest.low, digest.high] {
            put_u64(&mut out, number);
        }
    }
    out
}

/// Digests that have arrived.
///
/// # Errors
/// The bytes are no digests.
pub fn read_digests(bytes: &[u8]) -> Result<Vec<(Millis, Digest)>, Broken> {
    let (mut r, mut all) = (Reader::new(bytes), Vec::new());
    while !r.is_empty() {
        let slot = r.varint()?;
        all.push((slot, Digest { count: r.u64()?, low: r.u64()?, high: r.u64()? }));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::histogram::Histogram;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn series_come_back(
            floats in proptest::collection::btree_map(-9_000_000_i64..9_000_000, any::<u64>(), 0..300),
            histograms in proptest::collection::btree_map(-9_000_000_i64..9_000_000, 0_u32..9, 0..5),
            starts: bool,
            (from, to) in (-9_000_000_i64..0, 0_i64..9_000_000),
        ) {
            let floats: BTreeMap<i64, u64> = floats.into_iter().filter(|(at, _)| !histograms.contains_key(at)).collect();
            let columns = Columns {
                times: floats.keys().copied().collect(),
                values: floats.values().map(|v| f64::from_bits(*v)).collect(),
                starts: if starts { floats.keys().map(|at| at / 3).collect() } else { Vec::new() },
                histogram_times: histograms.keys().copied().collect(),
                histograms: histograms.values().map(|n| Arc::new(Histogram { integer: true, count: f64::from(*n), zero_count: f64::from(*n), ..Histogram::default() })).collect(),
                ..Columns::default()
            };
            let labels = Labels::from_pairs([("a", "1"), ("b", "ä")]);
            let series = Series { labels: labels.clone(), source: Arc::new(columns) };
            let range = TimeRange { start: from, end: to };
            let mut frame = Vec::new();
            for _ in 0..2 { put_series(&mut frame, &series, range, &mut Columns::default()).unwrap(); }
            let mut back = Vec::new();
            read_series(&Bytes::from(frame), &mut back).unwrap();
            let want: Vec<(i64, u64)> = floats.range(from..to).map(|(a, v)| (*a, *v)).collect();
            let any = !want.is_empty() || histograms.range(from..to).next().is_some();
            prop_assert_eq!(back.len(), if any { 2 } else { 0 });
            for one in back {
                prop_assert_eq!(&one.labels, &labels);
                prop_assert_eq!(one.source.series_hash(), Some(labels.hash128()));
                let mut out = Columns::default();
                one.source.read(TimeRange::ALL, &mut out).unwrap();
                prop_assert_eq!(out.times.iter().copied().zip(out.values.iter().map(|v| v.to_bits())).collect::<Vec<_>>(), want.clone());
                prop_assert_eq!(out.starts.clone(), if starts { want.iter().map(|(at, _)| at / 3).collect() } else { Vec::new() });
                prop_assert_eq!(out.histogram_times, histograms.range(from..to).map(|(a, _)| *a).collect::<Vec<_>>());
            }
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = read_digests(&bytes);
            let _any = read_series(&Bytes::from(bytes), &mut Vec::new());
        }
    }

    #[test]
    fn digests_come_back() {
        let all = vec![(-300_000, Digest { count: 1, low: u64::MAX, high: 3 }), (0, Digest::EMPTY)];
        assert_eq!(read_digests(&put_digests(&all)).unwrap(), all);
    }
}
