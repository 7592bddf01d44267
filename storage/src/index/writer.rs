//! Sorted series → index file.
//!
//! Why in two passes: the file begins with all symbols, sorted, and series name symbols by their number; the numbers
//! are known only after the last series. So each series is set aside in a spool file with numbers in order of
//! appearance, and copied into the index with the final ones. Memory holds the symbols and, per label pair, the series
//! that have it (four bytes each); samples and series descriptions never.
//!
//! The bytes are drawn in `docs/formats/index.md`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use engram_model::Labels;

use crate::Error;
use crate::codec::{Reader, crc32c, crc32c_append, put_prefixed, put_u32, put_u64, put_uvarint, put_varint};
use crate::disk::out::Out;
use crate::disk::{Disk, DiskFile};

use super::{ChunkMeta, MAGIC, SERIES_ALIGN, SERIES_BYTES_MAX, Toc, VERSION};

/// Bytes of the spool read at once.
const PIECE_BYTES: usize = 1 << 20;

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Length of the file.
    pub(crate) bytes: u64,
    /// Longest description of a series.
    pub(crate) series_bytes_max: u64,
}

/// Takes series in order of labels.
#[derive(Debug)]
pub(crate) struct IndexWriter {
    spool: Out,
    numbers: HashMap<Arc<str>, u32>,
    /// In order of appearance.
    texts: Vec<Arc<str>>,
    /// Label pairs by number of appearance, each with its series by place in the order of series.
    pairs: HashMap<(u32, u32), Vec<u32>>,
    series_count: u32,
    scratch: Vec<u8>,
}

impl IndexWriter {
    /// With its spool at `spool`, which must not exist and is removed at the end.
    pub(crate) fn new(disk: &dyn Disk, spool: &Path) -> Result<Self, Error> {
        Ok(Self {
            spool: Out::create(disk, spool)?,
            numbers: HashMap::new(),
            texts: Vec::new(),
            pairs: HashMap::new(),
            series_count: 0,
            scratch: Vec::new(),
        })
    }

    /// Adds a series: the caller has checked that it sorts behind the one before, has labels, and that its chunks are
    /// in order.
    pub(crate) fn add(&mut self, labels: &Labels, chunks: &[ChunkMeta]) -> Result<(), Error> {
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        put_uvarint(&mut body, labels.len() as u64);
        for (name, value) in labels.iter() {
            let pair = (self.number(name)?, self.number(value)?);
            put_uvarint(&mut body, pair.0.into());
            put_uvarint(&mut body, pair.1.into());
            self.pairs.entry(pair).or_default().push(self.series_count);
        }
        put_chunks(&mut body, chunks);
        if body.len() as u64 > SERIES_BYTES_MAX / 2 {
            let (len, max) = (body.len() as u64, SERIES_BYTES_MAX / 2);
            return Err(Error::TooLarge { what: "description of a series", len, max });
        }
        self.spool.put(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes())?;
        self.spool.put(&body)?;
        self.scratch = body;
        self.series_count =
            self.series_count.checked_add(1).ok_or(Error::Full { what: "a block's index", max: 1 << 32 })?;
        Ok(())
    }

    fn number(&mut self, text: &str) -> Result<u32, Error> {
        if let Some(number) = self.numbers.get(text) {
            return Ok(*number);
        }
        let full = Error::Full { what: "a block's symbol table", max: u32::MAX.into() };
        let number = u32::try_from(self.texts.len()).map_err(|_| full)?;
        let text: Arc<str> = text.into();
        self.texts.push(Arc::clone(&text));
        self.numbers.insert(text, number);
        Ok(number)
    }

    /// Writes the index, durably, and removes the spool.
    pub(crate) fn finish(self, disk: &dyn Disk, path: &Path) -> Result<Written, Error> {
        let Self { spool, texts, pairs, numbers, .. } = self;
        drop(numbers);
        let spool_path = spool.path().to_owned();
        let (spool, spool_len) = spool.reread()?;
        let mut file = IndexFile { out: Out::create(disk, path)?, toc: Toc::default(), series_bytes_max: 0 };
        file.out.put(&MAGIC.to_be_bytes())?;
        file.out.put(&[VERSION])?;
        let finals = file.symbols(&texts)?;
        let refs = file.series(&*spool, spool_len, &finals)?;
        drop(spool);
        disk.remove(&spool_path)?;
        let mut pairs: Vec<_> =
            pairs.into_iter().map(|((n, v), list)| ((finals[n as usize], finals[v as usize]), list)).collect();
        pairs.sort_unstable_by_key(|(pair, _)| *pair);
        let mut sorted = vec![""; texts.len()];
        finals.iter().zip(&texts).for_each(|(at, text)| sorted[*at as usize] = text);
        let label_at = file.label_indices(&pairs)?;
        let postings_at = file.postings(&pairs, &refs)?;
        file.label_table(&label_at, &sorted)?;
        file.postings_table(&pairs, &postings_at, &sorted)?;
        file.contents()?;
        let series_bytes_max = file.series_bytes_max;
        Ok(Written { bytes: file.out.finish()?, series_bytes_max })
    }
}

