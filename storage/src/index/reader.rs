//! The index of a block, lazily read: a sparse table in memory, the rest by range.
//!
//! Why sparse: a block of a million series has some hundred megabytes of index, a node has thousands of blocks. One in
//! [`GROUP`] symbols and one in [`GROUP`] entries of the offset table are kept; everything else is fetched when asked
//! for. The tables have one checksum each, which is checked when they are opened; since a group is later read alone,
//! its own checksum is kept beside its place, so that damage between the two readings is found too.
//!
//! ```text
//! matchers → groups of the offset table → posting lists → series entries → symbols → labels
//! ```
//!
//! This file opens the index and reads groups; `block::Select` walks the arrows.

use crate::Error;
use crate::codec::{Broken, Reader, crc32c, crc32c_append};
use crate::ranges::{Fetched, File, Place, Reading, Step, Want};

use super::scan::Scan;
use super::{HEADER_BYTES, MAGIC, TOC_BYTES, Toc, VERSION};

/// How many entries share one place in memory; Prometheus has the same number.
const GROUP: u32 = 32;

/// Neighbouring entries of a table of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) at: u64,
    pub(crate) len: u64,
    crc: u32,
}

impl Group {
    pub(crate) fn want(&self) -> Want {
        Want { file: File::Index, at: self.at, len: self.len }
    }

    /// Its bytes, checked to be those it was opened with.
    fn bytes<'a>(&self, place: &Place, have: &'a Fetched) -> Result<&'a [u8], Error> {
        let bytes = have.from(File::Index, self.at);
        let bytes = usize::try_from(self.len).ok().and_then(|len| bytes.get(..len));
        bytes
            .filter(|bytes| crc32c(bytes) == self.crc)
            .ok_or_else(|| place.corrupt(File::Index, self.at, "a table has changed since it was opened"))
    }
}

/// Neighbouring values of one label name.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pub(crate) first: Box<str>,
    pub(crate) group: Group,
    /// Where the posting list after the group's last begins.
    next: u64,
}

#[derive(Clone, Debug)]
struct Name {
    name: Box<str>,
    groups: Vec<Values>,
}

/// What is kept in memory of an index.
#[derive(Clone, Debug)]
pub struct Index {
    pub(crate) toc: Toc,
    pub(crate) symbol_count: u32,
    symbols: Vec<Group>,
    names: Vec<Name>,
}

/// Where a posting list lies; it may be shorter than that.
pub(crate) type PostingsAt = Want;

