//! The way to a replica of a partition, on this node or on another.
//!
//! Map: here the port and who can be reached · [`remote`] a replica on another node · [`appends`] the stream of slices to
//! it · [`stats`] what went to and fro · [`set_aside`] what a replica hands over for a cut · [`wire`] bytes.
//!
//! Why a port: the write path and the read path treat the local replica like any other, so that one node is a cluster
//! of one and not a special case. [`Peers`] knows who can be reached; what is behind a [`Replica`] (an actor of this
//! process, a gRPC client) is not their affair.

pub mod appends;
pub mod remote;
pub mod set_aside;
pub mod stats;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use engram_model::batch::WriteBatch;
use engram_model::digest::{Digest, SLOT_MS, slot_of};
use engram_model::error::Class;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::sample::{Exemplar, Metadata};
use engram_model::series::{Columns, ReadError, Series, Wanted};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_query::fragment::{Fragment, Partial};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::Error;
use crate::tls::Tls;
pub use set_aside::SetAside;

use remote::Remote;
use stats::Stats;

/// A slice of a batch for one partition.
#[derive(Clone)]
pub struct Append {
    /// Whose data.
    pub tenant: TenantId,
    /// The tenant's limits as the coordinator knows them.
    pub limits: Arc<TenantLimits>,
    /// To which partition.
    pub partition: PartitionId,
    /// The epoch of the replica set the coordinator used: a replica that knows a newer one refuses.
    pub epoch: Epoch,
    /// The whole request, shared.
    pub batch: Arc<WriteBatch>,
    /// Which of its series go here.
    pub picks: Arc<Vec<u32>>,
    /// Whether this partition keeps the tenant's metadata, and so those of the request.
    pub metadata: bool,
    /// The share of the memory for requests in flight that the batch takes: it goes back when nobody has the batch any
    /// more, which may be long after the sender has given up.
    pub memory: Option<Arc<OwnedSemaphorePermit>>,
    /// Whether a replica repairs itself with it: then age and number of series do not matter.
    pub repair: bool,
    /// The metadata index the coordinator decided by: a replica that is behind catches up to it first.
    pub as_of: u64,
    /// The slice as it travels, made by whoever needs it first.
    pub packed: Arc<OnceLock<Bytes>>,
}

/// What a replica did with a slice, durably.
#[derive(Clone, Debug, Default)]
pub struct Appended {
    /// Floats stored (duplicates of what is stored already count as stored).
    pub samples: u64,
    /// Native histograms stored.
    pub histograms: u64,
    /// Exemplars stored.
    pub exemplars: u64,
    /// Exemplars not stored: older than the newest of their series, or the tenant keeps none.
    pub exemplars_dropped: u64,
    /// What was refused.
    pub refused: Refused,
}

/// Samples that were not stored: how many, and the first reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// How many samples.
    pub count: u64,
    /// Why the first one was refused, naming its series.
    pub first: Option<String>,
    /// How many by each word of the closed list of reasons.
    pub by_reason: Vec<(&'static str, u64)>,
    /// Whether every refusal was one that later may work (a limit).
    pub limited: bool,
}

impl Refused {
    /// Counts `count` samples refused for `reason`; `text` is made for the first one only.
    pub fn add(&mut self, reason: &'static str, limited: bool, count: u64, text: impl FnOnce() -> String) {
        if count == 0 {
            return;
        }
        self.limited = if self.count == 0 { limited } else { self.limited && limited };
        self.count += count;
        if self.first.is_none() {
            self.first = Some(text());
        }
        match self.by_reason.iter_mut().find(|(have, _)| *have == reason) {
            Some((_, n)) => *n += count,
            None => self.by_reason.push((reason, count)),
        }
    }

    /// Takes over the refusals of another part of the same request.
    pub fn merge(&mut self, other: Self) {
        let Some(first) = other.first else { return };
        for (reason, count) in other.by_reason {
            self.add(reason, other.limited, count, || first.clone());
        }
    }

