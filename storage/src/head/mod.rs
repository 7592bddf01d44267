//! The head: the newest samples of one tenant in one partition, in memory.
//!
//! Why: samples come one per series and are read as runs of one series; the head turns the one into the other. It is
//! a pure state machine over payloads of the node's log, so a restart that replays them has the same head again.
//!
//! Life of a sample: [`Head::stage`] finds or makes its series and writes the log payload → the caller makes the
//! payload durable → [`Head::apply`] decides on each sample, alone, and puts it into its series' open chunk → the
//! chunk fills up → [`Head::seal`] sets it aside with its window → a block takes it over → [`Head::forget_frozen`]. A
//! restart calls [`Head::replay`] with each payload; [`Head::snapshot`] writes payloads that stand for all before them,
//! so that the log can be cut.
//!
//! One writer (the partition's actor) owns a head; readers take the lock it lies in and leave with shared chunks and
//! a copy of the open one, so they decode without the lock. The bytes are drawn in `docs/formats/head.md`.
//!
//! Map: `append` stage and apply · `payload` bytes of the log · `replay`, `gather` a log read back · `series` one series and late samples ·
//! `starts` when counters began · `symbols`, `labels` texts and the index · `select`, `picked` reading · `frozen` sealed
//! windows · `forget` · `snapshot` · `keep` full chunks into files · `beside` exemplars and metadata · `stats` counts for people.

mod append;
mod beside;
mod forget;
mod frozen;
mod gather;
mod keep;
mod labels;
mod payload;
mod picked;
mod replay;
mod select;
mod series;
mod snapshot;
mod starts;
mod stats;
mod symbols;

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::digest::{Digest, slot_of};
use engram_model::series::Columns;
use engram_model::{Millis, TimeRange};
use hashbrown::HashTable;
use roaring::RoaringBitmap;

pub use append::{AppendLimits, Reason, Receipt, Refused, Staged};
pub use forget::Forgotten;
pub use frozen::{Frozen, NotForgotten, NotSealed};
pub use keep::{FullChunk, keep_full};
pub use select::{HeadChunks, HeadSeries};
pub use series::SeriesRef;
pub use starts::StartRun;
pub use stats::{Cardinality, Counted, WindowStat};
pub use symbols::Symbols;

use crate::chunk::{Chunk, ChunkFiles};
use crate::codec::Broken;
use beside::{Exemplars, MetadataSet};
use frozen::FrozenSet;
use gather::Gathered;
use keep::Waiting;
use labels::LabelIndex;
use series::Series;
use starts::Starts;

/// Most series of one head; refs above are damage.
pub const SERIES_MAX: u32 = 1 << 24;

/// What is fixed when a head is made, alike on every node.
#[derive(Clone, Copy, Debug)]
pub struct HeadOptions {
    /// Length of a window: no chunk crosses its border. Above 0.
    pub window_ms: i64,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self { window_ms: 2 * 60 * 60 * 1000 }
    }
}

/// Something was asked that needs every staged batch applied first: a log that is cut between the two steps would
/// lose the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{batches} staged batches are not applied yet")]
pub struct Unapplied {
    /// How many.
    pub batches: u32,
}

/// See the module's text.
#[derive(Debug)]
pub struct Head {
    options: HeadOptions,
    symbols: Arc<Symbols>,
    index: LabelIndex,
    /// Refs by the low half of the series' hash.
    by_hash: HashTable<u32>,
    slots: Vec<Option<Box<Series>>>,
    /// Refs below `slots.len()` that are free; the lowest is given first.
    free: RoaringBitmap,
    /// Of all samples, live and frozen.
    digests: BTreeMap<Millis, Digest>,
    sample_count: u64,
    /// Time of the newest sample ever taken.
    newest: Option<Millis>,
    /// Samples before it are refused: they were forgotten, or belong to a sealed window.
    floor: Millis,
    unapplied: u32,
    /// Where full chunks go; without it they stay on the heap.
    files: Option<Arc<ChunkFiles>>,
    /// Series that may have full chunks on the heap.
    waiting: Waiting,
    /// What seals have set aside.
    frozen: FrozenSet,
    /// Series that may be without samples: made for samples that were all refused.
    bare: RoaringBitmap,
    starts: Starts,
    exemplars: Exemplars,
    metadata: MetadataSet,
    /// What a replay in bulk has not put in yet.
    gathered: Option<Box<Gathered>>,
    /// Samples that such a replay has taken.
    gathered_count: u64,
}

