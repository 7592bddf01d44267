//! The partitions this node holds: opened from the log, written by their actors, read by queries.
//!
//! Map: [`open`] from the disk to the partitions · [`entry`] what the node writes into its log · [`recover`] from the log to the heads · [`heads`] the heads of a
//! partition · [`partition`] the actor that alone writes them · [`keeper`] retention and checkpoints · [`follower`] what
//! the metadata seals and commits, carried out here · [`reached`] how far the log had come · [`own`] what the replicas here hold, told in numbers · [`repair`] taking from other
//! replicas what is missing here.
//!
//! [`LocalReplica`] is how the write and read paths meet this room: as a replica like any other.

pub mod entry;
pub mod follower;
pub mod heads;
pub mod keeper;
pub mod open;
pub mod own;
pub mod partition;
pub mod reached;
pub mod recover;
pub mod repair;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{Epoch, PartitionId};
use engram_model::sample::Metadata;
use engram_model::series::Series;
use engram_model::tenant::TenantId;
use engram_model::{Labels, Millis, TimeRange};
use engram_storage::head::{Counted, Head};
use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::metrics::Reading;
use crate::peer::{
    Append, Appended, Counts, Exemplars, Frozen, HeldWindows, PartitionView, Replica, Select, SetAside, too_many_series,
};
use heads::Heads;

/// All partitions of this node: their heads and their actors, by number.
#[derive(Clone)]
pub struct LocalReplica {
    heads: Arc<Vec<Heads>>,
    partitions: Arc<Vec<partition::Handle>>,
    reads: Arc<Semaphore>,
    started_at: Millis,
}

/// Heads read at once. A query reads all partitions of its tenant; without a bound a few of them would take every
/// thread there is for blocking work, and writes would wait behind them.
const READS_MAX: usize = 64;
/// How long what is accepted may take to become visible.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

impl LocalReplica {
    /// Partition `i` is `heads[i]` and `partitions[i]`. They are written since `started_at`.
    #[must_use]
    pub fn new(heads: Arc<Vec<Heads>>, partitions: Vec<partition::Handle>, started_at: Millis) -> Self {
        assert_eq!(heads.len(), partitions.len(), "each partition has its heads and its actor");
        Self { heads, partitions: Arc::new(partitions), reads: Arc::new(Semaphore::new(READS_MAX)), started_at }
    }

