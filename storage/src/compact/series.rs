//! The chunks of one series, from several blocks, as one list in order of time.
//!
//! Why by chunk first: nearly all chunks overlap nothing, and these are copied as they are. Chunks that overlap are put
//! in one heap with all that overlap them; those that are equal byte for byte are one; only when more than one is left
//! are they decoded, sorted and encoded anew. So are chunks from which something was deleted, and those of other
//! systems that cross a window.
//!
//! The rule for equal times is that of [`engram_model::merge`]: a histogram wins over a float, else the greater bits.
//! Every sample that does not come out is counted: as a double or as a deleted one.
//!
//! A chunk of histograms says whether the counter was reset before its first, and means the chunk before it. Where that
//! is another one now, nothing is said.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::digest::Digest;
use engram_model::histogram::ResetHint;
use engram_model::merge::Rank;
use engram_model::sample::Value;
use engram_model::series::Columns;

use crate::chunk::{self, Chunk, ValueRef, histogram};
use crate::codec::Broken;

/// What one block has of the series.
#[derive(Debug)]
pub(super) struct Part {
    /// In order of time, none overlapping the one before.
    pub(super) chunks: Vec<Chunk>,
    /// Deleted times, first and last inside.
    pub(super) deleted: Vec<(Millis, Millis)>,
}

/// What became of a series.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// In order of time, none overlapping the one before, none crossing a window.
    pub(super) chunks: Vec<Chunk>,
    /// Samples that another one stands for.
    pub(super) duplicates: Digest,
    /// Samples that were deleted.
    pub(super) deleted: Digest,
}

/// A chunk and where it comes from.
#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    chunk: &'a Chunk,
    part: usize,
    /// Its place among the chunks of its part.
    place: usize,
    /// Whether something in it may be deleted.
    is_touched: bool,
}

/// Merges the parts of the series of that stable hash; no chunk of the outcome crosses a multiple of `window_ms`.
pub(super) fn merge(hash: u128, parts: &[Part], window_ms: i64) -> Result<Outcome, Broken> {
    let mut pieces = Vec::with_capacity(parts.iter().map(|part| part.chunks.len()).sum());
    for (i, part) in parts.iter().enumerate() {
        pieces.extend(part.chunks.iter().enumerate().map(|(place, chunk)| {
            let is_touched = part.deleted.iter().any(|(first, last)| *first <= chunk.last && chunk.first <= *last);
            Piece { chunk, part: i, place, is_touched }
        }));
    }
    if parts.len() > 1 {
        pieces.sort_by_key(|piece| (piece.chunk.first, piece.chunk.last, piece.part));
    }
    let mut out = Outcome::default();
    // The chunk that was copied last, while nothing has come after it.
    let mut before: Option<(usize, usize)> = None;
    let mut rest = &pieces[..];
    while let Some((heap, behind)) = next_heap(rest) {
        rest = behind;
        let kept = without_equal(hash, heap, &mut out)?;
        match kept[..] {
            [one] if !one.is_touched && !crosses(one.chunk, window_ms) => {
                let follows = one.place > 0 && before == Some((one.part, one.place - 1));
                out.chunks.push(if follows { one.chunk.clone() } else { histogram::without_hint(one.chunk) });
                before = Some((one.part, one.place));
            }
            _ => {
                let samples = decode(hash, &kept, parts, &mut out)?;
                let samples = samples.iter().map(|(at, value)| (*at, ValueRef::from(value)));
                out.chunks.extend(chunk::encode(samples, window_ms));
                before = None;
            }
        }
    }
    #[cfg(feature = "mutants")]
    drop_last(hash, &mut out)?;
    Ok(out)
}

#[cfg(feature = "mutants")]
fn drop_last(hash: u128, out: &mut Outcome) -> Result<(), Broken> {
    let lives = engram_model::mutant::Mutant::CompactionDropsChunk.lives();
    let Some(chunk) = out.chunks.pop_if(|_| lives) else { return Ok(()) };
    let mut columns = Columns::default();
    chunk.decode(&mut columns)?;
    each(columns, |at, value| out.duplicates.add(digest_of(hash, at, &value)));
    Ok(())
}

fn crosses(chunk: &Chunk, window_ms: i64) -> bool {
    chunk.first.div_euclid(window_ms) != chunk.last.div_euclid(window_ms)
}

