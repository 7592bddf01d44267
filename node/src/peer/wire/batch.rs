//! A slice of a write as one flat body: every picked series with its labels and samples, in one pass.
//!
//! ```text
//! slice   := version (1)  starts (0|1)  series count  series*  exemplar count  exemplar*  metadata count  metadata*
//! series  := hash (u128)  pair count  (name, value)*  float count  (time, bits (u64), start?)*
//!            histogram count  (time, start, histogram)*
//! exemplar := index of the series in the slice  pair count  (name, value)*  time  bits (u64)
//! ```
//! Counts and lengths are varints, times are zigzag varints, the first of a series absolute and the others as
//! differences. The labels of what has arrived point into the body itself: nothing is copied.

use std::sync::Arc;

use engram_model::Labels;
use engram_model::batch::{BatchSeries, HistogramSample, Pair, Run, Text, WriteBatch};
use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::sample::{Exemplar, Metadata, MetricKind, Sample};
use engram_storage::codec::{Broken, Reader, put_f64, put_prefixed, put_u128, put_uvarint, put_varint};

/// The first byte of a slice.
const VERSION: u8 = 1;
/// Most buckets and spans of a histogram that are believed.
const BUCKETS_MAX: usize = 1 << 20;

/// The picked series of a batch; with `metadata` also the request's metadata.
#[must_use]
pub fn encode(batch: &WriteBatch, picks: &[u32], metadata: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + picks.len() * 160);
    let starts = !batch.starts.is_empty();
    out.extend_from_slice(&[VERSION, u8::from(starts)]);
    put_uvarint(&mut out, picks.len() as u64);
    for pick in picks {
        let series = &batch.series[*pick as usize];
        put_u128(&mut out, series.hash);
        put_uvarint(&mut out, series.pairs.len() as u64);
        for pair in &batch.pairs[series.pairs.range()] {
            put_prefixed(&mut out, batch.bytes(pair.name));
            put_prefixed(&mut out, batch.bytes(pair.value));
        }
        put_uvarint(&mut out, series.samples.len() as u64);
        let mut before = 0_i64;
        for i in series.samples.range() {
            let sample = &batch.samples[i];
            put_varint(&mut out, sample.at.wrapping_sub(before));
            before = sample.at;
            put_f64(&mut out, sample.value);
            if starts {
                put_varint(&mut out, batch.starts.get(i).copied().unwrap_or(0));
            }
        }
        put_uvarint(&mut out, series.histograms.len() as u64);
        for sample in &batch.histograms[series.histograms.range()] {
            put_varint(&mut out, sample.at);
            put_varint(&mut out, sample.start_at);
            put_histogram(&mut out, &sample.histogram);
        }
    }
    put_exemplars(&mut out, batch, picks);
    let all = if metadata { batch.metadata.as_slice() } else { &[] };
    put_uvarint(&mut out, all.len() as u64);
    for (name, one) in all {
        put_prefixed(&mut out, name.as_bytes());
        out.push(kind_number(one.kind));
        put_prefixed(&mut out, one.help.as_bytes());
        put_prefixed(&mut out, one.unit.as_bytes());
    }
    out
}

fn put_exemplars(out: &mut Vec<u8>, batch: &WriteBatch, picks: &[u32]) {
    if batch.exemplars.is_empty() {
        put_uvarint(out, 0);
        return;
    }
    let places: std::collections::HashMap<u32, u64> = picks.iter().copied().zip(0_u64..).collect();
    let here: Vec<_> = batch.exemplars.iter().filter_map(|(of, one)| Some((*places.get(of)?, one))).collect();
    put_uvarint(out, here.len() as u64);
    for (place, one) in here {
        put_uvarint(out, place);
        put_uvarint(out, one.labels.len() as u64);
        for (name, value) in one.labels.iter() {
            put_prefixed(out, name.as_bytes());
            put_prefixed(out, value.as_bytes());
        }
        put_varint(out, one.at);
        put_f64(out, one.value);
    }
}

