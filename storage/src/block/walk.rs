//! A block front to back, in bounded memory: for whoever needs all of it, in order.
//!
//! Why beside the readers by matcher: these jump to what was asked for; a check and a merge want every series, and
//! reading them one behind the other is one pass over the files.

use std::ops::Range;

use bytes::Bytes;
use engram_model::Labels;

use crate::Error;
use crate::index::reader::Index;
use crate::index::{Cut, Entry, SERIES_ALIGN};
use crate::ranges::{Fetched, File, Place, STEP_BYTES, Source};

/// The texts of all symbols, one behind the other.
pub(crate) struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    pub(crate) fn read(index: &Index, place: &Place, source: &dyn Source) -> Result<Self, Error> {
        let mut texts = Self { all: String::new(), ends: Vec::new() };
        let mut number = 0;
        while number < index.symbol_count {
            let (i, group) = index.symbol_group(place, number)?;
            let mut have = Fetched::new();
            have.insert(group.want(), source.read(group.want())?);
            index.read_symbols(place, i, &have, |_, text| {
                texts.all.push_str(text);
                texts.ends.push(texts.all.len());
                number += 1;
            })?;
        }
        Ok(texts)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&str> {
        let number = number as usize;
        let from = match number.checked_sub(1) {
            None => 0,
            Some(before) => *self.ends.get(before)?,
        };
        self.all.get(from..*self.ends.get(number)?)
    }

    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        let (mut from, mut until) = (0, u32::try_from(self.ends.len()).ok()?);
        while from < until {
            let middle = from + (until - from) / 2;
            if self.get(middle)? < text { from = middle + 1 } else { until = middle }
        }
        (self.get(from)? == text).then_some(from)
    }

    /// The labels of a series entry, or what is wrong with them.
    pub(crate) fn labels(&self, pairs: &[(u32, u32)]) -> Result<Labels, &'static str> {
        let pairs: Option<Vec<_>> = pairs.iter().map(|(n, v)| Some((self.get(*n)?, self.get(*v)?))).collect();
        let pairs = pairs.ok_or("a series names no symbol")?;
        if !pairs.is_sorted_by(|a, b| a.0 < b.0) || pairs.iter().any(|(_, value)| value.is_empty()) {
            return Err("labels of a series are not in order, or empty");
        }
        Ok(Labels::from_sorted(pairs.into_iter()))
    }
}

/// Reads a part of a file front to back, in pieces.
pub(crate) struct Walk<'a> {
    source: &'a dyn Source,
    pub(crate) file: File,
    pub(crate) range: Range<u64>,
    /// How much is read at once, where no more is asked for.
    piece: u64,
    held: Bytes,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(source: &'a dyn Source, file: File, range: Range<u64>) -> Self {
        Self { source, file, range, piece: STEP_BYTES, held: Bytes::new() }
    }

    /// The next bytes: `len` of them at least, unless the part ends before.
    pub(crate) fn front(&mut self, len: u64) -> Result<&[u8], Error> {
        let left = self.range.end.saturating_sub(self.range.start);
        if (self.held.len() as u64) < len.min(left) {
            let want = self.source.sizes().clip(self.file, self.range.start, len.max(self.piece).min(left));
            self.held = self.source.read(want)?;
        }
        Ok(&self.held)
    }

    pub(crate) fn skip(&mut self, len: u64) {
        self.range.start += len;
        self.held = self.held.slice(usize::try_from(len).unwrap_or(usize::MAX).min(self.held.len())..);
    }
}

/// The series entries of an index, in order.
pub(crate) struct Entries<'a> {
    walk: Walk<'a>,
    until: u64,
    last: Vec<(u32, u32)>,
}

impl<'a> Entries<'a> {
    pub(crate) fn new(index: &Index, source: &'a dyn Source) -> Self {
        let toc = index.toc;
        let until = toc.end_of(toc.series);
        Self { walk: Walk::new(source, File::Index, toc.series..until), until, last: Vec::new() }
    }

    /// Reads so many bytes at once: whoever walks many blocks at a time has to.
    pub(crate) fn in_pieces_of(mut self, bytes: u64) -> Self {
        self.walk.piece = bytes;
        self
    }

    /// The next entry and where it begins; nothing behind the last.
    pub(crate) fn next(&mut self, place: &Place) -> Result<Option<(u64, Entry)>, Error> {
        let (walk, until) = (&mut self.walk, self.until);
        let fail = |at, what: &str| place.corrupt(File::Index, at, what);
        let at = walk.range.start;
        let padding = (SERIES_ALIGN - at % SERIES_ALIGN) % SERIES_ALIGN;
        let pad = padding.min(until.saturating_sub(at));
        let zeros = walk.front(pad)?;
        if zeros.iter().take(usize::try_from(pad).unwrap_or(0)).any(|byte| *byte != 0) {
            return Err(fail(at, "something stands between series"));
        }
        walk.skip(pad);
        let at = walk.range.start;
        if at >= until {
            return Ok(None);
        }
        let mut cut = Entry::cut(walk.front(16)?);
        if let Ok(Cut::Short(len)) = cut {
            cut = Entry::cut(walk.front(len)?);
            if let Ok(Cut::Short(len)) = cut {
                cut = Entry::cut(walk.front(len)?);
            }
        }
        let Cut::Whole(entry, len) = cut.map_err(|broken| fail(at, broken.what))? else {
            return Err(fail(at, "a series entry ends early"));
        };
        walk.skip(len);
        if self.last >= entry.pairs || entry.pairs.is_empty() {
            return Err(fail(at, "series are not in order"));
        }
        self.last.clone_from(&entry.pairs);
        Ok(Some((at, entry)))
    }
}
