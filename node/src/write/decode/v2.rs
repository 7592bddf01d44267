//! `io.prometheus.write.v2.Request`: texts once in a table of symbols, series refer to them.
//!
//! Source: remote-write 2.0 specification, `prometheus prompb/io/prometheus/write/v2/types.proto` (start times of
//! samples and histograms as of Prometheus 3.8; the older one of the whole series is taken too).

use std::collections::HashSet;

use engram_model::batch::{Pair, Text};
use engram_model::labels::METRIC_NAME;
use engram_model::sample::{Metadata, MetricKind, Sample};

use super::build::{Builder, push_exemplar_pair};
use super::wire::{Cursor, Tag};
use super::{Bounds, DecodeError, Decoded, Reason, Refusal};

const OTHER: &str = "prometheus.WriteRequest";

/// The table of texts.
struct Symbols {
    texts: Vec<Text>,
    /// Whether any is not UTF-8.
    dirty: bool,
}

impl Symbols {
    #[inline]
    fn get(&self, at: usize, index: u64) -> Result<Text, DecodeError> {
        let found = usize::try_from(index).ok().and_then(|index| self.texts.get(index));
        found.copied().ok_or(DecodeError::NoSymbol { at, index, symbols: self.texts.len() })
    }
}

/// What is used again from series to series.
#[derive(Default)]
struct Scratch {
    pairs: Vec<Pair>,
    /// Metadata that was seen: name, kind, help, unit.
    metadata: HashSet<(Text3, u64)>,
    metadata_bytes: usize,
}

/// Name, help and unit by their places.
type Text3 = [(u32, u32); 3];

/// Metadata as it came.
#[derive(Default)]
struct RawMetadata {
    kind: u64,
    help: Text,
    unit: Text,
}

/// Reads the whole message. Symbols may stand behind the series that use them: protobuf promises no order.
pub(super) fn decode(body: &[u8], bounds: &Bounds) -> Result<Decoded, DecodeError> {
    let mut series = 0;
    let mut symbols = Symbols { texts: Vec::new(), dirty: false };
    let mut top = Cursor::new(body);
    while let Some(tag) = top.tag()? {
        match tag.field {
            1..=3 => return Err(DecodeError::WrongVersion { at: tag.at, field: tag.field, other: OTHER }),
            4 => {
                if symbols.texts.len() >= bounds.parts_max {
                    return Err(DecodeError::TooMany { what: "symbols", max: bounds.parts_max });
                }
                symbols.texts.push(top.text(&tag)?);
            }
            5 => {
                series += 1;
                top.skip(&tag)?;
            }
            _ => top.skip(&tag)?,
        }
    }
    let mut builder = Builder::new(body, bounds, series)?;
    builder.count_parts(symbols.texts.len())?;
    symbols.dirty = !symbols.texts.iter().all(|text| std::str::from_utf8(builder.bytes(*text)).is_ok());
    let mut scratch = Scratch::default();
    let mut top = Cursor::new(body);
    while let Some(tag) = top.tag()? {
        match tag.field {
            5 => one_series(top.message(&tag)?, &symbols, &mut builder, &mut scratch)?,
            _ => top.skip(&tag)?,
        }
    }
    Ok(builder.finish())
}

fn one_series(
    mut message: Cursor<'_>,
    symbols: &Symbols,
    builder: &mut Builder<'_>,
    scratch: &mut Scratch,
) -> Result<(), DecodeError> {
    builder.begin();
    let mut created_at = 0;
    let mut metadata = None;
    let mut half = None;
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => each_pair(&mut message, &tag, symbols, &mut half, |pair| builder.pair(pair))?,
            2 => sample(message.message(&tag)?, builder)?,
            3 => {
                builder.raw.read(message.message(&tag)?)?;
                builder.histogram()?;
            }
            4 => exemplar(message.message(&tag)?, symbols, builder, &mut scratch.pairs)?,
            5 => metadata = Some(read_metadata(message.message(&tag)?, symbols)?),
            6 => created_at = message.signed(&tag)?,
            _ => message.skip(&tag)?,
        }
    }
    whole(half, message.at())?;
    builder.default_start(created_at);
    if symbols.dirty {
        builder.check_utf8();
    }
    if let Some(metadata) = metadata {
        take_metadata(&metadata, builder, scratch)?;
    }
    if !builder.has_samples() {
        builder.fail(Reason::NoSamples);
    }
    builder.end()
}

