//! Answers the engine's port: one tenant's series from the replicas and the blocks that hold them.
//!
//! One look at the metadata per query ([`View`]): all partitions the tenant's shard ever had, each read through
//! [`Fanout`] from a majority of its replicas, and the blocks of that moment. A series of several places is joined, equal samples count once.
//!
//! ```text
//! look (index k) ─┬─ heads, asked as of k ──── one forgot at an index > k: start over with a newer look
//!                 └─ blocks visible at k, less deletions they do not carry out ─── merged by series
//! ```
//!
//! So what moves from head to block, or from blocks to larger ones, while a query runs, is neither missed nor doubled:
//! a sample is in the head, in a block the look knows, or the head says that the look is too old.
//!
//! [`labels`] names and values · [`digests`] what is there in three numbers a slot · [`pushed`] sums of other nodes.

mod digests;
mod labels;
mod pushed;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engram_model::block::BlockRow;
use engram_model::error::Class;
use engram_model::merge::join_series;
use engram_model::place::{Epoch, PartitionId, tenant_partitions};
use engram_model::series::{ReadError, Series, Wanted};
use engram_model::tenant::TenantId;
use engram_model::{Labels, Matcher, TimeRange};
use engram_query::port::{Queryable, SORTED_MAX, SelectHints, Selection, SourceError};
use futures::future::{BoxFuture, try_join, try_join_all};

use super::fanout::Fanout;
use super::fetch::Cost;
use super::hide::Hider;
use super::store::{Blocks, Selected};
use crate::error::Error;
use crate::meta::blocks::BlocksView;
use crate::meta::{Meta, RingView, TenantView};
use crate::metrics::Fragments;
use crate::peer::{Counts, Peers, Replica, Select, too_many_series};

pub(crate) use digests::digests_of;

/// As of which index a reader asks a head when blocks are not its affair.
const HEADS_ONLY: u64 = u64::MAX;

/// What one query sees of the cluster, from its first look to its answer.
#[derive(Clone)]
pub struct View {
    tenant: TenantId,
    config: TenantView,
    ring: Arc<RingView>,
    fanout: Fanout,
    blocks: Blocks,
    /// The tenant's visible blocks, oldest samples first, and its deletions.
    look: Arc<BlocksView>,
    cost: Arc<Cost>,
    stale: Arc<AtomicBool>,
    /// Where pieces of plans may run on other nodes: what became of them.
    pushes: Option<Fragments>,
}

/// What a read may fetch; 0: no limit.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    series_max: u64,
    chunk_bytes_max: u64,
}

impl View {
    /// Looks at the metadata once.
    #[must_use]
    pub fn new(meta: &Meta, peers: &Peers, blocks: &Blocks, tenant: &TenantId) -> Self {
        // Of one index: who came to a ring that is newer than the blocks does not know what heads forgot before.
        let (mut look, ring) = meta.blocks_and_ring(tenant);
        look.blocks.retain(|row| row.marked.is_none());
        look.blocks.sort_by_key(|row| (row.meta.range.start, row.meta.id));
        blocks.keep_only(tenant, &look.blocks);
        Self {
            tenant: tenant.clone(),
            config: meta.tenant(tenant),
            ring,
            fanout: Fanout::new(meta, peers),
            blocks: blocks.clone(),
            look: Arc::new(look),
            cost: Arc::default(),
            stale: Arc::default(),
            pushes: None,
        }
    }

    /// The same, which lets other nodes sum up what they have.
    #[must_use]
    pub fn pushing(self, counted: Fragments) -> Self {
        Self { pushes: Some(counted), ..self }
    }

    /// The same without blocks: what the heads alone hold.
    #[must_use]
    pub fn heads(self) -> Self {
        let look = BlocksView { index: HEADS_ONLY, blocks: Vec::new(), deletions: Vec::new() };
        Self { look: Arc::new(look), ..self }
    }

    /// Whose data.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The tenant's configuration.
    #[must_use]
    pub fn config(&self) -> &TenantView {
        &self.config
    }

