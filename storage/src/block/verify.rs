//! A block recomputed: nothing in it is believed that can be counted again.
//!
//! Why: a block is the only copy of its samples within a zone's reach, and it is trusted for years. This reads all of
//! it front to back and checks each checksum, that symbols, series, chunks and lists are in order, that the posting
//! lists say what the series say, that chunks hold what the index says of them and lie one behind the other with
//! nothing between, and that counts and digest are those of `meta.json`. Our blocks leave no byte unchecked.
//!
//! Memory: the texts of all symbols, twelve bytes per label pair, and a few megabytes.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use engram_model::Millis;
use engram_model::digest::{Digest, slot_of};
use engram_model::series::Columns;

use super::chunks::{HEADER_BYTES, check_header, cut_chunk};
use super::meta::Meta;
use super::walk::{Entries, Texts, Walk};
use crate::Error;
use crate::chunk::{Chunk, Kind};
use crate::codec::{Reader, crc32c, crc32c_append};
use crate::index::reader::{Index, OpenIndex};
use crate::index::{ChunkMeta, Cut, Entry, SERIES_ALIGN, read_postings};
use crate::ranges::{Fetched, File, Place, Source, drive};

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Series.
    pub series: u64,
    /// Chunks.
    pub chunks: u64,
    /// Digest of the samples of each slot of time.
    pub slots: BTreeMap<Millis, Digest>,
}

impl Report {
    /// Digest of all samples.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.slots.values().copied().sum()
    }

    /// Counts a chunk of the series of that hash, which was decoded into `columns`; says what is wrong with it.
    pub(super) fn chunk(&mut self, hash: u128, chunk: &Chunk, columns: &Columns) -> Result<(), &'static str> {
        let times = if chunk.kind == Kind::Xor { &columns.times } else { &columns.histogram_times };
        if times.len() != usize::from(chunk.count) || times.is_empty() {
            return Err("a chunk has not as many samples as it says");
        }
        if (times.first(), times.last()) != (Some(&chunk.first), Some(&chunk.last)) {
            return Err("a chunk has not the times that are said of it");
        }
        if !times.is_sorted_by(|a, b| a < b) {
            return Err("times of a chunk do not grow");
        }
        let floats = columns.times.iter().zip(&columns.values).map(|(at, v)| (*at, Digest::of_float(hash, *at, *v)));
        let histograms = columns.histogram_times.iter().zip(&columns.histograms);
        let histograms = histograms.map(|(at, h)| (*at, Digest::of_histogram(hash, *at, h)));
        let (mut slot, mut sum) = (slot_of(chunk.first), Digest::EMPTY);
        for (at, digest) in floats.chain(histograms) {
            if slot_of(at) != slot {
                self.slots.entry(slot).or_default().add(std::mem::take(&mut sum));
                slot = slot_of(at);
            }
            sum.add(digest);
        }
        self.slots.entry(slot).or_default().add(sum);
        self.chunks += 1;
        Ok(())
    }
}

/// Recomputes the block of a source and holds it against `meta`.
///
/// # Errors
/// [`Error::Corrupt`] for the first thing that is wrong; [`Error::Io`].
pub fn verify(source: &dyn Source, meta: &Meta) -> Result<Report, Error> {
    let place = Place { path: source.path().to_owned(), sizes: source.sizes().clone() };
    let index = drive(&mut OpenIndex::new(place.clone()), source)?;
    let texts = Texts::read(&index, &place, source)?;
    let mut check = Check {
        place: &place,
        source,
        meta,
        index: &index,
        report: Report::default(),
        lists: HashMap::new(),
        all: List::default(),
        columns: Columns::default(),
    };
    check.series(&texts)?;
    check.postings(&texts)?;
    check.label_indices(&texts)?;
    check.counts()?;
    Ok(check.report)
}

/// A posting list, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct List {
    count: u32,
    sum: u32,
}

impl List {
    fn push(&mut self, series: u32) {
        self.count += 1;
        self.sum = crc32c_append(self.sum, &series.to_be_bytes());
    }
}

struct Check<'a> {
    place: &'a Place,
    source: &'a dyn Source,
    meta: &'a Meta,
    index: &'a Index,
    report: Report,
    /// What the series say the posting lists are.
    lists: HashMap<(u32, u32), List>,
    all: List,
    columns: Columns,
}

impl<'a> Check<'a> {
    fn fail(&self, file: File, at: u64, what: impl Into<String>) -> Error {
        self.place.corrupt(file, at, what)
    }

    /// Walks the series and, beside them, their chunks.
    fn series(&mut self, texts: &Texts) -> Result<(), Error> {
        let mut entries = Entries::new(self.index, self.source);
        let mut segments = Segments { walk: None, number: 0 };
        while let Some((at, entry)) = entries.next(self.place)? {
            self.one_series(at, &entry, texts, &mut segments)?;
        }
        segments.end(self)
    }

