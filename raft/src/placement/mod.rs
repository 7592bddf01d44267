//! Placement: which nodes should hold which partitions, as a pure function of who there is and who holds what now.
//!
//! Why pure: the reconciler acts on it and an operator previews with it ("what if I drain this node, lose this zone?"),
//! and both must see the same answer. There is no randomness: ties are broken by hashes of partition and node, so
//! that every leader plans alike and a new plan over a half-done one goes on instead of round in circles.
//!
//! What is wanted, in this order:
//!
//! 1. every partition has RF replicas on different nodes (as many as there are nodes, where there are fewer);
//! 2. they are spread over zones: no replica could move to a zone that holds fewer of the same partition, so with RF
//!    zones or more no two share one;
//! 3. nodes hold equally many: no chain of moves that keeps 1 and 2 takes one from a node to another that has at least
//!    two fewer;
//! 4. nothing moves that need not: who holds a replica keeps it unless 1 to 3 are broken.
//!
//! Method: repair each partition alone (1, 2), then shorten the longest differences along shortest chains of moves (3):
//! each chain makes the sum of the squares of the loads smaller, so it ends, and when there is no such chain the loads
//! are as even as they can be (optimal semi-matchings, Harvey, Ladner, Lovász, Tamir, WADS 2003).
//!
//! A node that is only suspected keeps what it has and gets nothing: it may be back before a copy is made.

mod draft;
pub mod preview;
mod takers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use engram_model::place::{NodeId, PartitionId, Zone};

use crate::state::{NodeState, View};
use draft::Draft;

/// What may be done with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds replicas and may get more.
    Takes,
    /// It keeps what it has and gets nothing.
    Keeps,
    /// It must hold nothing.
    Leaves,
}

impl Standing {
    /// What the state of a node means for placement. One that is joining holds nothing and gets nothing yet.
    #[must_use]
    pub fn of(state: NodeState) -> Self {
        match state {
            NodeState::Active => Self::Takes,
            NodeState::Joining | NodeState::Suspect => Self::Keeps,
            NodeState::Draining | NodeState::Dead => Self::Leaves,
        }
    }
}

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What fails together with it.
    pub zone: Zone,
    /// What may be done with it.
    pub standing: Standing,
}

/// Who there is and who holds what.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ring {
    /// Nodes by id; one that is not here leaves.
    pub members: BTreeMap<NodeId, Member>,
    /// The replicas of each partition: those that will be when the change under way is done.
    pub sets: BTreeMap<PartitionId, Vec<NodeId>>,
    /// How many replicas each partition should have; above 0.
    pub replication_factor: usize,
}

impl Ring {
    /// The ring of the agreed state; a change under way counts as done.
    #[must_use]
    pub fn of(view: &View, replication_factor: usize) -> Self {
        let member = |zone: &str, state| Member { zone: Zone(zone.to_owned()), standing: Standing::of(state) };
        Self {
            members: view.nodes.iter().map(|(id, row)| (*id, member(&row.spec.zone, row.state))).collect(),
            sets: view
                .partitions
                .iter()
                .map(|(id, row)| (*id, row.next.clone().unwrap_or_else(|| row.current.replicas.clone())))
                .collect(),
            replication_factor,
        }
    }

    /// The ring after some changes.
    #[must_use]
    pub fn after(mut self, changes: &[Change]) -> Self {
        for change in changes {
            self.sets.insert(change.partition, change.to.clone());
        }
        self
    }
}

/// Why a partition gets another set; the more urgent comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It has fewer replicas than it should, on nodes that stay.
    Missing,
    /// One of its nodes leaves.
    Leaving,
    /// Two of its replicas share a zone and need not.
    Spread,
    /// It has more replicas than it should.
    Surplus,
    /// Another node holds less.
    Balance,
}

/// A partition gets another set of replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub partition: PartitionId,
    /// The set it has now.
    pub from: Vec<NodeId>,
    /// The set it gets: who stays in the order of now, then who comes.
    pub to: Vec<NodeId>,
    /// Why.
    pub why: Why,
}

impl Change {
    /// Who must fetch a copy.
    pub fn comes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.to.iter().copied().filter(|node| !self.from.contains(node))
    }
}

/// Partitions with fewer replicas that live than there should be: `factor`, or as many as there are nodes that may hold one,
/// where those are fewer. A node that is only suspected is one that should hold its replicas and does not answer for them;
/// one that drains does, until others have them.
#[must_use]
pub fn under_replicated(view: &View, factor: usize) -> usize {
    let state = |id: &NodeId| view.nodes.get(id).map(|row| row.state);
    let usable = view.nodes.iter().filter(|(_, row)| matches!(row.state, NodeState::Active | NodeState::Suspect));
    let wanted = factor.min(usable.count()).max(1);
    let lives = |id: &&NodeId| matches!(state(id), Some(NodeState::Active | NodeState::Draining));
    let short = |replicas: &[NodeId]| replicas.iter().filter(lives).count() < wanted;
    view.partitions.iter().filter(|(_, row)| short(&row.current.replicas)).count()
}

/// Every change from the ring as it is to the ring as it should be, the most urgent first, then by partition. Empty
/// when it is as it should be. Where nobody may take a replica nothing changes: a set never becomes empty.
///
/// Takes about `replicas × log(nodes)` steps; where loads cannot be made even by single moves, a search over all replicas
/// for each chain of moves.
#[must_use]
pub fn plan(ring: &Ring) -> Vec<Change> {
    let mut draft = Draft::new(ring);
    let mut why: BTreeMap<PartitionId, Why> = BTreeMap::new();
    for partition in ring.sets.keys() {
        if let Some(reason) = draft.repair(*partition) {
            why.insert(*partition, reason);
        }
    }
    for partition in draft.balance() {
        why.entry(partition).or_insert(Why::Balance);
    }
    let mut changes: Vec<Change> = why
        .into_iter()
        .filter_map(|(partition, why)| {
            let (from, to) = (ring.sets.get(&partition)?.clone(), draft.set(partition));
            (from != to).then_some(Change { partition, from, to, why })
        })
        .collect();
    changes.sort_by_key(|change| (change.why, change.partition));
    changes
}
