//! The ring: the cluster itself, its nodes, its partitions with their replica sets and epochs.
//!
//! Why here: who holds what must be one truth with one order. An epoch grows by one at each change of a replica set
//! and is named by the caller, so two reconcilers (an old leader's and a new one's) cannot both win.

use std::fmt;
use std::sync::Arc;

use engram_model::place::{Epoch, NodeId, PartitionId, ReplicaSet};
use serde::{Deserialize, Serialize};

use super::draft::{Change, Draft, Row, Table};
use super::{Stamp, Stop, View, bounded};
use crate::command::Outcome;
use crate::error::{Error, Refusal};

/// Most nodes ever admitted to one cluster, dead ones included: ten times the design size.
pub const NODES_MAX: u32 = 10_000;
/// Most partitions of a cluster.
pub const PARTITIONS_MAX: u32 = 65_536;
/// Most replicas of one partition.
pub const REPLICAS_MAX: usize = 16;

/// The cluster as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Random name, never reused.
    pub id: String,
    /// Partitions, fixed at bootstrap.
    pub partition_count: u32,
    /// When it was made, by whom.
    pub made: Stamp,
    /// Nodes ever admitted.
    pub node_count: u32,
    /// Tenants, those marked for deletion included.
    pub tenant_count: u32,
    /// Index of the last change of a node or a replica set: what a plan is made of. 0: none since there is such a mark.
    #[serde(default)]
    pub ring: u64,
    /// Replicas of each partition, once somebody has said so for the whole cluster; else each leader's option counts.
    #[serde(default)]
    pub replication_factor: Option<u32>,
}

impl Row for Cluster {
    const TABLE: Table = Table::Meta;
    type Key = ();

    fn key(_: &()) -> Vec<u8> {
        b"cluster".to_vec()
    }

    fn change(_: &(), row: Arc<Self>) -> Option<Change> {
        Some(Change::Cluster(row))
    }
}

/// What a node tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct NodeSpec {
    /// What fails together with it.
    pub zone: String,
    /// Where its gRPC port is, `host:port`.
    pub grpc: String,
    /// Where its HTTP port is, `host:port`.
    pub http: String,
    /// The version it runs.
    pub version: String,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Admitted, holds nothing yet.
    Joining,
    /// Takes part.
    Active,
    /// Silent, may come back.
    Suspect,
    /// Gives its replicas away before it leaves.
    Draining,
    /// Gone for ever; its id is never used again.
    Dead,
}

impl NodeState {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::Dead => "dead",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// What it tells about itself.
    pub spec: NodeSpec,
    /// Where it is in its life.
    pub state: NodeState,
    /// The entry that admitted it.
    pub admitted: Stamp,
    /// The last change of its row.
    pub changed: Stamp,
}

impl Row for NodeRow {
    const TABLE: Table = Table::Nodes;
    type Key = NodeId;

    fn key(key: &NodeId) -> Vec<u8> {
        key.0.to_be_bytes().to_vec()
    }

    fn change(key: &NodeId, row: Arc<Self>) -> Option<Change> {
        Some(Change::Node(*key, row))
    }
}

/// Which node a registration's token was answered with.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    id: NodeId,
}

impl Row for Token {
    const TABLE: Table = Table::Meta;
    type Key = str;

    fn key(token: &str) -> Vec<u8> {
        [b"token/", token.as_bytes()].concat()
    }

