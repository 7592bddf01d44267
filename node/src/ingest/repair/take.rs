//! Taking: what another replica has and this one lacks, read from both, compared by content, appended here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use engram_model::batch::{BatchSeries, HistogramSample, Pair, Run, Text, WriteBatch};
use engram_model::digest::{Digest, SLOT_MS};
use engram_model::error::Class;
use engram_model::merge::Rank;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::sample::Sample;
use engram_model::series::{Columns, ReadError, Series};
use engram_model::tenant::TenantId;
use engram_model::{Millis, TimeRange};

use super::Config;
use crate::error::Error;
use crate::ingest::partition::TOO_OLD;
use crate::peer::{Append, Refused, Select};

/// Samples pulled at once, as far as slots allow.
const PULL_SAMPLES: u64 = 200_000;
/// Series of one repairing append.
const APPEND_SERIES_MAX: usize = 2000;
/// How long one append may take.
const APPEND_WITHIN: Duration = Duration::from_secs(30);
/// How long one question to another node may take.
const ASK_WITHIN: Duration = Duration::from_secs(60);

impl Config {
    pub(super) async fn inventory(
        &self,
        node: NodeId,
        partition: PartitionId,
        epoch: Epoch,
    ) -> Result<Vec<(TenantId, Digest)>, Error> {
        let replica = self.peers.replica(node)?;
        in_time(replica.inventory(partition, epoch)).await
    }

    /// What this replica and another have in a range.
    pub(super) async fn both(&self, at: &At, range: TimeRange) -> Result<(Vec<Series>, Vec<Series>), Error> {
        let (own, other) = (self.peers.replica(self.here())?, self.peers.replica(at.node)?);
        let select = at.select(range);
        futures::future::try_join(in_time(own.select(select.clone())), in_time(other.select(select))).await
    }

    /// Digests, own and the other's, of the slots of a range in which the other has something and they
    /// differ.
    pub(super) async fn differing(
        &self,
        at: &At,
        range: TimeRange,
        why: Why,
    ) -> Result<BTreeMap<Millis, (Digest, Digest)>, Error> {
        let select = at.select(range);
        let (own, other) = (self.peers.replica(self.here())?, self.peers.replica(at.node)?);
        let (own, other) =
            futures::future::try_join(in_time(own.digests(select.clone())), in_time(other.digests(select))).await?;
        let own: HashMap<Millis, Digest> = own.into_iter().collect();
        let head = self.heads.get(at.partition.0 as usize).and_then(|heads| heads.get(&at.tenant));
        let seals = self.meta.seals(&at.tenant, at.partition);
        // Cut, forgotten here, and maybe not by others: seals that are not cut, or were cut later, hold what is new.
        let in_block = |range: TimeRange, forgotten_at: u64| {
            let open = seals.iter().flat_map(|seals| &seals.open).filter(|seal| seal.window.overlaps(range));
            open.filter_map(|seal| seal.cut).any(|cut| cut.index <= forgotten_at)
        };
        let forgotten = |slot: Millis| {
            let range = TimeRange { start: slot, end: slot.saturating_add(SLOT_MS) };
            head.as_ref().map(|head| head.read()).is_some_and(|head| {
                slot < head.floor() || (why == Why::Comparing && in_block(range, head.forgotten_after(range)))
            })
        };
        Ok(other
            .into_iter()
            // What this head has forgotten by age it does not take back; nor, comparing, what a block holds while others
            // may not have forgotten it yet. Once all have, what they hold of that time came late, and is taken. Who
            // completes takes it twice rather than not at all: what came late lies in the same slots.
            .filter(|(slot, digest)| digest.count > 0 && !forgotten(*slot))
            .map(|(slot, digest)| (slot, (own.get(&slot).copied().unwrap_or_default(), digest)))
            .filter(|(_, (own, other))| own != other)
            .collect())
    }