fn put_chunks(body: &mut Vec<u8>, chunks: &[ChunkMeta]) {
    put_uvarint(body, chunks.len() as u64);
    let mut before: Option<&ChunkMeta> = None;
    for chunk in chunks {
        match before {
            None => put_varint(body, chunk.first),
            Some(before) => put_uvarint(body, chunk.first.wrapping_sub(before.last).cast_unsigned()),
        }
        put_uvarint(body, chunk.last.wrapping_sub(chunk.first).cast_unsigned());
        match before {
            None => put_uvarint(body, chunk.at),
            Some(before) => put_varint(body, chunk.at.wrapping_sub(before.at).cast_signed()),
        }
        before = Some(chunk);
    }
}

/// A label pair by its final numbers, and the series that have it.
type PairSeries = ((u32, u32), Vec<u32>);

struct IndexFile {
    out: Out,
    toc: Toc,
    series_bytes_max: u64,
}

impl IndexFile {
    /// Writes the texts in order; returns the final number of each.
    fn symbols(&mut self, texts: &[Arc<str>]) -> Result<Vec<u32>, Error> {
        self.toc.symbols = self.out.at();
        let mut order: Vec<u32> = (0..u32::try_from(texts.len()).unwrap_or(u32::MAX)).collect();
        order.sort_unstable_by_key(|i| &*texts[*i as usize]);
        let mut body = Vec::new();
        put_u32(&mut body, u32::try_from(texts.len()).unwrap_or(u32::MAX));
        let mut finals = vec![0; texts.len()];
        for (number, i) in (0_u32..).zip(&order) {
            finals[*i as usize] = number;
            put_prefixed(&mut body, texts[*i as usize].as_bytes());
        }
        self.section(&body)?;
        Ok(finals)
    }

    /// Copies the series of the spool; returns where each lies, in units of [`SERIES_ALIGN`].
    fn series(&mut self, spool: &dyn DiskFile, len: u64, finals: &[u32]) -> Result<Vec<u32>, Error> {
        self.toc.series = self.out.at();
        let (mut refs, mut body, mut framed) = (Vec::new(), Vec::new(), Vec::new());
        let mut spool = Spool { file: spool, len, at: 0, held: Vec::new(), used: 0 };
        while let Some(record) = spool.next(self.out.path())? {
            self.out.pad(SERIES_ALIGN)?;
            let at = self.out.at() / SERIES_ALIGN;
            let full = Error::Full { what: "a block's index", max: SERIES_ALIGN << 32 };
            refs.push(u32::try_from(at).map_err(|_| full)?);
            body.clear();
            let mut r = Reader::new(record);
            let mut copy = || {
                let pair_count = r.uvarint()?;
                put_uvarint(&mut body, pair_count);
                for _ in 0..pair_count * 2 {
                    let number = usize::try_from(r.uvarint()?).unwrap_or(usize::MAX);
                    put_uvarint(&mut body, finals.get(number).copied().unwrap_or(u32::MAX).into());
                }
                body.extend_from_slice(r.rest());
                Ok(())
            };
            copy().map_err(|broken| Error::broken(self.out.path(), spool.at, broken))?;
            framed.clear();
            put_prefixed(&mut framed, &body);
            put_u32(&mut framed, crc32c(&body));
            self.series_bytes_max = self.series_bytes_max.max(framed.len() as u64);
            self.out.put(&framed)?;
        }
        Ok(refs)
    }

    /// Writes, per label name, its values; returns where each name's begins. Prometheus no longer reads these, older
    /// tools do.
    fn label_indices(&mut self, pairs: &[PairSeries]) -> Result<Vec<(u32, u64)>, Error> {
        self.toc.label_indices = self.out.at();
        let mut places = Vec::new();
        for values in pairs.chunk_by(|a, b| a.0.0 == b.0.0) {
            self.out.pad(4)?;
            places.push((values[0].0.0, self.out.at()));
            let mut body = Vec::with_capacity(8 + values.len() * 4);
            put_u32(&mut body, 1);
            put_u32(&mut body, u32::try_from(values.len()).unwrap_or(u32::MAX));
            values.iter().for_each(|((_, value), _)| put_u32(&mut body, *value));
            self.section(&body)?;
        }
        Ok(places)
    }