    fn one_series(&mut self, at: u64, entry: &Entry, texts: &Texts, segments: &mut Segments<'a>) -> Result<(), Error> {
        let labels = texts.labels(&entry.pairs).map_err(|what| self.fail(File::Index, at, what))?;
        let fail = |what| self.place.corrupt(File::Index, at, what);
        let series = u32::try_from(at / SERIES_ALIGN).map_err(|_| fail("the index is longer than 64 GiB"))?;
        self.all.push(series);
        entry.pairs.iter().for_each(|pair| self.lists.entry(*pair).or_default().push(series));
        self.report.series += 1;
        let hash = labels.hash128();
        entry.chunks.iter().try_for_each(|chunk| segments.chunk(self, hash, chunk))
    }

    fn one_chunk(&mut self, hash: u128, meta: &ChunkMeta, chunk: &Chunk) -> Result<(), Error> {
        let (file, at) = (meta.file(), meta.offset());
        let range = self.meta.range();
        let window = self.meta.engram.map(|ours| ours.window_ms).filter(|window| *window > 0);
        if !range.contains(meta.first) || !range.contains(meta.last) {
            return Err(self.fail(file, at, "a chunk lies outside the block's range"));
        }
        if window.is_some_and(|window| meta.first.div_euclid(window) != meta.last.div_euclid(window)) {
            return Err(self.fail(file, at, "a chunk crosses a window"));
        }
        self.columns.clear();
        chunk.decode(&mut self.columns).map_err(|broken| self.fail(file, at, broken.what))?;
        let counted = self.report.chunk(hash, chunk, &self.columns);
        counted.map_err(|what| self.fail(file, at, what))
    }

    /// Holds each posting list against what the series say.
    fn postings(&mut self, texts: &Texts) -> Result<(), Error> {
        let mut lists = std::mem::take(&mut self.lists);
        let mut all = Some(self.all);
        for name in std::iter::once("").chain(self.index.label_names()) {
            for values in self.index.values_of(name) {
                let mut found = Vec::new();
                let mut have = Fetched::new();
                have.insert(values.group.want(), self.source.read(values.group.want())?);
                self.index.read_values(self.place, values, &have, |value, at| found.push((value.to_owned(), at)))?;
                for (value, want) in found {
                    let bytes = self.source.read(want)?;
                    let mut list = List::default();
                    let read = read_postings(&bytes, |series| list.push(series));
                    read.map_err(|broken| self.fail(File::Index, want.at, broken.what))?;
                    let used = (list.count as usize).saturating_mul(4).saturating_add(12);
                    if bytes.iter().skip(used).any(|byte| *byte != 0) {
                        return Err(self.fail(File::Index, want.at, "something stands between posting lists"));
                    }
                    let pair = texts.find(name).zip(texts.find(&value));
                    let expected = if name.is_empty() { all.take() } else { pair.and_then(|pair| lists.remove(&pair)) };
                    if expected != Some(list) {
                        return Err(self.fail(File::Index, want.at, "a posting list is not what the series say"));
                    }
                    // Kept for the label indices: which pairs there are.
                    if let Some(pair) = pair.filter(|_| !name.is_empty()) {
                        self.lists.insert(pair, list);
                    }
                }
            }
        }
        if !lists.is_empty() || all.is_some() {
            return Err(self.fail(File::Index, self.index.toc.postings_table, "a posting list is missing"));
        }
        Ok(())
    }

    /// Holds the lists of values, where there are any, against the label pairs of the series.
    fn label_indices(&self, texts: &Texts) -> Result<(), Error> {
        let toc = self.index.toc;
        if toc.label_table == toc.postings_table || toc.label_table == 0 {
            return Ok(());
        }
        let mut values = BTreeMap::<u32, Vec<u32>>::new();
        let mut pairs: Vec<_> = self.lists.keys().copied().collect();
        pairs.sort_unstable();
        pairs.into_iter().for_each(|(name, value)| values.entry(name).or_default().push(value));

        let (table, end) = self.section(toc.label_table)?;
        let wrong = |at, what| self.place.corrupt(File::Index, at, what);
        let damaged = |_| wrong(toc.label_table, "the table of label indices is damaged");
        let mut r = Reader::new(&table);
        let count = r.u32().map_err(damaged)?;
        let mut at_end = toc.label_indices;
        let mut expected = values.into_iter();
        for _ in 0..count {
            let one = r.u8().map_err(damaged)?;
            let (name, at) = (r.str().map_err(damaged)?, r.uvarint().map_err(damaged)?);
            let Some((number, values)) = expected.next() else {
                return Err(damaged(crate::codec::Broken { at: 0, what: "" }));
            };
            if one != 1 || texts.get(number) != Some(name) {
                return Err(wrong(toc.label_table, "the table of label indices does not name the labels"));
            }
            self.zeros(at_end, at)?;
            let (body, until) = self.section(at)?;
            let mut wanted = vec![1, u32::try_from(values.len()).unwrap_or(u32::MAX)];
            wanted.extend(values);
            if body[..] != wanted.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>() {
                return Err(wrong(at, "a label index is not what the series say"));
            }
            at_end = until;
        }
        if expected.next().is_some() || !r.is_empty() {
            return Err(wrong(toc.label_table, "the table of label indices does not name the labels"));
        }
        self.zeros(at_end, toc.postings)?;
        self.zeros(end, toc.end_of(toc.label_table))
    }

