//! Replay: payloads of the log in their order make the head they were written from.
//!
//! Two starts are right: the very first payload, or the first payload of a whole checkpoint. A checkpoint's first payload
//! empties the head, so reading too much of the log before it does no harm; whether it is whole is the caller's affair.
//! Bytes are checked; damage is an error that says where, and nothing panics.

use super::append::{Receipt, SlotSum};
use super::frozen::Frozen;
use super::payload::{
    APPEND, APPEND_STARTS, DIGESTS, FORGET, FORGET_FROZEN, FROZEN, IN_FILE, IS_OPEN, LabelPairs, MARKS, MARKS_SEALED,
    SEAL, SERIES, SERIES_STARTS, SWEEP, read_exemplar, read_float, read_histogram, read_labels, read_metadata,
    read_rules, read_u32,
};
use super::series::reopen;
use super::starts::{Stamp, StartCode, read_runs};
use super::{Head, SERIES_MAX, add_chunk_digests};
use crate::chunk::file::InFile;
use crate::chunk::{Chunk, Kind, Open, ValueRef};
use crate::codec::{Broken, Reader};
use engram_model::TimeRange;
use engram_model::digest::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most chunks of one series in a checkpoint.
const CHUNKS_MAX: usize = 1 << 20;

impl Head {
    /// Applies one payload that [`Head::stage`], [`Head::forget_before`] or [`Head::snapshot`] wrote, with the effect
    /// the writer's call had.
    ///
    /// # Errors
    /// The bytes are damaged, at the offset told. What came before it in the payload may have been applied: the head
    /// is of no more use.
    pub fn replay(&mut self, payload: &[u8]) -> Result<Receipt, Broken> {
        let mut from = Reader::new(payload);
        let kind = from.u8()?;
        let receipt = match kind {
            APPEND | APPEND_STARTS => self.replay_append(&mut from, kind == APPEND_STARTS, None)?,
            FORGET => {
                let before = from.varint()?;
                self.forget(before)?;
                Receipt::default()
            }
            MARKS | MARKS_SEALED => {
                self.replay_marks(&mut from, kind == MARKS_SEALED)?;
                Receipt::default()
            }
            SEAL => {
                let (number, start, end) = (from.uvarint()?, from.varint()?, from.varint()?);
                if number <= self.frozen.sealed {
                    return Err(Broken { at: from.at(), what: "seals do not come in order of number" });
                }
                self.freeze(number, TimeRange::new(start, end))?;
                Receipt::default()
            }
            FORGET_FROZEN => {
                let (number, index) = (from.uvarint()?, from.uvarint()?);
                if self.frozen(number).is_none() {
                    return Err(Broken { at: from.at(), what: "what is to be forgotten is not frozen" });
                }
                self.drop_frozen(number, index);
                Receipt::default()
            }
            SWEEP => {
                self.drop_bare();
                Receipt::default()
            }
            FROZEN => self.replay_frozen(&mut from)?,
            DIGESTS => {
                self.replay_digests(&mut from)?;
                Receipt::default()
            }
            SERIES | SERIES_STARTS => self.replay_series(&mut from, kind == SERIES_STARTS)?,
            _ => return Err(Broken { at: 0, what: "unknown kind of payload" }),
        };
        from.end()?;
        Ok(receipt)
    }

    /// An append; with threads to `gather` for, floats wait until they are put in with others, and are in no receipt.
    pub(super) fn replay_append(
        &mut self,
        from: &mut Reader<'_>,
        with_starts: bool,
        gather: Option<usize>,
    ) -> Result<Receipt, Broken> {
        let (mut receipt, mut slot, mut scratch) = (Receipt::default(), SlotSum::default(), Vec::new());
        let rules = read_rules(from)?;
        let count = from.u32()?;
        let mut created = Vec::new();
        let (mut time, mut before) = (0_i64, 0_i64);
        let mut starts = with_starts.then(StartCode::default);
        let mut read_start = |from: &mut Reader<'_>| starts.as_mut().map_or(Ok(0), |starts| starts.read(from));
        for _ in 0..count {
            let tag = from.varint()?;
            before = before.wrapping_add(tag >> 1);
            let series_ref = checked_ref(before.cast_unsigned(), from)?;
            if tag & 1 == 1 {
                let labels = read_labels(from, &mut scratch)?;
                self.place(series_ref, &labels)?;
                created.push(series_ref);
            }
            let counts = from.uvarint()?;
            if let Some(threads) = gather {
                let gathered = self.gathered_under(&rules, threads);
                for _ in 0..counts >> 1 {
                    time = time.wrapping_add(from.varint()?);
                    gathered.push(series_ref, time, read_float(from)?);
                }
            } else {
                for _ in 0..counts >> 1 {
                    time = time.wrapping_add(from.varint()?);
                    let value = ValueRef::Float(read_float(from)?);
                    let stamp = Stamp { at: time, start: read_start(from)? };
                    let outcome = self.put(series_ref, stamp, value, &rules, &mut slot);
                    receipt.note(series_ref, time, outcome);
                }
            }
            if counts & 1 == 1 {
                // Floats of this series that came before are put in before.
                self.put_gathered();
                for _ in 0..from.uvarint()? {
                    let (at, histogram) = read_histogram(from)?;
                    let stamp = Stamp { at, start: read_start(from)? };
                    let outcome = self.put_histogram(series_ref, stamp, &histogram, &rules, &mut slot);
                    receipt.note_histogram(series_ref, at, outcome);
                }
            }
        }
        slot.flush(&mut self.digests);
        if let Some(threads) = gather {
            let gathered = self.gathered_under(&rules, threads);
            created.into_iter().for_each(|series_ref| gathered.create(series_ref));
        } else {
            self.note_bare(created.into_iter());
        }
        for _ in 0..from.uvarint()? {
            let (series_ref, exemplar) = read_exemplar(from, &mut scratch)?;
            let kept = self.get(series_ref).is_some() && self.exemplars.put(series_ref, &exemplar, rules.exemplars_max);
            receipt.note_exemplar(kept);
        }
        for _ in 0..from.uvarint()? {
            let (name, metadata) = read_metadata(from)?;
            self.metadata.put(name, &metadata, rules.metadata_max);
        }
        Ok(receipt)
    }

