//! What is there, in three numbers a slot: the digests of a tenant's samples, and all its heads hold under one look.

use std::collections::{BTreeMap, BTreeSet};

use engram_model::digest::{Digest, slot_of};
use engram_model::error::Class;
use engram_model::merge::join_series;
use engram_model::series::{Columns, Series, Wanted};
use engram_model::{Millis, TimeRange};
use engram_storage::head::HeadOptions;

use super::super::hide::Hider;
use super::{Bounds, View, damaged};
use crate::error::Error;
use crate::peer::{PartitionView, SlotDigests};

impl View {
    /// Everything the heads hold of the tenant, each partition under one look of its own, deleted samples too.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read, or this view is too old.
    pub async fn everything(&self) -> Result<Vec<PartitionView>, Error> {
        let as_of = self.look.index;
        let parts = self.ask_each(&[], TimeRange::ALL, as_of, |replica, request| replica.everything(request)).await?;
        let work = engram_storage::blocking::blocking(move || parts.into_iter().map(union).collect()).await;
        work.map_err(|e| Error::new(Class::Internal, format!("joining replicas failed: {e}")))?
    }

    /// What is deleted in a range.
    ///
    /// # Errors
    /// Internal when a selector that was taken does not parse.
    pub fn hider(&self, range: TimeRange) -> Result<Hider, Error> {
        Hider::new(&self.look.deletions, range)
    }

    /// All the blocks hold of a range, without what is deleted; no series twice.
    ///
    /// # Errors
    /// Unavailable when a block cannot be read.
    pub async fn of_blocks(&self, range: TimeRange) -> Result<Vec<Series>, Error> {
        let hider = self.hider(range)?;
        Ok(join_series(self.read_blocks(&[], range, false, &hider, Bounds::default()).await?))
    }

    /// Starts of the windows of `range` that a block reaches into.
    #[must_use]
    pub fn block_windows(&self, range: TimeRange, window_ms: i64) -> BTreeSet<Millis> {
        let mut windows = BTreeSet::new();
        for row in self.look.blocks.iter().filter(|row| row.meta.range.overlaps(range)) {
            let (from, end) = (row.meta.range.start.max(range.start), row.meta.range.end.min(range.end));
            let mut at = from.div_euclid(window_ms).saturating_mul(window_ms);
            while at < end {
                windows.insert(at);
                at = at.saturating_add(window_ms);
            }
        }
        windows
    }

    /// The digest of each slot that holds samples, over all partitions and blocks: what is answered, in three numbers a
    /// slot. Where a window lies in heads alone and nothing of it is hidden, the heads' own; where several places hold
    /// it, of what is left when they are merged, read window by window.
    ///
    /// # Errors
    /// Unavailable when a partition or a block cannot be read, or this view is too old.
    pub async fn digests(&self, range: TimeRange) -> Result<BTreeMap<Millis, Digest>, Error> {
        let window_ms = HeadOptions::default().window_ms;
        let window_of = |at: Millis| at.div_euclid(window_ms).saturating_mul(window_ms);
        let parts = self.ask_each(&[], range, self.look.index, |replica, request| replica.digests(request)).await?;
        let mut windows = self.block_windows(range, window_ms);
        windows.extend(parts.iter().flat_map(|replicas| differing(replicas)).map(window_of));
        let mut all: BTreeMap<Millis, Digest> = BTreeMap::new();
        for (slot, digest) in parts.into_iter().filter_map(|mut replicas| replicas.pop()).flatten() {
            let window = window_of(slot);
            let span = TimeRange::new(window, window.saturating_add(window_ms));
            if self.look.deletions.iter().any(|deletion| deletion.range.overlaps(span)) {
                windows.insert(window);
            }
            if !windows.contains(&window) {
                all.entry(slot).or_default().add(digest);
            }
        }
        for start in windows {
            let span = TimeRange::new(start.max(range.start), start.saturating_add(window_ms).min(range.end));
            let series = self.samples_within(&[], span, Wanted::default(), Bounds::default()).await?;
            let work = engram_storage::blocking::blocking(move || digests_of(&series, span)).await;
            let slots = work.map_err(|e| Error::new(Class::Internal, format!("reading samples failed: {e}")))??;
            for (slot, digest) in slots {
                all.entry(slot).or_default().add(digest);
            }
        }
        Ok(all)
    }
}

/// What several replicas of a partition hold, as one.
fn union(mut replicas: Vec<PartitionView>) -> Result<PartitionView, Error> {
    if replicas.windows(2).all(|two| two[0].digests == two[1].digests) {
        return Ok(replicas.pop().unwrap_or_default());
    }
    let series = join_series(replicas.into_iter().map(|view| view.series).collect());
    let digests = digests_of(&series, TimeRange::ALL)?.into_iter().collect();
    Ok(PartitionView { series, digests })
}

/// Slots of which replicas of one partition do not hold the same.
fn differing(replicas: &[SlotDigests]) -> BTreeSet<Millis> {
    let Some((first, others)) = replicas.split_first() else { return BTreeSet::new() };
    let first: BTreeSet<(Millis, u64, u64, u64)> = first.iter().map(spelled).collect();
    let each = others.iter().flat_map(|other| {
        let other: BTreeSet<_> = other.iter().map(spelled).collect();
        first.symmetric_difference(&other).map(|spelled| spelled.0).collect::<Vec<_>>()
    });
    each.collect()
}

fn spelled((slot, digest): &(Millis, Digest)) -> (Millis, u64, u64, u64) {
    (*slot, digest.count, digest.low, digest.high)
}

/// The digest of each slot of some series.
///
/// # Errors
/// Internal for damage.
pub(crate) fn digests_of(series: &[Series], range: TimeRange) -> Result<BTreeMap<Millis, Digest>, Error> {
    let mut slots: BTreeMap<Millis, Digest> = BTreeMap::new();
    let mut columns = Columns::default();
    for one in series {
        let hash = one.source.series_hash().unwrap_or_else(|| one.labels.hash128());
        columns.clear();
        one.source.read(range, &mut columns).map_err(|e| damaged(&e))?;
        let floats = columns.times.iter().zip(&columns.values).map(|(at, v)| (*at, Digest::of_float(hash, *at, *v)));
        let histograms = columns.histogram_times.iter().zip(&columns.histograms);
        let histograms = histograms.map(|(at, histogram)| (*at, Digest::of_histogram(hash, *at, histogram)));
        for (at, digest) in floats.chain(histograms).filter(|(at, _)| range.contains(*at)) {
            slots.entry(slot_of(at)).or_default().add(digest);
        }
    }
    Ok(slots)
}