/// References come in twos: name, value. `half` holds a name whose value has not come yet.
#[inline]
fn each_pair(
    message: &mut Cursor<'_>,
    tag: &Tag,
    symbols: &Symbols,
    half: &mut Option<Text>,
    mut each: impl FnMut(Pair) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    message.each_varint(tag, |at, index| {
        let text = symbols.get(at, index)?;
        match half.take() {
            None => *half = Some(text),
            Some(name) => each(Pair { name, value: text })?,
        }
        Ok(())
    })
}

fn whole(half: Option<Text>, at: usize) -> Result<(), DecodeError> {
    match half {
        None => Ok(()),
        Some(_) => Err(DecodeError::Malformed { at, what: "odd number of label references" }),
    }
}

#[inline]
fn sample(mut message: Cursor<'_>, builder: &mut Builder<'_>) -> Result<(), DecodeError> {
    let mut sample = Sample { at: 0, value: 0.0 };
    let mut start_at = 0;
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => sample.value = message.double(&tag)?,
            2 => sample.at = message.signed(&tag)?,
            3 => start_at = message.signed(&tag)?,
            _ => message.skip(&tag)?,
        }
    }
    builder.sample(sample, start_at)
}

fn exemplar(
    mut message: Cursor<'_>,
    symbols: &Symbols,
    builder: &mut Builder<'_>,
    pairs: &mut Vec<Pair>,
) -> Result<(), DecodeError> {
    pairs.clear();
    let (mut value, mut at, mut half) = (0.0, 0, None);
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => each_pair(&mut message, &tag, symbols, &mut half, |pair| {
                push_exemplar_pair(pairs, pair);
                Ok(())
            })?,
            2 => value = message.double(&tag)?,
            3 => at = message.signed(&tag)?,
            _ => message.skip(&tag)?,
        }
    }
    whole(half, message.at())?;
    builder.exemplar(pairs, value, at)
}

fn read_metadata(mut message: Cursor<'_>, symbols: &Symbols) -> Result<RawMetadata, DecodeError> {
    let mut metadata = RawMetadata::default();
    while let Some(tag) = message.tag()? {
        let text = |message: &mut Cursor<'_>| {
            let at = message.at();
            symbols.get(at, message.number(&tag)?)
        };
        match tag.field {
            1 => metadata.kind = message.number(&tag)?,
            3 => metadata.help = text(&mut message)?,
            4 => metadata.unit = text(&mut message)?,
            _ => message.skip(&tag)?,
        }
    }
    Ok(metadata)
}

/// Each series repeats its metric's metadata: it is kept once, and all of it together no longer than the body, for
/// one long help text can be named by a million series.
fn take_metadata(raw: &RawMetadata, builder: &mut Builder<'_>, scratch: &mut Scratch) -> Result<(), DecodeError> {
    let Some(name) = builder.value_of(METRIC_NAME.as_bytes()) else { return Ok(()) };
    if raw.kind == 0 && raw.help.len == 0 && raw.unit.len == 0 {
        return Ok(());
    }
    let places = [name, raw.help, raw.unit].map(|text| (text.at, text.len));
    if !scratch.metadata.insert((places, raw.kind)) {
        return Ok(());
    }
    builder.count_sample()?;
    scratch.metadata_bytes += places.iter().map(|(_, len)| *len as usize).sum::<usize>();
    if scratch.metadata_bytes > builder.body_len() {
        let series = builder.series_at();
        let reason = Reason::MetadataTooLong;
        builder.out.refused.push(Refusal { series, samples: 0, histograms: 0, exemplars: 0, reason });
        return Ok(());
    }
    let text = |at| String::from_utf8_lossy(builder.bytes(at)).into_owned();
    let metadata = Metadata { kind: MetricKind::from_wire(raw.kind), help: text(raw.help), unit: text(raw.unit) };
    let name = text(name);
    builder.out.batch.metadata.push((name, metadata));
    Ok(())
}
