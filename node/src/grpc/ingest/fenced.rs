//! This node's replicas as other nodes meet them: every request is held against the metadata first.
//!
//! Why apart from the bytes: the fence is what keeps a node from answering for a replica set that is no more, and readers
//! from missing partitions that a tenant has come to use. A simulation, which has no bytes between its nodes, must pass
//! through this very door.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engram_model::Labels;
use engram_model::digest::Digest;
use engram_model::place::{Epoch, PartitionId};
use engram_model::sample::Metadata;
use engram_model::series::Series;
use engram_model::tenant::TenantId;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::Error;
use crate::meta::Meta;
use crate::peer::{
    Append, Appended, Counts, Exemplars, Found, HeldWindows, PartitionView, Replica, Select, SetAside, SlotDigests,
    Summed, Summing,
};
use crate::read::sums::Sums;

/// How long this node's metadata may take to catch up with a reader's.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);

/// See the module's text. Cheap to clone.
#[derive(Clone)]
pub struct Fenced {
    local: Arc<dyn Replica>,
    meta: Meta,
    sums: Option<Sums>,
}

impl Fenced {
    /// In front of `local`; `sums` sums up its series for others, if anything does.
    #[must_use]
    pub fn new(local: Arc<dyn Replica>, meta: Meta, sums: Option<Sums>) -> Self {
        Self { local, meta, sums }
    }

    /// Refuses a reader who does not know all partitions of the tenant that this node knows: it would miss what is there.
    fn knows_shard(&self, select: &Select) -> Result<(), Error> {
        let grown_at = self.meta.grown_at(&select.tenant);
        if select.as_of < grown_at { Err(Error::stale_shard(select.as_of, grown_at)) } else { Ok(()) }
    }

    /// Catches up with the coordinator where that is needed, then stores.
    async fn store(&self, mut request: Append, within: Duration) -> Result<Appended, Error> {
        let fenced = self.meta.fence(request.partition, request.epoch, within).await;
        #[cfg(feature = "mutants")]
        let fenced =
            fenced.or_else(|stale| engram_model::mutant::Mutant::StaleEpoch.lives().then_some(()).ok_or(stale));
        fenced?;
        if self.meta.tenant(&request.tenant).version == 0 {
            self.meta.reached(request.as_of, within).await?;
        }
        request.limits = self.meta.tenant(&request.tenant).limits;
        self.local.append(request, within).await
    }

    /// Reads between two looks at the epochs: what is read while this node leaves a partition is half of it.
    async fn at<T>(
        &self,
        (partition, epoch): (PartitionId, Epoch),
        reading: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.meta.fence(partition, epoch, CATCH_UP_WITHIN).await?;
        let answer = reading.await?;
        self.meta.is_at(partition, epoch)?;
        Ok(answer)
    }

    fn one<'a, T: Send + 'a>(
        &'a self,
        select: Select,
        ask: impl FnOnce(&'a dyn Replica, Select) -> BoxFuture<'a, Result<T, Error>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, Error>> {
        let of = (select.partition, select.epoch);
        let reading = async move {
            self.knows_shard(&select)?;
            ask(&*self.local, select).await
        };
        async move { self.at(of, reading).await }.boxed()
    }

    fn all<'a, T: Send + 'a>(
        &'a self,
        selects: Vec<Select>,
        ask: impl FnOnce(&'a Self, Vec<Select>) -> BoxFuture<'a, Result<T, Error>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, Error>> {
        async move {
            let of: Vec<_> = selects.iter().map(|one| (one.partition, one.epoch)).collect();
            for select in &selects {
                self.meta.fence(select.partition, select.epoch, CATCH_UP_WITHIN).await?;
                self.knows_shard(select)?;
            }
            let answer = ask(self, selects).await?;
            of.into_iter().try_for_each(|(partition, epoch)| self.meta.is_at(partition, epoch))?;
            Ok(answer)
        }
        .boxed()
    }
}

impl Replica for Fenced {
    fn append(&self, request: Append, within: Duration) -> BoxFuture<'_, Result<Appended, Error>> {
        self.store(request, within).boxed()
    }

    fn select(&self, request: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>> {
        self.one(request, |local, request| local.select(request))
    }

    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        self.all(requests, |fenced, requests| fenced.local.select_all(requests))
    }

    fn series(&self, request: Select) -> BoxFuture<'_, Result<Vec<Labels>, Error>> {
        self.one(request, |local, request| local.series(request))
    }

    fn label_names(&self, request: Select) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.one(request, |local, request| local.label_names(request))
    }

    fn label_values(&self, request: Select, name: String) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.one(request, |local, request| local.label_values(request, name))
    }

    fn metadata(&self, request: Select) -> BoxFuture<'_, Result<Vec<(String, Metadata)>, Error>> {
        self.one(request, |local, request| local.metadata(request))
    }

    fn exemplars(&self, request: Select) -> BoxFuture<'_, Result<Exemplars, Error>> {
        self.one(request, |local, request| local.exemplars(request))
    }

    fn counts(&self, request: Select, max: usize) -> BoxFuture<'_, Result<Counts, Error>> {
        self.one(request, move |local, request| local.counts(request, max))
    }

    fn everything(&self, request: Select) -> BoxFuture<'_, Result<PartitionView, Error>> {
        self.one(request, |local, request| local.everything(request))
    }

    fn digests(&self, request: Select) -> BoxFuture<'_, Result<SlotDigests, Error>> {
        self.one(request, |local, request| local.digests(request))
    }

    /// Asked whatever the replica set is: any that this node is of will do, but not none.
    fn windows(&self, partition: PartitionId) -> BoxFuture<'_, Result<Vec<HeldWindows>, Error>> {
        async move {
            let held = self.local.windows(partition).await?;
            self.meta.holds(partition)?;
            Ok(held)
        }
        .boxed()
    }

    /// Not fenced: what is set aside never changes.
    fn set_aside(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
    ) -> BoxFuture<'_, Result<Option<SetAside>, Error>> {
        self.local.set_aside(tenant, partition, number)
    }

    fn inventory(&self, partition: PartitionId, epoch: Epoch) -> BoxFuture<'_, Result<Vec<(TenantId, Digest)>, Error>> {
        async move { self.at((partition, epoch), self.local.inventory(partition, epoch)).await }.boxed()
    }

    /// Comes when this node's metadata are that far.
    fn known(&self, partition: PartitionId, epoch: Epoch, index: u64) -> BoxFuture<'_, Result<(), Error>> {
        let reached = self.meta.reached(index, CATCH_UP_WITHIN);
        async move { self.at((partition, epoch), reached).await }.boxed()
    }

    fn sum_up(&self, requests: Vec<Select>, summing: Summing) -> BoxFuture<'_, Result<Summed, Error>> {
        self.all(requests, |fenced, requests| {
            async move {
                let Some(sums) = &fenced.sums else { return Ok(Summed::Declined("unknown")) };
                let count = fenced.meta.ring().partition_count();
                sums.answer(&fenced.local, count, requests, summing).await
            }
            .boxed()
        })
    }

    fn digests_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<SlotDigests>, Error>> {
        self.all(requests, |fenced, requests| fenced.local.digests_all(requests))
    }

    fn found_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        self.all(requests, |fenced, requests| fenced.local.found_all(requests))
    }
}
