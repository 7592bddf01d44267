//! Frames of the streamed answer: one series, or a part of it, with its chunks, behind its length and its checksum.
//!
//! ```text
//! frame                uvarint length of message | u32 big-endian crc32c of message | message
//! ChunkedReadResponse  1 ChunkedSeries · 2 index of the query in the request
//! ChunkedSeries        1 repeated Label{1 name · 2 value} · 2 repeated Chunk
//! Chunk                1 first ms · 2 last ms, both inside · 3 enum encoding · 4 bytes, as in a block
//! ```
//!
//! A frame holds one series, because Prometheus' client reads the first of a frame and passes over others. A series
//! that does not fit goes on in the next frame with its labels said again; all frames of a series follow each other.
//!
//! Why reader and writer are one file: what `engram export` reads is what this node wrote, byte for byte.
//!
//! Source: `prometheus prompb/remote.proto`, `prometheus storage/remote/chunked.go`.

use engram_model::Labels;
use engram_storage::chunk::{Chunk, Kind};
use engram_storage::codec::crc32c;

use super::wire::{Field, Fields, Malformed, put_bytes, put_number, put_varint};

/// A frame is ended before its chunks would be more than this, as Prometheus' server does.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Longest frame that is read.
const READ_BYTES_MAX: u64 = 64 << 20;
/// A length takes at most so many bytes.
const LENGTH_BYTES_MAX: usize = 10;

/// A series, or a part of it, as a frame holds it.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which query it answers.
    pub query: u64,
    /// Who.
    pub labels: Labels,
    /// In order of time.
    pub chunks: Vec<Chunk>,
}

/// A stream that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Not the message it should be.
    #[error("a frame of the answer: {0}")]
    Malformed(#[from] Malformed),
    /// Damaged on the way.
    #[error("a frame of the answer has another checksum than said: it was damaged on the way")]
    Checksum,
    /// Longer than we read.
    #[error("a frame of the answer says that it is {0} bytes long")]
    TooLong(u64),
    /// A chunk that does not decode.
    #[error("a chunk of series {series} is damaged: {what}")]
    Chunk {
        /// Whose.
        series: String,
        /// What does not decode.
        what: String,
    },
}

/// Appends the frames of one series to `out`.
pub fn put_frames(out: &mut Vec<u8>, query: u64, labels: &Labels, chunks: &[Chunk]) {
    let mut who = Vec::new();
    put_labels(&mut who, labels);
    let mut series = who.clone();
    for (i, chunk) in chunks.iter().enumerate() {
        let mut one = Vec::with_capacity(chunk.bytes.len() + 32);
        put_number(&mut one, 1, chunk.first.cast_unsigned());
        put_number(&mut one, 2, chunk.last.cast_unsigned());
        put_number(&mut one, 3, chunk.kind as u64);
        put_bytes(&mut one, 4, &chunk.bytes);
        put_bytes(&mut series, 2, &one);
        if series.len() >= FRAME_BYTES_MAX || i + 1 == chunks.len() {
            let mut message = Vec::with_capacity(series.len() + 16);
            put_bytes(&mut message, 1, &series);
            put_number(&mut message, 2, query);
            put_varint(out, message.len() as u64);
            out.extend_from_slice(&crc32c(&message).to_be_bytes());
            out.extend_from_slice(&message);
            series.truncate(who.len());
        }
    }
}

/// Appends labels, sorted by name, as field 1 of a series.
pub(super) fn put_labels(out: &mut Vec<u8>, labels: &Labels) {
    for (name, value) in labels.iter() {
        let mut pair = Vec::with_capacity(name.len() + value.len() + 8);
        put_bytes(&mut pair, 1, name.as_bytes());
        put_bytes(&mut pair, 2, value.as_bytes());
        put_bytes(out, 1, &pair);
    }
}

/// Reads a stream as its bytes come.
#[derive(Debug, Default)]
pub struct FrameReader {
    have: Vec<u8>,
    at: usize,
}

impl FrameReader {
    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.have.drain(..std::mem::take(&mut self.at));
        self.have.extend_from_slice(bytes);
    }

    /// The next part, when it is there whole.
    ///
    /// # Errors
    /// The stream is not what it should be; it cannot be read on.
    pub fn next_part(&mut self) -> Result<Option<Part>, BadFrame> {
        let rest = &self.have[self.at..];
        let mut fields = Fields::new(rest);
        let len = match fields.number() {
            Ok(len) if len <= READ_BYTES_MAX => len,
            Ok(len) => return Err(BadFrame::TooLong(len)),
            Err(_) if rest.len() < LENGTH_BYTES_MAX => return Ok(None),
            Err(broken) => return Err(broken.into()),
        };
        let Some((crc, body)) = fields.rest().split_first_chunk::<4>() else { return Ok(None) };
        let Some(message) = body.get(..usize::try_from(len).unwrap_or(usize::MAX)) else { return Ok(None) };
        if u32::from_be_bytes(*crc) != crc32c(message) {
            return Err(BadFrame::Checksum);
        }
        let part = part(message)?;
        self.at += rest.len() - body.len() + message.len();
        Ok(Some(part))
    }

    /// Whether everything that came was read: a stream that ends elsewhere broke off.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.have.len()
    }
}

