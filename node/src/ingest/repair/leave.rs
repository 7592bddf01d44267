//! Leaving: what only this node has of a partition that it holds no more goes to those that do, and is forgotten here.
//!
//! Why at all: what a refused write left on this node alone while the set changed, after the others had taken what they
//! lacked, may have been shown by queries (I2b). Nothing older than the present epoch is accepted any more, so what this
//! node has is final; it is handed to as many as are a majority of each set, and lies in every later read.
//!
//! What lies in a block, or was deleted, must not come back: a slot that a block, a deletion or a seal that is cut overlaps
//! is left out. A replica that has forgotten something this node's metadata do not know of refuses, and is asked again.
//!
//! Bound: [`HANDS_OVER_FOR`], then the node forgets all the same, and says so.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use engram_model::Millis;
use engram_model::TimeRange;
use engram_model::digest::{Digest, SLOT_MS};
use engram_model::error::Class;
use engram_model::place::{Epoch, NodeId, PartitionId, Sets};
use engram_model::tenant::TenantId;

use super::Config;
use super::take::{At, in_time, missing, on_thread, ranges};
use crate::error::Error;
use crate::peer::Select;

/// How long a node goes on trying to hand over what it has.
pub(super) const HANDS_OVER_FOR: Duration = Duration::from_secs(60);
/// How long one attempt may take: other partitions wait for it.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(10);
/// How long a partition's actor may take for what it was told before, and to forget.
pub(super) const LEAVE_WITHIN: Duration = Duration::from_secs(30);

impl Config {
    /// Hands over, as long as there is time for it, and forgets. Whether something is left to do.
    pub(super) async fn leave(&self, partition: PartitionId, tries: bool) -> bool {
        let at = partition.0 as usize;
        let (Some(heads), Some(actor)) = (self.heads.get(at), self.partitions.get(at)) else { return false };
        if self.meta.epoch(partition).is_none() || heads.all().is_empty() {
            return false;
        }
        let late = |_| Error::new(Class::Timeout, format!("not done within {} s", ATTEMPT_WITHIN.as_secs()));
        let handed = tokio::time::timeout(ATTEMPT_WITHIN, self.hand_over(partition)).await;
        match handed.map_err(late).flatten() {
            Ok(0) => {}
            Ok(samples) => tracing::info!(partition = partition.0, samples, "handed over what only this node had"),
            Err(error) if tries => {
                tracing::info!(partition = partition.0, %error, "handed over later");
                return true;
            }
            Err(error) => {
                tracing::warn!(partition = partition.0, %error, "what only this node may have is forgotten with the rest");
            }
        }
        match actor.leave(LEAVE_WITHIN).await {
            Ok(()) => tracing::info!(partition = partition.0, "this node holds the partition no more"),
            Err(error) => tracing::warn!(partition = partition.0, %error, "forgotten later"),
        }
        false
    }

    /// Hands what only this node has to a majority of each set; how many samples that were.
    async fn hand_over(&self, partition: PartitionId) -> Result<u64, Error> {
        let ring = self.meta.ring();
        let Some(set) = ring.replicas(partition) else { return Ok(0) };
        let sets = Sets::new(&set.replicas, ring.next(partition));
        let own = self.inventory(self.here(), partition, set.epoch).await?;
        let mut order: Vec<NodeId> = sets.nodes().collect();
        order.sort_by_key(|node| !self.peers.is_well(*node));
        let (mut done, mut why, mut samples) = (Vec::new(), Vec::new(), 0);
        for node in order {
            match self.hand_to(node, (partition, set.epoch), &own).await {
                Ok(handed) => {
                    samples += handed;
                    done.push(node);
                }
                Err(error) => why.push(error.message),
            }
            if sets.have_majority(&done) {
                return Ok(samples);
            }
        }
        Err(Error::unavailable(format!("no majority of the replicas takes what this one has: {}", why.join("; "))))
    }

    async fn hand_to(
        &self,
        node: NodeId,
        (partition, epoch): (PartitionId, Epoch),
        own: &[(TenantId, Digest)],
    ) -> Result<u64, Error> {
        let theirs: HashMap<TenantId, Digest> = self.inventory(node, partition, epoch).await?.into_iter().collect();
        let mut samples = 0;
        for (tenant, total) in own {
            if total.count > 0 && theirs.get(tenant) != Some(total) && !self.meta.tenant_deleted(tenant) {
                samples += self.hand_tenant(&At { node, partition, epoch, tenant: tenant.clone() }).await?;
            }
        }
        Ok(samples)
    }

    /// Hands a tenant's samples that the other replica lacks to it.
    async fn hand_tenant(&self, at: &At) -> Result<u64, Error> {
        // One look: a replica that has forgotten what no block of it holds says so.
        let (view, seals) = self.meta.blocks_and_seals(&at.tenant);
        let is_elsewhere = |slot: Millis| {
            let range = TimeRange { start: slot, end: slot.saturating_add(SLOT_MS) };
            let mut cut = seals.iter().flat_map(|seals| &seals.open).filter(|seal| seal.cut.is_some());
            view.blocks.iter().any(|row| row.meta.range.overlaps(range))
                || view.deletions.iter().any(|deletion| deletion.range.overlaps(range))
                || cut.any(|seal| seal.window.overlaps(range))
        };
        let select = |range| Select { as_of: view.index, ..at.select(range) };
        let (here, there) = (self.peers.replica(self.here())?, self.peers.replica(at.node)?);
        let all = select(TimeRange::ALL);
        let (own, theirs) =
            futures::future::try_join(in_time(here.digests(all.clone())), in_time(there.digests(all))).await?;
        let theirs: HashMap<Millis, Digest> = theirs.into_iter().collect();
        let own: BTreeMap<Millis, Digest> = own.into_iter().collect();
        let differs = |(slot, digest): &(&Millis, &Digest)| digest.count > 0 && theirs.get(*slot) != Some(*digest);
        let slots: Vec<(Millis, u64)> = own
            .iter()
            .filter(differs)
            .filter(|(slot, _)| !is_elsewhere(**slot))
            .map(|(slot, digest)| (*slot, digest.count))
            .collect();
        let mut samples = 0;
        for range in ranges(&slots) {
            let (own, theirs) =
                futures::future::try_join(in_time(here.select(select(range))), in_time(there.select(select(range))))
                    .await?;
            for batch in on_thread(move || missing(&theirs, &own, range)).await? {
                samples += batch.sample_count() as u64;
                self.append(at, at.node, batch).await?;
            }
        }
        Ok(samples)
    }
}
