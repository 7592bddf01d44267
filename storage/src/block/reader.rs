//! Matchers → ranges wanted → series, for a block that lies anywhere.
//!
//! Why in stages: each arrow below needs the bytes of the one before, and a request to an object store takes some tens
//! of milliseconds; so each stage asks for all it needs at once (in batches of bounded size), and there are four.
//!
//! ```text
//! Select   values of the matchers' labels → posting lists → series entries → symbols
//! Load     chunks of the series found
//! ```
//!
//! Nobody knows how long a series entry or a chunk is before it was read: a guess is fetched, and the few that were
//! longer are fetched again. What the matchers mean is said once, at [`Part`]: as in a head.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use engram_model::series::{Columns, ReadError, SampleSource, Series};
use engram_model::{Labels, Matcher, Millis, TimeRange};
use roaring::RoaringBitmap;

use super::chunks::cut_chunk;
use super::tombstones::Tombstones;
use crate::Error;
use crate::chunk::Chunk;
use crate::codec::Broken;
use crate::index::reader::{Index, OpenIndex, Values};
use crate::index::{ChunkMeta, Cut, Entry, SERIES_ALIGN, read_postings};
use crate::ranges::{Batches, Fetched, File, Place, Reading, Step, Want};

/// What is fetched for a series entry at first: most have a dozen labels and chunks.
const SERIES_GUESS: u64 = 256;
/// What describing a series costs, about, when it is asked whether a posting list is worth more than what it spares.
const SERIES_BYTES: u64 = 256;
/// A part's posting lists of fewer bytes are always fetched.
const LISTS_BYTES_MIN: u64 = 64 << 10;
/// What is fetched for the last chunk of a series at first.
const CHUNK_GUESS: u64 = 1024;
/// A chunk is not thought longer than this because the next one begins later.
const CHUNK_GUESS_MAX: u64 = 64 << 10;

/// An opened block: what of it stays in memory.
#[derive(Clone, Debug)]
pub struct Block {
    place: Place,
    index: Index,
    tombstones: Tombstones,
}

impl Block {
    /// Its index.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Where it lies.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Times that were deleted of a series after the block was written, first and last inside.
    #[must_use]
    pub fn deleted(&self, found: &Found) -> &[(Millis, Millis)] {
        self.tombstones.of(found.series)
    }
}

/// Opens a block.
#[derive(Debug)]
pub struct Open {
    place: Place,
    index: OpenIndex,
    tombstones: Tombstones,
}

impl Open {
    /// Of a block that lies there and from which so much was deleted.
    #[must_use]
    pub fn new(place: Place, tombstones: Tombstones) -> Self {
        Self { index: OpenIndex::new(place.clone()), place, tombstones }
    }
}

impl Reading for Open {
    type Out = Block;

    fn step(&mut self, have: &Fetched) -> Result<Step<Block>, Error> {
        Ok(match self.index.step(have)? {
            Step::Need(wants) => Step::Need(wants),
            Step::Done(index) => {
                let (place, tombstones) = (std::mem::take(&mut self.place), std::mem::take(&mut self.tombstones));
                Step::Done(Block { place, index, tombstones })
            }
        })
    }
}

/// The same thing wanted again, longer; damage when the file ends before, or when it is no longer than before.
fn longer(place: &Place, want: Want, len: u64, what: &'static str) -> Result<Want, Error> {
    let again = place.sizes.clip(want.file, want.at, len);
    if again.len <= want.len { Err(place.corrupt(want.file, want.at, what)) } else { Ok(again) }
}

fn broken(place: &Place, want: Want) -> impl Fn(Broken) -> Error + '_ {
    move |broken| place.corrupt(want.file, want.at + broken.at as u64, broken.what)
}

/// A series found: who it is, and its chunks in the range asked for.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its place in the index.
    pub series: u32,
    /// Who.
    pub labels: Labels,
    /// Chunks that reach into the range, in order of time.
    pub chunks: Vec<ChunkMeta>,
}

