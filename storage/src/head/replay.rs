//! Replay: payloads of the log in their order make the head they were written from.
//!
//! Two starts are right: the very first payload, or the first payload of a whole checkpoint. In the second case, and
//! when older payloads come before the checkpoint, its series replace whatever stands at their refs, so reading too
//! much of the log does no harm. Bytes are checked; damage is an error that says where, and nothing panics.

use super::append::{Receipt, SlotSum};
use super::payload::{
    APPEND, APPEND_STARTS, FORGET, LabelPairs, MARKS, SERIES, SERIES_STARTS, read_exemplar, read_float, read_histogram,
    read_labels, read_metadata, read_rules,
};
use super::series::{Series, reopen, samples_of};
use super::starts::{Stamp, StartCode, read_runs};
use super::{Head, SERIES_MAX, add_digests};
use crate::chunk::{Chunk, Kind, Open, ValueRef};
use crate::codec::{Broken, Reader};
use engram_model::TimeRange;
use engram_model::digest::slot_of;

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
            APPEND | APPEND_STARTS => self.replay_append(&mut from, kind == APPEND_STARTS)?,
            FORGET => {
                let before = from.varint()?;
                self.forget(before)?;
                Receipt::default()
            }
            MARKS => {
                self.replay_marks(&mut from)?;
                Receipt::default()
            }
            SERIES | SERIES_STARTS => self.replay_series(&mut from, kind == SERIES_STARTS)?,
            _ => return Err(Broken { at: 0, what: "unknown kind of payload" }),
        };
        from.end()?;
        Ok(receipt)
    }

    fn replay_append(&mut self, from: &mut Reader<'_>, with_starts: bool) -> Result<Receipt, Broken> {
        let (mut receipt, mut slot, mut scratch) = (Receipt::default(), SlotSum::default(), Vec::new());
        let rules = read_rules(from)?;
        let count = from.u32()?;
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
            }
            let counts = from.uvarint()?;
            for _ in 0..counts >> 1 {
                time = time.wrapping_add(from.varint()?);
                let value = ValueRef::Float(read_float(from)?);
                let stamp = Stamp { at: time, start: read_start(from)? };
                let outcome = self.put(series_ref, stamp, value, &rules, &mut slot);
                receipt.note(series_ref, time, outcome);
            }
            if counts & 1 == 1 {
                for _ in 0..from.uvarint()? {
                    let (at, histogram) = read_histogram(from)?;
                    let stamp = Stamp { at, start: read_start(from)? };
                    let outcome = self.put_histogram(series_ref, stamp, &histogram, &rules, &mut slot);
                    receipt.note_histogram(series_ref, at, outcome);
                }
            }
        }
        slot.flush(&mut self.digests);
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

    fn replay_marks(&mut self, from: &mut Reader<'_>) -> Result<(), Broken> {
        self.floor = self.floor.max(from.varint()?);
        if from.u8()? != 0 {
            self.newest = self.newest.max(Some(from.varint()?));
        }
        Ok(())
    }

    fn replay_series(&mut self, from: &mut Reader<'_>, with_starts: bool) -> Result<Receipt, Broken> {
        let (mut receipt, mut scratch) = (Receipt::default(), Vec::new());
        while !from.is_empty() {
            let said = from.uvarint()?;
            let series_ref = checked_ref(said, from)?;
            let labels = read_labels(from, &mut scratch)?;
            let (full, open) = read_chunks(from)?;
            let starts = if with_starts { read_runs(from)? } else { Vec::new() };
            self.place(series_ref, &labels)?;
            let window_ms = self.options.window_ms;
            let Some(series) = self.slots[series_ref as usize].as_deref_mut() else { continue };
            let fresh = Series::new(labels.hash, std::mem::take(&mut series.pairs));
            let before = std::mem::replace(series, fresh);
            series.restore(full, open, window_ms);
            self.starts.restore(series_ref, starts);
            receipt.appended += series.sample_count();
            self.sample_count += series.sample_count();
            add_digests(&mut self.digests, series)?;
            self.subtract(&before)?;
        }
        Ok(receipt)
    }

    /// Makes sure that the series of these labels is at this ref; another there, or the same elsewhere, gives way.
    fn place(&mut self, series_ref: u32, labels: &LabelPairs<'_>) -> Result<(), Broken> {
        if let Some(have) = self.get(series_ref)
            && have.hash() == labels.hash
        {
            return Ok(());
        }
        let elsewhere = self.find(labels.hash);
        let there = self.get(series_ref).map(|_| series_ref);
        for gone in elsewhere.into_iter().chain(there) {
            if let Some(series) = self.slots[gone as usize].as_deref_mut() {
                let fresh = Series::new(series.hash(), std::mem::take(&mut series.pairs));
                let before = std::mem::replace(series, fresh);
                self.subtract(&before)?;
            }
            self.remove_series(&[gone]);
        }
        self.create(series_ref, labels.hash, labels.pairs.iter().copied());
        Ok(())
    }

    /// Takes the samples of a series that is gone out of the counts.
    fn subtract(&mut self, gone: &Series) -> Result<(), Broken> {
        self.sample_count -= gone.sample_count();
        for chunk in gone.chunks(TimeRange::ALL) {
            for (at, value) in samples_of(&chunk)? {
                let digest = super::append::digest_of(gone.hash(), at, ValueRef::from(&value));
                let slot = self.digests.entry(slot_of(at)).or_default();
                slot.remove(digest);
                if slot.count == 0 {
                    self.digests.remove(&slot_of(at));
                }
            }
        }
        Ok(())
    }
}

fn checked_ref(said: u64, from: &Reader<'_>) -> Result<u32, Broken> {
    match u32::try_from(said) {
        Ok(series_ref) if series_ref < SERIES_MAX => Ok(series_ref),
        _ => Err(Broken { at: from.at(), what: "series ref is above its limit" }),
    }
}

/// The full chunks of a series, and the one that is open still.
fn read_chunks(from: &mut Reader<'_>) -> Result<(Vec<Chunk>, Open), Broken> {
    let (count, mut full, mut open) = (from.length(CHUNKS_MAX)?, Vec::new(), Open::None);
    let mut last = None;
    for i in 0..count {
        let at = from.at();
        let head = from.u8()?;
        let kind = Kind::from_number(head & 0x7f).ok_or(Broken { at, what: "unknown kind of chunk" })?;
        let bytes = from.prefixed()?;
        let chunk = Chunk::checked(kind, bytes).map_err(|broken| Broken { at, what: broken.what })?;
        if last.is_some_and(|last| last >= chunk.first) {
            return Err(Broken { at, what: "chunks of a series overlap" });
        }
        last = Some(chunk.last);
        match head & 0x80 {
            0 => full.push(chunk),
            _ if i + 1 == count => open = reopen(kind, bytes)?,
            _ => return Err(Broken { at, what: "an open chunk is not the last" }),
        }
    }
    Ok((full, open))
}
