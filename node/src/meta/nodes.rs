//! Nodes and replica sets: what the members of a cluster tell and ask the metadata about each other.
//!
//! Two users: [`crate::members`], which lets nodes in and answers the leader, and [`crate::reconciler`], which on the
//! leader brings about what should be. Paths that serve requests use a few look-ups only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_model::error::Class;
use engram_model::place::{Epoch, NodeId, PartitionId, ReplicaSet, Sets};
use engram_raft::{Command, Outcome, Proposal, Refusal};

pub use engram_raft::placement::{Change, Why};
pub use engram_raft::state::{NodeSpec, NodeState};

use super::{Meta, RingView};
use crate::error::{Error, Stage};

/// What an operator may have a node do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// Give its replicas and its vote to others.
    Drain,
    /// Take replicas again.
    Undrain,
    /// Leave for good.
    Remove,
}

impl Steer {
    /// What a word asks for.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "drain" => Some(Self::Drain),
            "undrain" => Some(Self::Undrain),
            "remove" => Some(Self::Remove),
            _ => None,
        }
    }
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Which.
    pub id: NodeId,
    /// Where it is and what it runs.
    pub spec: NodeSpec,
    /// Where it is in its life.
    pub state: NodeState,
}

/// One partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Which.
    pub id: PartitionId,
    /// Who holds it.
    pub current: ReplicaSet,
    /// Who will, while a change runs.
    pub next: Option<Vec<NodeId>>,
}

/// The cluster as the leader sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterView {
    /// Applied index of nodes and partitions.
    pub applied: u64,
    /// All nodes, by id, the dead ones too.
    pub members: Vec<Member>,
    /// All partitions, by number.
    pub partitions: Vec<Placed>,
    /// Who votes in the metadata group.
    pub voters: BTreeSet<NodeId>,
    /// Who follows it.
    pub learners: BTreeSet<NodeId>,
    /// How far each member of the group has its log.
    pub progress: BTreeMap<NodeId, u64>,
    /// Last entry of the leader's log.
    pub last_log: u64,
}

impl ClusterView {
    /// The first partition of a node that has no majority of each of its sets among those that `alive` counts. Whoever
    /// takes the node away for ever then takes away the majority: what only it holds beside one of them is lost, and
    /// no other set can be completed.
    #[must_use]
    pub fn needs(&self, id: NodeId, alive: impl Fn(&NodeId) -> bool) -> Option<PartitionId> {
        let short = |placed: &&Placed| {
            let sets = Sets::new(&placed.current.replicas, placed.next.as_deref());
            let living: Vec<NodeId> = sets.nodes().filter(|node| *node != id && alive(node)).collect();
            sets.nodes().any(|node| node == id) && !sets.have_majority(&living)
        };
        self.partitions.iter().find(short).map(|placed| placed.id)
    }
}

impl RingView {
    /// While a change of the partition's replicas runs: the set that will replace the present one.
    #[must_use]
    pub fn next(&self, partition: PartitionId) -> Option<&[NodeId]> {
        self.0.partitions.get(&partition).and_then(|row| row.next.as_deref())
    }

    /// Applied index.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.0.applied.unwrap_or(0)
    }
}

impl Meta {
    /// The cluster's name.
    #[must_use]
    pub fn cluster_id(&self) -> String {
        self.group.status().cluster_id
    }