/// One matcher: a series passes when it is in the set, or for `takes_away` when it is not.
///
/// A matcher that passes the empty value passes series without the label, and these are in no posting list: so it
/// takes away the series whose value does not pass. Any other keeps the series whose value passes.
#[derive(Debug)]
struct Part {
    matcher: Matcher,
    takes_away: bool,
    /// The only values whose series are in the set, where known.
    literals: Option<Vec<String>>,
    set: RoaringBitmap,
    /// Its lists are not fetched: the labels of what the others left are looked at instead.
    late: bool,
}

impl Part {
    fn new(matcher: Matcher) -> Self {
        let takes_away = matcher.matches_empty();
        // `=` and alternations: those values pass. `!=` of these: those do not pass.
        let literals = (takes_away == matcher.is_negative()).then(|| matcher.literals()).flatten();
        let literals = literals.map(|all| all.into_iter().map(str::to_owned).collect());
        Self { matcher, takes_away, literals, set: RoaringBitmap::new(), late: false }
    }

    /// The groups of values that must be looked at.
    fn groups<'a>(&self, all: &'a [Values]) -> Vec<&'a Values> {
        match &self.literals {
            Some(literals) => {
                let mut groups: Vec<_> = literals.iter().filter_map(|value| Index::group_of(all, value)).collect();
                groups.dedup_by_key(|values| values.group.at);
                groups
            }
            None if self.takes_away || self.matcher.is_negative() => all.iter().collect(),
            None => Index::groups_from(all, self.matcher.prefix()).iter().collect(),
        }
    }

    fn has(&self, value: &str) -> bool {
        match &self.literals {
            Some(literals) => literals.binary_search_by(|have| have.as_str().cmp(value)).is_ok(),
            None => self.matcher.matches(value) != self.takes_away,
        }
    }
}

/// Finds the series all matchers pass that have chunks in a range.
#[derive(Debug)]
pub struct Select {
    block: Arc<Block>,
    range: TimeRange,
    series_max: u64,
    parts: Vec<Part>,
    stage: Stage,
    /// What was found so far: labels still as numbers of symbols.
    entries: Vec<(u32, Entry)>,
    texts: HashMap<u32, Box<str>>,
}

#[derive(Debug)]
enum Stage {
    /// Which part, and where its values stand.
    Values(Batches<(usize, Values)>, Vec<(Want, usize)>),
    /// Which part.
    Lists(Batches<usize>),
    /// Which series.
    Series(Batches<u32>),
    /// Which group of symbols.
    Symbols(Batches<usize>),
}