impl Index {
    /// All label names, sorted.
    pub fn label_names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &*name.name).filter(|name| !name.is_empty())
    }

    /// Memory it takes, about.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let values = |name: &Name| name.groups.iter().map(|v| v.first.len() + size_of::<Values>()).sum::<usize>();
        let names = self.names.iter().map(|name| size_of::<Name>() + name.name.len() + values(name)).sum::<usize>();
        names + self.symbols.len() * size_of::<Group>()
    }

    /// The groups of a name's values, in order; the empty name has the list of all series.
    pub(crate) fn values_of(&self, name: &str) -> &[Values] {
        let found = self.names.binary_search_by(|have| (*have.name).cmp(name));
        found.map_or(&[], |i| &self.names[i].groups)
    }

    /// The group that would hold `value`.
    pub(crate) fn group_of<'a>(groups: &'a [Values], value: &str) -> Option<&'a Values> {
        groups[..groups.partition_point(|group| *group.first <= *value)].last()
    }

    /// The groups that may hold values that start with `prefix`.
    pub(crate) fn groups_from<'a>(groups: &'a [Values], prefix: &str) -> &'a [Values] {
        let from = groups.partition_point(|group| *group.first <= *prefix).saturating_sub(1);
        let until =
            from + groups[from..].partition_point(|group| *group.first < *prefix || group.first.starts_with(prefix));
        &groups[from..until]
    }

    /// Reads a group: each value with the place of its posting list.
    pub(crate) fn read_values(
        &self,
        place: &Place,
        values: &Values,
        have: &Fetched,
        mut each: impl FnMut(&str, PostingsAt),
    ) -> Result<(), Error> {
        let bytes = values.group.bytes(place, have)?;
        let fail = |broken: Broken| place.corrupt(File::Index, values.group.at + broken.at as u64, broken.what);
        let mut r = Reader::new(bytes);
        let mut last: Option<(&str, u64)> = None;
        loop {
            let next = if r.is_empty() { None } else { Some(table_entry(&mut r).map_err(fail)?) };
            if let Some((value, at)) = last {
                let until = next.map_or(values.next, |(_, _, next)| next);
                let until = if until > at { until } else { self.toc.end_of(self.toc.postings) };
                each(value, Want { file: File::Index, at, len: until.saturating_sub(at) });
            }
            let Some((_, value, at)) = next else { return Ok(()) };
            if at < HEADER_BYTES || at >= self.toc.toc {
                return Err(place.corrupt(File::Index, values.group.at, "a posting list lies outside the file"));
            }
            last = Some((value, at));
        }
    }

    /// The group that holds a symbol.
    pub(crate) fn symbol_group(&self, place: &Place, symbol: u32) -> Result<(usize, &Group), Error> {
        let i = (symbol / GROUP) as usize;
        let group = self.symbols.get(i).filter(|_| symbol < self.symbol_count);
        let group = group.ok_or_else(|| place.corrupt(File::Index, self.toc.series, "a series names no symbol"))?;
        Ok((i, group))
    }

    /// Reads a group of symbols: each with its number.
    pub(crate) fn read_symbols(
        &self,
        place: &Place,
        i: usize,
        have: &Fetched,
        mut each: impl FnMut(u32, &str),
    ) -> Result<(), Error> {
        let group = &self.symbols[i];
        let mut r = Reader::new(group.bytes(place, have)?);
        let mut number = u32::try_from(i).unwrap_or(u32::MAX).saturating_mul(GROUP);
        while !r.is_empty() {
            let text = r.str().map_err(|b| place.corrupt(File::Index, group.at + b.at as u64, b.what))?;
            each(number, text);
            number += 1;
        }
        Ok(())
    }
}

/// `2 | name | value | offset of the posting list`
fn table_entry<'a>(r: &mut Reader<'a>) -> Result<(&'a str, &'a str, u64), Broken> {
    let at = r.at();
    if r.u8()? != 2 {
        return Err(Broken { at, what: "an entry of the offset table has not two keys" });
    }
    Ok((r.str()?, r.str()?, r.uvarint()?))
}

/// Opens an index: reads its header and contents, then passes once over both tables.
#[derive(Debug)]
pub struct OpenIndex {
    place: Place,
    stage: Stage,
    index: Index,
    /// The last symbol, or the last entry of the offset table: both tables must grow.
    last: Option<(Box<str>, Box<str>)>,
    in_group: u32,
}

#[derive(Debug)]
enum Stage {
    Start,
    Ends,
    Symbols(Scan),
    Table(Scan),
}

impl OpenIndex {
    /// Of a block that lies there.
    #[must_use]
    pub fn new(place: Place) -> Self {
        let index = Index { toc: Toc::default(), symbol_count: 0, symbols: Vec::new(), names: Vec::new() };
        Self { place, stage: Stage::Start, index, last: None, in_group: 0 }
    }

    fn ends(&self, have: &Fetched) -> Result<Toc, Error> {
        let corrupt = |at, what: &str| self.place.corrupt(File::Index, at, what);
        let mut r = Reader::new(have.from(File::Index, 0));
        match (r.u32(), r.u8()) {
            (Ok(MAGIC), Ok(VERSION)) => {}
            (Ok(MAGIC), Ok(_)) => return Err(corrupt(4, "the version of the index is not 2")),
            _ => return Err(corrupt(0, "this is no index")),
        }
        let len = self.place.sizes.index;
        Toc::read(&self.place, have.from(File::Index, len - TOC_BYTES), len)
    }

