//! Frozen parts: what a seal set aside of a window, until a block provably holds it.
//!
//! Why: a block is cut from samples that no longer change, and every replica must set the same line between what goes
//! into the block of a seal and what waits for a later one. The line is a place in the log: [`Head::seal`] moves what
//! the head holds of a window into a part of its own, under the number the metadata gave the seal. A part never
//! changes. It is seen by every reader like the rest of the head; samples of its window that come later are live.
//!
//! ```text
//! live     ──────────────┬─ seal 7 ─┬── late samples of the window, and newer ones ──► seal 8 …
//! parts                  └► 7: chunks by series, digests by slot ── a block holds it ──► forgotten at index i
//! ```
//!
//! A time of a series lies in the live part or in one frozen part, never in two: what is frozen already is a duplicate,
//! in repair too (of two values the cut takes the greater, as of any two replicas). So digests add up: those of the
//! head are those of the live part and of all frozen ones.
//!
//! When a part is forgotten, the window keeps a mark: at which index of the metadata. A reader whose view is older
//! knows no block that holds these samples and must not believe the head's silence, see [`Head::forgotten_after`].

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::digest::{Digest, slot_of};
use engram_model::sample::Value;
use engram_model::series::Columns;
use engram_model::{Millis, TimeRange};

use super::series::samples_of;
use super::{Forgotten, Head, HeadSeries, add_chunk_digests, payload};
use crate::chunk::Chunk;
use crate::codec::{Broken, Reader, put_uvarint, put_varint};

/// Marks kept; of more, the two that were made first become one that covers both. A wider mark only makes a reader
/// look again.
const MARKS_MAX: usize = 32;

/// What one seal set aside. Never changes.
#[derive(Clone, Debug)]
pub struct Frozen {
    number: u64,
    window: TimeRange,
    pub(super) digests: BTreeMap<Millis, Digest>,
    sample_count: u64,
    /// Ref and the end of its chunks in `chunks`, in order of ref.
    series: Vec<(u32, u32)>,
    chunks: Vec<Chunk>,
}

/// A window that was forgotten, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) window: TimeRange,
    pub(super) index: u64,
}

/// The frozen parts of a head.
#[derive(Debug)]
pub(super) struct FrozenSet {
    pub(super) parts: BTreeMap<u64, Arc<Frozen>>,
    /// No frozen sample is at or after it.
    pub(super) end: Millis,
    /// The highest number that was sealed; 0: none.
    pub(super) sealed: u64,
    /// In the order they were made.
    pub(super) marks: Vec<Mark>,
}

/// Why a seal was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSealed {
    /// Apply first.
    #[error(transparent)]
    Unapplied(#[from] super::Unapplied),
    /// A chunk file is damaged, and its chunks would have to be divided.
    #[error("a chunk in the window does not decode: {0}")]
    Damaged(Broken),
    /// Seals are applied once, in order of number.
    #[error("seal {number} comes after seal {sealed} was applied")]
    Old {
        /// Its number.
        number: u64,
        /// The highest applied.
        sealed: u64,
    },
}

/// Why nothing was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotForgotten {
    /// Apply first.
    #[error(transparent)]
    Unapplied(#[from] super::Unapplied),
    /// A chunk file is damaged, and a chunk would have to be divided.
    #[error("a chunk at the border does not decode: {0}")]
    Damaged(Broken),
    /// It was forgotten before, or never sealed here.
    #[error("nothing is frozen under number {number}")]
    NotFrozen {
        /// The number asked for.
        number: u64,
    },
}

/// Whether a window is made of whole slots.
fn is_whole(window: TimeRange) -> bool {
    slot_of(window.start) == window.start && slot_of(window.end) == window.end
}

impl Frozen {
    pub(super) fn empty(number: u64, window: TimeRange) -> Self {
        Self { number, window, digests: BTreeMap::new(), sample_count: 0, series: Vec::new(), chunks: Vec::new() }
    }

    /// The seal's number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The window; every sample lies inside.
    #[must_use]
    pub fn window(&self) -> TimeRange {
        self.window
    }

    /// The digest of each slot that holds samples.
    #[must_use]
    pub fn digests(&self) -> &BTreeMap<Millis, Digest> {
        &self.digests
    }