    /// The body of a section and where it ends.
    fn section(&self, at: u64) -> Result<(Bytes, u64), Error> {
        let toc = self.index.toc.toc;
        let clip = |at: u64, len: u64| self.place.sizes.clip(File::Index, at, len.min(toc.saturating_sub(at)));
        let len = self.source.read(clip(at, 4))?;
        let len = Reader::new(&len).u32().map_err(|broken| self.fail(File::Index, at, broken.what))?;
        let bytes = self.source.read(clip(at + 4, u64::from(len) + 4))?;
        let mut r = Reader::new(&bytes);
        let body = r.bytes(len as usize).and_then(|body| Ok((body, r.u32()?)));
        match body {
            Ok((body, crc)) if crc32c(body) == crc => Ok((bytes.slice_ref(body), at + 8 + u64::from(len))),
            _ => Err(self.fail(File::Index, at, "a section is damaged")),
        }
    }

    /// Between two parts there is padding only.
    fn zeros(&self, from: u64, until: u64) -> Result<(), Error> {
        let is_near = from <= until && until - from < SERIES_ALIGN;
        if !is_near || self.source.read(self.place.sizes.clip(File::Index, from, until - from))?.iter().any(|b| *b != 0)
        {
            return Err(self.fail(File::Index, from, "something stands between two parts"));
        }
        Ok(())
    }

    fn counts(&self) -> Result<(), Error> {
        let (stats, digest) = (self.meta.stats, self.report.digest());
        let counted = (digest.count, self.report.series, self.report.chunks);
        if counted != (stats.num_samples, stats.num_series, stats.num_chunks) {
            let what = format!("samples, series and chunks are {counted:?} and not as told: {stats:?}");
            return Err(self.fail(File::Meta, 0, what));
        }
        if let Some(ours) = self.meta.engram.filter(|ours| ours.digest != digest) {
            return Err(self.fail(File::Meta, 0, format!("digest is {digest:?} and not {:?}", ours.digest)));
        }
        if self.meta.sizes().is_some_and(|sizes| sizes != self.place.sizes) {
            return Err(self.fail(File::Meta, 0, "lengths of files are not as told"));
        }
        Ok(())
    }
}

/// Walks the segments, one chunk after the other.
struct Segments<'a> {
    walk: Option<Walk<'a>>,
    number: u32,
}

impl<'a> Segments<'a> {
    fn chunk(&mut self, check: &mut Check<'a>, hash: u128, meta: &ChunkMeta) -> Result<(), Error> {
        let file = meta.file();
        if self.walk.as_ref().is_none_or(|walk| walk.range.is_empty()) {
            self.open(check)?;
        }
        let wrong = || check.place.corrupt(file, meta.offset(), "chunks do not lie one behind the other");
        let walk = self.walk.as_mut().filter(|walk| walk.file == file && walk.range.start == meta.offset());
        let walk = walk.ok_or_else(wrong)?;
        let mut cut = cut_chunk(walk.front(16)?, meta);
        if let Ok(Cut::Short(len)) = cut {
            cut = cut_chunk(walk.front(len)?, meta);
        }
        let cut = cut.map_err(|broken| check.place.corrupt(file, meta.offset(), broken.what))?;
        let Cut::Whole(chunk, len) = cut else {
            return Err(check.place.corrupt(file, meta.offset(), "a chunk ends early"));
        };
        walk.skip(len);
        check.one_chunk(hash, meta, &chunk)
    }

    fn open(&mut self, check: &Check<'a>) -> Result<(), Error> {
        self.number += 1;
        let file = File::Chunks(self.number);
        let mut walk = Walk::new(check.source, file, 0..check.place.sizes.of(file));
        check_header(walk.front(HEADER_BYTES)?).map_err(|broken| check.fail(file, 0, broken.what))?;
        walk.skip(HEADER_BYTES);
        self.walk = Some(walk);
        Ok(())
    }

    /// Nothing may be left.
    fn end(&self, check: &Check<'a>) -> Result<(), Error> {
        let file = File::Chunks(self.number.max(1));
        let is_last = self.number as usize == check.place.sizes.chunks.len();
        if !is_last || self.walk.as_ref().is_some_and(|walk| !walk.range.is_empty()) {
            return Err(check.fail(file, 0, "there are chunks that no series names"));
        }
        Ok(())
    }
}
