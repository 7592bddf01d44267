//! Completing: a node of a new replica set takes everything that was acknowledged before the change.
//!
//! Why apart from comparing: nothing may be lacking here, and the leader waits for it.
//!
//! A majority of the old set has all that was acknowledged. Who leaves is asked all the same, if it can be: what a refused
//! write left there, and a query may have shown, goes with it otherwise. One that does not answer is waited for
//! [`INSISTS_FOR`] and no longer, one that is dead not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{Epoch, NodeId, PartitionId, Sets};
use engram_model::{Millis, TimeRange};
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::Config;
use super::leave::{HANDS_OVER_FOR, LEAVE_WITHIN};
use super::take::{At, Why, absent, on_thread, ranges};
use crate::error::Error;
use crate::meta::nodes::NodeState;

/// Partitions completed at once.
const COMPLETE_AT_ONCE: usize = 4;
/// How long a change waits for a replica that leaves and does not give what it has, though a majority does.
const INSISTS_FOR: Duration = Duration::from_secs(3);

/// Replica sets that change, and partitions to leave, and since when this node knows.
#[derive(Default)]
pub struct Completing {
    /// By the epoch; none: to leave, whatever the epoch.
    since: BTreeMap<PartitionId, (Option<Epoch>, Instant)>,
}

impl Completing {
    /// Completes replicas whose set changes and forgets those that are no longer here. Whether something is left to do.
    pub async fn look(&mut self, config: &Config, now: Instant) -> bool {
        let changing = config.all().filter_map(|partition| {
            let epoch = match config.sets(partition) {
                Some((_, epoch, true)) => Some(epoch),
                Some(_) => return None,
                None => None,
            };
            let known = self.since.get(&partition).filter(|(of, _)| *of == epoch);
            Some((partition, (epoch, known.map_or(now, |(_, since)| *since))))
        });
        self.since = changing.collect();
        let since = &self.since;
        let insists = |partition: PartitionId| {
            since.get(&partition).is_none_or(|(epoch, since)| {
                let patience = if epoch.is_some() { INSISTS_FOR } else { HANDS_OVER_FOR };
                now.saturating_duration_since(*since) < patience
            })
        };
        let changes = stream::iter(config.all()).map(|partition| config.change_of(partition, insists(partition)));
        changes.buffer_unordered(COMPLETE_AT_ONCE).fold(false, async |any, left| any || left).await
    }
}

impl Config {
    /// Completes, or forgets, one partition. Whether something is left to do.
    async fn change_of(&self, partition: PartitionId, insists: bool) -> bool {
        let Some((sets, epoch, comes)) = self.sets(partition) else {
            self.complete.lock().remove(&partition);
            return self.leave(partition, insists).await;
        };
        if !comes {
            self.complete.lock().remove(&partition);
            return false;
        }
        if self.complete.lock().get(&partition) == Some(&epoch) {
            return false;
        }
        match self.complete(partition, (&sets, epoch), insists).await {
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

    /// Takes everything that a majority of the present set acknowledged before `epoch`, and what those have that leave.
    async fn complete(
        &self,
        partition: PartitionId,
        (sets, epoch): (&Sets, Epoch),
        insists: bool,
    ) -> Result<(), Error> {
        // Whatever this partition's actor was told before comes first: one that left and is back may still be forgetting.
        if let Some(actor) = self.partitions.get(partition.0 as usize) {
            actor.settle(LEAVE_WITHIN).await?;
        }
        let (mut done, mut why, mut missed) = (Vec::new(), Vec::new(), false);
        let is_done = |done: &[NodeId]| Sets::new(sets.current(), None).have_majority(done);
        for node in self.order_of(sets) {
            if is_done(&done) && !sets.leaves(node) {
                continue;
            }
            let taken = if node == self.here() {
                self.inventory(node, partition, epoch).await.map(drop)
            } else {
                self.take_all(node, partition, epoch).await
            };
            match taken {
                Ok(()) => done.push(node),
                Err(error) => {
                    missed |= sets.leaves(node) && !self.is_dead(node);
                    why.push(error.message);
                }
            }
        }
        let why = why.join("; ");
        if !is_done(&done) {
            return Err(Error::unavailable(format!("no majority of the old replicas gives what it has: {why}")));
        }
        if missed && insists {
            return Err(Error::unavailable(format!("a replica that leaves does not give what it has: {why}")));
        }
        if missed {
            tracing::warn!(partition = partition.0, why, "complete without what only a replica that leaves may have");
        }
        Ok(())
    }

    /// Whom to ask: this node first, as one of the old set it only has to make visible what it accepted. Who leaves comes
    /// before who stays, so that no more replicas are asked than must be, and who failed just now comes last.
    fn order_of(&self, sets: &Sets) -> Vec<NodeId> {
        let mut order: Vec<NodeId> = sets.current().to_vec();
        order.sort_by_key(|node| (*node != self.here(), !self.peers.is_well(*node), !sets.leaves(*node)));
        order
    }

    /// Whether a node is known to be gone for good.
    fn is_dead(&self, node: NodeId) -> bool {
        self.meta.member(node).is_none_or(|member| member.state == NodeState::Dead)
    }

    /// Pulls every slot in which another replica has something that this one lacks.
    async fn take_all(&self, node: NodeId, partition: PartitionId, epoch: Epoch) -> Result<(), Error> {
        for (tenant, total) in self.inventory(node, partition, epoch).await? {
            if total.count == 0 {
                continue;
            }
            let spot = At { node, partition, epoch, tenant };
            let before = self.differing(&spot, TimeRange::ALL, Why::Completing).await?;
            let slots: Vec<(Millis, u64)> = before.iter().map(|(slot, (_, other))| (*slot, other.count)).collect();
            let refused = self.pull(&spot, &slots).await?;
            let left = self.differing(&spot, TimeRange::ALL, Why::Completing).await?;
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
}

/// Slots that differ still, although the other replica has in them what it had before.
fn unchanged(
    before: &BTreeMap<Millis, (Digest, Digest)>,
    left: &BTreeMap<Millis, (Digest, Digest)>,
) -> Vec<(Millis, u64)> {
    let same = left.iter().filter(|(slot, (_, other))| before.get(slot).is_some_and(|(_, had)| had == other));
    same.map(|(slot, (_, other))| (*slot, other.count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_written_is_not_looked_at_again() {
        let digest = |count: u64| Digest { count, low: count, high: count };
        let before =
            BTreeMap::from([(0, (digest(1), digest(5))), (1, (digest(1), digest(6))), (2, (digest(1), digest(7)))]);
        let left =
            BTreeMap::from([(0, (digest(4), digest(5))), (1, (digest(6), digest(8))), (9, (digest(0), digest(1)))]);
        assert_eq!(unchanged(&before, &left), vec![(0, 5)]);
    }
}
