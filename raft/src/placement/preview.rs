//! What would happen if: a drain, a loss, new nodes, another replication factor or shard size, before any of it is done.
//!
//! Why here: the answer is [`plan`] over a ring changed in thought, so what is shown is what the reconciler would do. A
//! plan has a name, `drain:3@1742`: what is meant, and the index of the last change of nodes or replica sets it was made
//! of. Whoever applies it hands that index in, and the agreed state refuses when the ring has changed since.
//!
//! The *margin* says what may still fail: the most nodes, or whole zones, chosen as badly as can be, without which every
//! partition still has a majority of each of its sets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use engram_model::place::{NodeId, PartitionId, Zone, majority, tenant_partitions};
use engram_model::tenant::TenantId;

use super::{Change, Member, Ring, Standing, plan};
use crate::state::{NodeState, REPLICAS_MAX, View};

/// Most nodes that can be thought of at once.
pub const ADDED_MAX: u64 = 1000;

/// What is thought of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing: what is still to be done as things are.
    Rebalance,
    /// A node gives its replicas to others.
    Drain(NodeId),
    /// A node that was drained takes replicas again.
    Undrain(NodeId),
    /// A node is gone for good.
    LoseNode(NodeId),
    /// All nodes of a zone are.
    LoseZone(Zone),
    /// New nodes come.
    AddNodes(u64, Zone),
    /// Another number of replicas.
    ReplicationFactor(usize),
    /// A tenant uses another number of partitions.
    ShardSize(ShardSize),
}

/// Another number of partitions for a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSize {
    /// Whose.
    pub tenant: TenantId,
    /// How many; 0: all.
    pub size: u32,
    /// The version of the tenant it was thought of; none in a question.
    pub version: Option<u64>,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rebalance => f.write_str("rebalance"),
            Self::Drain(id) => write!(f, "drain:{}", id.0),
            Self::Undrain(id) => write!(f, "undrain:{}", id.0),
            Self::LoseNode(id) => write!(f, "lose-node:{}", id.0),
            Self::LoseZone(zone) => write!(f, "lose-zone:{}", zone.0),
            Self::AddNodes(count, zone) => write!(f, "add-nodes:{count}:{}", zone.0),
            Self::ReplicationFactor(factor) => write!(f, "replication-factor:{factor}"),
            Self::ShardSize(ShardSize { tenant, size, version: None }) => write!(f, "shard-size:{tenant}:{size}"),
            Self::ShardSize(ShardSize { tenant, size, version: Some(version) }) => {
                write!(f, "shard-size:{tenant}:{size}:{version}")
            }
        }
    }
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, rest) = text.split_once(':').unwrap_or((text, ""));
        let node = || rest.parse().map(NodeId).map_err(|_| format!("{rest:?} is no id of a node"));
        let zone = |name: &str| match name {
            "" => Err("a zone has a name".to_owned()),
            name => Ok(Zone(name.to_owned())),
        };
        match word {
            "rebalance" if rest.is_empty() => Ok(Self::Rebalance),
            "drain" => node().map(Self::Drain),
            "undrain" => node().map(Self::Undrain),
            "lose-node" => node().map(Self::LoseNode),
            "lose-zone" => zone(rest).map(Self::LoseZone),
            "add-nodes" => {
                let (count, name) = rest.split_once(':').ok_or("say how many and in which zone: add-nodes:3:zone-a")?;
                let count = count.parse().ok().filter(|count| (1..=ADDED_MAX).contains(count));
                Ok(Self::AddNodes(count.ok_or_else(|| format!("1 to {ADDED_MAX} nodes can be added"))?, zone(name)?))
            }
            "replication-factor" => {
                let factor = rest.parse().ok().filter(|factor| (1..=REPLICAS_MAX).contains(factor));
                Ok(Self::ReplicationFactor(factor.ok_or_else(|| format!("it must be 1 to {REPLICAS_MAX}"))?))
            }
            "shard-size" => shard_size(rest).map(Self::ShardSize),
            _ => Err(format!(
                "{text:?} is none of rebalance, drain:NODE, undrain:NODE, lose-node:NODE, lose-zone:ZONE, add-nodes:COUNT:ZONE, replication-factor:COUNT, shard-size:TENANT:COUNT"
            )),
        }
    }
}

