//! The partitions this node holds: opened from the log, written by their actors, read by queries.
//!
//! Map: [`entry`] what the node writes into its log · [`recover`] from the log to the heads · [`heads`] the heads of a
//! partition · [`partition`] the actor that alone writes them · [`keeper`] retention and checkpoints.
//!
//! [`LocalReplica`] is how the write and read paths meet this room: as a replica like any other.

pub mod entry;
pub mod heads;
pub mod keeper;
pub mod partition;
pub mod recover;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::sample::Metadata;
use engram_model::series::Series;
use engram_model::{Labels, Millis, TimeRange};
use engram_storage::head::{Counted, Head};
use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::metrics::Reading;
use crate::peer::{Append, Appended, Counts, Exemplars, PartitionView, Replica, Select, too_many_series};
use heads::Heads;

/// All partitions of this node: their heads and their actors, by number.
#[derive(Clone)]
pub struct LocalReplica {
    heads: Arc<Vec<Heads>>,
    partitions: Arc<Vec<partition::Handle>>,
    reads: Arc<Semaphore>,
}

/// Heads read at once. A query reads all partitions of its tenant; without a bound a few of them would take every
/// thread there is for blocking work, and writes would wait behind them.
const READS_MAX: usize = 64;

impl LocalReplica {
    /// Partition `i` is `heads[i]` and `partitions[i]`.
    #[must_use]
    pub fn new(heads: Arc<Vec<Heads>>, partitions: Vec<partition::Handle>) -> Self {
        assert_eq!(heads.len(), partitions.len(), "each partition has its heads and its actor");
        Self { heads, partitions: Arc::new(partitions), reads: Arc::new(Semaphore::new(READS_MAX)) }
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
            tokio::task::spawn_blocking(reading)
                .await
                .map_err(|e| Error::new(Class::Internal, format!("reading the head failed: {e}")))?
        }
        .boxed()
    }

    /// Runs `work` on the tenant's head of one partition, here.
    fn read_now<T: Default>(&self, request: &Select, work: impl FnOnce(&Head, &Select) -> T) -> Result<T, Error> {
        let heads = self
            .heads
            .get(request.partition.0 as usize)
            .ok_or_else(|| Error::unavailable(format!("partition {} is not on this node", request.partition.0)))?;
        let Some(head) = heads.get(&request.tenant) else { return Ok(T::default()) };
        Ok(work(&head.read(), request))
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
        let waiting: usize = self.partitions.iter().map(partition::Handle::depth).sum();
        vec![
            Reading::gauge("ingest_series", "Series in the heads of this node", series as f64),
            Reading::gauge("ingest_samples", "Samples in the heads of this node", samples as f64),
            Reading::gauge("ingest_tenants", "Tenants with a head on this node", tenants.len() as f64),
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
            let partition = self
                .partitions
                .get(request.partition.0 as usize)
                .ok_or_else(|| Error::unavailable(format!("partition {} is not on this node", request.partition.0)))?;
            partition.append(request, within).await
        }
        .boxed()
    }

    fn select(&self, request: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>> {
        let replica = self.clone();
        self.on_thread(move || replica.select_now(&request))
    }

    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        async move {
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
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

    fn digests(&self, request: Select) -> BoxFuture<'_, Result<Vec<(Millis, Digest)>, Error>> {
        self.read(request, |head, request| {
            let inside = |slot: &&Millis| **slot < request.range.end && **slot >= request.range.start;
            head.digests().iter().filter(|(slot, _)| inside(slot)).map(|(slot, digest)| (*slot, *digest)).collect()
        })
    }
}