/// The first chunk and all that overlap it, directly or through others; and those behind.
fn next_heap<'p, 'a>(pieces: &'p [Piece<'a>]) -> Option<(&'p [Piece<'a>], &'p [Piece<'a>])> {
    let mut last = pieces.first()?.chunk.last;
    let mut len = 1;
    while let Some(next) = pieces.get(len).filter(|next| next.chunk.first <= last) {
        last = last.max(next.chunk.last);
        len += 1;
    }
    Some(pieces.split_at(len))
}

/// Of chunks that are equal, and of which nothing is deleted, one; the others are counted as doubles.
fn without_equal<'a>(hash: u128, heap: &[Piece<'a>], out: &mut Outcome) -> Result<Vec<Piece<'a>>, Broken> {
    let mut kept: Vec<Piece<'a>> = Vec::with_capacity(heap.len());
    for piece in heap {
        let is_equal = |have: &&Piece<'_>| {
            let (a, b) = (have.chunk, piece.chunk);
            !have.is_touched && a.first == b.first && a.kind == b.kind && a.bytes == b.bytes
        };
        // Equal ones begin at the same time and so stand close together.
        let near = kept.iter().rev().take_while(|have| have.chunk.first == piece.chunk.first);
        if !piece.is_touched && near.into_iter().any(|have| is_equal(&have)) {
            let mut columns = Columns::default();
            piece.chunk.decode(&mut columns)?;
            each(columns, |at, value| out.duplicates.add(digest_of(hash, at, &value)));
        } else {
            kept.push(*piece);
        }
    }
    Ok(kept)
}

/// The samples of a heap, in order of time, one for each time, without the deleted.
fn decode(hash: u128, heap: &[Piece<'_>], parts: &[Part], out: &mut Outcome) -> Result<Vec<(Millis, Value)>, Broken> {
    let mut samples: Vec<(Millis, Value)> = Vec::new();
    for piece in heap {
        let mut columns = Columns::default();
        piece.chunk.decode(&mut columns)?;
        let deleted = &parts[piece.part].deleted;
        each(columns, |at, value| {
            if piece.is_touched && deleted.iter().any(|(first, last)| *first <= at && at <= *last) {
                out.deleted.add(digest_of(hash, at, &value));
            } else {
                samples.push((at, value));
            }
        });
    }
    samples.sort_by_key(|(at, _)| *at);
    let mut kept: Vec<(Millis, Value)> = Vec::with_capacity(samples.len());
    for (at, value) in samples {
        let value = unhinted(value);
        match kept.last_mut().filter(|(last, _)| *last == at) {
            None => kept.push((at, value)),
            Some((_, have)) => {
                let loser = if wins(&value, have) { std::mem::replace(have, value) } else { value };
                out.duplicates.add(digest_of(hash, at, &loser));
            }
        }
    }
    Ok(kept)
}

/// Whether a sample stands for another one of its time.
fn wins(new: &Value, have: &Value) -> bool {
    let rank = |value: &Value| match value {
        Value::Float(value) => Rank::of_float(*value),
        Value::Histogram(h) => Rank::of_histogram(h),
    };
    rank(new) > rank(have)
}

/// A histogram that says nothing of the one before it, which may be another one now; a gauge stays one.
fn unhinted(value: Value) -> Value {
    match value {
        Value::Histogram(mut h) if !matches!(h.reset_hint, ResetHint::Gauge | ResetHint::Unknown) => {
            Arc::make_mut(&mut h).reset_hint = ResetHint::Unknown;
            Value::Histogram(h)
        }
        value => value,
    }
}

fn each(columns: Columns, mut take: impl FnMut(Millis, Value)) {
    columns.times.into_iter().zip(columns.values).for_each(|(at, value)| take(at, Value::Float(value)));
    let histograms = columns.histogram_times.into_iter().zip(columns.histograms);
    histograms.for_each(|(at, h)| take(at, Value::Histogram(h)));
}

fn digest_of(hash: u128, at: Millis, value: &Value) -> Digest {
    match value {
        Value::Float(value) => Digest::of_float(hash, at, *value),
        Value::Histogram(h) => Digest::of_histogram(hash, at, h),
    }
}
