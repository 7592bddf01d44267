//! The index: from matchers to series.
//!
//! Why one room for memory and disk: a head and a block answer the same question with the same algebra of posting
//! lists; only where the lists lie differs. The file is Prometheus' index, version 2, drawn in `docs/formats/index.md`.
//!
//! Map: [`postings`] posting lists and their algebra, shared by head and blocks · [`writer`] sorted series → index
//! file · [`reader`] the lazily read index: a sparse table in memory, the rest by range · `scan` one pass over a table
//! of the file in bounded memory.

pub mod postings;
pub mod reader;
pub(crate) mod scan;
pub mod writer;

use engram_model::Millis;

use crate::Error;
use crate::codec::{Broken, Reader, crc32c};
use crate::ranges::{File, Place};

/// First four bytes of the file.
pub(crate) const MAGIC: u32 = 0xbaaa_d700;
/// The only version we write and read; 1 ended with Prometheus 2.0.
pub(crate) const VERSION: u8 = 2;
/// Magic and version.
pub(crate) const HEADER_BYTES: u64 = 5;
/// Six offsets and a checksum.
pub(crate) const TOC_BYTES: u64 = 6 * 8 + 4;
/// Series begin at multiples of this, so that 32 bits name 64 GiB.
pub(crate) const SERIES_ALIGN: u64 = 16;
/// Most bytes of the description of one series.
pub(crate) const SERIES_BYTES_MAX: u64 = 64 << 20;

/// Where the parts of the file begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Toc {
    pub(crate) symbols: u64,
    pub(crate) series: u64,
    pub(crate) label_indices: u64,
    pub(crate) label_table: u64,
    pub(crate) postings: u64,
    pub(crate) postings_table: u64,
    /// Where the table of contents itself begins.
    pub(crate) toc: u64,
}

impl Toc {
    /// Reads the last bytes of a file that is `len` long.
    pub(crate) fn read(place: &Place, bytes: &[u8], len: u64) -> Result<Self, Error> {
        let at = len.saturating_sub(TOC_BYTES);
        let mut r = Reader::new(bytes);
        let offsets = r.bytes(48).and_then(|offsets| Ok((offsets, r.u32()?)));
        let (offsets, crc) = offsets.map_err(|b| place.corrupt(File::Index, at, b.what))?;
        if crc32c(offsets) != crc {
            return Err(place.corrupt(File::Index, at, "checksum of the table of contents differs"));
        }
        let mut r = Reader::new(offsets);
        let mut next = || r.u64().unwrap_or(u64::MAX);
        let toc = Self {
            symbols: next(),
            series: next(),
            label_indices: next(),
            label_table: next(),
            postings: next(),
            postings_table: next(),
            toc: at,
        };
        if toc.parts().iter().any(|part| *part > at) {
            return Err(place.corrupt(File::Index, at, "the table of contents points behind the file"));
        }
        Ok(toc)
    }

    fn parts(&self) -> [u64; 6] {
        [self.symbols, self.series, self.label_indices, self.label_table, self.postings, self.postings_table]
    }

    /// Where the part that begins at `part` ends at the latest.
    pub(crate) fn end_of(&self, part: u64) -> u64 {
        self.parts().into_iter().filter(|next| *next > part).min().unwrap_or(self.toc)
    }
}

/// A chunk as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkMeta {
    /// Time of the first sample.
    pub first: Millis,
    /// Time of the last sample.
    pub last: Millis,
    /// Segment (counted from 0) in the upper half, offset in the lower.
    pub at: u64,
}

impl ChunkMeta {
    /// The segment file it lies in.
    #[must_use]
    pub fn file(&self) -> File {
        File::Chunks(u32::try_from(self.at >> 32).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// Where in the segment file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at & u64::from(u32::MAX)
    }
}

/// A series as the index describes it: label pairs as numbers of symbols, and chunks in order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) pairs: Vec<(u32, u32)>,
    pub(crate) chunks: Vec<ChunkMeta>,
}

/// What was made of bytes that may not reach far enough.
#[derive(Debug)]
pub(crate) enum Cut<T> {
    /// It is there, and took so many bytes.
    Whole(T, u64),
    /// So many bytes are needed in all.
    Short(u64),
}

impl Entry {
    /// Reads the entry at the front of `bytes`, which may end before it does.
    pub(crate) fn cut(bytes: &[u8]) -> Result<Cut<Self>, Broken> {
        let mut r = Reader::new(bytes);
        let len = match r.uvarint() {
            Ok(len) if len <= SERIES_BYTES_MAX => len,
            Err(_) if bytes.len() < 10 => return Ok(Cut::Short(10)),
            _ => return Err(Broken { at: 0, what: "length of a series entry is no length" }),
        };
        let all = r.at() as u64 + len + 4;
        if (bytes.len() as u64) < all {
            return Ok(Cut::Short(all));
        }
        let body = r.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
        if r.u32()? != crc32c(body) {
            return Err(Broken { at: 0, what: "checksum of a series entry differs" });
        }
        Ok(Cut::Whole(Self::read(body)?, all))
    }

    fn read(body: &[u8]) -> Result<Self, Broken> {
        let mut r = Reader::new(body);
        // Each pair takes two bytes at least and each chunk three: nothing is allocated that is not there.
        let pair_count = r.length(body.len() / 2)?;
        let mut pairs = Vec::with_capacity(pair_count);
        let number = |r: &mut Reader<'_>| {
            let at = r.at();
            u32::try_from(r.uvarint()?).map_err(|_| Broken { at, what: "number of a symbol is too large" })
        };
        for _ in 0..pair_count {
            pairs.push((number(&mut r)?, number(&mut r)?));
        }
        let chunk_count = r.length(body.len() / 3)?;
        let mut chunks = Vec::<ChunkMeta>::with_capacity(chunk_count);
        for _ in 0..chunk_count {
            let at = r.at();
            let chunk = match chunks.last() {
                None => {
                    let first = r.varint()?;
                    ChunkMeta { first, last: first.wrapping_add_unsigned(r.uvarint()?), at: r.uvarint()? }
                }
                Some(before) => {
                    let first = before.last.wrapping_add_unsigned(r.uvarint()?);
                    let last = first.wrapping_add_unsigned(r.uvarint()?);
                    ChunkMeta { first, last, at: before.at.wrapping_add_signed(r.varint()?) }
                }
            };
            if chunk.last < chunk.first || chunks.last().is_some_and(|before| before.last >= chunk.first) {
                return Err(Broken { at, what: "chunks of a series are not in order of time" });
            }
            chunks.push(chunk);
        }
        r.end()?;
        Ok(Self { pairs, chunks })
    }
}

/// Reads a posting list: `u32 length | u32 count | u32 refs, growing | u32 checksum`.
pub(crate) fn read_postings(bytes: &[u8], mut each: impl FnMut(u32)) -> Result<u32, Broken> {
    let mut r = Reader::new(bytes);
    let len = r.u32()? as usize;
    let body = r.bytes(len)?;
    if r.u32()? != crc32c(body) {
        return Err(Broken { at: 0, what: "checksum of a posting list differs" });
    }
    let mut r = Reader::new(body);
    let count = r.u32()?;
    if u64::from(count) * 4 + 4 != len as u64 {
        return Err(Broken { at: 0, what: "a posting list is not as long as it says" });
    }
    let mut before = None;
    for _ in 0..count {
        let series = r.u32()?;
        if before.is_some_and(|before| before >= series) {
            return Err(Broken { at: 0, what: "a posting list does not grow" });
        }
        before = Some(series);
        each(series);
    }
    Ok(count)
}
