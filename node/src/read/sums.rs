//! Sums for other nodes: this node evaluates a piece of their plan over the series it has.
//!
//! The node that asks has held the digests of a majority of replicas against this one's, so what this one reads now has
//! all that was acknowledged when the query began. Here it is only looked at whether series lie where they belong; what
//! is not fit to be summed up is declined, and the asking node reads the series.
//!
//! So many are at work at once as queries of this node; the others wait, no longer than their query may take. All
//! samples held count in this node's pool. Who is not waited for any more stops at its next look.

use std::sync::Arc;
use std::time::Duration;

use engram_model::error::Class;
use engram_model::place::{PartitionId, partition_of, tenant_partitions};
use engram_model::series::Series;
use engram_model::tenant::TenantId;
use engram_query::engine::{self, Budget, Cancel, SamplePool};
use engram_query::error::Error as QueryError;
use tokio::sync::Semaphore;

use super::{CancelOnDrop, THREADS_MAX};
use crate::error::Error;
use crate::metrics::Fragments;
use crate::peer::{Replica, Select, Summed, Summing, too_many_series};

/// Where the series of a tenant belong.
pub struct Homes(Vec<PartitionId>);

impl Homes {
    /// With a shard of so many partitions; 0: all.
    #[must_use]
    pub fn new(tenant: &TenantId, partition_count: u32, shard_size: u32) -> Self {
        Self(tenant_partitions(tenant, partition_count, shard_size))
    }

    /// Whether a series of a partition belongs there. Of one that came without some of its labels, unless
    /// `all_labels`, that is known only where its hash came with it.
    #[must_use]
    pub fn is_home(&self, series: &Series, partition: PartitionId, all_labels: bool) -> bool {
        let hash = series.source.series_hash().or_else(|| all_labels.then(|| series.labels.hash128()));
        hash.is_some_and(|hash| self.0.get(partition_of(hash, &self.0)) == Some(&partition))
    }
}

/// What sums up. Cheap to clone.
#[derive(Clone)]
pub struct Sums(Arc<Inner>);

struct Inner {
    turns: Arc<Semaphore>,
    turns_max: usize,
    cores: usize,
    pool: Arc<SamplePool>,
    counted: Fragments,
}

impl Sums {
    /// At most `concurrent_max` at once, with samples of `pool`.
    #[must_use]
    pub fn new(concurrent_max: usize, pool: Arc<SamplePool>, counted: Fragments) -> Self {
        let cores = engram_storage::blocking::cores();
        let turns = Arc::new(Semaphore::new(concurrent_max));
        Self(Arc::new(Inner { turns, turns_max: concurrent_max, cores, pool, counted }))
    }

    /// Sums up what `local` has for the selects.
    ///
    /// # Errors
    /// As [`Replica::select_all`]; Timeout when the query may take no longer.
    ///
    /// # Cancel safety
    /// Dropping the future stops the evaluation.
    pub async fn answer(
        &self,
        local: &Arc<dyn Replica>,
        partition_count: u32,
        selects: Vec<Select>,
        summing: Summing,
    ) -> Result<Summed, Error> {
        let within = Duration::from_millis(summing.fragment.rules.within_ms);
        let late = |_| Error::new(Class::Timeout, "summing up for another node took longer than its query may");
        let done = tokio::time::timeout(within, self.sum_up(local, partition_count, selects, summing));
        let summed = done.await.map_err(late)??;
        self.0.counted.count(match &summed {
            Summed::Done(_) => "answered",
            Summed::Declined(why) => why,
        });
        Ok(summed)
    }

    async fn sum_up(
        &self,
        local: &Arc<dyn Replica>,
        partition_count: u32,
        selects: Vec<Select>,
        summing: Summing,
    ) -> Result<Summed, Error> {
        let Some(first) = selects.first().cloned() else { return Ok(Summed::Declined("failed")) };
        let closed = |_| Error::unavailable("this node stops");
        let turn = self.0.turns.clone().acquire_owned().await.map_err(closed)?;
        let found = local.select_all(selects.clone()).await?;
        let count: u64 = found.iter().map(|series| series.len() as u64).sum();
        if first.series_max > 0 && count > first.series_max {
            return Err(too_many_series(&first.tenant, count, first.series_max));
        }
        let running = self.0.turns_max.saturating_sub(self.0.turns.available_permits()).max(1);
        let budget = self.budget(&summing, self.0.cores / running, &first.tenant);
        let cancel = Cancel::default();
        let _guard = CancelOnDrop(cancel.clone());
        let evaluation = engram_storage::blocking::blocking(move || {
            let _turn = turn;
            let homes = Homes::new(&first.tenant, partition_count, summing.shard_size);
            let all_labels = first.wanted.labels.is_none();
            let is_home = |(select, series): (&Select, &Vec<Series>)| {
                series.iter().all(|one| homes.is_home(one, select.partition, all_labels))
            };
            if !selects.iter().zip(&found).all(is_home) {
                return Ok(Summed::Declined("misplaced"));
            }
            let series = found.into_iter().flatten().collect();
            match engine::sum_up(&summing.fragment, series, &budget, &cancel) {
                Ok(Some(partial)) => Ok(Summed::Done(partial)),
                Ok(None) => Ok(Summed::Declined("unfit")),
                Err(error @ (QueryError::Timeout { .. } | QueryError::Cancelled { .. })) => Err(Error::from(error)),
                // Whoever asks meets it too, and knows the query it says it of.
                Err(_) => Ok(Summed::Declined("failed")),
            }
        });
        evaluation.await.map_err(|e| Error::new(Class::Internal, format!("summing up failed: {e}")))?
    }

    fn budget(&self, summing: &Summing, threads: usize, tenant: &TenantId) -> Budget {
        let rules = &summing.fragment.rules;
        Budget {
            lookback_ms: rules.lookback_ms,
            samples_max: rules.samples_max,
            bytes_max: rules.bytes_max,
            owner: format!("tenant {tenant}"),
            pool: Some(self.0.pool.clone()),
            timeout: Duration::from_millis(rules.within_ms),
            delayed_name_removal: rules.delayed_name_removal,
            type_and_unit_labels: rules.type_and_unit_labels,
            parallelism: threads.clamp(1, THREADS_MAX),
            push_down: false,
            ..Budget::default()
        }
    }
}
