//! Where data lies: nodes, zones, partitions, epochs, and the arithmetic of majorities.
//!
//! The two choices every node must make alike are here, as pure functions: which partitions a tenant uses
//! ([`tenant_partitions`], rendezvous hashing, so that a growing shard only adds) and which of them a series goes to
//! ([`partition_of`]).

use serde::{Deserialize, Serialize};

use crate::tenant::TenantId;

/// A node: the log index that admitted it; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// What may fail together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Zone(pub String);

/// The unit of placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartitionId(pub u32);

/// Version of one partition's replica set; only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Epoch(pub u64);

/// The nodes that hold a partition, and the epoch since which they do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ReplicaSet {
    /// Since when.
    pub epoch: Epoch,
    /// Who, in order of preference.
    pub replicas: Vec<NodeId>,
}

/// How many of `replicas` make a majority.
#[must_use]
pub fn majority(replicas: usize) -> usize {
    replicas / 2 + 1
}

/// The replica sets whose majorities a read or a write needs: one, or two while the one replaces the other.
///
/// Both need both: a reader that has not heard yet that the change is done still meets, in the new set, each write that
/// was made after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sets {
    current: Vec<NodeId>,
    next: Vec<NodeId>,
}

impl Sets {
    /// The set that is, and the one that will be.
    #[must_use]
    pub fn new(current: &[NodeId], next: Option<&[NodeId]>) -> Self {
        Self { current: current.to_vec(), next: next.unwrap_or_default().to_vec() }
    }

    /// Everybody in either set, once, those of the present one first.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let come = self.next.iter().filter(|node| !self.current.contains(node));
        self.current.iter().chain(come).copied()
    }

    /// Those of the present set.
    #[must_use]
    pub fn current(&self) -> &[NodeId] {
        &self.current
    }

    /// Those of the set that will be; empty when none will.
    #[must_use]
    pub fn next(&self) -> &[NodeId] {
        &self.next
    }

    /// Whether the node is in the present set, and will not be in the next one.
    #[must_use]
    pub fn leaves(&self, node: NodeId) -> bool {
        !self.next.is_empty() && self.current.contains(&node) && !self.next.contains(&node)
    }

    /// Whether these nodes are a majority of each set.
    #[must_use]
    pub fn have_majority(&self, nodes: &[NodeId]) -> bool {
        let enough = |set: &[NodeId]| set.iter().filter(|node| nodes.contains(node)).count() >= majority(set.len());
        enough(&self.current) && (self.next.is_empty() || enough(&self.next))
    }

    /// Whether without these nodes some set has no majority.
    #[must_use]
    pub fn cannot_have_majority(&self, without: &[NodeId]) -> bool {
        let short = |set: &[NodeId]| set.iter().filter(|node| !without.contains(node)).count() < majority(set.len());
        short(&self.current) || (!self.next.is_empty() && short(&self.next))
    }
}

/// Partitions of a cluster unless told otherwise at bootstrap.
pub const PARTITION_COUNT_DEFAULT: u32 = 64;

/// The partitions a tenant uses, best first: the first `shard_size` of its own rendezvous order; 0 means all.
/// A larger shard holds every partition of a smaller one.
#[must_use]
pub fn tenant_partitions(tenant: &TenantId, partition_count: u32, shard_size: u32) -> Vec<PartitionId> {
    let seed = xxhash_rust::xxh3::xxh3_64(tenant.as_str().as_bytes());
    let mut order: Vec<(u64, u32)> =
        (0..partition_count).map(|p| (xxhash_rust::xxh3::xxh3_64_with_seed(&p.to_be_bytes(), seed), p)).collect();
    order.sort_unstable();
    let take = if shard_size == 0 { partition_count } else { shard_size.min(partition_count) };
    order.truncate(take as usize);
    order.into_iter().map(|(_, p)| PartitionId(p)).collect()
}

/// Which of the tenant's partitions a series goes to, as an index into `partitions`: rendezvous again, so that a
/// shard that grows by one moves one series in `n + 1`, to the new partition.
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "the low half of 128 bits is meant")]
pub fn partition_of(series_hash: u128, partitions: &[PartitionId]) -> usize {
    if partitions.len() <= 1 {
        return 0;
    }
    let base = (series_hash as u64) ^ ((series_hash >> 64) as u64);
    let weight = |p: &PartitionId| {
        let mut x = base ^ u64::from(p.0).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^ (x >> 32)
    };
    let mut best = (0, weight(&partitions[0]));
    for (i, partition) in partitions.iter().enumerate().skip(1) {
        let have = weight(partition);
        if have > best.1 {
            best = (i, have);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_shard_only_adds() {
        let tenant = TenantId::new("acme").unwrap();
        let all = tenant_partitions(&tenant, 64, 0);
        assert_eq!(all.len(), 64);
        for size in 1..64 {
            assert_eq!(tenant_partitions(&tenant, 64, size), all[..size as usize]);
        }
    }

    #[test]
    fn growing_moves_series_only_to_the_new_partition() {
        let all = tenant_partitions(&TenantId::new("acme").unwrap(), 64, 0);
        let mut moved = 0;
        for i in 0..10_000_u128 {
            let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            let (before, after) = (partition_of(hash, &all[..4]), partition_of(hash, &all[..5]));
            assert!(after == before || after == 4);
            moved += usize::from(after == 4);
        }
        assert!((1_500..2_500).contains(&moved), "{moved} of 10000 moved to the fifth partition");
    }

    #[test]
    fn while_sets_change_both_need_their_majority() {
        let ids = |all: &[u64]| all.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
        let sets = Sets::new(&ids(&[1, 2, 3]), Some(&ids(&[1, 4, 5])));
        assert_eq!(sets.nodes().collect::<Vec<_>>(), ids(&[1, 2, 3, 4, 5]));
        for (nodes, want) in [(&[1, 2][..], false), (&[1, 2, 4], true), (&[4, 5], false), (&[2, 3, 4, 5], true)] {
            assert_eq!(sets.have_majority(&ids(nodes)), want, "{nodes:?}");
        }
        assert!(!sets.cannot_have_majority(&ids(&[1])) && sets.cannot_have_majority(&ids(&[1, 4])));
        assert_eq!(sets.nodes().filter(|node| sets.leaves(*node)).collect::<Vec<_>>(), ids(&[2, 3]));
        let alone = Sets::new(&ids(&[7]), None);
        assert!(!alone.leaves(NodeId(7)) && alone.have_majority(&ids(&[7])) && alone.cannot_have_majority(&ids(&[7])));
    }

    #[test]
    fn majorities() {
        assert_eq!([1, 2, 3, 4, 5].map(majority), [1, 2, 2, 3, 3]);
    }
}