    /// Pulls slots, neighbours together as long as they are not too many samples. How many samples were refused here
    /// although they are young enough.
    pub(super) async fn pull(&self, at: &At, slots: &[(Millis, u64)]) -> Result<u64, Error> {
        let mut refused = 0;
        for range in ranges(slots) {
            let (own, other) = self.both(at, range).await?;
            refused += self.put(at, (own, other), range).await?.1;
        }
        Ok(refused)
    }

    /// Appends what `other` has in a range and `own` lacks. How many samples that were, and how many were refused.
    pub(super) async fn put(
        &self,
        at: &At,
        (own, other): (Vec<Series>, Vec<Series>),
        range: TimeRange,
    ) -> Result<(u64, u64), Error> {
        let (mut lacked, mut refused) = (0, 0);
        for batch in on_thread(move || missing(&own, &other, range)).await? {
            lacked += batch.sample_count() as u64;
            refused += self.append(at, self.here(), batch).await?;
        }
        Ok((lacked, refused))
    }

    /// Appends what one of two replicas lacks to it; how many samples were refused although they are young enough.
    pub(super) async fn append(&self, at: &At, to: NodeId, batch: WriteBatch) -> Result<u64, Error> {
        let picks = (0..u32::try_from(batch.series.len()).unwrap_or(0)).collect();
        let samples = batch.sample_count();
        let request = Append {
            tenant: at.tenant.clone(),
            limits: self.meta.tenant(&at.tenant).limits,
            partition: at.partition,
            epoch: at.epoch,
            batch: Arc::new(batch),
            picks: Arc::new(picks),
            metadata: false,
            memory: None,
            repair: true,
            as_of: 0,
            packed: Arc::default(),
        };
        let done = self.peers.replica(to)?.append(request, APPEND_WITHIN).await?;
        let from = if to == self.here() { at.node.0 } else { self.here().0 };
        let (partition, to, tenant) = (at.partition.0, to.0, at.tenant.as_str());
        let refused = refused_young(&done.refused);
        if refused > 0 {
            let why = done.refused.first.unwrap_or_default();
            tracing::warn!(partition, from, to, tenant, refused, why, "samples of another replica are refused");
        }
        tracing::debug!(partition, from, to, tenant, samples, refused, "taken from another replica");
        Ok(refused)
    }
}

/// Why slots are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Replicas are compared, again and again: what is left out now is found later.
    Comparing,
    /// This replica is to have all that another has.
    Completing,
}

/// A tenant of a partition on another node, under one epoch.
#[derive(Clone)]
pub(super) struct At {
    pub(super) node: NodeId,
    pub(super) partition: PartitionId,
    pub(super) epoch: Epoch,
    pub(super) tenant: TenantId,
}

impl At {
    pub(super) fn select(&self, range: TimeRange) -> Select {
        Select {
            tenant: self.tenant.clone(),
            partition: self.partition,
            epoch: self.epoch,
            range,
            matchers: Arc::default(),
            series_max: 0,
            wanted: Arc::default(),
            as_of: u64::MAX,
        }
    }
}

pub(super) async fn in_time<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ASK_WITHIN, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(Class::Timeout, format!("no answer within {} s", ASK_WITHIN.as_secs()))),
    }
}

/// Runs work that may take its time on a thread for that.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, Error> {
    engram_storage::blocking::blocking(work)
        .await
        .map_err(|e| Error::new(Class::Internal, format!("comparing replicas failed: {e}")))?
        .map_err(|e| Error::new(Class::Internal, e.to_string()))
}

/// How many samples were refused for another reason than their age: what is below this head's floor it has forgotten.
fn refused_young(refused: &Refused) -> u64 {
    let old = refused.by_reason.iter().filter(|(word, _)| *word == TOO_OLD).map(|(_, count)| count);
    refused.count.saturating_sub(old.sum())
}