    fn change(_: &str, _: Arc<Self>) -> Option<Change> {
        None
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRow {
    /// Who holds it, since which epoch.
    pub current: ReplicaSet,
    /// While a change runs: the set that will replace it. Writes need a majority of each.
    pub next: Option<Vec<NodeId>>,
    /// The last change.
    pub changed: Stamp,
}

impl Row for PartitionRow {
    const TABLE: Table = Table::Partitions;
    type Key = PartitionId;

    fn key(key: &PartitionId) -> Vec<u8> {
        key.0.to_be_bytes().to_vec()
    }

    fn change(key: &PartitionId, row: Arc<Self>) -> Option<Change> {
        Some(Change::Partition(*key, row))
    }
}

/// The cluster's row; commands other than `Bootstrap` need it.
pub(super) fn cluster(draft: &Draft<'_>) -> Result<Cluster, Stop> {
    Ok(draft.row::<Cluster>(&())?.ok_or(Refusal::NotBootstrapped)?)
}

fn check(spec: &NodeSpec) -> Result<(), Refusal> {
    let texts = [("zone", &spec.zone), ("gRPC address", &spec.grpc), ("HTTP address", &spec.http)];
    texts.into_iter().try_for_each(|(what, text)| bounded(what, text))?;
    bounded("version", &spec.version)
}

pub(super) fn bootstrap(
    draft: &mut Draft<'_>,
    cluster_id: &str,
    partition_count: u32,
    (founder, spec): (NodeId, &NodeSpec),
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    bounded("cluster id", cluster_id)?;
    check(spec)?;
    if !(1..=PARTITIONS_MAX).contains(&partition_count) {
        let want = format!("1 to {PARTITIONS_MAX}");
        return Err(
            Refusal::Bounds { what: "partition count".to_owned(), want, got: u64::from(partition_count) }.into()
        );
    }
    if let Some(there) = draft.row::<Cluster>(&())? {
        if there.id == cluster_id {
            return Ok(Outcome::Done);
        }
        return Err(Refusal::AlreadyBootstrapped { cluster: there.id }.into());
    }
    let (id, made) = (cluster_id.to_owned(), stamp.clone());
    let ring = stamp.index;
    let (node_count, tenant_count, replication_factor) = (1, 0, None);
    draft.put(&(), Cluster { id, partition_count, made, node_count, tenant_count, ring, replication_factor })?;
    let (admitted, changed) = (stamp.clone(), stamp.clone());
    draft.put(&founder, NodeRow { spec: spec.clone(), state: NodeState::Active, admitted, changed })?;
    for partition in 0..partition_count {
        let current = ReplicaSet { epoch: Epoch(1), replicas: vec![founder] };
        draft.put(&PartitionId(partition), PartitionRow { current, next: None, changed: stamp.clone() })?;
    }
    Ok(Outcome::Done)
}

pub(super) fn register(draft: &mut Draft<'_>, token: &str, spec: &NodeSpec, stamp: Stamp) -> Result<Outcome, Stop> {
    bounded("token", token)?;
    check(spec)?;
    let mut cluster = cluster(draft)?;
    if let Some(known) = draft.row::<Token>(token)? {
        return Ok(Outcome::Node { id: known.id });
    }
    if cluster.node_count >= NODES_MAX {
        return Err(Refusal::TooMany { what: "nodes".to_owned(), max: u64::from(NODES_MAX) }.into());
    }
    let id = NodeId(stamp.index);
    cluster.node_count += 1;
    cluster.ring = stamp.index;
    draft.put(&(), cluster)?;
    draft.put(token, Token { id })?;
    let (admitted, changed) = (stamp.clone(), stamp);
    draft.put(&id, NodeRow { spec: spec.clone(), state: NodeState::Joining, admitted, changed })?;
    Ok(Outcome::Node { id })
}

fn node(draft: &Draft<'_>, id: NodeId) -> Result<NodeRow, Stop> {
    Ok(draft.row::<NodeRow>(&id)?.ok_or(Refusal::UnknownNode { id })?)
}

pub(super) fn update(draft: &mut Draft<'_>, id: NodeId, spec: &NodeSpec, stamp: Stamp) -> Result<Outcome, Stop> {
    check(spec)?;
    let mut row = node(draft, id)?;
    if row.state == NodeState::Dead {
        return Err(Refusal::NodeState { id, from: row.state, to: NodeState::Active }.into());
    }
    if row.spec != *spec {
        row.spec = spec.clone();
        touch(draft, &stamp)?;
        row.changed = stamp;
        draft.put(&id, row)?;
    }
    Ok(Outcome::Done)
}

/// Notes that the ring is another one.
fn touch(draft: &mut Draft<'_>, stamp: &Stamp) -> Result<(), Stop> {
    let cluster = cluster(draft)?;
    Ok(draft.put(&(), Cluster { ring: stamp.index, ..cluster })?)
}

/// Refuses what was thought of another ring.
fn at_ring(draft: &Draft<'_>, expected: u64) -> Result<(), Stop> {
    let found = cluster(draft)?.ring;
    if found == expected { Ok(()) } else { Err(Refusal::Ring { expected, found }.into()) }
}

/// As [`set_state`], of the ring that was read.
pub(super) fn steer(
    draft: &mut Draft<'_>,
    (id, to): (NodeId, NodeState),
    ring: u64,
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    at_ring(draft, ring)?;
    set_state(draft, id, (None, to), stamp)
}

/// How many replicas each partition should have, for the whole cluster.
pub(super) fn set_factor(draft: &mut Draft<'_>, factor: u32, ring: u64, stamp: Stamp) -> Result<Outcome, Stop> {
    at_ring(draft, ring)?;
    if factor == 0 || factor as usize > REPLICAS_MAX {
        let want = format!("1 to {REPLICAS_MAX}");
        return Err(Refusal::Bounds { what: "replication factor".to_owned(), want, got: u64::from(factor) }.into());
    }
    let cluster = cluster(draft)?;
    if cluster.replication_factor != Some(factor) {
        draft.put(&(), Cluster { replication_factor: Some(factor), ring: stamp.index, ..cluster })?;
    }
    Ok(Outcome::Done)
}

pub(super) fn set_state(
    draft: &mut Draft<'_>,
    id: NodeId,
    (expected, to): (Option<NodeState>, NodeState),
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    let mut row = node(draft, id)?;
    let from = row.state;
    if from == to {
        return Ok(Outcome::Done);
    }
    // Nobody becomes new again, and the dead stay dead: their data may have been given away.
    // Who has read another state has decided about another node: an order to drain is not undone by an older look.
    if from == NodeState::Dead || to == NodeState::Joining || expected.is_some_and(|expected| expected != from) {
        return Err(Refusal::NodeState { id, from, to }.into());
    }
    row.state = to;
    touch(draft, &stamp)?;
    row.changed = stamp;
    draft.put(&id, row)?;
    Ok(Outcome::Done)
}

pub(super) fn set_replicas(
    draft: &mut Draft<'_>,
    (partition, expected): (PartitionId, Epoch),
    replicas: &[NodeId],
    next: Option<&[NodeId]>,
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    let Some(mut row) = draft.row::<PartitionRow>(&partition)? else {
        return Err(Refusal::UnknownPartition { partition }.into());
    };
    if row.current.epoch != expected {
        return Err(Refusal::Epoch { partition, expected, found: row.current.epoch }.into());
    }
    for set in [Some(replicas), next].into_iter().flatten() {
        check_set(draft, partition, set, &row.current.replicas)?;
    }
    let epoch = Epoch(expected.0.saturating_add(1));
    row.current = ReplicaSet { epoch, replicas: replicas.to_vec() };
    row.next = next.map(<[NodeId]>::to_vec);
    touch(draft, &stamp)?;
    row.changed = stamp;
    draft.put(&partition, row)?;
    Ok(Outcome::Partition { epoch })
}

/// A node that died while it was in the set may stay named until it is replaced: the majority is still counted with it.
fn check_set(draft: &Draft<'_>, partition: PartitionId, set: &[NodeId], now: &[NodeId]) -> Result<(), Stop> {
    let refuse = |why: String| Err(Stop::from(Refusal::Replicas { partition, why }));
    if set.is_empty() || set.len() > REPLICAS_MAX {
        return refuse(format!("{} replicas, must be 1 to {REPLICAS_MAX}", set.len()));
    }
    for (i, id) in set.iter().enumerate() {
        if set[..i].contains(id) {
            return refuse(format!("node {} twice", id.0));
        }
        if node(draft, *id)?.state == NodeState::Dead && !now.contains(id) {
            return refuse(format!("node {} is dead", id.0));
        }
    }
    Ok(())
}

/// Takes nodes that are gone for good out of everything.
pub(super) fn go_on_without(
    draft: &mut Draft<'_>,
    survivor: NodeId,
    lost: &[NodeId],
    stamp: &Stamp,
) -> Result<Outcome, Stop> {
    if lost.contains(&survivor) {
        return Err(Refusal::NodeState { id: survivor, from: NodeState::Active, to: NodeState::Dead }.into());
    }
    let goes_on = node(draft, survivor)?;
    draft.put(&survivor, NodeRow { state: NodeState::Active, changed: stamp.clone(), ..goes_on })?;
    for id in lost {
        let row = node(draft, *id)?;
        draft.put(id, NodeRow { state: NodeState::Dead, changed: stamp.clone(), ..row })?;
    }
    for partition in (0..cluster(draft)?.partition_count).map(PartitionId) {
        let Some(row) = draft.row::<PartitionRow>(&partition)? else { continue };
        let left = |set: &[NodeId]| set.iter().copied().filter(|id| !lost.contains(id)).collect::<Vec<_>>();
        // A set that was to replace the present one may not be complete: it is better than nothing, and no more.
        let of_both = [left(&row.current.replicas), left(row.next.as_deref().unwrap_or_default()), vec![survivor]];
        let Some(replicas) = of_both.into_iter().find(|set| !set.is_empty()) else { continue };
        if replicas == row.current.replicas && row.next.is_none() {
            continue;
        }
        let current = ReplicaSet { epoch: Epoch(row.current.epoch.0.saturating_add(1)), replicas };
        draft.put(&partition, PartitionRow { current, next: None, changed: stamp.clone() })?;
    }
    touch(draft, stamp)?;
    Ok(Outcome::Done)
}

/// After a restore: a node that nobody has heard of holds every partition alone, and those of before are dead to it.
pub(crate) fn take_over(
    draft: &mut Draft<'_>,
    view: &View,
    (id, spec): (NodeId, &NodeSpec),
    cluster_id: &str,
    stamp: &Stamp,
) -> Result<(), Error> {
    let Some(cluster) = &view.cluster else { return Err(Error::corrupt("backup", "there is no cluster in it")) };
    let cluster = Cluster::clone(cluster);
    let node_count = cluster.node_count.saturating_add(1);
    draft.put(&(), Cluster { id: cluster_id.to_owned(), node_count, ring: stamp.index, ..cluster })?;
    for (other, row) in view.nodes.iter().filter(|(_, row)| row.state != NodeState::Dead) {
        draft.put(other, NodeRow { state: NodeState::Dead, changed: stamp.clone(), ..NodeRow::clone(row) })?;
    }
    let (admitted, changed) = (stamp.clone(), stamp.clone());
    draft.put(&id, NodeRow { spec: spec.clone(), state: NodeState::Active, admitted, changed })?;
    for (partition, row) in view.partitions.iter() {
        let epoch = Epoch(row.current.epoch.0.saturating_add(1));
        let current = ReplicaSet { epoch, replicas: vec![id] };
        draft.put(partition, PartitionRow { current, next: None, changed: stamp.clone() })?;
    }
    Ok(())
}
