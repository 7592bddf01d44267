//! Repair: takes from other replicas what this one lacks, all the time, and all of it when a replica set changes.
//!
//! Why by digests: a node that was away heals without anybody having kept a list for it, and two replicas that hold the
//! same cost a few numbers to compare. Everything flows by pulling: who lacks something takes it, so that two that
//! differ both ways become alike; of two values at one time the greater bits win on each of them.
//!
//! *Comparing*: a slot in which replicas differ is pulled when neither has changed since the look before: what is
//! being written differs all the time for a moment, and comes by itself.
//!
//! *Completing*: while a set is being replaced, each node of the new one makes sure that it holds everything that was
//! acknowledged before the change, and says so to the leader. It asks a majority of the old set; each answers only when
//! it refuses writes of older epochs and has made visible what it accepted before ([`crate::peer::Replica::inventory`]), so nothing
//! can be acknowledged behind its back. Then every slot that differs is pulled at once. What is written meanwhile goes
//! to the new set by itself. What was taken is proven afterwards: a refused sample, or one that the other has and this
//! replica still lacks, and it is not complete. Completing does not wait for comparing: a slow peer delays the one only.
//!
//! Who no longer belongs to a partition forgets it. Exemplars and metadata of metrics are not repaired: reads join
//! those of a majority.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use engram_model::batch::{BatchSeries, HistogramSample, Pair, Run, Text, WriteBatch};
use engram_model::digest::{Digest, SLOT_MS};
use engram_model::error::Class;
use engram_model::merge::Rank;
use engram_model::place::{Epoch, NodeId, PartitionId, Sets};
use engram_model::sample::Sample;
use engram_model::series::{Columns, ReadError, Series};
use engram_model::tenant::TenantId;
use engram_model::{Millis, TimeRange};
use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::heads::Heads;
use super::partition::{Handle, TOO_OLD};
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::meta::Meta;
use crate::peer::{Append, Peers, Refused, Select};

/// Samples pulled at once, as far as slots allow.
const PULL_SAMPLES: u64 = 200_000;
/// Series of one repairing append.
const APPEND_SERIES_MAX: usize = 2000;
/// How long one append may take.
const APPEND_WITHIN: Duration = Duration::from_secs(30);
/// How long comparing with one replica may take; what is left is for the next look.
const COMPARE_WITHIN: Duration = Duration::from_secs(60);
/// Partitions completed at once.
const COMPLETE_AT_ONCE: usize = 4;
/// How long one question to another node may take.
const ASK_WITHIN: Duration = Duration::from_secs(60);
/// Slots of one partition whose difference is remembered from one look to the next.
const NOTED_MAX: usize = 100_000;
/// How soon a change that could not be completed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long a partition's actor may take to forget.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);

/// Partitions whose replica here holds all that was acknowledged before an epoch began.
pub type Completed = Arc<Mutex<BTreeMap<PartitionId, Epoch>>>;

/// What the actor works with.
#[derive(Clone)]
pub struct Config {
    /// The ring.
    pub meta: Meta,
    /// All replicas, this node's too.
    pub peers: Peers,
    /// Heads by partition.
    pub heads: Arc<Vec<Heads>>,
    /// Actors by partition.
    pub partitions: Vec<Handle>,
    /// What the leader is told.
    pub complete: Completed,
    /// How often replicas are compared.
    pub every: Duration,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// The child that runs it.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "repair".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    tokio::select! {
        ended = completing(&config) => ended,
        ended = comparing(&config) => ended,
        () = config.stop.cancelled() => Ok(()),
    }
}

async fn completing(config: &Config) -> Result<(), ChildError> {
    let mut again = true;
    loop {
        config.meta.next_change(if again { RETRY_AFTER } else { config.every }).await;
        again = config.change().await;
    }
}

async fn comparing(config: &Config) -> Result<(), ChildError> {
    let mut state = State { noted: HashMap::new(), tried: HashMap::new() };
    loop {
        tokio::time::sleep(config.every).await;
        state.compare_all(config).await;
    }
}

/// One slot of one tenant in one partition, as another node has it.
type Spot = (PartitionId, NodeId, TenantId, Millis);

struct State {
    /// Digests, own and the other's, of slots that differed at the last look.
    noted: HashMap<Spot, (Digest, Digest)>,
    /// Digests of slots that were pulled and still differ: pulling again would bring nothing.
    tried: HashMap<Spot, (Digest, Digest)>,
}