    /// Runs `work` on the tenant's head of one partition, on a thread that may take its time.
    fn read<T: Send + Default + 'static>(
        &self,
        request: Select,
        work: impl FnOnce(&Head, &Select) -> T + Send + 'static,
    ) -> BoxFuture<'_, Result<T, Error>> {
        let replica = self.clone();
        self.on_thread(move || replica.read_now(&request, work))
    }

    /// Runs `work` on a thread that may take its time, as many at once as there are places.
    fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let places = self.reads.clone();
        async move {
            // The semaphore is never closed. The place goes back when the reading ends, not when its asker leaves.
            let place = places.acquire_owned().await.ok();
            let reading = move || {
                let answer = work();
                drop(place);
                answer
            };
            engram_storage::blocking::blocking(reading)
                .await
                .map_err(|e| Error::new(Class::Internal, format!("reading the head failed: {e}")))?
        }
        .boxed()
    }

    /// The actor of a partition that is on this node.
    #[must_use]
    pub fn handle(&self, partition: PartitionId) -> Option<&partition::Handle> {
        self.partitions.get(partition.0 as usize)
    }

    /// The highest seal that the tenant's head has applied; 0: none.
    #[must_use]
    pub fn sealed(&self, tenant: &TenantId, partition: PartitionId) -> u64 {
        let head = self.heads_of(partition).ok().and_then(|heads| heads.get(tenant));
        head.map_or(0, |head| head.read().sealed())
    }

    /// The digest of what is set aside here for a seal; none when nothing is.
    #[must_use]
    pub fn frozen_digest(&self, tenant: &TenantId, partition: PartitionId, number: u64) -> Option<Digest> {
        let head = self.heads_of(partition).ok()?.get(tenant)?;
        let head = head.read();
        head.frozen(number).map(|part| part.digest())
    }

    /// What is set aside here for a seal: the samples themselves are not copied. None when it was forgotten.
    ///
    /// # Errors
    /// Unavailable while the seal is not applied: it will be.
    pub fn frozen(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
    ) -> BoxFuture<'_, Result<Option<Frozen>, Error>> {
        let (replica, tenant) = (self.clone(), tenant.clone());
        self.on_thread(move || {
            let not_yet = || Error::unavailable(format!("seal {number} of tenant {tenant} is not applied here: retry"));
            let head = replica.heads_of(partition)?.get(&tenant).ok_or_else(not_yet)?;
            let (part, series) = {
                let head = head.read();
                let Some(part) = head.frozen(number) else {
                    return if head.sealed() < number { Err(not_yet()) } else { Ok(None) };
                };
                (part.clone(), head.frozen_series(part))
            };
            let mut series: Vec<Series> = series.into_iter().map(Series::from).collect();
            series.sort_by(|a, b| a.labels.cmp(&b.labels));
            Ok(Some(Frozen { number, window: part.window(), digests: part.digests().clone(), series }))
        })
    }

    /// Heads that hold nothing and had no append at or after `since`.
    #[must_use]
    pub fn idle_heads(&self, since: Millis) -> Vec<(TenantId, PartitionId)> {
        let mut idle = Vec::new();
        for (heads, partition) in self.heads.iter().zip((0..).map(PartitionId)) {
            for (tenant, head) in heads.all() {
                if heads.appended_at(&tenant, self.started_at) < since && head.read().is_empty() {
                    idle.push((tenant, partition));
                }
            }
        }
        idle
    }

    fn heads_of(&self, partition: PartitionId) -> Result<&Heads, Error> {
        let here = self.heads.get(partition.0 as usize);
        let here = here.ok_or_else(|| Error::unavailable(format!("partition {} is not on this node", partition.0)))?;
        // What is there so far is a part: an answer from it would be a wrong one.
        if here.is_recovering() {
            return Err(Error::unavailable(format!("partition {} is still read from the log: retry", partition.0)));
        }
        Ok(here)
    }

    /// Runs `work` on the tenant's head of one partition, here.
    fn read_now<T: Default>(&self, request: &Select, work: impl FnOnce(&Head, &Select) -> T) -> Result<T, Error> {
        let heads = self.heads_of(request.partition)?;
        let stale = |index| if request.as_of < index { Err(Error::stale_view(request.as_of, index)) } else { Ok(()) };
        let head = heads.get(&request.tenant);
        // A head that was dropped and made again does not know what the one before it forgot.
        stale(heads.dropped_at())?;
        let Some(head) = head else { return Ok(T::default()) };
        let head = head.read();
        stale(head.forgotten_after(request.range))?;
        Ok(work(&head, request))
    }

    /// The series of one partition, here.
    fn select_now(&self, request: &Select) -> Result<Vec<Series>, Error> {
        self.read_now(request, |head, request| Some(select(head, request)))?.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// What the heads hold, for the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts for a graph")]
    pub fn readings(&self) -> Vec<Reading> {
        let (mut series, mut tenants, mut samples) = (0_u64, BTreeSet::new(), 0_u64);
        for heads in self.heads.iter() {
            for (tenant, head) in heads.all() {
                let head = head.read();
                series += head.series_count() as u64;
                samples += head.sample_count();
                tenants.insert(tenant);
            }
        }
        let files = self.heads.iter().filter_map(Heads::files).map(|files| files.held());
        let (files, file_bytes) = files.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let waiting: usize = self.partitions.iter().map(partition::Handle::depth).sum();
        vec![
            Reading::gauge("ingest_series", "Series in the heads of this node", series as f64),
            Reading::gauge("ingest_samples", "Samples in the heads of this node", samples as f64),
            Reading::gauge("ingest_tenants", "Tenants with a head on this node", tenants.len() as f64),
            Reading::gauge(
                "ingest_chunk_files",
                "Files of full chunks that heads, readers or checkpoints hold",
                files as f64,
            ),
            Reading::gauge("ingest_chunk_file_bytes", "Bytes of these files", file_bytes as f64),
            Reading::gauge("ingest_appends_waiting", "Appends in the mailboxes of the partitions", waiting as f64),
        ]
    }
}

/// The series of one head, unless they are too many.
fn select(head: &Head, request: &Select) -> Result<Vec<Series>, Error> {
    // What is too many by the index alone may lie outside of the range: only then are they looked at.
    let max = if request.series_max == 0 { u64::MAX } else { request.series_max };
    let too_many = head.count(&request.matchers) > max;
    let count = if too_many { head.count_in(&request.matchers, request.range) } else { 0 };
    if count > max {
        return Err(too_many_series(&request.tenant, count, max));
    }
    Ok(head.select_wanted(&request.matchers, request.range, &request.wanted))
}

