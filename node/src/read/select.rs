//! Answers the engine's port: one tenant's series from the replicas that hold them.
//!
//! One look at the ring per query ([`View`]): all partitions the tenant's shard ever had, each asked at its nearest
//! replica; series that moved when the shard grew are joined from both partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::merge::join_series;
use engram_model::place::{NodeId, PartitionId, tenant_partitions};
use engram_model::series::{Series, Wanted};
use engram_model::tenant::TenantId;
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_query::port::{Queryable, SORTED_MAX, SelectHints, Selection, SourceError};
use futures::future::{BoxFuture, try_join_all};

use crate::error::Error;
use crate::meta::{Meta, RingView, TenantView};
use crate::peer::{Counts, PartitionView, Peers, Replica, Select, too_many_series};

/// What one query sees of the cluster, from its first look to its answer.
#[derive(Clone)]
pub struct View {
    tenant: TenantId,
    config: TenantView,
    ring: Arc<RingView>,
    peers: Peers,
}

impl View {
    /// Looks at the metadata once.
    #[must_use]
    pub fn new(meta: &Meta, peers: &Peers, tenant: &TenantId) -> Self {
        Self { tenant: tenant.clone(), config: meta.tenant(tenant), ring: meta.ring(), peers: peers.clone() }
    }

    /// The tenant's configuration.
    #[must_use]
    pub fn config(&self) -> &TenantView {
        &self.config
    }

    /// Every partition that may hold data of the tenant.
    fn partitions(&self) -> Vec<PartitionId> {
        tenant_partitions(&self.tenant, self.ring.partition_count(), self.config.shard_size_largest)
    }

    /// The nearest replica of a partition.
    fn nearest(&self, partition: PartitionId) -> Result<NodeId, Error> {
        let nodes = self.ring.replicas(partition).map(|set| set.replicas.as_slice()).unwrap_or_default();
        self.peers.nearest(nodes).first().copied().ok_or_else(|| {
            Error::unavailable(format!("partition {} has no replicas: the node is still starting", partition.0))
        })
    }