/// Ranges over slots with their counts, in order of time.
pub(super) fn ranges(slots: &[(Millis, u64)]) -> Vec<TimeRange> {
    let mut all: Vec<(TimeRange, u64)> = Vec::new();
    for (slot, count) in slots {
        let end = slot.saturating_add(SLOT_MS);
        match all.last_mut() {
            Some((last, sum)) if last.end == *slot && *sum + count <= PULL_SAMPLES => {
                last.end = end;
                *sum += count;
            }
            _ => all.push((TimeRange { start: *slot, end }, *count)),
        }
    }
    all.into_iter().map(|(range, _)| range).collect()
}

fn hash(series: &Series) -> u128 {
    series.source.series_hash().unwrap_or_else(|| series.labels.hash128())
}

/// How many samples `other` has in the range at times at which `own` has none of the series.
pub(super) fn absent(own: &[Series], other: &[Series], range: TimeRange) -> Result<u64, ReadError> {
    let own: HashMap<u128, &Series> = own.iter().map(|series| (hash(series), series)).collect();
    let (mut have, mut theirs) = (Columns::default(), Columns::default());
    let mut absent = 0;
    for series in other {
        have.clear();
        theirs.clear();
        series.source.read(range, &mut theirs)?;
        if let Some(mine) = own.get(&hash(series)) {
            mine.source.read(range, &mut have)?;
        }
        let is_absent = |at: &&Millis| {
            let found = have.times.binary_search(at).or_else(|_| have.histogram_times.binary_search(at));
            range.contains(**at) && found.is_err()
        };
        absent += theirs.times.iter().chain(&theirs.histogram_times).filter(is_absent).count() as u64;
    }
    Ok(absent)
}

/// What `other` has in the range and `own` lacks, or has with smaller bits, as batches of bounded size.
pub(super) fn missing(own: &[Series], other: &[Series], range: TimeRange) -> Result<Vec<WriteBatch>, ReadError> {
    let own: HashMap<u128, &Series> = own.iter().map(|series| (hash(series), series)).collect();
    let (mut have, mut theirs) = (Columns::default(), Columns::default());
    let (mut batches, mut batch) = (Vec::new(), WriteBatch::default());
    for series in other {
        have.clear();
        theirs.clear();
        series.source.read(range, &mut theirs)?;
        if let Some(mine) = own.get(&hash(series)) {
            mine.source.read(range, &mut have)?;
        }
        put_missing(&mut batch, (series, hash(series)), (&have, &theirs), range);
        if batch.series.len() >= APPEND_SERIES_MAX {
            batches.push(std::mem::take(&mut batch));
        }
    }
    if !batch.series.is_empty() {
        batches.push(batch);
    }
    for one in &mut batches {
        if one.starts.iter().all(|start| *start == 0) {
            one.starts.clear();
        }
    }
    Ok(batches)
}