    fn on_symbol(&mut self, r: &mut Reader<'_>, at: u64) -> Result<(), Broken> {
        let all = r.rest();
        let text = r.str()?;
        if self.last.as_ref().is_some_and(|(last, _)| **last >= *text) {
            return Err(Broken { at: 0, what: "symbols do not grow" });
        }
        let index = &mut self.index;
        if index.symbol_count.is_multiple_of(GROUP) {
            index.symbols.push(Group { at, len: 0, crc: 0 });
        }
        if let Some(group) = index.symbols.last_mut() {
            group.crc = crc32c_append(group.crc, &all[..r.at()]);
            group.len += r.at() as u64;
        }
        index.symbol_count += 1;
        self.last = Some((text.into(), "".into()));
        Ok(())
    }

    fn on_entry(&mut self, r: &mut Reader<'_>, at: u64) -> Result<(), Broken> {
        let all = r.rest();
        let (name, value, postings) = table_entry(r)?;
        if self.last.as_ref().is_some_and(|(last, v)| (&**last, &**v) >= (name, value)) {
            return Err(Broken { at: 0, what: "the offset table does not grow" });
        }
        let (end, names) = (self.index.toc.end_of(self.index.toc.postings), &mut self.index.names);
        let is_new = names.last().is_none_or(|last| *last.name != *name);
        if is_new || self.in_group == GROUP {
            if let Some(before) = names.last_mut().and_then(|name| name.groups.last_mut()) {
                before.next = postings;
            }
            if is_new {
                names.push(Name { name: name.into(), groups: Vec::new() });
            }
            if let Some(last) = names.last_mut() {
                last.groups.push(Values { first: value.into(), group: Group { at, len: 0, crc: 0 }, next: end });
            }
            self.in_group = 0;
        }
        if let Some(values) = names.last_mut().and_then(|name| name.groups.last_mut()) {
            values.group.crc = crc32c_append(values.group.crc, &all[..r.at()]);
            values.group.len += r.at() as u64;
        }
        self.in_group += 1;
        self.last = Some((name.into(), value.into()));
        Ok(())
    }
}

impl Reading for OpenIndex {
    type Out = Index;

    fn step(&mut self, have: &Fetched) -> Result<Step<Index>, Error> {
        let place = self.place.clone();
        let next = match std::mem::replace(&mut self.stage, Stage::Start) {
            Stage::Start => {
                let len = place.sizes.index;
                if len < HEADER_BYTES + TOC_BYTES {
                    return Err(place.corrupt(File::Index, len, "the index ends early"));
                }
                self.stage = Stage::Ends;
                let (header, toc) = ((0, HEADER_BYTES), (len - TOC_BYTES, TOC_BYTES));
                let wants = [header, toc].map(|(at, len)| Want { file: File::Index, at, len });
                return Ok(Step::Need(crate::ranges::join(wants.to_vec())));
            }
            Stage::Ends => {
                let toc = self.ends(have)?;
                self.index.toc = toc;
                Stage::Symbols(Scan::new(toc.symbols, toc.end_of(toc.symbols)))
            }
            Stage::Symbols(mut scan) => {
                if scan.feed(&place, have, &mut |r, at| self.on_symbol(r, at))? {
                    self.last = None;
                    let at = self.index.toc.postings_table;
                    Stage::Table(Scan::new(at, self.index.toc.end_of(at)))
                } else {
                    Stage::Symbols(scan)
                }
            }
            Stage::Table(mut scan) => {
                if scan.feed(&place, have, &mut |r, at| self.on_entry(r, at))? {
                    let empty = Index { toc: self.index.toc, symbol_count: 0, symbols: Vec::new(), names: Vec::new() };
                    return Ok(Step::Done(std::mem::replace(&mut self.index, empty)));
                }
                Stage::Table(scan)
            }
        };
        let want = match &next {
            Stage::Symbols(scan) | Stage::Table(scan) => scan.want(),
            Stage::Start | Stage::Ends => unreachable!("both were left above"),
        };
        self.stage = next;
        Ok(Step::Need(vec![want]))
    }
}