fn put_histogram(out: &mut Vec<u8>, h: &Histogram) {
    let hint = match h.reset_hint {
        ResetHint::Unknown => 0,
        ResetHint::Reset => 1,
        ResetHint::NoReset => 2,
        ResetHint::Gauge => 3,
    };
    out.extend_from_slice(&[u8::from(h.integer), hint]);
    put_varint(out, i64::from(h.schema));
    for float in [h.zero_threshold, h.zero_count, h.count, h.sum] {
        put_f64(out, float);
    }
    for spans in [&h.positive_spans, &h.negative_spans] {
        put_uvarint(out, spans.len() as u64);
        for span in spans {
            put_varint(out, i64::from(span.offset));
            put_uvarint(out, u64::from(span.length));
        }
    }
    for floats in [&h.positive_buckets, &h.negative_buckets, &h.custom_values] {
        put_uvarint(out, floats.len() as u64);
        floats.iter().for_each(|float| put_f64(out, *float));
    }
}

/// A slice that has arrived: a batch of its own, all of whose series are meant.
///
/// # Errors
/// The bytes are no slice.
pub fn decode(body: Vec<u8>) -> Result<WriteBatch, Broken> {
    let mut batch = WriteBatch::default();
    read(&body, &mut batch)?;
    batch.text = body;
    Ok(batch)
}

fn read(body: &[u8], batch: &mut WriteBatch) -> Result<(), Broken> {
    let mut r = Reader::new(body);
    let broken = |r: &Reader<'_>, what| Broken { at: r.at(), what };
    if r.u8()? != VERSION {
        return Err(broken(&r, "slice is of another version"));
    }
    let starts = match r.u8()? {
        0 => false,
        1 => true,
        _ => return Err(broken(&r, "slice says neither with nor without starts")),
    };
    // A series takes 19 bytes at least: a count that cannot be is refused before memory is taken for it.
    let count = r.length(body.len() / 19)?;
    batch.series.reserve(count);
    for _ in 0..count {
        let hash = r.u128()?;
        let pairs = read_pairs(&mut r, body.len(), batch)?;
        let samples = read_floats(&mut r, body.len(), starts, batch)?;
        let from = index(batch.histograms.len());
        for _ in 0..r.length(body.len() / 8)? {
            let (at, start_at) = (r.varint()?, r.varint()?);
            batch.histograms.push(HistogramSample { at, start_at, histogram: Arc::new(read_histogram(&mut r)?) });
        }
        let histograms = Run { from, to: index(batch.histograms.len()) };
        batch.series.push(BatchSeries { hash, pairs, samples, histograms });
    }
    for _ in 0..r.length(body.len() / 11)? {
        let of = r.length(count.saturating_sub(1))?;
        let pairs = (0..r.length(body.len() / 2)?).map(|_| Ok((r.str()?, r.str()?)));
        let pairs = pairs.collect::<Result<Vec<_>, Broken>>()?;
        let labels = Labels::from_pairs(pairs);
        let (at, value) = (r.varint()?, r.f64()?);
        batch.exemplars.push((index(of), Exemplar { labels, value, at }));
    }
    for _ in 0..r.length(body.len() / 4)? {
        let name = r.str()?.to_owned();
        let kind = MetricKind::from_wire(u64::from(r.u8()?));
        batch.metadata.push((name, Metadata { kind, help: r.str()?.to_owned(), unit: r.str()?.to_owned() }));
    }
    r.end()
}

/// Positions in a body fit: bodies are far below 4 GiB.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn read_pairs(r: &mut Reader<'_>, max: usize, batch: &mut WriteBatch) -> Result<Run, Broken> {
    let from = index(batch.pairs.len());
    let count = r.length(max / 2)?;
    let (begins_at, rest) = (r.at(), r.rest());
    let (mut before, mut bytes): (&[u8], usize) = (&[], 0);
    for i in 0..count {
        let name = r.prefixed()?;
        let name_at = Text { at: index(r.at() - name.len()), len: index(name.len()) };
        let value = r.prefixed()?;
        let value_at = Text { at: index(r.at() - value.len()), len: index(value.len()) };
        if value.is_empty() || (i > 0 && name <= before) {
            return Err(Broken { at: r.at(), what: "labels of a slice are not sorted, or one is empty" });
        }
        before = name;
        bytes += name.len() + value.len();
        batch.pairs.push(Pair { name: name_at, value: value_at });
    }
    let run = Run { from, to: index(batch.pairs.len()) };
    check_text(&rest[..r.at() - begins_at], begins_at, &batch.pairs[run.range()], bytes)?;
    Ok(run)
}

