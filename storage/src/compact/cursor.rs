//! The series of one block, in order, with their chunks.
//!
//! Why not the readers by matcher: they hold all series they found. A merge reads dozens of blocks side by side, each
//! front to back, and holds of each the texts of its symbols and two buffers.

use bytes::Bytes;
use engram_model::Labels;

use crate::Error;
use crate::block::BlockDir;
use crate::block::chunks::cut_chunk;
use crate::block::walk::{Entries, Texts};
use crate::chunk::Chunk;
use crate::index::reader::OpenIndex;
use crate::index::{ChunkMeta, Cut, SERIES_ALIGN};
use crate::ranges::{File, Place, Source, drive};

/// The series a cursor stands at.
#[derive(Debug)]
pub struct At {
    /// Its place in the index, by which tombstones name it.
    pub series: u32,
    /// Its labels.
    pub labels: Labels,
    chunks: Vec<ChunkMeta>,
}

/// See the module's text.
pub struct Cursor<'a> {
    block: &'a BlockDir,
    place: Place,
    texts: Texts,
    entries: Entries<'a>,
    held: Held,
    piece: u64,
}

/// The part of a segment that was read last.
struct Held {
    file: File,
    at: u64,
    bytes: Bytes,
}

impl<'a> Cursor<'a> {
    /// Before the first series; reads `piece` bytes of each file at once.
    ///
    /// # Errors
    /// [`Error::Corrupt`], and those of the disk.
    pub fn open(block: &'a BlockDir, piece: u64) -> Result<Self, Error> {
        let place = block.place().clone();
        let index = drive(&mut OpenIndex::new(place.clone()), block)?;
        let texts = Texts::read(&index, &place, block)?;
        let entries = Entries::new(&index, block).in_pieces_of(piece);
        let held = Held { file: File::Meta, at: 0, bytes: Bytes::new() };
        Ok(Self { block, place, texts, entries, held, piece })
    }

    /// The next series.
    ///
    /// # Errors
    /// [`Error::Corrupt`], and those of the disk.
    #[allow(clippy::should_implement_trait, reason = "it may fail")]
    pub fn next(&mut self) -> Result<Option<At>, Error> {
        let Some((at, entry)) = self.entries.next(&self.place)? else { return Ok(None) };
        let fail = |what: &str| self.place.corrupt(File::Index, at, what);
        let labels = self.texts.labels(&entry.pairs).map_err(fail)?;
        let series = u32::try_from(at / SERIES_ALIGN).map_err(|_| fail("the index is longer than 64 GiB"))?;
        Ok(Some(At { series, labels, chunks: entry.chunks }))
    }

    /// The chunks of a series, checked by their checksums, not decoded.
    ///
    /// # Errors
    /// [`Error::Corrupt`], and those of the disk.
    pub fn chunks(&mut self, at: &At) -> Result<Vec<Chunk>, Error> {
        at.chunks.iter().map(|meta| self.chunk(meta)).collect()
    }

    fn chunk(&mut self, meta: &ChunkMeta) -> Result<Chunk, Error> {
        let (file, at) = (meta.file(), meta.offset());
        let fail = |what: &str| self.place.corrupt(file, at, what);
        let mut asked = 16;
        loop {
            let bytes = self.held.front(self.block, file, at, asked, self.piece)?;
            match cut_chunk(bytes, meta).map_err(|broken| fail(broken.what))? {
                Cut::Whole(chunk, _) => return Ok(chunk),
                Cut::Short(len) if len > asked => asked = len,
                Cut::Short(_) => return Err(fail("a chunk ends early")),
            }
        }
    }
}

impl Held {
    /// What a segment has from `at` on: `len` bytes at least, unless it ends before.
    fn front(&mut self, block: &BlockDir, file: File, at: u64, len: u64, piece: u64) -> Result<&[u8], Error> {
        let want = block.sizes().clip(file, at, len);
        let until = self.at + self.bytes.len() as u64;
        if self.file != file || at < self.at || want.at + want.len > until {
            let want = block.sizes().clip(file, at, len.max(piece));
            *self = Self { file, at, bytes: block.read(want)? };
        }
        let from = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        Ok(self.bytes.get(from..).unwrap_or_default())
    }
}
