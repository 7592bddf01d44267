//! Asks every node how it is, all at once: what the leader decides by, and what operators are shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::{NodeId, PartitionId};

use crate::members::call::Calls;
use crate::members::proto::{Beat, Beating, Size};
use crate::members::service::Door;
use crate::meta::Meta;
use crate::meta::nodes::{Change, ClusterView, Member, NodeState};

/// How long a node may take to answer.
const BEAT_WITHIN: Duration = Duration::from_secs(1);

/// What every node that is not dead has answered, or why it has not.
pub(super) async fn ask_all(
    meta: &Meta,
    door: &Arc<Door>,
    calls: &Calls,
    with_sizes: bool,
) -> BTreeMap<NodeId, Result<Beating, String>> {
    let (here, cluster) = (meta.node_id(), meta.cluster_id());
    let members: Vec<Member> = meta.members().into_iter().filter(|m| m.state != NodeState::Dead).collect();
    let beats = members.iter().map(|member| {
        let clock_ms = door.clock.now();
        let beat = Beat { cluster: cluster.clone(), from: here.0, to: member.id.0, clock_ms, with_sizes };
        async move {
            let answer = if member.id == here {
                Ok(door.answer(&beat).await)
            } else {
                calls.beat(&member.spec.grpc, beat, BEAT_WITHIN).await
            };
            let answer = answer.and_then(|beating| match beating.refusal.as_str() {
                "" => Ok(beating),
                why => Err(why.to_owned()),
            });
            (member.id, answer)
        }
    });
    futures::future::join_all(beats).await.into_iter().collect()
}

/// What the replicas hold, by partition and node, as far as nodes have told.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(BTreeMap<PartitionId, BTreeMap<NodeId, Size>>);

impl Held {
    /// Of these answers.
    pub(super) fn of<'a>(answers: impl Iterator<Item = (NodeId, &'a Beating)>) -> Self {
        let mut held = Self::default();
        for (node, beating) in answers {
            for size in &beating.sizes {
                held.0.entry(PartitionId(size.partition)).or_default().insert(node, *size);
            }
        }
        held
    }

    /// What one replica holds; nothing when it has told of none.
    pub(super) fn at(&self, partition: PartitionId, node: NodeId) -> Size {
        self.0.get(&partition).and_then(|by| by.get(&node)).copied().unwrap_or_default()
    }

    /// What the fullest of these replicas holds: what a new one has to get.
    pub(super) fn fullest(&self, partition: PartitionId, of: &[NodeId]) -> Size {
        of.iter().map(|node| self.at(partition, *node)).max_by_key(|size| size.samples).unwrap_or_default()
    }

    /// All that a node holds.
    pub(super) fn node(&self, node: NodeId) -> Size {
        let mut all = Size::default();
        for size in self.0.values().filter_map(|by| by.get(&node)) {
            all.samples += size.samples;
            all.bytes += size.bytes;
        }
        all
    }
}

/// What is left to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Copies that are not complete, those not begun included.
    pub(super) copies: u64,
    /// Their bytes, what is there already taken off.
    pub(super) bytes: u64,
}

/// What is left of the changes under way and of those that are planned. `is_complete`: the node has said so.
pub(super) fn left(
    view: &ClusterView,
    plan: &[Change],
    held: &Held,
    is_complete: impl Fn(NodeId, PartitionId) -> bool,
) -> Left {
    let mut left = Left::default();
    for placed in &view.partitions {
        let current = &placed.current.replicas;
        let full = held.fullest(placed.id, current);
        let comes = |set: &[NodeId]| set.iter().copied().filter(|id| !current.contains(id)).collect::<Vec<_>>();
        for node in placed.next.as_deref().map(comes).unwrap_or_default() {
            if is_complete(node, placed.id) {
                continue;
            }
            let lacks = full.samples.saturating_sub(held.at(placed.id, node).samples);
            left.copies += 1;
            left.bytes += share(full, lacks);
        }
    }
    for change in plan {
        let count = change.comes().count() as u64;
        left.copies += count;
        left.bytes += held.fullest(change.partition, &change.from).bytes.saturating_mul(count);
    }
    left
}

/// The bytes of some of the samples.
fn share(full: Size, samples: u64) -> u64 {
    let part = u128::from(full.bytes) * u128::from(samples) / u128::from(full.samples.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}