/// Appends one series to the batch with the samples that are missing; nothing when none is.
fn put_missing(
    batch: &mut WriteBatch,
    (series, hash): (&Series, u128),
    (have, theirs): (&Columns, &Columns),
    range: TimeRange,
) {
    let index = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    let (floats_at, histograms_at) = (batch.samples.len(), batch.histograms.len());
    for (i, (at, value)) in theirs.times.iter().zip(&theirs.values).enumerate() {
        let known = have.times.binary_search(at).ok().map(|at| have.values[at].to_bits());
        let covered = have.histogram_times.binary_search(at).is_ok();
        if range.contains(*at) && !covered && known.is_none_or(|bits| bits < value.to_bits()) {
            batch.samples.push(Sample { at: *at, value: *value });
            batch.starts.push(theirs.starts.get(i).copied().unwrap_or(0));
        }
    }
    for (i, (at, histogram)) in theirs.histogram_times.iter().zip(&theirs.histograms).enumerate() {
        let known = have.histogram_times.binary_search(at).ok().map(|at| &have.histograms[at]);
        if range.contains(*at) && known.is_none_or(|known| Rank::of_histogram(known) < Rank::of_histogram(histogram)) {
            let start_at = theirs.histogram_starts.get(i).copied().unwrap_or(0);
            batch.histograms.push(HistogramSample { at: *at, start_at, histogram: histogram.clone() });
        }
    }
    if batch.samples.len() == floats_at && batch.histograms.len() == histograms_at {
        return;
    }
    let pairs_at = batch.pairs.len();
    for (name, value) in series.labels.iter() {
        let mut text = |text: &str| {
            let at = Text { at: index(batch.text.len()), len: index(text.len()) };
            batch.text.extend_from_slice(text.as_bytes());
            at
        };
        let pair = Pair { name: text(name), value: text(value) };
        batch.pairs.push(pair);
    }
    let run = |from: usize, to: usize| Run { from: index(from), to: index(to) };
    batch.series.push(BatchSeries {
        hash,
        pairs: run(pairs_at, batch.pairs.len()),
        samples: run(floats_at, batch.samples.len()),
        histograms: run(histograms_at, batch.histograms.len()),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::Labels;
    use proptest::prelude::*;

    #[test]
    fn neighbouring_slots_are_pulled_together_within_bounds() {
        let slots: Vec<(Millis, u64)> =
            [(0, 90_000), (1, 90_000), (2, 90_000), (5, 1), (6, 900_000)].map(|(i, n)| (i * SLOT_MS, n)).into();
        let range = |from: i64, to: i64| TimeRange { start: from * SLOT_MS, end: to * SLOT_MS };
        assert_eq!(ranges(&slots), vec![range(0, 2), range(2, 3), range(5, 6), range(6, 7)]);
    }

    #[test]
    fn what_was_not_taken_is_seen() {
        let mut refused = Refused::default();
        refused.add(TOO_OLD, false, 3, String::new);
        assert_eq!(refused_young(&refused), 0);
        refused.add("damaged", false, 2, String::new);
        assert_eq!(refused_young(&refused), 2);
        let series = |times: &[i64], name: &str| Series {
            labels: Labels::from_pairs([("__name__", name)]),
            source: Arc::new(Columns {
                times: times.to_vec(),
                values: times.iter().map(|_| 1.0).collect(),
                ..Columns::default()
            }),
        };
        let (own, other) = ([series(&[1, 2, 7], "a")], [series(&[1, 3, 4, 9], "a"), series(&[2, 3], "b")]);
        assert_eq!(absent(&own, &other, TimeRange { start: 0, end: 9 }).unwrap(), 4);
        assert_eq!(absent(&own, &own, TimeRange { start: 0, end: 9 }).unwrap(), 0);
    }

    proptest! {
        /// Own samples and what is missing together are the union, the greater bits winning.
        #[test]
        fn what_is_missing_makes_the_union(
            own in proptest::collection::btree_map(0_i64..60, 0_u64..4, 0..30),
            other in proptest::collection::btree_map(0_i64..60, 0_u64..4, 0..30),
        ) {
            let series = |all: &BTreeMap<i64, u64>| Series {
                labels: Labels::from_pairs([("__name__", "m")]),
                source: Arc::new(Columns {
                    times: all.keys().copied().collect(),
                    values: all.values().map(|v| f64::from_bits(*v)).collect(),
                    ..Columns::default()
                }),
            };
            let range = TimeRange { start: 10, end: 50 };
            let batches = missing(&[series(&own)], &[series(&other)], range).unwrap();
            let mut have: BTreeMap<i64, u64> = own.range(10..50).map(|(a, v)| (*a, *v)).collect();
            for batch in &batches {
                prop_assert!(batch.starts.is_empty());
                for one in &batch.series {
                    prop_assert!(batch.labels_of(one).eq([("__name__", "m")]));
                    for sample in &batch.samples[one.samples.range()] {
                        let before = have.insert(sample.at, sample.value.to_bits());
                        prop_assert!(before.is_none_or(|bits| bits < sample.value.to_bits()));
                    }
                }
            }
            let mut want: BTreeMap<i64, u64> = own.range(10..50).map(|(a, v)| (*a, *v)).collect();
            for (at, bits) in other.range(10..50) {
                let entry = want.entry(*at).or_insert(*bits);
                *entry = (*entry).max(*bits);
            }
            prop_assert_eq!(have, want);
        }
    }
}
