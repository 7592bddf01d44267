//! Appending in two steps around the log's sync: [`Head::stage`] before, [`Head::apply`] after.
//!
//! Why two: the payload must be durable before a sample is visible, and must name each series by its ref, so series
//! are made in the first step and samples are judged in the second, which is all that replay has to repeat. What
//! judging depends on (limits) stands in the payload.
//!
//! Rules for one sample, as in Prometheus where it has the rule: newer than the newest of its series: taken, unless
//! it is older than the tenant's newest by more than the allowed age. At the time of a stored one: a duplicate when
//! it is the same bit for bit (fine, and answered so at any age, because senders repeat themselves), refused when it
//! differs. Older: taken within the out-of-order window, else refused. Start timestamps decide nothing here: a sample
//! that is there already with another start is a duplicate, and the first start stays.
//!
//! In repair, replicas take what a peer has at any age, and of two values at one time the greater bits win on each
//! of them, so that they end up alike.
//!
//! Source: `prometheus tsdb/head_append.go` (`appendable`).

use std::collections::HashMap;

use engram_model::Millis;
use engram_model::batch::WriteBatch;
use engram_model::digest::{Digest, slot_of};
use engram_model::merge::Rank;
use engram_model::tenant::TenantLimits;

use super::series::{Found, Series, SeriesRef};
use super::starts::Stamp;
use super::{Head, payload};
use crate::chunk::ValueRef;
use crate::chunk::histogram::{canonical, is_storable};
use crate::codec::put_uvarint;

use std::sync::Arc;

/// What a sewn chunk is counted as while it waits for its file, about.
const SEWN_BYTES: usize = 256;

/// What a batch is held to.
#[derive(Clone, Copy, Debug)]
pub struct AppendLimits {
    /// Most series of this head; 0: no limit but [`super::SERIES_MAX`].
    pub series_max: u64,
    /// How far behind the head's newest sample a sample of a series may lie that has newer ones.
    pub out_of_order_window_ms: i64,
    /// How far behind the head's newest sample any sample may lie (Prometheus: half a block, one hour); 0: no limit.
    pub in_order_age_max_ms: i64,
    /// Exemplars kept by this head; 0: none.
    pub exemplars_max: u32,
    /// Metrics whose metadata this head keeps; 0: none. The caller chooses which head keeps a tenant's metadata.
    pub metadata_max: u32,
    /// Whether this is a replica's repair, not a client's write.
    pub repair: bool,
}

impl AppendLimits {
    /// The limits of a tenant, all of them for this one head; the caller divides them where it must.
    #[must_use]
    pub fn of(limits: &TenantLimits) -> Self {
        Self {
            series_max: limits.max_global_series_per_user,
            out_of_order_window_ms: limits.out_of_order_time_window_ms,
            in_order_age_max_ms: 60 * 60 * 1000,
            exemplars_max: limits.max_exemplars,
            metadata_max: limits.max_metadata_per_user,
            repair: false,
        }
    }
}

/// The part of the limits that apply depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) out_of_order_window_ms: i64,
    pub(super) in_order_age_max_ms: i64,
    pub(super) exemplars_max: u32,
    pub(super) metadata_max: u32,
    pub(super) repair: bool,
}

/// Why a sample was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The tenant has as many series as it may have.
    SeriesLimit,
    /// A sample of the same time with another value is there; the first stays.
    DuplicateDifferentValue,
    /// Older than the newest of its series, and late samples are not allowed.
    OutOfOrder,
    /// Older than the out-of-order window, or than what this head still takes.
    TooOld,
    /// A histogram whose counts do not agree with its spans.
    BadHistogram,
    /// The chunk the sample belongs into does not decode: memory is damaged.
    Damaged,
}

/// One refused sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index of its series in the batch; in a replay, the series' ref.
    pub series: u32,
    /// Its time.
    pub at: Millis,
    /// Why.
    pub reason: Reason,
}