fn part(message: &[u8]) -> Result<Part, BadFrame> {
    let mut part = Part { query: 0, labels: Labels::empty(), chunks: Vec::new() };
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match (number, field) {
            (1, Field::Bytes(series)) => read_series(series, &mut part)?,
            (2, field) => part.query = field.as_number()?,
            _ => {}
        }
    }
    Ok(part)
}

fn read_series(message: &[u8], part: &mut Part) -> Result<(), BadFrame> {
    let (mut pairs, mut chunks) = (Vec::new(), Vec::new());
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match number {
            1 => {
                let (mut name, mut value) = ("", "");
                let mut pair = Fields::new(field.as_bytes()?);
                while let Some((number, field)) = pair.next_field()? {
                    match number {
                        1 => name = field.as_text()?,
                        2 => value = field.as_text()?,
                        _ => {}
                    }
                }
                pairs.push((name, value));
            }
            2 => chunks.push(field.as_bytes()?),
            _ => {}
        }
    }
    part.labels = Labels::from_pairs(pairs);
    for message in chunks {
        let chunk = chunk(message)?.map_err(|what| BadFrame::Chunk { series: part.labels.to_string(), what })?;
        part.chunks.push(chunk);
    }
    Ok(())
}

fn chunk(message: &[u8]) -> Result<Result<Chunk, String>, Malformed> {
    let (mut first, mut last, mut kind, mut bytes) = (0, 0, 0, &[][..]);
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match number {
            1 => first = field.as_number()?.cast_signed(),
            2 => last = field.as_number()?.cast_signed(),
            3 => kind = field.as_number()?,
            4 => bytes = field.as_bytes()?,
            _ => {}
        }
    }
    let Some(kind) = u8::try_from(kind).ok().and_then(Kind::from_number) else {
        return Ok(Err(format!("encoding {kind} is not known")));
    };
    Ok(Chunk::checked(kind, bytes).map_err(|broken| broken.to_string()).and_then(|chunk| {
        let same = (chunk.first, chunk.last) == (first, last);
        if same { Ok(chunk) } else { Err("it has other times than are said of it".to_owned()) }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_storage::chunk::encode_floats;

    fn labels(i: i64) -> Labels {
        Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())])
    }

    fn series(i: i64, count: i64) -> Vec<Chunk> {
        let samples: Vec<_> =
            (0..count).map(|at| (at * 15_000 + i, f64::from_bits(at.cast_unsigned() << 40))).collect();
        encode_floats(&samples)
    }

    #[test]
    fn frames_come_back_however_the_stream_is_cut() {
        let mut stream = Vec::new();
        for i in 0..5_i64 {
            put_frames(&mut stream, i.cast_unsigned(), &labels(i), &series(i, 1 + i * 200));
        }
        for piece in [1, 7, 100, stream.len()] {
            let (mut reader, mut found) = (FrameReader::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                reader.push(bytes);
                while let Some(part) = reader.next_part().unwrap() {
                    found.push(part);
                }
            }
            assert!(reader.is_empty());
            for (i, part) in (0_i64..).zip(&found) {
                assert_eq!((part.query, &part.labels), (i.cast_unsigned(), &labels(i)));
                let bytes =
                    |chunks: &[Chunk]| chunks.iter().map(|c| (c.first, c.last, c.bytes.clone())).collect::<Vec<_>>();
                assert_eq!(bytes(&part.chunks), bytes(&series(i, 1 + i * 200)));
            }
            assert_eq!(found.len(), 5);
        }
    }

    #[test]
    fn a_long_series_takes_several_frames() {
        let all = series(0, 900_000);
        let mut stream = Vec::new();
        put_frames(&mut stream, 0, &labels(0), &all);
        let mut reader = FrameReader::default();
        reader.push(&stream);
        let mut parts = Vec::new();
        while let Some(part) = reader.next_part().unwrap() {
            assert_eq!(part.labels, labels(0));
            parts.push(part.chunks.len());
        }
        assert!(parts.len() > 1, "{} bytes in one frame", stream.len());
        assert_eq!(parts.iter().sum::<usize>(), all.len());
    }

    #[test]
    fn damage_is_noticed() {
        let mut stream = Vec::new();
        put_frames(&mut stream, 0, &labels(0), &series(0, 10));
        for at in 0..stream.len() {
            let mut bad = stream.clone();
            bad[at] ^= 1;
            let mut reader = FrameReader::default();
            reader.push(&bad);
            let whole = matches!(reader.next_part(), Ok(Some(_))) && reader.is_empty();
            assert!(!whole, "byte {at}");
        }
    }
}
