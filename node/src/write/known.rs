//! Before samples go to partitions that a tenant did not use before, readers everywhere must be able to learn of them.
//!
//! Why: a reader asks the partitions that its own metadata name, and these may be older than the writer's. It would not
//! miss an old partition, but never hear of a new one, and answer without what was acknowledged there. So the writer first
//! sees to it that a majority of the replicas of one partition knows of the growth: of the first in the tenant's order,
//! which is in every shard the tenant ever had, so that every reader asks a majority of these very replicas. One of them is
//! in both, and tells a reader of an older index that its view is stale; the reader looks again, and starts over. Who reads
//! on a node of the majority needs no telling: its own metadata were there before the write was acknowledged.
//!
//! Asked once a tenant, growth and process: nobody forgets metadata. A shard that shrinks needs nothing of this: readers
//! cover the largest there ever was.

use std::collections::HashMap;
use std::time::Duration;

use engram_model::Class;
use engram_model::place::{NodeId, tenant_partitions};
use engram_model::tenant::TenantId;
use parking_lot::Mutex;

use super::distributor::on_majority;
use crate::error::Error;
use crate::meta::{Meta, TenantView};
use crate::peer::{Appended, Peers};

/// Tenants that are remembered; above, all are forgotten and asked for again.
const TENANTS_MAX: usize = 100_000;

/// Since which index of the metadata a majority knows all partitions of each tenant.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<TenantId, u64>>);

impl Known {
    /// Waits until every reader learns of the partitions of `config`.
    ///
    /// # Errors
    /// Unavailable or Timeout when no majority knows of them in time: nothing may be written there then.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn spread(
        &self,
        (meta, peers): (&Meta, &Peers),
        tenant: &TenantId,
        config: &TenantView,
        within: Duration,
    ) -> Result<(), Error> {
        let index = config.grown_at;
        if self.0.lock().get(tenant).is_some_and(|known| *known >= index) {
            return Ok(());
        }
        let ring = meta.ring();
        for first in tenant_partitions(tenant, ring.partition_count(), 1) {
            let ask = |node: NodeId, epoch, left| async move {
                let asked = async { peers.replica(node)?.known(first, epoch, index).await };
                let late = |_| {
                    let text =
                        format!("node {} does not say in time whether it knows all partitions of a tenant", node.0);
                    Error::new(Class::Timeout, text)
                };
                tokio::time::timeout(left, asked).await.map_err(late)?.map(|()| Appended::default())
            };
            on_majority(meta, ring.clone(), first, within, ask).await?;
        }
        let mut known = self.0.lock();
        if known.len() >= TENANTS_MAX {
            known.clear();
        }
        known.insert(tenant.clone(), index);
        Ok(())
    }
}
