//! `prometheus.WriteRequest`: labels as text inside each series.
//!
//! Source: `prometheus prompb/{remote,types}.proto`.

use engram_model::batch::{Pair, Text};
use engram_model::sample::{Metadata, MetricKind, Sample};

use super::build::{Builder, push_exemplar_pair};
use super::wire::{Cursor, Tag, place};
use super::{Bounds, DecodeError, Decoded};

const OTHER: &str = "io.prometheus.write.v2.Request";

/// Reads the whole message.
pub(super) fn decode(body: &[u8], bounds: &Bounds) -> Result<Decoded, DecodeError> {
    let mut series = 0;
    let mut top = Cursor::new(body);
    while let Some(tag) = top.tag()? {
        match tag.field {
            1 => series += 1,
            4 | 5 => return Err(DecodeError::WrongVersion { at: tag.at, field: tag.field, other: OTHER }),
            _ => {}
        }
        top.skip(&tag)?;
    }
    let mut builder = Builder::new(body, bounds, series)?;
    let mut pairs = Vec::new();
    let mut top = Cursor::new(body);
    while let Some(tag) = top.tag()? {
        match tag.field {
            1 => one_series(top.message(&tag)?, body, &mut builder, &mut pairs)?,
            3 => metadata(top.message(&tag)?, &mut builder)?,
            _ => top.skip(&tag)?,
        }
    }
    Ok(builder.finish())
}

/// `pairs` is for exemplars and used again.
fn one_series(
    mut message: Cursor<'_>,
    body: &[u8],
    builder: &mut Builder<'_>,
    pairs: &mut Vec<Pair>,
) -> Result<(), DecodeError> {
    builder.begin();
    let start = message.at();
    let mut labels_end = start;
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => {
                builder.pair(label(&mut message, &tag)?)?;
                labels_end = message.at();
            }
            2 => sample(message.message(&tag)?, builder)?,
            3 => exemplar(message.message(&tag)?, builder, pairs)?,
            4 => {
                builder.raw.read(message.message(&tag)?)?;
                builder.histogram()?;
            }
            _ => message.skip(&tag)?,
        }
    }
    // Tags and lengths of short labels are ASCII too: one look tells of nearly all series that they are text.
    if !body.get(start..labels_end).unwrap_or_default().is_ascii() {
        builder.check_utf8();
    }
    builder.end()
}

/// A name and a value; of a field that comes twice the later wins, as protobuf has it.
#[inline]
fn label(message: &mut Cursor<'_>, tag: &Tag) -> Result<Pair, DecodeError> {
    let mut label = message.message(tag)?;
    if let Some(pair) = short_label(&label) {
        return Ok(pair);
    }
    let mut pair = Pair::default();
    while let Some(tag) = label.tag()? {
        match tag.field {
            1 => pair.name = label.text(&tag)?,
            2 => pair.value = label.text(&tag)?,
            _ => label.skip(&tag)?,
        }
    }
    Ok(pair)
}

/// The form nearly every label has: name, then value, each shorter than 128 bytes, and nothing else. `None` is no
/// fault: the slow way judges.
#[inline]
fn short_label(label: &Cursor<'_>) -> Option<Pair> {
    let bytes = label.rest();
    let &[0x0a, name_len, ref rest @ ..] = bytes else { return None };
    let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
    let &[0x12, value_len, ref value @ ..] = rest else { return None };
    if name_len >= 0x80 || value_len >= 0x80 || value.len() != usize::from(value_len) {
        return None;
    }
    let name_at = label.at() + 2;
    Some(Pair { name: place(name_at, name.len()), value: place(name_at + name.len() + 2, value.len()) })
}

#[inline]
fn sample(mut message: Cursor<'_>, builder: &mut Builder<'_>) -> Result<(), DecodeError> {
    let mut sample = Sample { at: 0, value: 0.0 };
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => sample.value = message.double(&tag)?,
            2 => sample.at = message.signed(&tag)?,
            _ => message.skip(&tag)?,
        }
    }
    builder.sample(sample, 0)
}

fn exemplar(mut message: Cursor<'_>, builder: &mut Builder<'_>, pairs: &mut Vec<Pair>) -> Result<(), DecodeError> {
    pairs.clear();
    let (mut value, mut at) = (0.0, 0);
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => push_exemplar_pair(pairs, label(&mut message, &tag)?),
            2 => value = message.double(&tag)?,
            3 => at = message.signed(&tag)?,
            _ => message.skip(&tag)?,
        }
    }
    builder.exemplar(pairs, value, at)
}

/// Metadata is advice: what is not UTF-8 is made so.
fn metadata(mut message: Cursor<'_>, builder: &mut Builder<'_>) -> Result<(), DecodeError> {
    builder.count_sample()?;
    let (mut kind, mut name, mut help, mut unit) = (0, Text::default(), Text::default(), Text::default());
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => kind = message.number(&tag)?,
            2 => name = message.text(&tag)?,
            4 => help = message.text(&tag)?,
            5 => unit = message.text(&tag)?,
            _ => message.skip(&tag)?,
        }
    }
    let text = |at| String::from_utf8_lossy(builder.bytes(at)).into_owned();
    let metadata = Metadata { kind: MetricKind::from_wire(kind), help: text(help), unit: text(unit) };
    let name = text(name);
    if !name.is_empty() {
        builder.out.batch.metadata.push((name, metadata));
    }
    Ok(())
}
