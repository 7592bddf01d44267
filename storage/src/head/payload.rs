//! The bytes a head writes to the log. Drawn in `docs/formats/head.md`.
//!
//! Why so terse: every sample a client sends passes through here on every replica, and the log's bandwidth is the
//! node's. A float of a known series takes about five bytes: its ref, one byte of counts, the step in time from the
//! sample before it in the payload (nearly always 0), and the value without its trailing zero bytes.

use engram_model::batch::{BatchSeries, WriteBatch};
use engram_model::histogram::{Histogram, ResetHint};
use engram_model::labels::hash128;
use engram_model::sample::{Exemplar, Metadata, MetricKind};
use engram_model::{Labels, Millis};

use std::sync::Arc;

use super::append::Rules;
use super::starts::StartCode;
use super::symbols::View;
use crate::chunk::histogram::{canonical, is_storable};
use crate::chunk::{self, Kind, Open, ValueRef};
use crate::codec::{Broken, Reader, put_f64, put_prefixed, put_uvarint, put_varint};
use engram_model::series::Columns;

/// A write batch.
pub(super) const APPEND: u8 = 1;
/// Everything before a time was forgotten.
pub(super) const FORGET: u8 = 2;
/// First payload of a checkpoint: floor and newest time.
pub(super) const MARKS: u8 = 3;
/// Whole series of a checkpoint.
pub(super) const SERIES: u8 = 4;
/// A write batch some of whose samples have starts.
pub(super) const APPEND_STARTS: u8 = 5;
/// Whole series of a checkpoint with their starts.
pub(super) const SERIES_STARTS: u8 = 6;
/// A window was set aside.
pub(super) const SEAL: u8 = 7;
/// What was set aside was forgotten.
pub(super) const FORGET_FROZEN: u8 = 8;
/// Series without samples were dropped.
pub(super) const SWEEP: u8 = 9;
/// As marks, of a head that knows of seals.
pub(super) const MARKS_SEALED: u8 = 10;
/// Chunks of a checkpoint that were set aside.
pub(super) const FROZEN: u8 = 11;
/// The digests of a checkpoint some of whose chunks lie in files.
pub(super) const DIGESTS: u8 = 12;

/// In the kind of a chunk of a checkpoint: it takes samples.
pub(super) const IS_OPEN: u8 = 0x80;
/// In the kind of a chunk of a checkpoint: it lies in a chunk file.
pub(super) const IN_FILE: u8 = 0x40;

/// Most labels of a series that is read back.
const LABELS_MAX: usize = 1 << 16;

/// Writes samples; each time is the step from the one before, and so is each ref: series come in the order in which
/// they once came, so both steps take a byte.
#[derive(Debug)]
pub(super) struct SampleWriter {
    at: Millis,
    series_ref: u32,
    /// None in a payload without starts.
    starts: Option<StartCode>,
}

impl SampleWriter {
    pub(super) fn new(with_starts: bool) -> Self {
        Self { at: 0, series_ref: 0, starts: with_starts.then(StartCode::default) }
    }

    /// One series with its samples. `labels` when it is new.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, series_ref: u32, new: bool, batch: &WriteBatch, of: &BatchSeries) {
        let step = i64::from(series_ref) - i64::from(self.series_ref);
        put_varint(out, step << 1 | i64::from(new));
        self.series_ref = series_ref;
        if new {
            put_labels(out, of.pairs.len(), batch.labels_of(of));
        }
        let histograms = &batch.histograms[of.histograms.range()];
        let storable =
            histograms.iter().filter(|sample| canonical(&sample.histogram).is_some() || is_storable(&sample.histogram));
        let count = storable.clone().count();
        put_uvarint(out, (of.samples.len() as u64) << 1 | u64::from(count > 0));
        for (sample, i) in batch.samples[of.samples.range()].iter().zip(of.samples.range()) {
            put_varint(out, sample.at.wrapping_sub(self.at));
            self.at = sample.at;
            put_float(out, sample.value);
            if let Some(starts) = &mut self.starts {
                starts.put(out, batch.starts.get(i).copied().unwrap_or(0));
            }
        }
        if count > 0 {
            put_uvarint(out, count as u64);
            for sample in storable {
                put_histogram(out, sample.at, &sample.histogram);
                if let Some(starts) = &mut self.starts {
                    starts.put(out, sample.start_at);
                }
            }
        }
    }
}

/// The bytes of the float without zeros at the end, and before them how many: whole numbers need two or three.
#[inline]
fn put_float(out: &mut Vec<u8>, value: f64) {
    let bits = value.to_bits();
    let len = 8 - (bits.trailing_zeros() / 8) as usize;
    out.push(u8::try_from(len).unwrap_or(8));
    out.extend_from_slice(&bits.to_be_bytes()[..len]);
}

#[inline]
pub(super) fn read_float(from: &mut Reader<'_>) -> Result<f64, Broken> {
    let len = usize::from(from.u8()?);
    let mut bytes = [0; 8];
    let Some(part) = bytes.get_mut(..len) else {
        return Err(Broken { at: from.at(), what: "float is longer than 8 bytes" });
    };
    part.copy_from_slice(from.bytes(len)?);
    Ok(f64::from_be_bytes(bytes))
}