    /// The digest of all samples.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digests.values().copied().sum()
    }

    /// How many samples.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        self.sample_count
    }

    /// How many series.
    #[must_use]
    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    pub(super) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let bytes: usize = self.chunks.iter().map(|chunk| chunk.bytes.heap_bytes()).sum();
        bytes + self.chunks.capacity() * size_of::<Chunk>() + self.series.capacity() * 8
    }

    /// The chunks of a series, in order of time, none overlapping.
    pub(super) fn of(&self, series_ref: u32) -> &[Chunk] {
        let Ok(at) = self.series.binary_search_by_key(&series_ref, |entry| entry.0) else { return &[] };
        self.chunks_at(at)
    }

    fn chunks_at(&self, at: usize) -> &[Chunk] {
        let from = at.checked_sub(1).map_or(0, |before| self.series[before].1);
        self.chunks.get(from as usize..self.series[at].1 as usize).unwrap_or_default()
    }

    /// Refs and their chunks, in order of ref.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &[Chunk])> {
        (0..self.series.len()).map(|at| (self.series[at].0, self.chunks_at(at)))
    }

    /// Adds the chunks of the next series; refs grow.
    pub(super) fn push(&mut self, series_ref: u32, chunks: Vec<Chunk>) {
        assert!(self.series.last().is_none_or(|last| last.0 < series_ref), "refs of a frozen part grow: {series_ref}");
        self.sample_count += chunks.iter().map(|chunk| u64::from(chunk.count)).sum::<u64>();
        self.chunks.extend(chunks);
        let end = u32::try_from(self.chunks.len());
        assert!(end.is_ok(), "a frozen part has {} chunks", self.chunks.len());
        self.series.push((series_ref, end.unwrap_or(u32::MAX)));
    }

    pub(super) fn last_ref(&self) -> Option<u32> {
        self.series.last().map(|last| last.0)
    }

    pub(super) fn add_digest(&mut self, slot: Millis, digest: Digest) {
        if digest != Digest::EMPTY {
            self.digests.entry(slot).or_default().add(digest);
        }
    }
}

impl Default for FrozenSet {
    fn default() -> Self {
        Self { parts: BTreeMap::new(), end: Millis::MIN, sealed: 0, marks: Vec::new() }
    }
}

impl FrozenSet {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn put(&mut self, part: Frozen) {
        self.parts.insert(part.number, Arc::new(part));
        self.find_end();
    }

    pub(super) fn find_end(&mut self) {
        let ends = self.parts.values().filter(|part| part.sample_count > 0).map(|part| part.window.end);
        self.end = ends.max().unwrap_or(Millis::MIN);
    }

    /// Whether any part has samples of the series.
    pub(super) fn holds(&self, series_ref: u32) -> bool {
        self.parts.values().any(|part| !part.of(series_ref).is_empty())
    }

    /// The chunks of a series that may hold samples of the range, part by part.
    pub(super) fn chunks_in(&self, series_ref: u32, range: TimeRange) -> impl Iterator<Item = &Chunk> {
        let parts = self.parts.values().filter(move |part| part.window.overlaps(range));
        parts
            .flat_map(move |part| part.of(series_ref))
            .filter(move |chunk| chunk.first < range.end && range.start <= chunk.last)
    }