    /// Index of the metadata it looked at.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.look.index
    }

    /// Whether a head has forgotten what this view has no blocks of: a newer one is needed.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// What was fetched of blocks so far.
    #[must_use]
    pub fn cost(&self) -> &Cost {
        &self.cost
    }

    /// The blocks it sees.
    #[must_use]
    pub fn block_rows(&self) -> &[Arc<BlockRow>] {
        &self.look.blocks
    }

    fn bounds(&self) -> Bounds {
        let limits = &self.config.limits;
        Bounds {
            series_max: limits.max_fetched_series_per_query,
            chunk_bytes_max: limits.max_fetched_chunk_bytes_per_query,
        }
    }

    /// Every partition that may hold data of the tenant.
    fn partitions(&self) -> Vec<PartitionId> {
        tenant_partitions(&self.tenant, self.ring.partition_count(), self.config.shard_size_largest)
    }

    /// Remembers that a newer view is needed.
    fn noticed<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        if done.as_ref().is_err_and(Error::is_stale_view) {
            self.stale.store(true, Ordering::Relaxed);
        }
        done
    }

    /// What is asked of each partition.
    fn requests(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        wanted: Wanted,
        (series_max, as_of): (u64, u64),
    ) -> Vec<Select> {
        let (matchers, wanted) = (Arc::new(matchers.to_vec()), Arc::new(wanted));
        let request = |partition| Select {
            tenant: self.tenant.clone(),
            partition,
            epoch: Epoch::default(),
            range,
            matchers: matchers.clone(),
            wanted: wanted.clone(),
            series_max,
            as_of,
        };
        self.partitions().into_iter().map(request).collect()
    }

    /// Asks a majority of the replicas of every partition and hands the answers to the caller, in order of partition;
    /// the answers of one partition together.
    async fn ask_each<T: Send>(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        as_of: u64,
        ask: impl for<'r> Fn(&'r dyn Replica, Select) -> BoxFuture<'r, Result<T, Error>> + Sync,
    ) -> Result<Vec<Vec<T>>, Error> {
        let requests = self.requests(matchers, range, Wanted::default(), (0, as_of));
        self.noticed(self.fanout.ask(&self.ring, &requests, ask).await)
    }

    /// As [`View::ask_each`], for answers of which the union is wanted.
    async fn ask<T: Send>(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        as_of: u64,
        ask: impl for<'r> Fn(&'r dyn Replica, Select) -> BoxFuture<'r, Result<T, Error>> + Sync,
    ) -> Result<Vec<T>, Error> {
        Ok(self.ask_each(matchers, range, as_of, ask).await?.into_iter().flatten().collect())
    }

    /// Series with samples in `range`, none twice, with what is wanted of them; few come sorted, with all labels.
    ///
    /// # Errors
    /// Unavailable when a partition or a block cannot be read, or this view is too old ([`View::is_stale`]); Limited
    /// when there are more series, or more bytes of blocks, than the tenant may fetch.
    pub async fn samples(&self, matchers: &[Matcher], range: TimeRange, wanted: Wanted) -> Result<Vec<Series>, Error> {
        self.samples_within(matchers, range, wanted, self.bounds()).await
    }

    async fn samples_within(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        mut wanted: Wanted,
        bounds: Bounds,
    ) -> Result<Vec<Series>, Error> {
        let hider = Hider::new(&self.look.deletions, range)?;
        if !hider.is_empty() {
            // What is hidden is told by all labels, and the last sample may be.
            wanted = Wanted::default();
        }
        let some_labels = wanted.labels.is_some();
        let last_only = wanted.last_only;
        let from_blocks = self.read_blocks(matchers, range, last_only, &hider, bounds);
        let (blocks, mut heads) = try_join(from_blocks, self.read_heads(matchers, range, wanted, bounds)).await?;
        let mut series = join(&blocks, heads, &hider);
        if series.len() > SORTED_MAX {
            return Ok(series);
        }
        if some_labels && series.len() > 1 {
            heads = self.read_heads(matchers, range, Wanted { last_only, labels: None }, bounds).await?;
            series = join(&blocks, heads, &hider);
        }
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(series)
    }

    /// Reads all partitions, each complete.
    async fn read_heads(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        wanted: Wanted,
        bounds: Bounds,
    ) -> Result<Vec<Vec<Series>>, Error> {
        let requests = self.requests(matchers, range, wanted, (bounds.series_max, self.look.index));
        self.noticed(self.fanout.select(&self.ring, &requests).await)
    }

    /// What matches in each block of the range.
    async fn found(&self, matchers: &[Matcher], range: TimeRange, series_max: u64) -> Result<Vec<Selected>, Error> {
        let rows = self.look.blocks.iter().filter(|row| row.meta.range.overlaps(range));
        let selects = rows.map(|row| self.blocks.select(row, matchers, range, series_max, &self.cost));
        let mut all = try_join_all(selects).await?;
        all.retain(|selected| !selected.found.is_empty());
        Ok(all)
    }

    /// The samples of blocks, each block apart, oldest first, without what is hidden.
    async fn read_blocks(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        last_only: bool,
        hider: &Hider,
        bounds: Bounds,
    ) -> Result<Vec<Vec<Series>>, Error> {
        let mut found = self.found(matchers, range, bounds.series_max).await?;
        if last_only {
            found.iter_mut().for_each(Selected::keep_last);
        }
        let loads = found.into_iter().map(|selected| async {
            let hider = hider.after(selected.row().meta.as_of);
            let series = self.blocks.load(selected, bounds.chunk_bytes_max, &self.cost).await?;
            Ok(if hider.is_empty() { series } else { series.into_iter().map(|one| hider.hide(one)).collect() })
        });
        try_join_all(loads).await
    }

    /// What is known of the tenant's metrics.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn metadata(&self) -> Result<Vec<(String, engram_model::sample::Metadata)>, Error> {
        let parts = self.ask(&[], TimeRange::ALL, HEADS_ONLY, |replica, request| replica.metadata(request)).await?;
        let mut seen = HashSet::new();
        Ok(parts.into_iter().flatten().filter(|one| seen.insert(one.clone())).collect())
    }

    /// What makes each partition of the tenant large, lists cut at `max`: what the heads hold.
    ///
    /// # Errors
    /// Unavailable when a partition cannot be read.
    pub async fn counts(&self, max: usize) -> Result<Vec<Counts>, Error> {
        let parts =
            self.ask_each(&[], TimeRange::ALL, HEADS_ONLY, |replica, request| replica.counts(request, max)).await?;
        // Of replicas that differ the one that knows most.
        Ok(parts.into_iter().filter_map(|all| all.into_iter().max_by_key(|counts| counts.samples)).collect())
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
        let parts = self.ask(matchers, range, HEADS_ONLY, |replica, request| replica.exemplars(request)).await?;
        let mut all: BTreeMap<Labels, Vec<engram_model::sample::Exemplar>> = BTreeMap::new();
        for (labels, exemplars) in parts.into_iter().flatten() {
            let have = all.entry(labels).or_default();
            for one in exemplars {
                if !have.contains(&one) {
                    have.push(one);
                }
            }
        }
        all.values_mut().for_each(|exemplars| exemplars.sort_by_key(|one| one.at));
        Ok(all.into_iter().collect())
    }
}

/// Blocks and heads as one, without what is hidden in the heads.
fn join(blocks: &[Vec<Series>], heads: Vec<Vec<Series>>, hider: &Hider) -> Vec<Series> {
    // Blocks first: they are older, and their series come with all labels.
    let mut places = blocks.to_vec();
    places.extend(heads.into_iter().map(|place| match hider.is_empty() {
        true => place,
        false => place.into_iter().map(|series| hider.hide(series)).collect(),
    }));
    join_series(places)
}

fn damaged(error: &ReadError) -> Error {
    Error::new(Class::Internal, error.to_string())
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
            let selection = match &hints.fragment {
                Some(fragment) => self.select_pushed(matchers, range, wanted, fragment).await,
                None => self.plain(matchers, range, wanted).await,
            };
            let selection = selection.map_err(|error| match error.class {
                Class::Limited => SourceError::Limited(error.message),
                Class::Internal => SourceError::Damaged(error.message),
                _ => SourceError::Unavailable(error.message),
            })?;
            let (series, max) = (selection.series_count(), self.config.limits.max_fetched_series_per_query);
            if max > 0 && series > max {
                return Err(SourceError::Limited(too_many_series(&self.tenant, series, max).message));
            }
            Ok(selection)
        })
    }
}