impl Config {
    fn here(&self) -> NodeId {
        self.peers.here()
    }

    /// The partition's sets and epoch when this node belongs to it.
    fn sets(&self, partition: PartitionId) -> Option<(Sets, Epoch, bool)> {
        let ring = self.meta.ring();
        let set = ring.replicas(partition)?;
        let next = ring.next(partition);
        let sets = Sets::new(&set.replicas, next);
        let comes = next.is_some_and(|next| next.contains(&self.here()));
        let belongs = sets.nodes().any(|node| node == self.here());
        belongs.then_some((sets, set.epoch, comes))
    }

    fn all(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..u32::try_from(self.partitions.len()).unwrap_or(0)).map(PartitionId)
    }

    /// Completes replicas whose set changes and forgets those that are no longer here. Whether something is left to do.
    async fn change(&self) -> bool {
        let changes = stream::iter(self.all()).map(|partition| self.change_of(partition));
        changes.buffer_unordered(COMPLETE_AT_ONCE).fold(false, async |any, left| any || left).await
    }

    /// The same of one partition.
    async fn change_of(&self, partition: PartitionId) -> bool {
        let Some((sets, epoch, comes)) = self.sets(partition) else {
            self.complete.lock().remove(&partition);
            let (at, known) = (partition.0 as usize, self.meta.epoch(partition).is_some());
            if known && self.heads.get(at).is_some_and(|heads| !heads.all().is_empty()) {
                let Some(actor) = self.partitions.get(at) else { return false };
                match actor.leave(LEAVE_WITHIN).await {
                    Ok(()) => tracing::info!(partition = partition.0, "this node holds the partition no more"),
                    Err(error) => tracing::warn!(partition = partition.0, %error, "forgotten later"),
                }
            }
            return false;
        };
        if !comes {
            self.complete.lock().remove(&partition);
            return false;
        }
        if self.complete.lock().get(&partition) == Some(&epoch) {
            return false;
        }
        match self.complete(partition, &sets, epoch).await {
            Ok(()) => {
                self.complete.lock().insert(partition, epoch);
                false
            }
            Err(error) => {
                tracing::info!(partition = partition.0, %error, "a new replica is completed later");
                true
            }
        }
    }

    /// Takes everything that a majority of the present set acknowledged before `epoch`.
    async fn complete(&self, partition: PartitionId, sets: &Sets, epoch: Epoch) -> Result<(), Error> {
        let mut done = Vec::new();
        let mut why = Vec::new();
        let is_done = |done: &[NodeId]| Sets::new(sets.current(), None).have_majority(done);
        // This node first: as one of the old set it only has to make visible what it accepted.
        let mut order: Vec<NodeId> = sets.current().to_vec();
        order.sort_by_key(|node| *node != self.here());
        for node in order {
            let taken = if node == self.here() {
                self.inventory(node, partition, epoch).await.map(drop)
            } else {
                self.take_all(node, partition, epoch).await
            };
            match taken {
                Ok(()) => done.push(node),
                Err(error) => why.push(error.message),
            }
            if is_done(&done) {
                return Ok(());
            }
        }
        Err(Error::unavailable(format!("no majority of the old replicas gives what it has: {}", why.join("; "))))
    }

    async fn inventory(
        &self,
        node: NodeId,
        partition: PartitionId,
        epoch: Epoch,
    ) -> Result<Vec<(TenantId, Digest)>, Error> {
        let replica = self.peers.replica(node)?;
        in_time(replica.inventory(partition, epoch)).await
    }

    /// Pulls every slot in which another replica has something that this one lacks.
    async fn take_all(&self, node: NodeId, partition: PartitionId, epoch: Epoch) -> Result<(), Error> {
        for (tenant, total) in self.inventory(node, partition, epoch).await? {
            if total.count == 0 {
                continue;
            }
            let spot = At { node, partition, epoch, tenant };
            let before = self.differing(&spot).await?;
            let slots: Vec<(Millis, u64)> = before.iter().map(|(slot, (_, other))| (*slot, other.count)).collect();
            let refused = self.pull(&spot, &slots).await?;
            let left = self.differing(&spot).await?;
            let lacking = self.lacking(&spot, &unchanged(&before, &left)).await?;
            if refused + lacking > 0 {
                let (from, tenant) = (node.0, &spot.tenant);
                return Err(Error::new(
                    Class::Internal,
                    format!(
                        "of what node {from} has of tenant {tenant}, {refused} samples were refused here and {lacking} are lacking"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Samples in slots at whose times the other replica has one and this one has none.
    async fn lacking(&self, at: &At, slots: &[(Millis, u64)]) -> Result<u64, Error> {
        let mut lacking = 0;
        for range in ranges(slots) {
            let (own, other) = self.both(at, range).await?;
            lacking += on_thread(move || absent(&own, &other, range)).await?;
        }
        Ok(lacking)
    }

    /// What this replica and another have in a range.
    async fn both(&self, at: &At, range: TimeRange) -> Result<(Vec<Series>, Vec<Series>), Error> {
        let (own, other) = (self.peers.replica(self.here())?, self.peers.replica(at.node)?);
        let select = at.select(range);
        futures::future::try_join(in_time(own.select(select.clone())), in_time(other.select(select))).await
    }

    /// Digests, own and the other's, of the slots in which the other has something and they differ.
    async fn differing(&self, at: &At) -> Result<BTreeMap<Millis, (Digest, Digest)>, Error> {
        let select = at.select(TimeRange::ALL);
        let (own, other) = (self.peers.replica(self.here())?, self.peers.replica(at.node)?);
        let (own, other) =
            futures::future::try_join(in_time(own.digests(select.clone())), in_time(other.digests(select))).await?;
        let own: HashMap<Millis, Digest> = own.into_iter().collect();
        let head = self.heads.get(at.partition.0 as usize).and_then(|heads| heads.get(&at.tenant));
        let seals = self.meta.seals(&at.tenant, at.partition);
        let open =
            |range: TimeRange| seals.iter().flat_map(|seals| &seals.open).any(|seal| seal.window.overlaps(range));
        let forgotten = |slot: Millis| {
            let range = TimeRange { start: slot, end: slot.saturating_add(SLOT_MS) };
            head.as_ref()
                .map(|head| head.read())
                .is_some_and(|head| slot < head.floor() || (head.forgotten_after(range) > 0 && open(range)))
        };
        Ok(other
            .into_iter()
            // What this head has forgotten by age it does not take back, nor what a block holds while others may not have
            // forgotten it yet. Once all have, what they hold of that time came late, and is taken.
            .filter(|(slot, digest)| digest.count > 0 && !forgotten(*slot))
            .map(|(slot, digest)| (slot, (own.get(&slot).copied().unwrap_or_default(), digest)))
            .filter(|(_, (own, other))| own != other)
            .collect())
    }

    /// Pulls slots, neighbours together as long as they are not too many samples. How many samples were refused here
    /// although they are young enough.
    async fn pull(&self, at: &At, slots: &[(Millis, u64)]) -> Result<u64, Error> {
        let mut refused = 0;
        for range in ranges(slots) {
            let (own, other) = self.both(at, range).await?;
            for batch in on_thread(move || missing(&own, &other, range)).await? {
                refused += self.append(at, batch).await?;
            }
        }
        Ok(refused)
    }

    async fn append(&self, at: &At, batch: WriteBatch) -> Result<u64, Error> {
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
        let done = self.peers.replica(self.here())?.append(request, APPEND_WITHIN).await?;
        let (partition, from, tenant) = (at.partition.0, at.node.0, at.tenant.as_str());
        let refused = refused_young(&done.refused);
        if refused > 0 {
            let why = done.refused.first.unwrap_or_default();
            tracing::warn!(partition, from, tenant, refused, why, "samples of another replica are refused here");
        }
        tracing::debug!(partition, from, tenant, samples, refused, "taken from another replica");
        Ok(refused)
    }
}

/// A tenant of a partition on another node, under one epoch.
struct At {
    node: NodeId,
    partition: PartitionId,
    epoch: Epoch,
    tenant: TenantId,
}

impl At {
    fn select(&self, range: TimeRange) -> Select {
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

async fn in_time<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ASK_WITHIN, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(Class::Timeout, format!("no answer within {} s", ASK_WITHIN.as_secs()))),
    }
}

/// Runs work that may take its time on a thread for that.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(Class::Internal, format!("comparing replicas failed: {e}")))?
        .map_err(|e| Error::new(Class::Internal, e.to_string()))
}

/// How many samples were refused for another reason than their age: what is below this head's floor it has forgotten.
fn refused_young(refused: &Refused) -> u64 {
    let old = refused.by_reason.iter().filter(|(word, _)| *word == TOO_OLD).map(|(_, count)| count);
    refused.count.saturating_sub(old.sum())
}

/// Slots that differ still, although the other replica has in them what it had before.
fn unchanged(
    before: &BTreeMap<Millis, (Digest, Digest)>,
    left: &BTreeMap<Millis, (Digest, Digest)>,
) -> Vec<(Millis, u64)> {
    let same = left.iter().filter(|(slot, (_, other))| before.get(slot).is_some_and(|(_, had)| had == other));
    same.map(|(slot, (_, other))| (*slot, other.count)).collect()
}

impl State {
    async fn compare_all(&mut self, config: &Config) {
        let mut noted = HashMap::new();
        for partition in config.all() {
            let Some((sets, epoch, _)) = config.sets(partition) else { continue };
            let others: Vec<NodeId> = sets.nodes().filter(|node| *node != config.here()).collect();
            if others.is_empty() {
                continue;
            }
            let own: HashMap<TenantId, Digest> = match config.inventory(config.here(), partition, epoch).await {
                Ok(own) => own.into_iter().collect(),
                Err(error) => {
                    tracing::debug!(partition = partition.0, %error, "not compared");
                    continue;
                }
            };
            for node in others.into_iter().filter(|node| config.peers.is_well(*node)) {
                let comparing = self.compare(config, (partition, epoch, node), &own, &mut noted);
                match tokio::time::timeout(COMPARE_WITHIN, comparing).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(partition = partition.0, node = node.0, %error, "not compared"),
                    Err(_) => tracing::debug!(partition = partition.0, node = node.0, "not compared in time"),
                }
            }
        }
        self.noted = noted;
        let noted = &self.noted;
        self.tried.retain(|spot, _| noted.contains_key(spot));
    }

    /// Compares with one other replica and pulls what is quiet.
    async fn compare(
        &mut self,
        config: &Config,
        (partition, epoch, node): (PartitionId, Epoch, NodeId),
        own: &HashMap<TenantId, Digest>,
        noted: &mut HashMap<Spot, (Digest, Digest)>,
    ) -> Result<(), Error> {
        for (tenant, total) in config.inventory(node, partition, epoch).await? {
            if total.count == 0 || own.get(&tenant) == Some(&total) {
                continue;
            }
            let at = At { node, partition, epoch, tenant };
            let (mut quiet, mut pulled) = (Vec::new(), Vec::new());
            for (slot, digests) in config.differing(&at).await? {
                let spot = (partition, node, at.tenant.clone(), slot);
                if self.noted.get(&spot) == Some(&digests) && self.tried.get(&spot) != Some(&digests) {
                    quiet.push((slot, digests.1.count));
                    pulled.push((spot.clone(), digests));
                }
                if noted.len() < NOTED_MAX {
                    noted.insert(spot, digests);
                }
            }
            if !quiet.is_empty() {
                tracing::info!(
                    partition = partition.0,
                    node = node.0,
                    slots = quiet.len(),
                    "replicas differ, taking what is missing here"
                );
                config.pull(&at, &quiet).await?;
                // Only now: what broke off is tried again.
                self.tried.extend(pulled);
            }
        }
        Ok(())
    }
}

/// Ranges over slots with their counts, in order of time.
fn ranges(slots: &[(Millis, u64)]) -> Vec<TimeRange> {
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
fn absent(own: &[Series], other: &[Series], range: TimeRange) -> Result<u64, ReadError> {
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
fn missing(own: &[Series], other: &[Series], range: TimeRange) -> Result<Vec<WriteBatch>, ReadError> {
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
        // A slot that is being written is another's by now; one that stays as it was is looked at.
        let digest = |count: u64| Digest { count, low: count, high: count };
        let before =
            BTreeMap::from([(0, (digest(1), digest(5))), (1, (digest(1), digest(6))), (2, (digest(1), digest(7)))]);
        let left =
            BTreeMap::from([(0, (digest(4), digest(5))), (1, (digest(6), digest(8))), (9, (digest(0), digest(1)))]);
        assert_eq!(unchanged(&before, &left), vec![(0, 5)]);
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