    /// Asks the nearest replica of every partition and hands each answer to the caller, in order of partition.
    async fn ask<T>(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        ask: impl for<'r> Fn(&'r dyn Replica, Select) -> BoxFuture<'r, Result<T, Error>>,
    ) -> Result<Vec<T>, Error> {
        let matchers = Arc::new(matchers.to_vec());
        let wanted = Arc::new(Wanted::default());
        try_join_all(self.partitions().into_iter().map(|partition| {
            let (matchers, wanted) = (matchers.clone(), wanted.clone());
            let request = Select {
                tenant: self.tenant.clone(),
                partition,
                range,
                matchers,
                wanted,
                series_max: 0,
                as_of: u64::MAX,
            };
            let ask = &ask;
            async move {
                let replica = self.peers.replica(self.nearest(partition)?)?;
                ask(replica.as_ref(), request).await
            }
        }))
        .await
    }

    /// Series with samples in `range`, none twice, with what is wanted of them; few come sorted, with all labels.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read, Limited when one has more series than the tenant may fetch.
    pub async fn samples(&self, matchers: &[Matcher], range: TimeRange, wanted: Wanted) -> Result<Vec<Series>, Error> {
        let some_labels = wanted.labels.is_some();
        let last_only = wanted.last_only;
        let mut series = self.gather(matchers, range, wanted).await?;
        if series.len() > SORTED_MAX {
            return Ok(series);
        }
        if some_labels && series.len() > 1 {
            series = self.gather(matchers, range, Wanted { last_only, labels: None }).await?;
        }
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(series)
    }

    /// Asks each node once for all its partitions.
    async fn gather(&self, matchers: &[Matcher], range: TimeRange, wanted: Wanted) -> Result<Vec<Series>, Error> {
        let (matchers, wanted) = (Arc::new(matchers.to_vec()), Arc::new(wanted));
        let series_max = self.config.limits.max_fetched_series_per_query;
        let mut by_node: BTreeMap<NodeId, Vec<Select>> = BTreeMap::new();
        for partition in self.partitions() {
            let (matchers, wanted) = (matchers.clone(), wanted.clone());
            let request =
                Select { tenant: self.tenant.clone(), partition, range, matchers, wanted, series_max, as_of: u64::MAX };
            by_node.entry(self.nearest(partition)?).or_default().push(request);
        }
        let asked = by_node.into_iter().map(|(node, requests)| async move {
            let replica = self.peers.replica(node)?;
            replica.select_all(requests).await
        });
        Ok(join_series(try_join_all(asked).await?.into_iter().flatten().collect()))
    }

    /// Label sets of the series any of `selectors` selects; sorted.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn series(&self, selectors: &[Vec<Matcher>], range: TimeRange) -> Result<Vec<Labels>, Error> {
        let mut all = BTreeSet::new();
        for matchers in selectors {
            all.extend(
                self.ask(matchers, range, |replica, request| replica.series(request)).await?.into_iter().flatten(),
            );
        }
        Ok(all.into_iter().collect())
    }

    /// Names of labels of the series any of `selectors` selects (none given: of all series).
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn label_names(&self, selectors: &[Vec<Matcher>], range: TimeRange) -> Result<BTreeSet<String>, Error> {
        let mut all = BTreeSet::new();
        for matchers in or_everything(selectors) {
            let parts = self.ask(&matchers, range, |replica, request| replica.label_names(request)).await?;
            all.extend(parts.into_iter().flatten());
        }
        Ok(all)
    }

    /// Values of one label, as [`View::label_names`].
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn label_values(
        &self,
        name: &str,
        selectors: &[Vec<Matcher>],
        range: TimeRange,
    ) -> Result<BTreeSet<String>, Error> {
        let mut all = BTreeSet::new();
        for matchers in or_everything(selectors) {
            let parts =
                self.ask(&matchers, range, |replica, request| replica.label_values(request, name.to_owned())).await?;
            all.extend(parts.into_iter().flatten());
        }
        Ok(all)
    }

    /// What is known of the tenant's metrics.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn metadata(&self) -> Result<Vec<(String, engram_model::sample::Metadata)>, Error> {
        let parts = self.ask(&[], TimeRange::ALL, |replica, request| replica.metadata(request)).await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// What makes each partition of the tenant large, lists cut at `max`.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn counts(&self, max: usize) -> Result<Vec<Counts>, Error> {
        self.ask(&[], TimeRange::ALL, |replica, request| replica.counts(request, max)).await
    }

    /// Everything of the tenant, each partition under one look of its own.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn everything(&self) -> Result<Vec<PartitionView>, Error> {
        self.ask(&[], TimeRange::ALL, |replica, request| replica.everything(request)).await
    }

    /// The digest of each slot that holds samples, over all partitions: what was stored, in three numbers a slot.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn digests(&self, range: TimeRange) -> Result<BTreeMap<Millis, Digest>, Error> {
        let mut all: BTreeMap<Millis, Digest> = BTreeMap::new();
        for (slot, digest) in
            self.ask(&[], range, |replica, request| replica.digests(request)).await?.into_iter().flatten()
        {
            all.entry(slot).or_default().add(digest);
        }
        Ok(all)
    }

    /// Exemplars of the series a selector selects.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn exemplars(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<(Labels, Vec<engram_model::sample::Exemplar>)>, Error> {
        let parts = self.ask(matchers, range, |replica, request| replica.exemplars(request)).await?;
        Ok(parts.into_iter().flatten().collect())
    }
}

fn or_everything(selectors: &[Vec<Matcher>]) -> Vec<Vec<Matcher>> {
    if selectors.is_empty() { vec![Vec::new()] } else { selectors.to_vec() }
}

impl Queryable for View {
    fn select<'a>(
        &'a self,
        range: TimeRange,
        matchers: &'a [Matcher],
        hints: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>> {
        Box::pin(async move {
            let wanted = Wanted { last_only: hints.last_only, labels: hints.projection.clone() };
            let series = self.samples(matchers, range, wanted).await.map_err(|error| match error.class {
                Class::Limited => SourceError::Limited(error.message),
                _ => SourceError::Unavailable(error.message),
            })?;
            let max = self.config.limits.max_fetched_series_per_query;
            if max > 0 && series.len() as u64 > max {
                return Err(SourceError::Limited(too_many_series(&self.tenant, series.len() as u64, max).message));
            }
            Ok(Selection { series, warnings: Vec::new() })
        })
    }
}