impl Head {
    /// An empty head.
    ///
    /// # Panics
    /// A window that is not longer than 0.
    #[must_use]
    pub fn new(symbols: Arc<Symbols>, options: HeadOptions) -> Self {
        assert!(options.window_ms > 0, "a window of {} ms holds nothing", options.window_ms);
        Self {
            options,
            index: LabelIndex::new(Arc::clone(&symbols)),
            symbols,
            by_hash: HashTable::new(),
            slots: Vec::new(),
            free: RoaringBitmap::new(),
            digests: BTreeMap::new(),
            sample_count: 0,
            newest: None,
            floor: Millis::MIN,
            unapplied: 0,
            files: None,
            waiting: Waiting::default(),
            frozen: FrozenSet::default(),
            bare: RoaringBitmap::new(),
            starts: Starts::default(),
            exemplars: Exemplars::default(),
            metadata: MetadataSet::default(),
            gathered: None,
            gathered_count: 0,
        }
    }

    /// An empty head that can put its full chunks into files.
    ///
    /// # Panics
    /// As [`Head::new`].
    #[must_use]
    pub fn with_files(symbols: Arc<Symbols>, options: HeadOptions, files: Option<Arc<ChunkFiles>>) -> Self {
        Self { waiting: Waiting::of(files.clone()), files, ..Self::new(symbols, options) }
    }

    /// How many series, those without samples too.
    #[must_use]
    pub fn series_count(&self) -> usize {
        self.by_hash.len()
    }