/// `TENANT:COUNT` or `TENANT:COUNT:VERSION`; no name of a tenant has a colon.
fn shard_size(text: &str) -> Result<ShardSize, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (tenant, size, version) = match parts.as_slice() {
        [tenant, size] => (*tenant, *size, None),
        [tenant, size, version] => (*tenant, *size, Some(*version)),
        _ => return Err("say whose and how many: shard-size:acme:8".to_owned()),
    };
    let number = |what: &str| format!("{what:?} is no number");
    Ok(ShardSize {
        tenant: TenantId::new(tenant).map_err(|e| e.to_string())?,
        size: size.parse().map_err(|_| number(size))?,
        version: version.map(|v| v.parse().map_err(|_| number(v))).transpose()?,
    })
}

/// The name of a plan: what, and of which ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanName {
    /// What is meant.
    pub what: What,
    /// Index of the last change of the ring.
    pub ring: u64,
}

impl fmt::Display for PlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.what, self.ring)
    }
}

impl FromStr for PlanName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let none = || format!("{text:?} is no plan: `engram cluster plan` prints their names, such as drain:3@1742");
        let (what, ring) = text.rsplit_once('@').ok_or_else(none)?;
        Ok(Self { what: what.parse()?, ring: ring.parse().map_err(|_| none())? })
    }
}

/// What may still fail, over all partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Margin {
    /// Partitions that have no majority now: they take no writes and answer no queries.
    pub without_quorum: usize,
    /// Nodes that may fail, whichever they are.
    pub nodes: usize,
    /// Zones that may fail, whichever they are.
    pub zones: usize,
    /// Partitions with fewer replicas that answer than there should be.
    pub short: usize,
}

/// One node before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Which; one that is only thought of has an id above all others.
    pub id: NodeId,
    /// Its zone.
    pub zone: Zone,
    /// Whether it is only thought of.
    pub is_new: bool,
    /// Replicas it holds now.
    pub before: usize,
    /// Replicas it will hold.
    pub after: usize,
    /// Replicas it has to fetch.
    pub comes: usize,
}

/// The partitions of one tenant before and after. Nothing is copied: what was written stays where it is, and queries go on
/// covering every partition the tenant ever used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Whose.
    pub tenant: TenantId,
    /// Partitions that take its samples now.
    pub before: usize,
    /// Partitions that will.
    pub after: usize,
    /// Partitions its queries will cover.
    pub read: usize,
    /// Series in a thousand whose samples go to another partition from then on, as far as hashes are even.
    pub series_permille: usize,
}

/// What would happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// Its name.
    pub name: PlanName,
    /// Every change of a replica set, the most urgent first.
    pub changes: Vec<Change>,
    /// All nodes that are not dead, and those that are thought of.
    pub nodes: Vec<Load>,
    /// Replicas each partition should have.
    pub replication_factor: usize,
    /// Nodes that would be gone.
    pub lost: BTreeSet<NodeId>,
    /// What may fail as it is now.
    pub now: Margin,
    /// What may fail while replicas are made, both sets counted.
    pub during: Margin,
    /// What may fail when all is done.
    pub after: Margin,
    /// Whose partitions change, if anybody's; then the margins speak of these alone.
    pub shard: Option<Shard>,
}

/// Thinks it through. `replication_factor` is the one in force.
///
/// # Errors
/// What is wrong with the question: a node or zone that is not there, or one in another state.
pub fn preview(view: &View, what: &What, replication_factor: usize) -> Result<Preview, String> {
    if let What::ShardSize(wanted) = what {
        return reshard(view, wanted, replication_factor);
    }
    let mut ring = Ring::of(view, replication_factor);
    let before = ring.clone();
    let added = imagine(view, what, &mut ring)?;
    let lost: BTreeSet<NodeId> = match what {
        What::LoseNode(id) => BTreeSet::from([*id]),
        What::LoseZone(zone) => in_zone(view, zone),
        _ => BTreeSet::new(),
    };
    let changes = plan(&ring);
    let after = ring.clone().after(&changes);
    let silent = |id: &NodeId| {
        view.nodes.get(id).is_none_or(|row| matches!(row.state, NodeState::Suspect | NodeState::Dead))
            && !added.contains(id)
    };
    let now = Picture { members: &before.members, factor: before.replication_factor };
    let then = Picture { members: &after.members, factor: after.replication_factor };
    let under_way =
        || view.partitions.iter().map(|(id, row)| (*id, [Some(row.current.replicas.as_slice()), row.next.as_deref()]));
    let of_now = now.margin(under_way(), |id| !silent(id));
    let targets: BTreeMap<PartitionId, &[NodeId]> =
        changes.iter().map(|one| (one.partition, one.to.as_slice())).collect();
    let sets = under_way().map(|(id, [current, next])| (id, [current, targets.get(&id).copied().or(next)]));
    let during = then.margin(sets, |id| !silent(id) && !lost.contains(id));
    let last = after.sets.iter().map(|(id, set)| (*id, [Some(set.as_slice()), None]));
    let after_margin = then.margin(last, |id| !silent(id) && !lost.contains(id));
    Ok(Preview {
        name: PlanName { what: what.clone(), ring: view.ring() },
        nodes: loads(&before, &after, &changes, &added, view),
        replication_factor: ring.replication_factor,
        now: of_now,
        during,
        after: after_margin,
        changes,
        lost,
        shard: None,
    })
}