/// Checks that all labels of a series are UTF-8. Where each length is one byte (below 128, so ASCII) they are text with
/// their lengths if and only if each is text: one look at all of them is a third of the cost of one at each.
fn check_text(region: &[u8], begins_at: usize, pairs: &[Pair], bytes: usize) -> Result<(), Broken> {
    let bad = Broken { at: begins_at, what: "text is not UTF-8" };
    if region.len() == bytes + 2 * pairs.len() {
        return std::str::from_utf8(region).map(|_| ()).map_err(|_| bad);
    }
    let text = |text: Text| region.get(text.at as usize - begins_at..).and_then(|rest| rest.get(..text.len as usize));
    let is_text = |one: Text| text(one).is_some_and(|bytes| std::str::from_utf8(bytes).is_ok());
    if pairs.iter().all(|pair| is_text(pair.name) && is_text(pair.value)) { Ok(()) } else { Err(bad) }
}

fn read_floats(r: &mut Reader<'_>, max: usize, starts: bool, batch: &mut WriteBatch) -> Result<Run, Broken> {
    let from = index(batch.samples.len());
    let mut before = 0_i64;
    for _ in 0..r.length(max / 9)? {
        let at = before.wrapping_add(r.varint()?);
        before = at;
        batch.samples.push(Sample { at, value: r.f64()? });
        if starts {
            batch.starts.push(r.varint()?);
        }
    }
    Ok(Run { from, to: index(batch.samples.len()) })
}

fn read_histogram(r: &mut Reader<'_>) -> Result<Histogram, Broken> {
    let integer = r.u8()? != 0;
    let reset_hint = match r.u8()? {
        1 => ResetHint::Reset,
        2 => ResetHint::NoReset,
        3 => ResetHint::Gauge,
        _ => ResetHint::Unknown,
    };
    let small =
        |r: &Reader<'_>, n: i64| i32::try_from(n).map_err(|_| Broken { at: r.at(), what: "number is too large" });
    let schema = r.varint()?;
    let mut h = Histogram { integer, reset_hint, schema: small(r, schema)?, ..Histogram::default() };
    for float in [&mut h.zero_threshold, &mut h.zero_count, &mut h.count, &mut h.sum] {
        *float = r.f64()?;
    }
    for spans in [&mut h.positive_spans, &mut h.negative_spans] {
        for _ in 0..r.length(BUCKETS_MAX)? {
            let (offset, length) = (r.varint()?, r.length(u32::MAX as usize)?);
            spans.push(BucketSpan { offset: small(r, offset)?, length: index(length) });
        }
    }
    for floats in [&mut h.positive_buckets, &mut h.negative_buckets, &mut h.custom_values] {
        for _ in 0..r.length(BUCKETS_MAX)? {
            floats.push(r.f64()?);
        }
    }
    Ok(h)
}