/// What became of the samples of a batch: `appended + duplicates + refused.len()` is their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Samples that are new.
    pub appended: u64,
    /// Of these, how many replaced a smaller value at their time (in repair only).
    pub replaced: u64,
    /// Samples that were there already.
    pub duplicates: u64,
    /// The others.
    pub refused: Vec<Refused>,
    /// How many of the refused are histograms.
    pub histograms_refused: u64,
    /// Exemplars kept.
    pub exemplars: u64,
    /// Exemplars dropped: older than the newest of their series, or none are kept.
    pub exemplars_refused: u64,
    /// In a replay, samples of refs that no payload has named: 0 unless the log was cut before a checkpoint.
    pub unknown: u64,
}

/// A batch whose series are found and whose payload is written. Give it to [`Head::apply`], with the same batch,
/// once the payload is durable, or to [`Head::abandon`] when the log refuses the payload.
#[derive(Debug)]
#[must_use = "a staged batch holds up checkpoints until it is applied"]
pub struct Staged {
    /// Index in the batch and ref, in the order of the picks.
    pub series: Vec<(u32, SeriesRef)>,
    /// Indices in the batch of series that could not be made: the series limit.
    pub refused: Vec<u32>,
    pub(super) rules: Rules,
    /// Index in the batch and ref of the series.
    pub(super) exemplars: Vec<(u32, u32)>,
    /// Series made by this batch.
    pub created: Vec<SeriesRef>,
}