    /// Counts no more than there were samples.
    pub fn at_most(&mut self, samples: u64) {
        let mut excess = self.count.saturating_sub(samples);
        self.count -= excess;
        for (_, count) in self.by_reason.iter_mut().rev() {
            let less = excess.min(*count);
            *count -= less;
            excess -= less;
        }
        self.by_reason.retain(|(_, count)| *count > 0);
    }
}

/// What to read from one partition.
#[derive(Clone)]
pub struct Select {
    /// Whose data.
    pub tenant: TenantId,
    /// From which partition.
    pub partition: PartitionId,
    /// The epoch of the replica set the reader used: a replica that knows a newer one refuses.
    pub epoch: Epoch,
    /// Samples of this time.
    pub range: TimeRange,
    /// Series that pass all of these; empty: all.
    pub matchers: Arc<Vec<Matcher>>,
    /// Most series a select may give; 0: no limit.
    pub series_max: u64,
    /// What of them is wanted; more may come.
    pub wanted: Arc<Wanted>,
    /// Index of the metadata of which the reader knows the blocks. A replica that has forgotten samples of the range
    /// at a later one answers [`Error::stale_view`], one that knows of a later growth of the tenant's shard
    /// [`Error::stale_shard`]. `u64::MAX`: neither is this reader's affair.
    pub as_of: u64,
}

impl Select {
    /// The same over whole slots: digests speak of nothing smaller.
    #[must_use]
    pub fn whole_slots(&self) -> Self {
        let last = slot_of(self.range.end.saturating_sub(1)).saturating_add(SLOT_MS);
        let range = TimeRange { start: slot_of(self.range.start), end: last.max(self.range.end) };
        Self { range, ..self.clone() }
    }
}

impl Append {
    /// The slice as it travels, the same for all replicas it goes to.
    #[must_use]
    pub fn packed(&self) -> Bytes {
        let make = || Bytes::from(wire::pack(&wire::batch::encode(&self.batch, &self.picks, self.metadata)));
        self.packed.get_or_init(make).clone()
    }
}

/// What is said where a selector gives more series than the tenant may fetch.
#[must_use]
pub fn too_many_series(tenant: &TenantId, series: u64, max: u64) -> Error {
    let text = format!(
        "tenant {tenant}: a selector of the query gives {series} series, limit max_fetched_series_per_query is {max}: \
         narrow it with more matchers or a shorter range, or raise the limit"
    );
    Error::new(Class::Limited, text)
}

/// The digest of each slot, see [`engram_model::digest`].
pub type SlotDigests = Vec<(Millis, Digest)>;
/// Series with their exemplars.
pub type Exemplars = Vec<(Labels, Vec<Exemplar>)>;

/// What makes a tenant's part of one partition large.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Series.
    pub series: u64,
    /// Samples, those of native histograms too.
    pub samples: u64,
    /// Chunks the samples lie in.
    pub chunks: u64,
    /// Times of the oldest and the newest sample.
    pub bounds: Option<(Millis, Millis)>,
    /// Series of each metric, the most first; cut at the number asked for.
    pub series_by_metric: Vec<(String, u64)>,
    /// Series of each `label=value`, the most first; cut at the number asked for.
    pub series_by_pair: Vec<(String, u64)>,
}

/// All that a replica has of a tenant in one partition, as of one moment.
#[derive(Clone, Default)]
pub struct PartitionView {
    /// The series, unordered, none twice. What is written later does not change their samples.
    pub series: Vec<Series>,
    /// The digest of each slot at that moment.
    pub digests: Vec<(Millis, Digest)>,
}

/// What a replica holds of a tenant in one partition, by window: what a seal is decided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldWindows {
    /// Whose.
    pub tenant: TenantId,
    /// Time of the newest sample ever taken: what age is measured by.
    pub newest: Option<Millis>,
    /// When, by the node's clock, the last append came; not before the node started.
    pub appended_at: Millis,
    /// The highest seal that was applied; 0: none.
    pub sealed: u64,
    /// Windows that have samples no seal has set aside, and how many, in order of time.
    pub live: Vec<(TimeRange, u64)>,
}