    /// A checkpoint begins: it stands for all that was before.
    fn replay_marks(&mut self, from: &mut Reader<'_>, sealed: bool) -> Result<(), Broken> {
        *self = Self::with_files(Arc::clone(&self.symbols), self.options, self.files.take());
        self.floor = from.varint()?;
        if from.u8()? != 0 {
            self.newest = Some(from.varint()?);
        }
        if sealed {
            self.frozen.read_marks(from)?;
        }
        Ok(())
    }

    fn replay_series(&mut self, from: &mut Reader<'_>, with_starts: bool) -> Result<Receipt, Broken> {
        let (mut receipt, mut scratch) = (Receipt::default(), Vec::new());
        while !from.is_empty() {
            let said = from.uvarint()?;
            let series_ref = checked_ref(said, from)?;
            let labels = read_labels(from, &mut scratch)?;
            let (full, open) = self.read_chunks(from)?;
            let starts = if with_starts { read_runs(from)? } else { Vec::new() };
            self.place(series_ref, &labels)?;
            let window_ms = self.options.window_ms;
            let Some(series) = self.slots[series_ref as usize].as_deref_mut() else { continue };
            if !series.is_empty() || self.frozen.holds(series_ref) {
                return Err(Broken { at: from.at(), what: "a series of a checkpoint comes twice" });
            }
            let on_heap: usize = full.iter().map(|chunk| chunk.bytes.heap_bytes()).sum();
            if on_heap > 0 {
                self.waiting.note(series_ref, on_heap);
            }
            series.restore(full, open, window_ms);
            self.starts.restore(series_ref, starts);
            receipt.appended += series.sample_count();
            self.sample_count += series.sample_count();
            for chunk in series.chunks(TimeRange::ALL).iter().filter(|chunk| chunk.bytes.in_file().is_none()) {
                add_chunk_digests(&mut self.digests, series.hash(), chunk)?;
            }
            self.note_bare(std::iter::once(series_ref));
        }
        Ok(receipt)
    }

    /// A piece of a frozen part.
    fn replay_frozen(&mut self, from: &mut Reader<'_>) -> Result<Receipt, Broken> {
        let (number, window) = (from.uvarint()?, TimeRange::new(from.varint()?, from.varint()?));
        let known = self.frozen.parts.remove(&number).and_then(Arc::into_inner);
        let mut part = known.unwrap_or_else(|| Frozen::empty(number, window));
        if part.window() != window || number > self.frozen.sealed {
            return Err(Broken {
                at: from.at(),
                what: "a frozen part has two windows, or a number that was not sealed",
            });
        }
        let before = part.sample_count();
        let mut digests = BTreeMap::new();
        while !from.is_empty() {
            let at = from.at();
            let said = from.uvarint()?;
            let series_ref = checked_ref(said, from)?;
            let (chunks, open) = self.read_chunks(from)?;
            let inside = |chunk: &Chunk| window.contains(chunk.first) && window.contains(chunk.last);
            let Some(series) = self.get(series_ref) else {
                return Err(Broken { at, what: "frozen samples of an unknown series" });
            };
            if chunks.is_empty() || open.count() > 0 || !chunks.iter().all(inside) {
                return Err(Broken { at, what: "frozen chunks are open or outside of their window" });
            }
            if part.last_ref().is_some_and(|last| last >= series_ref) {
                return Err(Broken { at, what: "series of a frozen part do not come in order" });
            }
            let hash = series.hash();
            let on_heap = chunks.iter().filter(|chunk| chunk.bytes.in_file().is_none());
            on_heap.into_iter().try_for_each(|chunk| add_chunk_digests(&mut digests, hash, chunk))?;
            self.bare.remove(series_ref);
            part.push(series_ref, chunks);
        }
        for (slot, digest) in digests {
            part.add_digest(slot, digest);
            self.digests.entry(slot).or_default().add(digest);
        }
        let appended = part.sample_count() - before;
        self.sample_count += appended;
        self.frozen.put(part);
        Ok(Receipt { appended, ..Receipt::default() })
    }