impl Select {
    /// Of an opened block. More than `series_max` candidates are an error, before their descriptions are read.
    #[must_use]
    pub fn new(block: Arc<Block>, matchers: Vec<Matcher>, range: TimeRange, series_max: u64) -> Self {
        let mut parts: Vec<_> = matchers.into_iter().filter(|m| !m.matches_all()).map(Part::new).collect();
        if parts.iter().all(|part| part.takes_away) {
            // The list of all series stands under the empty name and value; this part is no matcher of a user's.
            let (matcher, literals) = (Matcher::equal("", ""), Some(vec![String::new()]));
            parts.push(Part { matcher, takes_away: false, literals, set: RoaringBitmap::new(), late: false });
        }
        let mut todo = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            // A user's matcher of the empty name must not find that list: no series has such a label.
            let is_all = part.literals.as_ref().is_some_and(|l| l == &[""]) && !part.takes_away;
            let groups = block.index.values_of(&part.matcher.name);
            if !part.matcher.name.is_empty() || is_all {
                todo.extend(part.groups(groups).into_iter().map(|values| (values.group.want(), (i, values.clone()))));
            }
        }
        let stage = Stage::Values(Batches::new(todo), Vec::new());
        Self { block, range, series_max, parts, stage, entries: Vec::new(), texts: HashMap::new() }
    }

    /// Takes what came for a stage.
    fn take(&mut self, have: &Fetched) -> Result<(), Error> {
        let (block, place) = (&self.block, &self.block.place);
        match &mut self.stage {
            Stage::Values(batches, lists) => {
                for (_, (i, values)) in batches.take() {
                    let part = &self.parts[i];
                    let mut each = |value: &str, at: Want| {
                        if part.has(value) {
                            lists.push((at, i))
                        }
                    };
                    block.index.read_values(place, &values, have, &mut each)?;
                }
            }
            Stage::Lists(batches) => {
                for (want, i) in batches.take() {
                    let mut list = Vec::new();
                    let bytes = have.from(File::Index, want.at);
                    read_postings(bytes, |series| list.push(series)).map_err(broken(place, want))?;
                    self.parts[i].set.extend(list);
                }
            }
            Stage::Series(batches) => {
                for (want, series) in batches.take() {
                    match Entry::cut(have.from(File::Index, want.at)).map_err(broken(place, want))? {
                        Cut::Short(len) => {
                            batches.again(longer(place, want, len, "a series entry ends early")?, series)
                        }
                        Cut::Whole(mut entry, _) => {
                            entry.chunks.retain(|c| c.first < self.range.end && self.range.start <= c.last);
                            if !entry.chunks.is_empty() {
                                self.entries.push((series, entry));
                            }
                        }
                    }
                }
            }
            Stage::Symbols(batches) => {
                let wanted: BTreeSet<u32> = numbers(&self.entries).collect();
                for (_, i) in batches.take() {
                    let mut each = |number, text: &str| {
                        if wanted.contains(&number) {
                            self.texts.insert(number, text.into());
                        }
                    };
                    block.index.read_symbols(place, i, have, &mut each)?;
                }
            }
        }
        Ok(())
    }

    /// The stage after one that has nothing left to fetch; none after the last.
    fn next_stage(&mut self) -> Result<Option<Stage>, Error> {
        let (index, place) = (&self.block.index, &self.block.place);
        Ok(match &mut self.stage {
            Stage::Values(_, lists) => {
                let lists = put_off(&mut self.parts, std::mem::take(lists), self.series_max);
                Some(Stage::Lists(Batches::new(lists)))
            }
            Stage::Lists(_) => {
                let set = combine(&mut self.parts);
                if set.len() > self.series_max {
                    return Err(Error::TooLarge { what: "series selected", len: set.len(), max: self.series_max });
                }
                let (from, until) = (index.toc.series, index.toc.end_of(index.toc.series));
                let mut todo = Vec::with_capacity(usize::try_from(set.len()).unwrap_or(0));
                for series in set {
                    let at = u64::from(series) * SERIES_ALIGN;
                    if at < from || at >= until {
                        return Err(place.corrupt(File::Index, at, "a posting list names no series"));
                    }
                    todo.push((place.sizes.clip(File::Index, at, SERIES_GUESS.min(until - at)), series));
                }
                Some(Stage::Series(Batches::new(todo)))
            }
            Stage::Series(_) => {
                let mut groups = BTreeSet::new();
                for number in numbers(&self.entries) {
                    groups.insert(index.symbol_group(place, number).map(|(i, group)| (i, group.want()))?);
                }
                Some(Stage::Symbols(Batches::new(groups.into_iter().map(|(i, want)| (want, i)))))
            }
            Stage::Symbols(_) => None,
        })
    }

    fn found(&mut self) -> Result<Vec<Found>, Error> {
        let place = &self.block.place;
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable_by_key(|(series, _)| *series);
        let mut all = Vec::with_capacity(entries.len());
        for (series, entry) in entries {
            let fail = |what| place.corrupt(File::Index, u64::from(series) * SERIES_ALIGN, what);
            let text = |number| self.texts.get(number).map(|text| &**text);
            let pairs: Option<Vec<_>> = entry.pairs.iter().map(|(n, v)| Some((text(n)?, text(v)?))).collect();
            let pairs = pairs.ok_or_else(|| fail("a series names a symbol that is not there"))?;
            if !pairs.is_sorted_by(|a, b| a.0 < b.0) || pairs.iter().any(|(_, value)| value.is_empty()) {
                return Err(fail("labels of a series are not in order, or empty"));
            }
            let labels = Labels::from_sorted(pairs.into_iter());
            let late = self.parts.iter().filter(|part| part.late).map(|part| &part.matcher);
            if late.into_iter().all(|matcher| matcher.matches(labels.get(&matcher.name).unwrap_or(""))) {
                all.push(Found { series, labels, chunks: entry.chunks });
            }
        }
        Ok(all)
    }
}