/// What a replica has set aside for one seal. Never changes.
#[derive(Clone)]
pub struct Frozen {
    /// The seal's number.
    pub number: u64,
    /// Its window; every sample lies inside.
    pub window: TimeRange,
    /// The digest of each slot that holds samples.
    pub digests: BTreeMap<Millis, Digest>,
    /// The series in order of labels, with exactly the samples that were set aside.
    pub series: Vec<Series>,
}

impl Frozen {
    /// The digest of all of it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digests.values().copied().sum()
    }
}

/// What one partition gives to a select.
#[derive(Clone, Default)]
pub struct Found {
    /// The digest of each slot of the range, as of a moment before the series were read: what they speak of is in there.
    pub digests: Vec<(Millis, Digest)>,
    /// The series.
    pub series: Vec<Series>,
}

/// A piece of a plan for the series of some partitions.
#[derive(Clone, Debug)]
pub struct Summing {
    /// Which.
    pub fragment: Arc<Fragment>,
    /// Partitions of the tenant as the reader knows it: who has a series that is elsewhere by it does not sum up, for it
    /// may have a part of it only.
    pub shard_size: u32,
}

/// Why a node does not sum up: it does not know how; the series are better read as they are; some of them lie where
/// they once were; it failed.
pub const DECLINED: [&str; 4] = ["unknown", "unfit", "misplaced", "failed"];

/// What comes of a piece of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Summed {
    /// It is of all the series.
    Done(Partial),
    /// The series are to be read; one of [`DECLINED`].
    Declined(&'static str),
}

/// One copy of the partitions a node holds.
pub trait Replica: Send + Sync {
    /// Stores a slice; the answer comes after it is on disk.
    fn append(&self, request: Append, within: Duration) -> BoxFuture<'_, Result<Appended, Error>>;
    /// The series with samples, unordered, none twice. Limited when they are more than `series_max`, before their labels
    /// are made.
    fn select(&self, request: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>>;
    /// [`Replica::select`] of several partitions, one answer for each.
    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>>;
    /// Sums up the series of several partitions, see [`Replica::select_all`].
    fn sum_up(&self, _: Vec<Select>, _: Summing) -> BoxFuture<'_, Result<Summed, Error>> {
        Box::pin(async { Ok(Summed::Declined("unknown")) })
    }
    /// Label sets of the series with samples.
    fn series(&self, request: Select) -> BoxFuture<'_, Result<Vec<Labels>, Error>>;
    /// Names of labels of the series with samples.
    fn label_names(&self, request: Select) -> BoxFuture<'_, Result<BTreeSet<String>, Error>>;
    /// Values of one label of the series with samples.
    fn label_values(&self, request: Select, name: String) -> BoxFuture<'_, Result<BTreeSet<String>, Error>>;
    /// What is known of the metrics.
    fn metadata(&self, request: Select) -> BoxFuture<'_, Result<Vec<(String, Metadata)>, Error>>;
    /// Exemplars of the series that pass.
    fn exemplars(&self, request: Select) -> BoxFuture<'_, Result<Exemplars, Error>>;
    /// What makes the tenant's part of the partition large; lists of at most `max` entries. Range and matchers are not
    /// looked at.
    fn counts(&self, request: Select, max: usize) -> BoxFuture<'_, Result<Counts, Error>>;
    /// Everything of the tenant in the partition under one look. Range and matchers are not looked at.
    fn everything(&self, request: Select) -> BoxFuture<'_, Result<PartitionView, Error>>;
    /// Digests by slot.
    fn digests(&self, request: Select) -> BoxFuture<'_, Result<Vec<(Millis, Digest)>, Error>>;
    /// What each tenant has in a partition, by window, sorted by tenant.
    fn windows(&self, partition: PartitionId) -> BoxFuture<'_, Result<Vec<HeldWindows>, Error>>;
    /// What was set aside for a seal; none when it was forgotten. Unavailable while the seal is not applied: it will be.
    fn set_aside(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
    ) -> BoxFuture<'_, Result<Option<SetAside>, Error>>;
    /// The tenants of a partition, each with the digest of all it has, after everything that was accepted for an older
    /// epoch has become visible.
    fn inventory(&self, partition: PartitionId, epoch: Epoch) -> BoxFuture<'_, Result<Vec<(TenantId, Digest)>, Error>>;
    /// Comes when the replica knows the metadata as of `index`, and so refuses readers who know less of the tenant's
    /// partitions. The one on this node does: who asks it has the index from there.
    fn known(&self, _partition: PartitionId, _epoch: Epoch, _index: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    /// Digests of the slots that each request reaches into.
    fn digests_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<SlotDigests>, Error>> {
        Box::pin(async move {
            let digests = requests.iter().map(|request| self.digests(request.whole_slots()));
            futures::future::try_join_all(digests).await
        })
    }
    /// As [`Replica::select_all`], each with its digests, see [`Found::digests`].
    fn found_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        Box::pin(async move {
            let digests = self.digests_all(requests.clone()).await?;
            let series = self.select_all(requests).await?;
            Ok(digests.into_iter().zip(series).map(|(digests, series)| Found { digests, series }).collect())
        })
    }
}