impl Head {
    /// First step: finds or makes the picked series and appends one payload to `payload`: nothing when there is
    /// nothing to log. Samples are not visible yet. `picks` are indices into `batch.series`.
    pub fn stage(&mut self, batch: &WriteBatch, picks: &[u32], limits: &AppendLimits, payload: &mut Vec<u8>) -> Staged {
        let rules = Rules {
            out_of_order_window_ms: limits.out_of_order_window_ms,
            in_order_age_max_ms: limits.in_order_age_max_ms,
            exemplars_max: limits.exemplars_max,
            metadata_max: limits.metadata_max,
            repair: limits.repair,
        };
        let from = payload.len();
        let mut staged = Staged {
            series: Vec::with_capacity(picks.len()),
            refused: vec![],
            rules,
            exemplars: vec![],
            created: vec![],
        };
        let with_starts = has_starts(batch, picks);
        payload.push(if with_starts { payload::APPEND_STARTS } else { payload::APPEND });
        payload::put_rules(payload, &rules);
        let count_at = payload.len();
        payload.extend_from_slice(&[0; 4]);
        let mut writer = payload::SampleWriter::new(with_starts);
        for &pick in picks {
            let series = &batch.series[pick as usize];
            let known = self.find(series.hash);
            let Some(series_ref) = known.or_else(|| self.room(limits.series_max)) else {
                staged.refused.push(pick);
                continue;
            };
            if known.is_none() {
                self.create(series_ref, series.hash, batch.labels_of(series));
                staged.created.push(SeriesRef(series_ref));
            }
            writer.put(payload, series_ref, known.is_none(), batch, series);
            staged.series.push((pick, SeriesRef(series_ref)));
        }
        let count = u32::try_from(staged.series.len()).unwrap_or(u32::MAX);
        payload[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
        stage_beside(batch, &mut staged, payload);
        if staged.series.is_empty() && (batch.metadata.is_empty() || rules.metadata_max == 0) {
            payload.truncate(from);
        }
        self.unapplied += 1;
        staged
    }

    /// Undoes a stage whose payload the log did not take: the series it made go again, for no later payload may name
    /// them. Call it before anything else is staged.
    ///
    /// # Panics
    /// More batches are given up than were staged.
    pub fn abandon(&mut self, staged: &Staged) {
        assert!(self.unapplied > 0, "a batch is given up that was not staged");
        self.unapplied -= 1;
        let created: Vec<u32> = staged.created.iter().map(|series_ref| series_ref.0).collect();
        self.remove_series(&created);
    }

    fn room(&self, series_max: u64) -> Option<u32> {
        let full = series_max > 0 && self.series_count() as u64 >= series_max;
        if full { None } else { self.next_ref() }
    }

    /// Second step, when the payload is durable: puts in the samples, each judged alone.
    ///
    /// # Panics
    /// More batches are applied than were staged.
    pub fn apply(&mut self, batch: &WriteBatch, staged: &Staged) -> Receipt {
        assert!(self.unapplied > 0, "a batch is applied that was not staged");
        self.unapplied -= 1;
        let mut receipt = Receipt::default();
        for &pick in &staged.refused {
            let series = &batch.series[pick as usize];
            let floats = batch.samples[series.samples.range()].iter().map(|sample| sample.at);
            let histograms = batch.histograms[series.histograms.range()].iter().map(|sample| sample.at);
            let refuse = |at| Refused { series: pick, at, reason: Reason::SeriesLimit };
            receipt.refused.extend(floats.chain(histograms).map(refuse));
            receipt.histograms_refused += series.histograms.len() as u64;
        }
        let mut slot = SlotSum::default();
        for &(pick, SeriesRef(series_ref)) in &staged.series {
            let series = &batch.series[pick as usize];
            for (sample, i) in batch.samples[series.samples.range()].iter().zip(series.samples.range()) {
                let stamp = Stamp { at: sample.at, start: batch.starts.get(i).copied().unwrap_or(0) };
                let outcome = self.put(series_ref, stamp, ValueRef::Float(sample.value), &staged.rules, &mut slot);
                receipt.note(pick, sample.at, outcome);
            }
            for sample in &batch.histograms[series.histograms.range()] {
                let stamp = Stamp { at: sample.at, start: sample.start_at };
                let outcome = self.put_histogram(series_ref, stamp, &sample.histogram, &staged.rules, &mut slot);
                receipt.note_histogram(pick, sample.at, outcome);
            }
        }
        slot.flush(&mut self.digests);
        self.note_bare(staged.created.iter().map(|series_ref| series_ref.0));
        for &(index, series_ref) in &staged.exemplars {
            let exemplar = &batch.exemplars[index as usize].1;
            let kept = self.exemplars.put(series_ref, exemplar, staged.rules.exemplars_max);
            receipt.note_exemplar(kept);
        }
        // Nothing of it was logged when none is kept: replay must find nothing to do either.
        if staged.rules.metadata_max > 0 {
            for (name, metadata) in &batch.metadata {
                self.metadata.put(name, metadata, staged.rules.metadata_max);
            }
        }
        receipt
    }

    /// Notes which of the series that were just made hold nothing: all their samples were refused.
    pub(super) fn note_bare(&mut self, created: impl Iterator<Item = u32>) {
        let Self { slots, bare, .. } = self;
        let is_bare = |at: &u32| slots.get(*at as usize).and_then(Option::as_deref).is_some_and(Series::is_empty);
        bare.extend(created.filter(is_bare));
    }

    /// As [`Self::put`], of what is stored of a histogram.
    pub(super) fn put_histogram(
        &mut self,
        series_ref: u32,
        stamp: Stamp,
        histogram: &Arc<engram_model::histogram::Histogram>,
        rules: &Rules,
        slot: &mut SlotSum,
    ) -> Outcome {
        if let Some(stored) = canonical(histogram) {
            return self.put(series_ref, stamp, ValueRef::Histogram(&Arc::new(stored)), rules, slot);
        }
        if !is_storable(histogram) {
            return Outcome::Refused(Reason::BadHistogram);
        }
        self.put(series_ref, stamp, ValueRef::Histogram(histogram), rules, slot)
    }

    /// Judges one sample and puts it in.
    #[inline]
    pub(super) fn put(
        &mut self,
        series_ref: u32,
        stamp: Stamp,
        value: ValueRef<'_>,
        rules: &Rules,
        slot: &mut SlotSum,
    ) -> Outcome {
        let at = stamp.at;
        let Some(series) = self.slots.get_mut(series_ref as usize).and_then(Option::as_deref_mut) else {
            return Outcome::Unknown;
        };
        if at < self.floor {
            return Outcome::Refused(Reason::TooOld);
        }
        let frozen = if at < self.frozen.end { self.frozen.bounds(series_ref) } else { None };
        if series.last().max(frozen.map(|bounds| bounds.1)).is_some_and(|last| at <= last) {
            return self.put_late(series_ref, stamp, value, rules, slot);
        }
        let newest = self.newest.unwrap_or(at);
        let age = newest.saturating_sub(at);
        if !rules.repair
            && rules.in_order_age_max_ms > 0
            && age > rules.in_order_age_max_ms.max(rules.out_of_order_window_ms)
        {
            return Outcome::Refused(Reason::TooOld);
        }
        let full_bytes = series.append(at, value, self.options.window_ms);
        let digest = digest_of(series.hash(), at, value);
        if full_bytes > 0 {
            self.waiting.note(series_ref, full_bytes);
        }
        slot.add(at, digest, &mut self.digests);
        self.starts.append(series_ref, stamp);
        self.sample_count += 1;
        self.newest = Some(newest.max(at));
        Outcome::Appended
    }

    /// A sample not newer than the newest of its series.
    #[cold]
    fn put_late(
        &mut self,
        series_ref: u32,
        stamp: Stamp,
        value: ValueRef<'_>,
        rules: &Rules,
        slot: &mut SlotSum,
    ) -> Outcome {
        let at = stamp.at;
        let window_ms = self.options.window_ms;
        let Some(series) = self.slots.get_mut(series_ref as usize).and_then(Option::as_deref_mut) else {
            return Outcome::Unknown;
        };
        let hash = series.hash();
        match self.frozen.find(series_ref, at) {
            Err(_) => return Outcome::Refused(Reason::Damaged),
            // Frozen samples never change: of two values the cut takes the greater.
            Ok(Some(have)) if rules.repair || ValueRef::from(&have).same(value) => return Outcome::Duplicate,
            Ok(Some(_)) => return Outcome::Refused(Reason::DuplicateDifferentValue),
            Ok(None) => {}
        }
        let replaced = match series.find(at, value) {
            Err(_) => return Outcome::Refused(Reason::Damaged),
            Ok(Found::Same) => return Outcome::Duplicate,
            Ok(Found::Other(_)) if !rules.repair => return Outcome::Refused(Reason::DuplicateDifferentValue),
            Ok(Found::Other(old)) if !is_greater(value, ValueRef::from(&old)) => return Outcome::Duplicate,
            Ok(Found::Other(old)) => Some(old),
            Ok(Found::Nothing) => None,
        };
        let age = self.newest.map_or(0, |newest| newest.saturating_sub(at));
        if !rules.repair && rules.out_of_order_window_ms <= 0 {
            return Outcome::Refused(Reason::OutOfOrder);
        }
        if !rules.repair && age > rules.out_of_order_window_ms {
            return Outcome::Refused(Reason::TooOld);
        }
        if series.last().is_none_or(|last| at > last) {
            series.append(at, value, window_ms);
        } else if series.sew(at, value, window_ms).is_err() {
            return Outcome::Refused(Reason::Damaged);
        }
        self.waiting.note(series_ref, SEWN_BYTES);
        self.starts.sew(series_ref, stamp);
        slot.add(at, digest_of(hash, at, value), &mut self.digests);
        match replaced {
            None => {
                self.sample_count += 1;
                Outcome::Appended
            }
            Some(old) => {
                slot.remove(at, digest_of(hash, at, ValueRef::from(&old)), &mut self.digests);
                Outcome::Replaced
            }
        }
    }
}

/// Whether a sample of the picked series may have a start.
fn has_starts(batch: &WriteBatch, picks: &[u32]) -> bool {
    let of = |pick: &u32| &batch.histograms[batch.series[*pick as usize].histograms.range()];
    let among_histograms = || picks.iter().any(|pick| of(pick).iter().any(|sample| sample.start_at != 0));
    !batch.starts.is_empty() || !batch.histograms.is_empty() && among_histograms()
}

/// Exemplars of picked series, and metadata.
fn stage_beside(batch: &WriteBatch, staged: &mut Staged, payload: &mut Vec<u8>) {
    if !batch.exemplars.is_empty() && staged.rules.exemplars_max > 0 {
        let refs: HashMap<u32, u32> = staged.series.iter().map(|(pick, series_ref)| (*pick, series_ref.0)).collect();
        let found = batch.exemplars.iter().zip(0..).filter_map(|((of, _), i)| Some((i, *refs.get(of)?)));
        staged.exemplars = found.collect();
    }
    put_uvarint(payload, staged.exemplars.len() as u64);
    for &(index, series_ref) in &staged.exemplars {
        payload::put_exemplar(payload, series_ref, &batch.exemplars[index as usize].1);
    }
    let metadata = if staged.rules.metadata_max > 0 { batch.metadata.as_slice() } else { &[] };
    put_uvarint(payload, metadata.len() as u64);
    metadata.iter().for_each(|(name, metadata)| payload::put_metadata(payload, name, metadata));
}

#[inline]
pub(super) fn digest_of(hash: u128, at: Millis, value: ValueRef<'_>) -> Digest {
    match value {
        ValueRef::Float(value) => Digest::of_float(hash, at, value),
        ValueRef::Histogram(histogram) => Digest::of_histogram(hash, at, histogram),
    }
}

/// The order in which two values at one time win, as everywhere: see [`Rank`].
fn is_greater(new: ValueRef<'_>, old: ValueRef<'_>) -> bool {
    let rank = |value: ValueRef<'_>| match value {
        ValueRef::Float(value) => Rank::of_float(value),
        ValueRef::Histogram(histogram) => Rank::of_histogram(histogram),
    };
    rank(new) > rank(old)
}