    /// Index of the last entry applied on this node.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.views.borrow().applied.unwrap_or(0)
    }

    /// A node, unless nobody knows it.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<Member> {
        let view = self.views.borrow();
        view.nodes.get(&id).map(|row| Member { id, spec: row.spec.clone(), state: row.state })
    }

    /// Whether a node takes part.
    #[must_use]
    pub fn is_active(&self, id: NodeId) -> bool {
        self.views.borrow().nodes.get(&id).is_some_and(|row| row.state == NodeState::Active)
    }

    /// All nodes by id.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let view = self.view();
        view.nodes.iter().map(|(id, row)| Member { id: *id, spec: row.spec.clone(), state: row.state }).collect()
    }

    /// Whether this node leads the metadata group.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.group.status().role == "leader"
    }

    /// Everything a leader decides by.
    #[must_use]
    pub fn cluster(&self) -> ClusterView {
        let (view, status) = (self.view(), self.group.status());
        let partitions = view.partitions.iter().map(|(id, row)| Placed {
            id: *id,
            current: row.current.clone(),
            next: row.next.clone(),
        });
        ClusterView {
            applied: view.applied.unwrap_or(0),
            members: self.members(),
            partitions: partitions.collect(),
            voters: status.voters.into_iter().collect(),
            learners: status.learners.into_iter().collect(),
            progress: self.group.progress(),
            last_log: status.last_log.unwrap_or(0),
        }
    }

    /// What should move, the most urgent first; a change under way counts as done.
    #[must_use]
    pub fn placement(&self, replication_factor: usize) -> Vec<Change> {
        let view = self.view();
        let factor = view.replication_factor(replication_factor);
        engram_raft::placement::plan(&engram_raft::placement::Ring::of(&view, factor))
    }

    /// Waits until this node's metadata shows a partition's epoch as `epoch` or later, and says which it is.
    ///
    /// # Errors
    /// Unavailable when that takes longer than `within`.
    pub async fn epoch_reached(&self, partition: PartitionId, epoch: Epoch, within: Duration) -> Result<Epoch, Error> {
        let known = self.epoch(partition).unwrap_or_default();
        if known >= epoch {
            return Ok(known);
        }
        let mut views = self.group.watch();
        let there = |view: &Arc<engram_raft::View>| {
            view.partitions.get(&partition).is_some_and(|row| row.current.epoch >= epoch)
        };
        match tokio::time::timeout(within, views.wait_for(there)).await {
            Ok(Ok(_)) => Ok(self.epoch(partition).unwrap_or_default()),
            _ => Err(Error::unavailable(format!(
                "node {} knows epoch {} of partition {}, the request is of epoch {}: its metadata lags",
                self.node_id().0,
                known.0,
                partition.0,
                epoch.0
            ))),
        }
    }

    /// Checks that a request made for `epoch` is of the present one, catching up first where this node is behind.
    ///
    /// # Errors
    /// [`Stage::Stale`] when the replica set has changed since; Unavailable when this node stays behind.
    pub async fn fence(&self, partition: PartitionId, epoch: Epoch, within: Duration) -> Result<(), Error> {
        let known = self.epoch_reached(partition, epoch, within).await?;
        if known == epoch { Ok(()) } else { Err(stale(partition, known, epoch)) }
    }

    /// As [`Meta::fence`], without waiting.
    ///
    /// # Errors
    /// [`Stage::Stale`] when the replica set has changed since; Unavailable when this node is behind.
    pub fn is_at(&self, partition: PartitionId, epoch: Epoch) -> Result<(), Error> {
        let known = self.epoch(partition).unwrap_or_default();
        match known.cmp(&epoch) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(stale(partition, known, epoch)),
            std::cmp::Ordering::Less => Err(Error::unavailable(format!(
                "partition {} is at epoch {} here, the request was made for epoch {}: retry",
                partition.0, known.0, epoch.0
            ))),
        }
    }

    /// Whether this node is one of the replicas, as it knows them: one that has left has forgotten what it held.
    ///
    /// # Errors
    /// Unavailable when it is none.
    pub fn holds(&self, partition: PartitionId) -> Result<(), Error> {
        let (ring, me) = (self.ring(), self.node_id());
        if ring.replicas(partition).is_some_and(|set| set.replicas.contains(&me)) {
            return Ok(());
        }
        Err(Error::unavailable(format!("node {} holds no replica of partition {}", me.0, partition.0)))
    }

    /// Waits until this node has applied the entry at `index`.
    ///
    /// # Errors
    /// Unavailable when that takes longer than `within`.
    pub async fn reached(&self, index: u64, within: Duration) -> Result<(), Error> {
        self.group.applied(index, within).await?;
        Ok(())
    }

    /// Waits for the next change of the metadata, at most `within`.
    pub async fn next_change(&self, within: Duration) {
        let mut views = self.group.watch();
        views.mark_unchanged();
        // Late or stopped: the caller looks again either way.
        let _changed = tokio::time::timeout(within, views.changed()).await;
    }

    /// Admits a node, or finds the id it was given before, and notes where it is now.
    ///
    /// # Errors
    /// What the group answers; Invalid when the node was declared dead.
    pub async fn admit(&self, token: &str, node: NodeSpec, within: Duration) -> Result<NodeId, Error> {
        let command = Command::RegisterNode { token: token.to_owned(), node: node.clone() };
        let by = format!("node at {}", node.grpc);
        let committed = self.group.propose(Proposal { by, command }, within).await?;
        let Outcome::Node { id } = committed.outcome else {
            return Err(Error::new(Class::Internal, "the registration was answered without an id"));
        };
        self.group.applied(committed.index, within).await?;
        self.relocate(id, node, within).await?;
        Ok(id)
    }

    /// Notes where a node is now.
    ///
    /// # Errors
    /// Invalid when there is no such node or it was declared dead; what the group answers.
    pub async fn relocate(&self, id: NodeId, node: NodeSpec, within: Duration) -> Result<(), Error> {
        match self.member(id) {
            None => Err(Error::invalid(format!("there is no node {} in this cluster", id.0))),
            Some(member) if member.state == NodeState::Dead => Err(Error::invalid(format!(
                "node {} was declared dead, what it held is held elsewhere: remove its data directory, then it joins as a new node",
                id.0
            ))),
            Some(member) if member.spec == node => Ok(()),
            Some(_) => {
                let by = format!("node at {}", node.grpc);
                self.propose(&by, Command::UpdateNode { id, node }, within).await.map(drop)
            }
        }
    }

    /// As leader: moves a node from the state that was read to another.
    ///
    /// # Errors
    /// What the group answers, also that the node is in another state by now.
    pub async fn set_node_state(
        &self,
        by: &str,
        id: NodeId,
        (from, to): (NodeState, NodeState),
        within: Duration,
    ) -> Result<(), Error> {
        self.propose(by, Command::SetNodeState { id, to, expected: Some(from) }, within).await.map(drop)
    }

    /// Has a node do what an operator wants, unless its state forbids that.
    ///
    /// # Errors
    /// NotFound for an unknown node, Conflict when its state forbids it, and what the group answers.
    pub async fn steer(&self, id: NodeId, act: Steer, within: Duration) -> Result<(), Error> {
        let member =
            self.member(id).ok_or_else(|| Error::new(Class::NotFound, format!("there is no node {}", id.0)))?;
        let view = self.view();
        let holds = |row: &engram_raft::state::PartitionRow| {
            row.current.replicas.contains(&id) || row.next.as_ref().is_some_and(|next| next.contains(&id))
        };
        let held = view.partitions.iter().filter(|(_, row)| holds(row)).count();
        let refuse =
            |why: String| Err(Error::new(Class::Conflict, format!("node {} is {}: {why}", id.0, member.state)));
        let to = match (act, member.state) {
            (Steer::Drain, NodeState::Active | NodeState::Suspect | NodeState::Draining) => NodeState::Draining,
            (Steer::Undrain, NodeState::Draining | NodeState::Active) => NodeState::Active,
            (Steer::Remove, NodeState::Dead) => return Ok(()),
            (Steer::Remove, NodeState::Draining) if held > 0 => {
                return refuse(format!("it still holds {held} partitions, wait until it holds none"));
            }
            // One that does not answer cannot be drained: what it holds is made anew from the others.
            (Steer::Remove, NodeState::Draining | NodeState::Suspect | NodeState::Joining) => NodeState::Dead,
            (Steer::Remove, NodeState::Active) => return refuse("drain it first".to_owned()),
            (Steer::Drain | Steer::Undrain, _) => return refuse("only an active node can be drained".to_owned()),
        };
        if to == NodeState::Dead {
            let cluster = self.cluster();
            let active = |id: &NodeId| cluster.members.iter().any(|m| m.id == *id && m.state == NodeState::Active);
            if let Some(partition) = cluster.needs(id, active) {
                return refuse(format!(
                    "the active replicas of partition {} are no majority without it, bring nodes back first",
                    partition.0
                ));
            }
        }
        self.set_node_state("operator", id, (member.state, to), within).await
    }

    /// As leader: gives a partition another replica set, if it is still at epoch `expected`.
    ///
    /// # Errors
    /// What the group answers. That somebody else was first is none.
    pub async fn set_replicas(
        &self,
        partition: PartitionId,
        expected: Epoch,
        (replicas, next): (Vec<NodeId>, Option<Vec<NodeId>>),
        within: Duration,
    ) -> Result<(), Error> {
        let command = Command::SetReplicas { partition, expected, replicas, next };
        match self.group.propose(Proposal { by: "reconciler".to_owned(), command }, within).await {
            Ok(_) | Err(engram_raft::Error::Refused(Refusal::Epoch { .. })) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// As leader: lets a node follow the metadata.
    ///
    /// # Errors
    /// What the group answers.
    pub async fn add_learner(&self, id: NodeId, address: &str, within: Duration) -> Result<(), Error> {
        Ok(self.group.add_learner(id, address, within).await?)
    }

    /// As leader: a node that is gone no longer follows.
    ///
    /// # Errors
    /// What the group answers.
    pub async fn forget_learner(&self, id: NodeId, within: Duration) -> Result<(), Error> {
        Ok(self.group.forget_learner(id, within).await?)
    }

    /// As leader: who votes from now on.
    ///
    /// # Errors
    /// What the group answers.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>, within: Duration) -> Result<(), Error> {
        Ok(self.group.set_voters(voters, within).await?)
    }

    /// As leader: asks a voter to lead instead.
    ///
    /// # Errors
    /// The group has stopped on this node.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), Error> {
        Ok(self.group.transfer_leader(to).await?)
    }
}

/// What a replica answers to a request made for an older epoch than it knows.
fn stale(partition: PartitionId, known: Epoch, asked: Epoch) -> Error {
    let message =
        format!("partition {} is at epoch {}, the request was made for epoch {}: retry", partition.0, known.0, asked.0);
    Error { stage: Stage::Stale, ..Error::unavailable(message) }
}