/// A histogram is a chunk of its own, and its hint beside it because a chunk does not bring every hint back.
fn put_histogram(out: &mut Vec<u8>, at: Millis, histogram: &Arc<Histogram>) {
    let stored = canonical(histogram).map_or_else(|| Arc::clone(histogram), Arc::new);
    let mut open = Open::None;
    open.append(at, ValueRef::Histogram(&stored), false);
    let Some(chunk) = open.view() else { return };
    let hint = match stored.reset_hint {
        ResetHint::Unknown => 0,
        ResetHint::Reset => 1,
        ResetHint::NoReset => 2,
        ResetHint::Gauge => 3,
    };
    out.push(hint << 4 | chunk.kind as u8);
    put_prefixed(out, &chunk.bytes);
}

pub(super) fn read_histogram(from: &mut Reader<'_>) -> Result<(Millis, Arc<Histogram>), Broken> {
    let at = from.at();
    let broken = |what| Broken { at, what };
    let head = from.u8()?;
    let kind = Kind::from_number(head & 0xf).filter(|kind| *kind != Kind::Xor).ok_or(broken("not a histogram"))?;
    let mut columns = Columns::default();
    chunk::decode(kind, from.prefixed()?, &mut columns)?;
    let (Some(time), Some(mut histogram), 1) =
        (columns.histogram_times.first().copied(), columns.histograms.pop(), columns.histogram_times.len())
    else {
        return Err(broken("not one histogram"));
    };
    Arc::make_mut(&mut histogram).reset_hint = match head >> 4 {
        0 => ResetHint::Unknown,
        1 => ResetHint::Reset,
        2 => ResetHint::NoReset,
        3 => ResetHint::Gauge,
        _ => return Err(broken("unknown reset hint")),
    };
    Ok((time, histogram))
}

/// A count and the pairs.
pub(super) fn put_labels<'a>(out: &mut Vec<u8>, count: usize, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
    put_uvarint(out, count as u64);
    for (name, value) in pairs {
        put_prefixed(out, name.as_bytes());
        put_prefixed(out, value.as_bytes());
    }
}

/// Pairs as [`put_labels`] wrote them, with their hash.
pub(super) struct LabelPairs<'a> {
    pub(super) hash: u128,
    pub(super) pairs: Vec<(&'a str, &'a str)>,
}

impl LabelPairs<'_> {
    pub(super) fn to_labels(&self) -> Labels {
        Labels::from_sorted(self.pairs.iter().copied())
    }
}

pub(super) fn read_labels<'a>(from: &mut Reader<'a>, scratch: &mut Vec<u8>) -> Result<LabelPairs<'a>, Broken> {
    let at = from.at();
    let count = from.length(LABELS_MAX)?;
    let mut pairs = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        pairs.push((from.str()?, from.str()?));
    }
    if pairs.windows(2).any(|two| two[0].0 >= two[1].0) || pairs.iter().any(|(_, value)| value.is_empty()) {
        return Err(Broken { at, what: "labels are not sorted, unique and full" });
    }
    let hash = hash128(pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())), scratch);
    Ok(LabelPairs { hash, pairs })
}

/// The pairs of a series from its symbols.
pub(super) fn put_symbols(out: &mut Vec<u8>, pairs: &[(u32, u32)], view: &View<'_>) {
    put_labels(out, pairs.len(), pairs.iter().map(|(name, value)| (view.text(*name), view.text(*value))));
}

/// What the samples of a payload are judged by: written along, for a limit may change before the replay.
pub(super) fn put_rules(out: &mut Vec<u8>, rules: &Rules) {
    out.push(u8::from(rules.repair));
    put_varint(out, rules.out_of_order_window_ms);
    put_varint(out, rules.in_order_age_max_ms);
    put_uvarint(out, u64::from(rules.exemplars_max));
    put_uvarint(out, u64::from(rules.metadata_max));
}

pub(super) fn read_rules(from: &mut Reader<'_>) -> Result<Rules, Broken> {
    Ok(Rules {
        repair: from.u8()? != 0,
        out_of_order_window_ms: from.varint()?,
        in_order_age_max_ms: from.varint()?,
        exemplars_max: read_u32(from)?,
        metadata_max: read_u32(from)?,
    })
}

pub(super) fn read_u32(from: &mut Reader<'_>) -> Result<u32, Broken> {
    let at = from.at();
    u32::try_from(from.uvarint()?).map_err(|_| Broken { at, what: "number is above 32 bits" })
}

pub(super) fn put_exemplar(out: &mut Vec<u8>, series_ref: u32, exemplar: &Exemplar) {
    put_uvarint(out, u64::from(series_ref));
    put_varint(out, exemplar.at);
    put_f64(out, exemplar.value);
    put_labels(out, exemplar.labels.len(), exemplar.labels.iter());
}

pub(super) fn read_exemplar(from: &mut Reader<'_>, scratch: &mut Vec<u8>) -> Result<(u32, Exemplar), Broken> {
    let series_ref = read_u32(from)?;
    let (at, value) = (from.varint()?, from.f64()?);
    let labels = read_labels(from, scratch)?.to_labels();
    Ok((series_ref, Exemplar { labels, value, at }))
}

pub(super) fn put_metadata(out: &mut Vec<u8>, name: &str, metadata: &Metadata) {
    put_prefixed(out, name.as_bytes());
    out.push(metadata.kind as u8);
    put_prefixed(out, metadata.help.as_bytes());
    put_prefixed(out, metadata.unit.as_bytes());
}

pub(super) fn read_metadata<'a>(from: &mut Reader<'a>) -> Result<(&'a str, Metadata), Broken> {
    let name = from.str()?;
    let kind = MetricKind::from_wire(u64::from(from.u8()?));
    let (help, unit) = (from.str()?.to_owned(), from.str()?.to_owned());
    Ok((name, Metadata { kind, help, unit }))
}