/// Another number of partitions of one tenant: no replica moves, other series go to other partitions.
fn reshard(view: &View, wanted: &ShardSize, replication_factor: usize) -> Result<Preview, String> {
    let (tenant, size) = (&wanted.tenant, wanted.size);
    let row = view.tenants.get(tenant).filter(|row| row.deleted.is_none());
    let row = row.ok_or_else(|| format!("there is no tenant {tenant}"))?;
    if let Some(version) = wanted.version.filter(|version| *version != row.version) {
        return Err(format!("tenant {tenant} has changed since: it is at version {}, not {version}", row.version));
    }
    let ring = Ring::of(view, replication_factor);
    let count = u32::try_from(ring.sets.len()).unwrap_or(u32::MAX);
    let of = |size: u32| tenant_partitions(tenant, count, size);
    let (before, after) = (of(row.shard_size()), of(size));
    let read = of(row.shard_size_ever());
    // A larger shard holds every partition of a smaller one.
    let will = if after.len() > read.len() { after.clone() } else { read.clone() };
    let picture = Picture { members: &ring.members, factor: ring.replication_factor };
    let speaks =
        |id: &NodeId| view.nodes.get(id).is_some_and(|row| !matches!(row.state, NodeState::Suspect | NodeState::Dead));
    let margin = |partitions: &[PartitionId]| {
        let rows = partitions.iter().filter_map(|id| Some((*id, view.partitions.get(id)?)));
        let sets = rows.map(|(id, row)| (id, [Some(row.current.replicas.as_slice()), row.next.as_deref()]));
        picture.margin(sets, speaks)
    };
    // Of n partitions that become m, the fuller set's surplus share of the series has another place.
    let (few, many) = (before.len().min(after.len()), before.len().max(after.len()));
    let shard = Shard {
        tenant: tenant.clone(),
        before: before.len(),
        after: after.len(),
        read: will.len(),
        series_permille: ((many - few) * 1000).checked_div(many).unwrap_or(0),
    };
    let what = What::ShardSize(ShardSize { version: Some(row.version), ..wanted.clone() });
    Ok(Preview {
        name: PlanName { what, ring: view.ring() },
        nodes: loads(&ring, &ring, &[], &BTreeSet::new(), view),
        replication_factor,
        now: margin(&read),
        during: margin(&will),
        after: margin(&will),
        changes: Vec::new(),
        lost: BTreeSet::new(),
        shard: Some(shard),
    })
}

/// Changes the ring as it is thought of; the nodes that are new in it.
fn imagine(view: &View, what: &What, ring: &mut Ring) -> Result<BTreeSet<NodeId>, String> {
    let state = |id: &NodeId| view.nodes.get(id).map(|row| row.state).ok_or(format!("there is no node {}", id.0));
    let mut stand = |id: &NodeId, standing| {
        if let Some(member) = ring.members.get_mut(id) {
            member.standing = standing;
        }
    };
    let mut added = BTreeSet::new();
    match what {
        What::Rebalance => {}
        What::Drain(id) => match state(id)? {
            NodeState::Active | NodeState::Suspect | NodeState::Draining => stand(id, Standing::Leaves),
            other => return Err(format!("node {} is {other}: only an active node can be drained", id.0)),
        },
        What::Undrain(id) => match state(id)? {
            NodeState::Draining | NodeState::Active => stand(id, Standing::Takes),
            other => return Err(format!("node {} is {other}: it is not drained", id.0)),
        },
        What::LoseNode(id) => match state(id)? {
            NodeState::Dead => return Err(format!("node {} is dead already", id.0)),
            _ => stand(id, Standing::Leaves),
        },
        What::LoseZone(zone) => {
            let gone = in_zone(view, zone);
            if gone.is_empty() {
                return Err(format!("no node is in zone {:?}", zone.0));
            }
            gone.iter().for_each(|id| stand(id, Standing::Leaves));
        }
        What::AddNodes(count, zone) => {
            let first = ring.members.last_key_value().map_or(1, |(id, _)| id.0.saturating_add(1));
            for id in (first..first.saturating_add(*count)).map(NodeId) {
                ring.members.insert(id, Member { zone: zone.clone(), standing: Standing::Takes });
                added.insert(id);
            }
        }
        What::ReplicationFactor(factor) => ring.replication_factor = *factor,
        What::ShardSize(_) => {}
    }
    Ok(added)
}