fn numbers(entries: &[(u32, Entry)]) -> impl Iterator<Item = u32> + '_ {
    entries.iter().flat_map(|(_, entry)| entry.pairs.iter().flat_map(|(name, value)| [*name, *value]))
}

/// Leaves out the lists of parts that would cost more than describing every series the smallest part lets through: the
/// million series of one job are not listed to find the thousand of one metric.
fn put_off(parts: &mut [Part], mut lists: Vec<(Want, usize)>, series_max: u64) -> Vec<(Want, usize)> {
    let mut bytes = vec![0_u64; parts.len()];
    lists.iter().for_each(|(want, i)| bytes[*i] = bytes[*i].saturating_add(want.len));
    let keeping = parts.iter().zip(&bytes).filter(|(part, _)| !part.takes_away);
    let series = keeping.map(|(_, bytes)| bytes / 4).min().unwrap_or(u64::MAX);
    if series > series_max {
        return lists;
    }
    for (part, bytes) in parts.iter_mut().zip(&bytes) {
        part.late = *bytes > LISTS_BYTES_MIN.max(series.saturating_mul(SERIES_BYTES));
    }
    lists.retain(|(_, i)| !parts[*i].late);
    lists
}

fn combine(parts: &mut [Part]) -> RoaringBitmap {
    let (away, keep): (Vec<_>, Vec<_>) = parts.iter_mut().filter(|part| !part.late).partition(|part| part.takes_away);
    let sets = keep.into_iter().map(|part| std::mem::take(&mut part.set));
    let mut set = sets.reduce(|a, b| a & b).unwrap_or_default();
    for part in away {
        set -= &part.set;
        part.set.clear();
    }
    set
}

impl Reading for Select {
    type Out = Vec<Found>;

    fn step(&mut self, have: &Fetched) -> Result<Step<Vec<Found>>, Error> {
        self.take(have)?;
        loop {
            let next = match &mut self.stage {
                Stage::Values(batches, _) => batches.next(),
                Stage::Lists(batches) => batches.next(),
                Stage::Series(batches) => batches.next(),
                Stage::Symbols(batches) => batches.next(),
            };
            if let Some(wants) = next {
                return Ok(Step::Need(wants));
            }
            match self.next_stage()? {
                Some(stage) => self.stage = stage,
                None => return Ok(Step::Done(self.found()?)),
            }
        }
    }
}

/// The chunks of one series, in memory: fetched and checked, not decoded.
#[derive(Clone, Debug)]
pub struct BlockChunks {
    /// Stable hash of the series' labels, as digests use it.
    pub hash: u128,
    /// In order of time.
    pub chunks: Vec<Chunk>,
    /// Deleted times, first and last inside.
    deleted: Vec<(Millis, Millis)>,
}

impl SampleSource for BlockChunks {
    fn series_hash(&self) -> Option<u128> {
        Some(self.hash)
    }

    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        for chunk in self.chunks.iter().filter(|chunk| chunk.first < range.end && range.start <= chunk.last) {
            chunk.decode(out).map_err(|broken| ReadError::Corrupt {
                series: format!("{:032x}", self.hash),
                what: broken.to_string(),
            })?;
        }
        if !self.deleted.is_empty() {
            let stays = |at: &Millis| !self.deleted.iter().any(|(first, last)| first <= at && at <= last);
            retain(&mut out.times, &mut out.values, stays);
            retain(&mut out.histogram_times, &mut out.histograms, stays);
        }
        Ok(())
    }
}