    /// Times of the first and the last frozen sample of a series.
    pub(super) fn bounds(&self, series_ref: u32) -> Option<(Millis, Millis)> {
        let parts = self.parts.values().filter_map(|part| {
            let chunks = part.of(series_ref);
            Some((chunks.first()?.first, chunks.last()?.last))
        });
        parts.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// The frozen sample of a series at a time.
    pub(super) fn find(&self, series_ref: u32, at: Millis) -> Result<Option<Value>, Broken> {
        for chunk in self.chunks_in(series_ref, TimeRange::closed(at, at)) {
            if let Some((_, found)) = samples_of(chunk)?.into_iter().find(|(have, _)| *have == at) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What parts other than `number` hold in a slot.
    pub(super) fn digest_of_slot(&self, slot: Millis) -> Digest {
        self.parts.values().filter_map(|part| part.digests.get(&slot).copied()).sum()
    }

    fn mark(&mut self, mark: Mark) {
        self.marks.push(mark);
        if self.marks.len() > MARKS_MAX {
            let (a, b) = (self.marks[0], self.marks[1]);
            let window = TimeRange::new(a.window.start.min(b.window.start), a.window.end.max(b.window.end));
            self.marks.splice(..2, [Mark { window, index: a.index.max(b.index) }]);
        }
    }

    /// What a checkpoint's marks say of it.
    pub(super) fn put_marks(&self, out: &mut Vec<u8>) {
        put_uvarint(out, self.sealed);
        put_uvarint(out, self.marks.len() as u64);
        for mark in &self.marks {
            put_varint(out, mark.window.start);
            put_varint(out, mark.window.end);
            put_uvarint(out, mark.index);
        }
    }

    pub(super) fn read_marks(&mut self, from: &mut Reader<'_>) -> Result<(), Broken> {
        self.sealed = from.uvarint()?;
        self.marks.clear();
        for _ in 0..from.length(MARKS_MAX)? {
            let window = TimeRange::new(from.varint()?, from.varint()?);
            self.marks.push(Mark { window, index: from.uvarint()? });
        }
        Ok(())
    }
}

impl Head {
    /// Sets aside what the head holds of `window`, under the number of the seal, and appends the payload to log.
    /// Later samples of the window are live. Losing the payload in a crash is harmless as long as nothing staged later
    /// survives.
    ///
    /// # Errors
    /// [`NotSealed`]: nothing was done.
    ///
    /// # Panics
    /// A chunk in memory does not decode: memory is damaged and the actor must rebuild from the log.
    pub fn seal(&mut self, number: u64, window: TimeRange, payload: &mut Vec<u8>) -> Result<Arc<Frozen>, NotSealed> {
        self.check_seal(number, window)?;
        Self::log_seal(number, window, payload);
        match self.freeze(number, window) {
            Ok(part) => Ok(part),
            Err(broken) => unreachable!("a chunk the head itself encoded does not decode: {broken}"),
        }
    }

    /// Whether a seal can be applied now.
    ///
    /// # Errors
    /// [`NotSealed`].
    pub fn check_seal(&self, number: u64, window: TimeRange) -> Result<(), NotSealed> {
        self.check_applied()?;
        let sealed = self.frozen.sealed;
        if number <= sealed {
            return Err(NotSealed::Old { number, sealed });
        }
        // Whole chunks are moved unseen; only those that must be divided, or counted anew, are read.
        let divided =
            |chunk: &Chunk| !is_whole(window) || !window.contains(chunk.first) || !window.contains(chunk.last);
        self.check_chunks(window, divided).map_err(NotSealed::Damaged)
    }

    /// Looks whether those chunks of a range decode that `which` names.
    pub(super) fn check_chunks(&self, range: TimeRange, which: impl Fn(&Chunk) -> bool) -> Result<(), Broken> {
        for (_, series) in self.series().filter(|(_, series)| series.overlaps(range)) {
            let kept = series.full_in(range).iter().filter(|chunk| chunk.bytes.in_file().is_some());
            for chunk in kept.filter(|chunk| which(chunk)) {
                chunk.decode(&mut Columns::default())?;
            }
        }
        Ok(())
    }

    /// The payload of [`Head::seal`] alone: for who makes it durable before the head shows it.
    pub fn log_seal(number: u64, window: TimeRange, payload: &mut Vec<u8>) {
        payload.push(payload::SEAL);
        put_uvarint(payload, number);
        put_varint(payload, window.start);
        put_varint(payload, window.end);
    }

    pub(super) fn freeze(&mut self, number: u64, window: TimeRange) -> Result<Arc<Frozen>, Broken> {
        let mut part = Frozen::empty(number, window);
        for (slot, series_ref) in self.slots.iter_mut().zip(0..) {
            let Some(series) = slot.as_deref_mut() else { continue };
            if series.overlaps(window) {
                let taken = series.take(window)?;
                if !taken.is_empty() {
                    part.push(series_ref, taken);
                }
            }
        }
        if is_whole(window) {
            // Whole slots: what is live in them is what is frozen now.
            for (slot, total) in self.digests.range(window.start..window.end.max(window.start)) {
                let mut live = *total;
                live.remove(self.frozen.digest_of_slot(*slot));
                part.add_digest(*slot, live);
            }
        } else {
            let mut digests = BTreeMap::new();
            for (series_ref, chunks) in part.iter() {
                let hash = self.slots[series_ref as usize].as_deref().map_or(0, super::Series::hash);
                chunks.iter().try_for_each(|chunk| add_chunk_digests(&mut digests, hash, chunk))?;
            }
            part.digests = digests;
        }
        let digest = part.digest();
        assert_eq!(
            part.sample_count, digest.count,
            "seal {number}: the samples set aside are not those of the digests"
        );
        self.frozen.sealed = number;
        self.frozen.put(part);
        Ok(Arc::clone(&self.frozen.parts[&number]))
    }

    /// The highest number that was sealed; 0: none yet.
    #[must_use]
    pub fn sealed(&self) -> u64 {
        self.frozen.sealed
    }

    /// What was set aside under a number; none when it is not sealed yet (see [`Head::sealed`]) or forgotten.
    #[must_use]
    pub fn frozen(&self, number: u64) -> Option<&Arc<Frozen>> {
        self.frozen.parts.get(&number)
    }

    /// All that is set aside, in order of number.
    pub fn frozen_parts(&self) -> impl Iterator<Item = &Arc<Frozen>> {
        self.frozen.parts.values()
    }

    /// The series of a frozen part of this head, with their samples in it, in order of ref.
    #[must_use]
    pub fn frozen_series(&self, part: &Frozen) -> Vec<HeadSeries> {
        let known = part.iter().filter_map(|(series_ref, chunks)| Some((self.get(series_ref)?, (series_ref, chunks))));
        self.with_labels(known, |labels, (series, (series_ref, chunks))| {
            let bounds = chunks.first().map_or(0, |chunk| chunk.first)..=chunks.last().map_or(0, |chunk| chunk.last);
            let starts = self.starts.within(series_ref, *bounds.start(), *bounds.end()).to_vec();
            let chunks = super::HeadChunks { hash: series.hash(), chunks: chunks.to_vec(), starts };
            HeadSeries { labels, chunks: Arc::new(chunks) }
        })
    }

    /// Forgets what was set aside under a number: a block that was committed at `index` of the metadata holds it.
    /// Series without other samples go. Appends the payload to log, which must be durable before anybody is told.
    ///
    /// # Errors
    /// [`NotForgotten`]: nothing was done.
    pub fn forget_frozen(&mut self, number: u64, index: u64, payload: &mut Vec<u8>) -> Result<Forgotten, NotForgotten> {
        self.check_applied()?;
        if !self.frozen.parts.contains_key(&number) {
            return Err(NotForgotten::NotFrozen { number });
        }
        Self::log_forget_frozen(number, index, payload);
        Ok(self.drop_frozen(number, index))
    }

    /// The payload of [`Head::forget_frozen`] alone: for who makes it durable before the head forgets.
    pub fn log_forget_frozen(number: u64, index: u64, payload: &mut Vec<u8>) {
        payload.push(payload::FORGET_FROZEN);
        put_uvarint(payload, number);
        put_uvarint(payload, index);
    }

    pub(super) fn drop_frozen(&mut self, number: u64, index: u64) -> Forgotten {
        let Some(part) = self.frozen.parts.remove(&number) else { return Forgotten::default() };
        for (slot, digest) in &part.digests {
            if let Some(total) = self.digests.get_mut(slot) {
                total.remove(*digest);
                if total.count == 0 {
                    self.digests.remove(slot);
                }
            }
        }
        self.sample_count -= part.sample_count;
        self.frozen.find_end();
        if part.sample_count > 0 {
            self.frozen.mark(Mark { window: part.window, index });
        }
        let mut gone = Vec::new();
        for &(series_ref, _) in &part.series {
            match self.bounds_of(series_ref) {
                None => gone.push(series_ref),
                Some((first, _)) => self.starts.forget_series(series_ref, first),
            }
        }
        self.remove_series(&gone);
        Forgotten { samples: part.sample_count, series: gone.len() as u64 }
    }

    /// The highest index at which samples of a window that meets `range` were forgotten: who reads the range with an
    /// older view of the metadata misses the blocks that hold them now. 0: none.
    #[must_use]
    pub fn forgotten_after(&self, range: TimeRange) -> u64 {
        let marks = self.frozen.marks.iter().filter(|mark| mark.window.overlaps(range));
        marks.map(|mark| mark.index).max().unwrap_or(0)
    }

    /// Times of the first and the last sample of a series, live or frozen.
    pub(super) fn bounds_of(&self, series_ref: u32) -> Option<(Millis, Millis)> {
        let live = self.get(series_ref).and_then(super::Series::bounds);
        let frozen = if self.frozen.is_empty() { None } else { self.frozen.bounds(series_ref) };
        match (live, frozen) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (one, other) => one.or(other),
        }
    }

    pub(super) fn check_applied(&self) -> Result<(), super::Unapplied> {
        match self.unapplied {
            0 => Ok(()),
            batches => Err(super::Unapplied { batches }),
        }
    }
}