/// What became of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Appended,
    Replaced,
    Duplicate,
    Refused(Reason),
    /// A ref that is no series.
    Unknown,
}

impl Receipt {
    #[inline]
    pub(super) fn note(&mut self, series: u32, at: Millis, outcome: Outcome) {
        match outcome {
            Outcome::Appended => self.appended += 1,
            Outcome::Replaced => {
                self.appended += 1;
                self.replaced += 1;
            }
            Outcome::Duplicate => self.duplicates += 1,
            Outcome::Refused(reason) => self.refused.push(Refused { series, at, reason }),
            Outcome::Unknown => self.unknown += 1,
        }
    }

    pub(super) fn note_histogram(&mut self, series: u32, at: Millis, outcome: Outcome) {
        self.histograms_refused += u64::from(matches!(outcome, Outcome::Refused(_)));
        self.note(series, at, outcome);
    }

    pub(super) fn note_exemplar(&mut self, kept: bool) {
        self.exemplars += u64::from(kept);
        self.exemplars_refused += u64::from(!kept);
    }
}

/// The digest of the slot samples fall in just now: nearly all of a batch fall in one, and the map is then touched
/// once.
#[derive(Debug, Default)]
pub(super) struct SlotSum {
    slot: Option<Millis>,
    sum: Digest,
}

impl SlotSum {
    #[inline]
    pub(super) fn add(&mut self, at: Millis, digest: Digest, digests: &mut std::collections::BTreeMap<Millis, Digest>) {
        self.turn_to(at, digests);
        self.sum.add(digest);
    }

    fn remove(&mut self, at: Millis, digest: Digest, digests: &mut std::collections::BTreeMap<Millis, Digest>) {
        self.turn_to(at, digests);
        self.sum.remove(digest);
    }

    #[inline]
    fn turn_to(&mut self, at: Millis, digests: &mut std::collections::BTreeMap<Millis, Digest>) {
        let slot = slot_of(at);
        if self.slot != Some(slot) {
            self.flush(digests);
            self.slot = Some(slot);
        }
    }

    /// Puts what was summed into the map.
    pub(super) fn flush(&mut self, digests: &mut std::collections::BTreeMap<Millis, Digest>) {
        if let Some(slot) = self.slot.take() {
            digests.entry(slot).or_default().add(std::mem::take(&mut self.sum));
        }
    }
}