/// The digests of series, slot by slot, from their samples.
///
/// # Errors
/// Stored bytes do not decode.
pub fn digests_of(series: &[Series]) -> Result<Vec<(Millis, Digest)>, ReadError> {
    let (mut all, mut columns) = (BTreeMap::<Millis, Digest>::new(), Columns::default());
    for one in series {
        columns.clear();
        one.source.read(TimeRange::ALL, &mut columns)?;
        let hash = one.source.series_hash().unwrap_or_else(|| one.labels.hash128());
        for (at, value) in columns.times.iter().zip(&columns.values) {
            all.entry(slot_of(*at)).or_default().add(Digest::of_float(hash, *at, *value));
        }
        for (at, value) in columns.histogram_times.iter().zip(&columns.histograms) {
            all.entry(slot_of(*at)).or_default().add(Digest::of_histogram(hash, *at, value));
        }
    }
    Ok(all.into_iter().collect())
}

/// Where the nodes are, as the metadata knows.
pub trait Directory: Send + Sync {
    /// The gRPC address and the zone of a node; none when nobody knows it.
    fn find(&self, node: NodeId) -> Option<(String, String)>;
}

/// Who can be reached. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    local: (NodeId, Arc<dyn Replica>),
    /// Replicas of this process beside its own.
    beside: BTreeMap<NodeId, Arc<dyn Replica>>,
    others: Option<Box<dyn Ways>>,
}

/// The ways from one node to the others.
pub trait Ways: Send + Sync {
    /// The replica on another node; none when the node is not known.
    ///
    /// # Errors
    /// Its address is none.
    fn replica(&self, node: NodeId) -> Result<Option<Arc<dyn Replica>>, Error>;
    /// Whether a call to the node is worth trying: it did not fail just now.
    fn is_well(&self, node: NodeId) -> bool;
    /// Whether it is in another zone, or nobody knows in which.
    fn is_far(&self, node: NodeId) -> bool;
    /// What went there and came back; none where nobody counts.
    fn stats(&self) -> Option<&Stats> {
        None
    }
}

struct Others {
    here: NodeId,
    zone: String,
    cluster: String,
    directory: Box<dyn Directory>,
    tls: Tls,
    stats: Stats,
    /// By node, with the address it was made for.
    open: Mutex<BTreeMap<NodeId, Arc<Remote>>>,
}

impl Ways for Others {
    fn replica(&self, node: NodeId) -> Result<Option<Arc<dyn Replica>>, Error> {
        let Some((address, _)) = self.directory.find(node) else { return Ok(None) };
        let mut open = self.open.lock();
        if let Some(remote) = open.get(&node).filter(|remote| remote.address() == address) {
            return Ok(Some(remote.clone()));
        }
        let way = (address.as_str(), &self.tls);
        let remote = Arc::new(Remote::counted((self.here, node), &self.cluster, way, self.stats.of(node))?);
        open.insert(node, remote.clone());
        Ok(Some(remote))
    }