    /// How many samples.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        self.sample_count
    }

    /// Time of the oldest sample held. Walks all series.
    #[must_use]
    pub fn min_time(&self) -> Option<Millis> {
        self.series().filter_map(|(series_ref, _)| Some(self.bounds_of(series_ref)?.0)).min()
    }

    /// Time of the newest sample ever taken: what the age of others is measured by.
    #[must_use]
    pub fn max_time(&self) -> Option<Millis> {
        self.newest
    }

    /// Samples before this time are refused, see [`Head::forget_before`].
    #[must_use]
    pub fn floor(&self) -> Millis {
        self.floor
    }

    /// How many series have a sample at or after `since`. Walks all series.
    #[must_use]
    pub fn active_series(&self, since: Millis) -> usize {
        let is_active = |series_ref| self.bounds_of(series_ref).is_some_and(|(_, last)| last >= since);
        self.series().filter(|(series_ref, _)| is_active(*series_ref)).count()
    }

    /// The digest of each slot that holds samples.
    #[must_use]
    pub fn digests(&self) -> &BTreeMap<Millis, Digest> {
        &self.digests
    }

    /// The digests anew from every stored sample: what [`Head::digests`] must be.
    ///
    /// # Errors
    /// A chunk does not decode: memory is damaged.
    pub fn recompute_digests(&self) -> Result<BTreeMap<Millis, Digest>, Broken> {
        let mut digests = BTreeMap::new();
        for (series_ref, series) in self.series() {
            add_digests(&mut digests, series)?;
            for chunk in self.frozen.chunks_in(series_ref, TimeRange::ALL) {
                add_chunk_digests(&mut digests, series.hash(), chunk)?;
            }
        }
        Ok(digests)
    }

    /// All series with their refs, in order of ref.
    fn series(&self) -> impl Iterator<Item = (u32, &Series)> {
        self.slots.iter().zip(0..).filter_map(|(slot, series_ref)| Some((series_ref, slot.as_deref()?)))
    }

    /// Whether nothing is in it: no series, nothing frozen. (What is known of metrics is not looked at.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty() && self.frozen.is_empty()
    }

    fn get(&self, series_ref: u32) -> Option<&Series> {
        self.slots.get(series_ref as usize)?.as_deref()
    }

    /// The ref of the series with this hash. The hash alone decides: it is what digests know a series by, 128 bits do
    /// not meet by chance, and who looks for a collision can only harm the tenant whose data it is.
    #[inline]
    fn find(&self, hash: u128) -> Option<u32> {
        let Self { by_hash, slots, .. } = self;
        let is = |series_ref: &u32| slots[*series_ref as usize].as_deref().is_some_and(|have| have.hash() == hash);
        by_hash.find(low_half(hash), is).copied()
    }

    /// The lowest free ref, not yet taken; none when the head is full.
    fn next_ref(&self) -> Option<u32> {
        let end = u32::try_from(self.slots.len()).ok();
        self.free.min().or(end).filter(|series_ref| *series_ref < SERIES_MAX)
    }

    /// Makes a series at a ref that is free.
    fn create<'a>(
        &mut self,
        series_ref: u32,
        hash: u128,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> &mut Series {
        assert!(series_ref < SERIES_MAX, "ref {series_ref} is above the limit");
        let at = series_ref as usize;
        if at >= self.slots.len() {
            let end = u32::try_from(self.slots.len()).unwrap_or(SERIES_MAX);
            self.free.insert_range(end..series_ref);
            self.slots.resize_with(at + 1, || None);
        }
        assert!(self.slots[at].is_none(), "ref {series_ref} is taken");
        self.free.remove(series_ref);
        let pairs = self.index.insert(series_ref, labels);
        let Self { by_hash, slots, .. } = self;
        slots[at] = Some(Box::new(Series::new(hash, pairs)));
        by_hash.insert_unique(low_half(hash), series_ref, |have| {
            slots[*have as usize].as_deref().map_or(0, |series| low_half(series.hash()))
        });
        slots[at].as_deref_mut().unwrap_or_else(|| unreachable!("the slot was filled above"))
    }

    /// Removes series, their labels and exemplars. Their samples' digests are the caller's affair.
    fn remove_series(&mut self, gone: &[u32]) {
        let Self { index, by_hash, slots, .. } = self;
        index.remove(gone.iter().filter_map(|gone| Some((*gone, &*slots[*gone as usize].as_deref()?.pairs))));
        for &series_ref in gone {
            if let Some(series) = slots[series_ref as usize].take()
                && let Ok(entry) = by_hash.find_entry(low_half(series.hash()), |have| *have == series_ref)
            {
                entry.remove();
            }
        }
        self.free.extend(gone);
        gone.iter().for_each(|gone| {
            self.bare.remove(*gone);
        });
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
        self.free.remove_range(u32::try_from(self.slots.len()).unwrap_or(SERIES_MAX)..);
        self.exemplars.forget_series(gone);
        self.starts.remove(gone);
    }
}

/// What tables are keyed by.
#[allow(clippy::cast_possible_truncation, reason = "the low half is meant")]
#[inline]
fn low_half(hash: u128) -> u64 {
    hash as u64
}

/// Adds the digests of all samples of a series.
fn add_digests(digests: &mut BTreeMap<Millis, Digest>, series: &Series) -> Result<(), Broken> {
    series.chunks(TimeRange::ALL).iter().try_for_each(|chunk| add_chunk_digests(digests, series.hash(), chunk))
}

/// Adds the digests of all samples of a chunk.
fn add_chunk_digests(digests: &mut BTreeMap<Millis, Digest>, hash: u128, chunk: &Chunk) -> Result<(), Broken> {
    let mut columns = Columns::default();
    chunk.decode(&mut columns)?;
    for (at, value) in columns.times.iter().zip(&columns.values) {
        digests.entry(slot_of(*at)).or_default().add(Digest::of_float(hash, *at, *value));
    }
    for (at, value) in columns.histogram_times.iter().zip(&columns.histograms) {
        digests.entry(slot_of(*at)).or_default().add(Digest::of_histogram(hash, *at, value));
    }
    Ok(())
}