fn in_zone(view: &View, zone: &Zone) -> BTreeSet<NodeId> {
    let there = view.nodes.iter().filter(|(_, row)| row.spec.zone == zone.0 && row.state != NodeState::Dead);
    there.map(|(id, _)| *id).collect()
}

fn loads(before: &Ring, after: &Ring, changes: &[Change], added: &BTreeSet<NodeId>, view: &View) -> Vec<Load> {
    fn count<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> BTreeMap<NodeId, usize> {
        let mut counts = BTreeMap::new();
        nodes.for_each(|id| *counts.entry(*id).or_default() += 1);
        counts
    }
    let (had, has) = (count(before.sets.values().flatten()), count(after.sets.values().flatten()));
    let mut comes: BTreeMap<NodeId, usize> = BTreeMap::new();
    changes.iter().flat_map(Change::comes).for_each(|id| *comes.entry(id).or_default() += 1);
    let dead = |id: &NodeId| view.nodes.get(id).is_some_and(|row| row.state == NodeState::Dead);
    let of = |counts: &BTreeMap<NodeId, usize>, id: &NodeId| counts.get(id).copied().unwrap_or(0);
    let shown = after.members.iter().filter(|(id, _)| !dead(id) || of(&had, id) > 0);
    let load = |(id, member): (&NodeId, &Member)| Load {
        id: *id,
        zone: member.zone.clone(),
        is_new: added.contains(id),
        before: of(&had, id),
        after: of(&has, id),
        comes: of(&comes, id),
    };
    shown.map(load).collect()
}

/// Who there is, and how many replicas there should be.
struct Picture<'a> {
    members: &'a BTreeMap<NodeId, Member>,
    factor: usize,
}

impl Picture<'_> {
    /// The margin over partitions, each with the sets that must have a majority.
    fn margin<'a>(
        &self,
        partitions: impl Iterator<Item = (PartitionId, [Option<&'a [NodeId]>; 2])>,
        alive: impl Fn(&NodeId) -> bool,
    ) -> Margin {
        let mut all = Margin { nodes: usize::MAX, zones: usize::MAX, ..Margin::default() };
        for (_, sets) in partitions {
            let (mut nodes, mut zones, mut live) = (usize::MAX, usize::MAX, usize::MAX);
            for set in sets.into_iter().flatten() {
                let there: Vec<&NodeId> = set.iter().filter(|id| alive(id)).collect();
                live = live.min(there.len());
                let Some(spare) = there.len().checked_sub(majority(set.len())) else {
                    (nodes, zones) = (0, 0);
                    all.without_quorum += 1;
                    break;
                };
                nodes = nodes.min(spare);
                zones = zones.min(self.zones_spared(&there, spare));
            }
            all.short += usize::from(live < self.factor);
            (all.nodes, all.zones) = (all.nodes.min(nodes), all.zones.min(zones));
        }
        let known = |count: usize| if count == usize::MAX { 0 } else { count };
        Margin { nodes: known(all.nodes), zones: known(all.zones), ..all }
    }

    /// How many zones may go when `spare` of these nodes may.
    fn zones_spared(&self, nodes: &[&NodeId], spare: usize) -> usize {
        let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
        for member in nodes.iter().filter_map(|id| self.members.get(id)) {
            *zones.entry(&member.zone.0).or_default() += 1;
        }
        let mut sizes: Vec<usize> = zones.into_values().collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let mut taken = 0;
        // The worst choice takes the largest zones first.
        let within = |size: &usize| {
            taken += size;
            (taken <= spare).then_some(())
        };
        sizes.iter().map_while(within).count()
    }
}