fn retain<T>(times: &mut Vec<Millis>, values: &mut Vec<T>, stays: impl Fn(&Millis) -> bool) {
    let mut kept = times.iter().map(&stays);
    values.retain(|_| kept.next().unwrap_or(true));
    times.retain(stays);
}

/// Fetches the chunks of series found. All of them stay in memory: whoever found many loads them in parts.
#[derive(Debug)]
pub struct Load {
    block: Arc<Block>,
    found: Vec<Found>,
    batches: Batches<(usize, ChunkMeta)>,
    chunks: Vec<Vec<Chunk>>,
}

impl Load {
    /// The chunks of `found`, which a [`Select`] of this block gave.
    #[must_use]
    pub fn new(block: Arc<Block>, found: Vec<Found>) -> Self {
        let mut todo = Vec::new();
        for (i, series) in found.iter().enumerate() {
            for (c, chunk) in series.chunks.iter().enumerate() {
                let next = series.chunks.get(c + 1).map(|next| next.at.wrapping_sub(chunk.at));
                let guess = next.filter(|len| (1..=CHUNK_GUESS_MAX).contains(len)).unwrap_or(CHUNK_GUESS);
                todo.push((block.place.sizes.clip(chunk.file(), chunk.offset(), guess), (i, *chunk)));
            }
        }
        let chunks = found.iter().map(|series| Vec::with_capacity(series.chunks.len())).collect();
        Self { block, found, batches: Batches::new(todo), chunks }
    }

    /// About how many bytes of chunks are still to be fetched.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.batches.bytes()
    }
}

impl Reading for Load {
    type Out = Vec<(Labels, Arc<BlockChunks>)>;

    fn step(&mut self, have: &Fetched) -> Result<Step<Self::Out>, Error> {
        let place = &self.block.place;
        for (want, (i, meta)) in self.batches.take() {
            match cut_chunk(have.from(want.file, want.at), &meta).map_err(broken(place, want))? {
                Cut::Short(len) => self.batches.again(longer(place, want, len, "a chunk ends early")?, (i, meta)),
                Cut::Whole(chunk, _) => self.chunks[i].push(chunk),
            }
        }
        if let Some(wants) = self.batches.next() {
            return Ok(Step::Need(wants));
        }
        let all = std::mem::take(&mut self.found).into_iter().zip(std::mem::take(&mut self.chunks));
        let series = all.map(|(found, mut chunks)| {
            chunks.sort_unstable_by_key(|chunk| chunk.first);
            let deleted = self.block.tombstones.of(found.series).to_vec();
            let hash = found.labels.hash128();
            (found.labels, Arc::new(BlockChunks { hash, chunks, deleted }))
        });
        Ok(Step::Done(series.collect()))
    }
}

/// A loaded series as the engine reads it.
#[must_use]
pub fn series_of(labels: Labels, chunks: Arc<BlockChunks>) -> Series {
    Series { labels, source: chunks }
}

/// All values of one label, sorted.
#[derive(Debug)]
pub struct LabelValues {
    block: Arc<Block>,
    batches: Batches<Values>,
    values: Vec<String>,
}

impl LabelValues {
    /// Of the label `name` of an opened block.
    #[must_use]
    pub fn new(block: Arc<Block>, name: &str) -> Self {
        let groups = if name.is_empty() { &[] } else { block.index.values_of(name) };
        let batches = Batches::new(groups.iter().map(|values| (values.group.want(), values.clone())));
        Self { block, batches, values: Vec::new() }
    }
}

impl Reading for LabelValues {
    type Out = Vec<String>;

    fn step(&mut self, have: &Fetched) -> Result<Step<Vec<String>>, Error> {
        for (_, group) in self.batches.take() {
            let mut each = |value: &str, _| self.values.push(value.to_owned());
            self.block.index.read_values(&self.block.place, &group, have, &mut each)?;
        }
        Ok(match self.batches.next() {
            Some(wants) => Step::Need(wants),
            None => Step::Done(std::mem::take(&mut self.values)),
        })
    }
}