    /// Writes the list of all series and those of the pairs; returns where each begins.
    fn postings(&mut self, pairs: &[PairSeries], refs: &[u32]) -> Result<Vec<u64>, Error> {
        self.out.pad(4)?;
        self.toc.postings = self.out.at();
        let mut places = vec![self.out.at()];
        self.posting_list(refs.len(), refs.iter().copied())?;
        for (_, list) in pairs {
            self.out.pad(4)?;
            places.push(self.out.at());
            self.posting_list(list.len(), list.iter().map(|i| refs[*i as usize]))?;
        }
        Ok(places)
    }

    fn posting_list(&mut self, count: usize, refs: impl Iterator<Item = u32>) -> Result<(), Error> {
        let mut body = Vec::with_capacity(4 + count * 4);
        put_u32(&mut body, u32::try_from(count).unwrap_or(u32::MAX));
        refs.for_each(|series| put_u32(&mut body, series));
        self.section(&body)
    }

    fn label_table(&mut self, places: &[(u32, u64)], texts: &[&str]) -> Result<(), Error> {
        self.toc.label_table = self.out.at();
        let mut body = Vec::new();
        put_u32(&mut body, u32::try_from(places.len()).unwrap_or(u32::MAX));
        for (name, at) in places {
            body.push(1);
            put_prefixed(&mut body, texts[*name as usize].as_bytes());
            put_uvarint(&mut body, *at);
        }
        self.section(&body)
    }

    fn postings_table(&mut self, pairs: &[PairSeries], places: &[u64], texts: &[&str]) -> Result<(), Error> {
        self.toc.postings_table = self.out.at();
        let mut body = Vec::new();
        put_u32(&mut body, u32::try_from(places.len()).unwrap_or(u32::MAX));
        let names = pairs.iter().map(|((name, value), _)| (texts[*name as usize], texts[*value as usize]));
        for ((name, value), at) in std::iter::once(("", "")).chain(names).zip(places) {
            body.push(2);
            put_prefixed(&mut body, name.as_bytes());
            put_prefixed(&mut body, value.as_bytes());
            put_uvarint(&mut body, *at);
        }
        self.section(&body)
    }

    fn contents(&mut self) -> Result<(), Error> {
        let mut body = Vec::new();
        let Toc { symbols, series, label_indices, label_table, postings, postings_table, .. } = self.toc;
        for part in [symbols, series, label_indices, label_table, postings, postings_table] {
            put_u64(&mut body, part);
        }
        let crc = crc32c(&body);
        put_u32(&mut body, crc);
        self.out.put(&body)
    }

    /// `u32 length | body | u32 checksum`
    fn section(&mut self, body: &[u8]) -> Result<(), Error> {
        let too_large = Error::TooLarge { what: "a table of an index", len: body.len() as u64, max: u32::MAX.into() };
        let len = u32::try_from(body.len()).map_err(|_| too_large)?;
        self.out.put(&len.to_be_bytes())?;
        self.out.put(body)?;
        self.out.put(&crc32c_append(0, body).to_be_bytes())
    }
}

/// Reads the spool front to back. It was written a moment ago by this process and is not read after a crash, so it
/// needs no checksum: what is made of it is verified whole.
struct Spool<'a> {
    file: &'a dyn DiskFile,
    len: u64,
    at: u64,
    held: Vec<u8>,
    used: usize,
}

impl Spool<'_> {
    fn next(&mut self, path: &Path) -> Result<Option<&[u8]>, Error> {
        if self.at == self.len && self.used == self.held.len() {
            return Ok(None);
        }
        self.hold(4, path)?;
        let mut r = Reader::new(&self.held[self.used..]);
        let len = r.u32().map_err(|broken| Error::broken(path, self.at, broken))? as usize;
        self.used += 4;
        self.hold(len, path)?;
        let from = self.used;
        self.used += len;
        Ok(Some(&self.held[from..self.used]))
    }

    /// Sees to it that `len` bytes are held.
    fn hold(&mut self, len: usize, path: &Path) -> Result<(), Error> {
        if self.held.len() - self.used >= len {
            return Ok(());
        }
        self.held.drain(..self.used);
        self.used = 0;
        let from = self.held.len();
        self.held.resize(from + PIECE_BYTES.max(len), 0);
        let got = self.file.read_at(self.at, &mut self.held[from..])?;
        self.held.truncate(from + got);
        self.at += got as u64;
        if self.held.len() < len { Err(Error::corrupt(path, self.at, "the spool ends early")) } else { Ok(()) }
    }
}
