//! Segment files: chunks one behind the other, each with its checksum.
//!
//! Why few large files: a chunk is some hundred bytes, and neither a file system nor an object store wants a thing
//! that small. A chunk is named by its segment and its offset there.
//!
//! ```text
//! file   u32 0x85bd40dd | u8 1 | 3 zeros | { chunk }
//! chunk  uvarint length of data | u8 encoding | data | u32 crc32c of encoding and data
//! ```
//!
//! Source: `prometheus tsdb/docs/format/chunks.md`.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::chunk::{Chunk, Kind};
use crate::codec::{Broken, Reader, crc32c, crc32c_append, put_uvarint};
use crate::disk::Disk;
use crate::disk::out::Out;
use crate::index::{ChunkMeta, Cut};
use crate::ranges::File;

/// A segment is ended before it would be longer; readers of the format map whole segments.
pub const SEGMENT_BYTES_MAX: u64 = 512 << 20;
/// First four bytes of a segment.
const MAGIC: u32 = 0x85bd_40dd;
const VERSION: u8 = 1;
/// Magic, version, and zeros.
pub(super) const HEADER_BYTES: u64 = 8;
/// Most bytes of one chunk's data that we read. Prometheus' chunks hold at most a few hundred samples.
pub(super) const DATA_BYTES_MAX: u64 = 64 << 20;

/// Writes segments `000001`, `000002`, … of a directory.
#[derive(Debug)]
pub(super) struct ChunksWriter {
    block: PathBuf,
    segment_bytes_max: u64,
    current: Option<Out>,
    /// Lengths of the segments that are done.
    done: Vec<u64>,
    scratch: Vec<u8>,
    /// Longest chunk so far, with its frame.
    pub(super) chunk_bytes_max: u64,
}

impl ChunksWriter {
    /// Of the block at `block`, whose directory `chunks` exists and is empty.
    pub(super) fn new(block: &Path, segment_bytes_max: u64) -> Self {
        let block = block.to_owned();
        let segment_bytes_max = segment_bytes_max.min(SEGMENT_BYTES_MAX);
        Self { block, segment_bytes_max, current: None, done: Vec::new(), scratch: Vec::new(), chunk_bytes_max: 0 }
    }

    /// Adds a chunk and says where it lies.
    pub(super) fn add(&mut self, disk: &dyn Disk, chunk: &Chunk) -> Result<ChunkMeta, Error> {
        let len = chunk.bytes.len() as u64;
        if len > DATA_BYTES_MAX {
            return Err(Error::TooLarge { what: "a chunk", len, max: DATA_BYTES_MAX });
        }
        let mut framed = std::mem::take(&mut self.scratch);
        framed.clear();
        put_uvarint(&mut framed, len);
        framed.push(chunk.kind as u8);
        framed.extend_from_slice(&chunk.bytes);
        let crc = crc32c_append(crc32c(&[chunk.kind as u8]), &chunk.bytes);
        framed.extend_from_slice(&crc.to_be_bytes());
        let framed_len = framed.len() as u64;
        self.chunk_bytes_max = self.chunk_bytes_max.max(framed_len);
        let is_full = |out: &Out| out.at() + framed_len > self.segment_bytes_max && out.at() > HEADER_BYTES;
        if self.current.as_ref().is_some_and(is_full) {
            self.end_segment()?;
        }
        let segment = self.done.len() as u64;
        let out = match &mut self.current {
            Some(out) => out,
            None => {
                let number = u32::try_from(segment + 1).unwrap_or(u32::MAX);
                let mut out = Out::create(disk, &self.block.join(File::Chunks(number).path()))?;
                out.put(&MAGIC.to_be_bytes())?;
                out.put(&[VERSION, 0, 0, 0])?;
                self.current.insert(out)
            }
        };
        let at = segment << 32 | out.at();
        out.put(&framed)?;
        self.scratch = framed;
        Ok(ChunkMeta { first: chunk.first, last: chunk.last, at })
    }

    fn end_segment(&mut self) -> Result<(), Error> {
        if let Some(out) = self.current.take() {
            self.done.push(out.finish()?);
        }
        Ok(())
    }

    /// Makes all durable; returns the lengths of the segments.
    pub(super) fn finish(mut self) -> Result<Vec<u64>, Error> {
        self.end_segment()?;
        Ok(self.done)
    }
}

/// Checks the front of a segment.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), Broken> {
    let mut r = Reader::new(bytes);
    match (r.u32()?, r.u8()?, r.bytes(3)?) {
        (MAGIC, VERSION, [0, 0, 0]) => Ok(()),
        _ => Err(Broken { at: 0, what: "this is no segment of chunks, version 1" }),
    }
}

/// Reads the chunk at the front of `bytes`, which may end before it does. Its times are what the index says.
pub(crate) fn cut_chunk(bytes: &[u8], meta: &ChunkMeta) -> Result<Cut<Chunk>, Broken> {
    let mut r = Reader::new(bytes);
    let len = match r.uvarint() {
        Ok(len) if len <= DATA_BYTES_MAX => len,
        Err(_) if bytes.len() < 10 => return Ok(Cut::Short(10)),
        _ => return Err(Broken { at: 0, what: "length of a chunk is no length" }),
    };
    let all = r.at() as u64 + 1 + len + 4;
    if (bytes.len() as u64) < all {
        return Ok(Cut::Short(all));
    }
    let body = r.bytes(usize::try_from(len + 1).unwrap_or(usize::MAX))?;
    if r.u32()? != crc32c(body) {
        return Err(Broken { at: 0, what: "checksum of a chunk differs" });
    }
    let kind = body.first().copied().and_then(Kind::from_number);
    let kind = kind.ok_or(Broken { at: 0, what: "encoding of a chunk is not known" })?;
    let count = Reader::new(&body[1..]).u16()?;
    let chunk = Chunk { first: meta.first, last: meta.last, bytes: body[1..].into(), count, kind };
    Ok(Cut::Whole(chunk, all))
}