fn kind_number(kind: MetricKind) -> u8 {
    match kind {
        MetricKind::Unknown => 0,
        MetricKind::Counter => 1,
        MetricKind::Gauge => 2,
        MetricKind::Histogram => 3,
        MetricKind::GaugeHistogram => 4,
        MetricKind::Summary => 5,
        MetricKind::Info => 6,
        MetricKind::StateSet => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A batch of series `names`, each with its samples; every other one with a histogram and an exemplar.
    fn batch(names: &[String], samples: &[(i64, f64)], starts: bool) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (i, name) in names.iter().enumerate() {
            let text = |batch: &mut WriteBatch, text: &str| {
                let at = index(batch.text.len());
                batch.text.extend_from_slice(text.as_bytes());
                Text { at, len: index(text.len()) }
            };
            let pair = Pair { name: text(&mut batch, "__name__"), value: text(&mut batch, name) };
            let pairs = Run { from: index(batch.pairs.len()), to: index(batch.pairs.len() + 1) };
            batch.pairs.push(pair);
            let from = index(batch.samples.len());
            batch.samples.extend(samples.iter().map(|(at, value)| Sample { at: *at, value: *value }));
            if starts {
                batch.starts.extend(samples.iter().map(|(at, _)| at / 2));
            }
            let floats = Run { from, to: index(batch.samples.len()) };
            let from = index(batch.histograms.len());
            if i % 2 == 1 {
                let histogram = Histogram {
                    integer: true,
                    reset_hint: ResetHint::Gauge,
                    schema: -4,
                    positive_spans: vec![BucketSpan { offset: -3, length: 2 }],
                    positive_buckets: vec![1.0, 2.0],
                    ..Histogram::default()
                };
                batch.histograms.push(HistogramSample { at: 5, start_at: 1, histogram: Arc::new(histogram) });
                let labels = Labels::from_pairs([("trace", "x")]);
                batch.exemplars.push((index(i), Exemplar { labels, value: 1.5, at: 3 }));
            }
            let histograms = Run { from, to: index(batch.histograms.len()) };
            batch.series.push(BatchSeries { hash: i as u128 * 77, pairs, samples: floats, histograms });
        }
        batch.metadata.push(("m".into(), Metadata { kind: MetricKind::Counter, help: "h".into(), unit: "u".into() }));
        batch
    }

    /// Goal: the one look at a series' labels sees what a look at each would. Method: one string of two made invalid
    /// (a byte, a character cut in two), among short and long ones.
    #[test]
    fn labels_that_are_not_text_are_refused_wherever_they_stand() {
        let series = |values: [&[u8]; 2]| {
            let mut out = vec![VERSION, 0, 1];
            put_u128(&mut out, 7);
            put_uvarint(&mut out, 2);
            for (name, value) in [b"a", b"b"].iter().zip(values) {
                put_prefixed(&mut out, *name);
                put_prefixed(&mut out, value);
            }
            out.extend_from_slice(&[0; 4]);
            decode(out)
        };
        let long = vec![b'x'; 300];
        for good in [b"v".as_slice(), "é".as_bytes(), &long] {
            for other in [b"w".as_slice(), &long] {
                assert!(series([good, other]).is_ok());
            }
            for bad in [&[0xff][..], &[b'a', 0xc3], &[0x85], &[long.as_slice(), &[0xc3]].concat()] {
                assert!(series([good, bad]).is_err() && series([bad, good]).is_err(), "{bad:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_slice_comes_back(
            names in proptest::collection::vec("[a-zé]{1,9}", 0..8),
            samples in proptest::collection::vec((any::<i64>(), any::<f64>()), 0..6),
            starts: bool,
        ) {
            let whole = batch(&names, &samples, starts);
            let picks: Vec<u32> = (0..index(names.len())).filter(|i| i % 3 != 2).collect();
            let back = decode(encode(&whole, &picks, true)).unwrap();
            prop_assert_eq!(back.series.len(), picks.len());
            for (pick, series) in picks.iter().zip(&back.series) {
                let want = &whole.series[*pick as usize];
                prop_assert_eq!(series.hash, want.hash);
                prop_assert!(back.labels_of(series).eq(whole.labels_of(want)));
                let floats = |b: &WriteBatch, s: &BatchSeries| b.samples[s.samples.range()].iter().map(|s| (s.at, s.value.to_bits())).collect::<Vec<_>>();
                prop_assert_eq!(floats(&back, series), floats(&whole, want));
                let histograms = |b: &WriteBatch, s: &BatchSeries| b.histograms[s.histograms.range()].iter().map(|h| format!("{h:?}")).collect::<Vec<_>>();
                prop_assert_eq!(histograms(&back, series), histograms(&whole, want));
            }
            prop_assert_eq!(back.starts.len(), if starts { back.samples.len() } else { 0 });
            prop_assert_eq!(back.exemplars.len(), picks.iter().filter(|p| *p % 2 == 1).count());
            prop_assert_eq!(back.metadata, whole.metadata.clone());
            prop_assert!(decode(encode(&whole, &picks, false)).unwrap().metadata.is_empty());
        }

        #[test]
        fn broken_bytes_are_an_error_or_a_slice(cut: usize, at: usize, byte: u8) {
            let names = ["a".to_owned(), "b".to_owned()];
            let mut bytes = encode(&batch(&names, &[(1, 2.0), (2, 3.0)], true), &[0, 1], true);
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut % (bytes.len() + 1));
            let _any = decode(bytes);
        }
    }
}