    /// Makes sure that the series of these labels is at this ref. Another there, or the same elsewhere, gives way: it was
    /// dropped before this was written, and holds nothing.
    fn place(&mut self, series_ref: u32, labels: &LabelPairs<'_>) -> Result<(), Broken> {
        if let Some(have) = self.get(series_ref)
            && have.hash() == labels.hash
        {
            return Ok(());
        }
        let elsewhere = self.find(labels.hash);
        let there = self.get(series_ref).map(|_| series_ref);
        if elsewhere.is_some() || there.is_some() {
            // What is still to be put into them shows whether they may go.
            self.put_gathered();
        }
        for gone in elsewhere.into_iter().chain(there) {
            if self.bounds_of(gone).is_some() {
                return Err(Broken { at: 0, what: "the ref of a series with samples is given to another" });
            }
            self.remove_series(&[gone]);
        }
        self.create(series_ref, labels.hash, labels.pairs.iter().copied());
        Ok(())
    }
}

fn checked_ref(said: u64, from: &Reader<'_>) -> Result<u32, Broken> {
    match u32::try_from(said) {
        Ok(series_ref) if series_ref < SERIES_MAX => Ok(series_ref),
        _ => Err(Broken { at: from.at(), what: "series ref is above its limit" }),
    }
}

/// The smallest a chunk of a checkpoint can be.
const CHUNK_BYTES_MIN: usize = 3;

impl Head {
    /// The digests as the checkpoint's writer had them.
    fn replay_digests(&mut self, from: &mut Reader<'_>) -> Result<(), Broken> {
        while !from.is_empty() {
            let at = from.at();
            let (number, count) = (from.uvarint()?, from.uvarint()?);
            let mut digests = BTreeMap::new();
            for _ in 0..count {
                let slot = from.varint()?;
                digests.insert(slot, Digest { count: from.u64()?, low: from.u64()?, high: from.u64()? });
            }
            let said: Digest = digests.values().copied().sum();
            if number == 0 {
                if said.count != self.sample_count {
                    return Err(Broken { at, what: "digests are of another number of samples than the series" });
                }
                self.digests = digests;
                continue;
            }
            let part = self.frozen.parts.get_mut(&number).and_then(Arc::get_mut);
            let Some(part) = part.filter(|part| part.sample_count() == said.count) else {
                return Err(Broken { at, what: "digests are of another number of samples than the frozen part" });
            };
            part.digests = digests;
        }
        Ok(())
    }

    /// The full chunks of a series, and the one that is open still.
    fn read_chunks(&self, from: &mut Reader<'_>) -> Result<(Vec<Chunk>, Open), Broken> {
        let (count, mut open) = (from.length(CHUNKS_MAX)?, Open::None);
        let mut full = Vec::with_capacity(count.min(from.rest().len() / CHUNK_BYTES_MIN));
        let mut last = None;
        for i in 0..count {
            let at = from.at();
            let head = from.u8()?;
            let kind = head & !(IS_OPEN | IN_FILE);
            let kind = Kind::from_number(kind).ok_or(Broken { at, what: "unknown kind of chunk" })?;
            let chunk = if head & IN_FILE == 0 {
                let bytes = from.prefixed()?;
                if head & IS_OPEN != 0 {
                    if i + 1 != count {
                        return Err(Broken { at, what: "an open chunk is not the last" });
                    }
                    open = reopen(kind, bytes)?;
                    if open.bounds().zip(last).is_some_and(|((first, _), last)| last >= first) {
                        return Err(Broken { at, what: "chunks of a series overlap" });
                    }
                    break;
                }
                Chunk::checked(kind, bytes).map_err(|broken| Broken { at, what: broken.what })?
            } else if head & IS_OPEN == 0 {
                self.read_kept(kind, from)?
            } else {
                return Err(Broken { at, what: "an open chunk lies in a file" });
            };
            if last.is_some_and(|last| last >= chunk.first) {
                return Err(Broken { at, what: "chunks of a series overlap" });
            }
            last = Some(chunk.last);
            full.push(chunk);
        }
        Ok((full, open))
    }

    /// A chunk in a file; its samples are not looked at.
    fn read_kept(&self, kind: Kind, from: &mut Reader<'_>) -> Result<Chunk, Broken> {
        let at = from.at();
        let place = InFile { number: from.uvarint()?, at: read_u32(from)?, len: read_u32(from)? };
        let first = from.varint()?;
        let last = first.wrapping_add(from.varint()?);
        let count = u16::try_from(from.uvarint()?).ok().filter(|count| *count > 0);
        let Some(count) = count.filter(|_| first <= last) else {
            return Err(Broken { at, what: "a chunk in a file is empty, or ends before it begins" });
        };
        let Some(files) = &self.files else {
            return Err(Broken { at, what: "a chunk lies in a file, and there are no files" });
        };
        Ok(Chunk { first, last, bytes: files.bytes_at(place)?, count, kind })
    }
}