impl Replica for LocalReplica {
    fn append(&self, request: Append, within: Duration) -> BoxFuture<'_, Result<Appended, Error>> {
        async move {
            let at = request.partition;
            self.heads_of(at)?;
            let actor = self.handle(at).ok_or_else(|| Error::unavailable(format!("partition {} is not here", at.0)))?;
            actor.append(request, within).await
        }
        .boxed()
    }

    fn select(&self, request: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>> {
        let replica = self.clone();
        self.on_thread(move || replica.select_now(&request))
    }

    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        async move {
            let threads = engram_storage::blocking::cores();
            let share = requests.len().div_ceil(threads).max(1);
            let shares = requests.chunks(share).map(|some| {
                let (replica, some) = (self.clone(), some.to_vec());
                self.on_thread(move || some.iter().map(|one| replica.select_now(one)).collect())
            });
            let answers: Vec<Vec<Vec<Series>>> = try_join_all(shares).await?;
            Ok(answers.into_iter().flatten().collect())
        }
        .boxed()
    }

    fn series(&self, request: Select) -> BoxFuture<'_, Result<Vec<Labels>, Error>> {
        self.read(request, |head, request| head.series_labels(&request.matchers, request.range))
    }

    fn label_names(&self, request: Select) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.read(request, |head, request| head.label_names(&request.matchers, request.range).into_iter().collect())
    }

    fn label_values(&self, request: Select, name: String) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.read(request, move |head, request| {
            head.label_values(&name, &request.matchers, request.range).into_iter().collect()
        })
    }

    fn metadata(&self, request: Select) -> BoxFuture<'_, Result<Vec<(String, Metadata)>, Error>> {
        self.read(request, |head, _| {
            let all = head.metadata().flat_map(|(name, all)| all.iter().map(|one| (name.to_owned(), one.clone())));
            all.collect()
        })
    }

    fn exemplars(&self, request: Select) -> BoxFuture<'_, Result<Exemplars, Error>> {
        self.read(request, |head, request| head.exemplars(&request.matchers, request.range))
    }

    fn counts(&self, request: Select, max: usize) -> BoxFuture<'_, Result<Counts, Error>> {
        self.read(request, move |head, _| {
            let found = head.cardinality(max);
            let list = |all: Vec<Counted>| all.into_iter().map(|one| (one.name, one.count)).collect();
            Counts {
                series: found.series,
                samples: head.sample_count(),
                chunks: head.chunk_count(),
                bounds: head.min_time().zip(head.max_time()),
                series_by_metric: list(found.series_by_metric),
                series_by_pair: list(found.series_by_pair),
            }
        })
    }

    fn everything(&self, request: Select) -> BoxFuture<'_, Result<PartitionView, Error>> {
        self.read(request, |head, _| PartitionView {
            series: head.select(&[], TimeRange::ALL).into_iter().map(Series::from).collect(),
            digests: head.digests().iter().map(|(slot, digest)| (*slot, *digest)).collect(),
        })
    }

    fn windows(&self, partition: PartitionId) -> BoxFuture<'_, Result<Vec<HeldWindows>, Error>> {
        let replica = self.clone();
        self.on_thread(move || {
            let heads = replica.heads_of(partition)?;
            let since = replica.started_at;
            let all = heads.all().into_iter().map(|(tenant, head)| {
                let head = head.read();
                HeldWindows {
                    newest: head.max_time(),
                    appended_at: heads.appended_at(&tenant, since),
                    sealed: head.sealed(),
                    live: head.windows().into_iter().map(|stat| (stat.window, stat.samples)).collect(),
                    tenant,
                }
            });
            Ok(all.collect())
        })
    }

    fn set_aside(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
    ) -> BoxFuture<'_, Result<Option<SetAside>, Error>> {
        let part = self.frozen(tenant, partition, number);
        async move { Ok(part.await?.map(SetAside::from)) }.boxed()
    }

    fn inventory(&self, partition: PartitionId, _: Epoch) -> BoxFuture<'_, Result<Vec<(TenantId, Digest)>, Error>> {
        async move {
            let heads = self.heads_of(partition)?.clone();
            let missing = || Error::unavailable(format!("partition {} is not here", partition.0));
            self.handle(partition).ok_or_else(missing)?.settle(SETTLE_WITHIN).await?;
            self.on_thread(move || {
                let total = |head: &Head| head.digests().values().copied().sum();
                Ok(heads.all().into_iter().map(|(tenant, head)| (tenant, total(&head.read()))).collect())
            })
            .await
        }
        .boxed()
    }

    fn digests(&self, request: Select) -> BoxFuture<'_, Result<Vec<(Millis, Digest)>, Error>> {
        self.read(request, |head, request| {
            let inside = |slot: &&Millis| **slot < request.range.end && **slot >= request.range.start;
            head.digests().iter().filter(|(slot, _)| inside(slot)).map(|(slot, digest)| (*slot, *digest)).collect()
        })
    }
}