    fn is_well(&self, node: NodeId) -> bool {
        self.open.lock().get(&node).is_none_or(|remote| remote.is_well())
    }

    fn is_far(&self, node: NodeId) -> bool {
        self.directory.find(node).is_none_or(|(_, zone)| zone != self.zone)
    }

    fn stats(&self) -> Option<&Stats> {
        Some(&self.stats)
    }
}

impl Peers {
    /// Only this node.
    #[must_use]
    pub fn local_only(node: NodeId, replica: Arc<dyn Replica>) -> Self {
        Self::among((node, replica), BTreeMap::new())
    }

    /// This node and others of the same process.
    #[must_use]
    pub fn among(local: (NodeId, Arc<dyn Replica>), beside: BTreeMap<NodeId, Arc<dyn Replica>>) -> Self {
        Self(Arc::new(Inner { local, beside, others: None }))
    }

    /// This node, in `zone` of `cluster`, and all that the directory knows, spoken to by `tls`.
    #[must_use]
    pub fn new(
        (node, replica): (NodeId, Arc<dyn Replica>),
        (cluster, zone): (String, String),
        (directory, tls): (Box<dyn Directory>, Tls),
    ) -> Self {
        let stats = Stats::default();
        let others = Others { here: node, zone, cluster, directory, tls, stats, open: Mutex::default() };
        Self::by(node, replica, Box::new(others))
    }

    /// This node, and all to which there is a way.
    #[must_use]
    pub fn by(node: NodeId, replica: Arc<dyn Replica>, ways: Box<dyn Ways>) -> Self {
        Self(Arc::new(Inner { local: (node, replica), beside: BTreeMap::new(), others: Some(ways) }))
    }

    /// This node.
    #[must_use]
    pub fn here(&self) -> NodeId {
        self.0.local.0
    }

    /// The replica on `node`.
    ///
    /// # Errors
    /// Unavailable when the node is not known here.
    pub fn replica(&self, node: NodeId) -> Result<Arc<dyn Replica>, Error> {
        let here = self.0.local.0;
        if node == here {
            return Ok(self.0.local.1.clone());
        }
        if let Some(beside) = self.0.beside.get(&node) {
            return Ok(beside.clone());
        }
        let found = self.0.others.as_ref().map_or(Ok(None), |others| others.replica(node))?;
        found.ok_or_else(|| Error::unavailable(format!("node {} is not known on node {}", node.0, here.0)))
    }

    /// What went to the others and came back; none where there are no others.
    #[must_use]
    pub fn stats(&self) -> Option<&Stats> {
        self.0.others.as_ref().and_then(|others| others.stats())
    }

    /// Whether a call to the node is worth trying: it did not fail just now.
    #[must_use]
    pub fn is_well(&self, node: NodeId) -> bool {
        self.0.others.as_ref().is_none_or(|others| others.is_well(node))
    }

    /// The given nodes, the best to ask first: this one, those of its zone, the others; those that fail last.
    #[must_use]
    pub fn nearest(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let mut order = nodes.to_vec();
        let (here, others) = (self.0.local.0, self.0.others.as_ref());
        let far = |node: &NodeId| others.is_none_or(|others| others.is_far(*node));
        order.sort_by_cached_key(|node| (*node != here && !self.is_well(*node), *node != here, far(node)));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_the_first_reason_and_all_counts() {
        let mut all = Refused::default();
        all.add("too_old", false, 2, || "first".into());
        let mut more = Refused::default();
        more.add("limit", true, 3, || "second".into());
        all.merge(more.clone());
        assert_eq!((all.count, all.first.as_deref(), all.limited), (5, Some("first"), false));
        assert_eq!(all.by_reason, vec![("too_old", 2), ("limit", 3)]);
        let mut only = Refused::default();
        only.merge(more);
        assert!(only.limited);
    }
}
