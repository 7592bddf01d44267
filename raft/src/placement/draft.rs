//! A ring being changed: sets, loads, and the two movements (repair one partition, balance all).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engram_model::place::{NodeId, PartitionId};

use super::{Ring, Standing, Why};

/// A node by its place in [`Draft::nodes`].
type At = usize;

struct Node {
    id: NodeId,
    zone: usize,
    standing: Standing,
    /// Partitions it holds.
    holds: BTreeSet<PartitionId>,
}

pub(super) struct Draft {
    nodes: Vec<Node>,
    zones: usize,
    sets: BTreeMap<PartitionId, Vec<At>>,
    replicas: usize,
    /// Nodes that take, by load: the lightest first.
    takers: BTreeSet<(usize, At)>,
}

impl Draft {
    pub(super) fn new(ring: &Ring) -> Self {
        let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
        for member in ring.members.values() {
            let next = zones.len();
            zones.entry(&member.zone.0).or_insert(next);
        }
        let mut nodes: Vec<Node> = ring
            .members
            .iter()
            .map(|(id, member)| Node {
                id: *id,
                zone: zones[member.zone.0.as_str()],
                standing: member.standing,
                holds: BTreeSet::new(),
            })
            .collect();
        let mut places: BTreeMap<NodeId, At> = nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
        let mut sets = BTreeMap::new();
        for (partition, set) in &ring.sets {
            let mut places_of_set = Vec::with_capacity(set.len());
            for id in set {
                // A node nobody knows is gone; it needs a place here only until it is replaced.
                let at = *places.entry(*id).or_insert_with(|| {
                    nodes.push(Node { id: *id, zone: 0, standing: Standing::Leaves, holds: BTreeSet::new() });
                    nodes.len() - 1
                });
                nodes[at].holds.insert(*partition);
                places_of_set.push(at);
            }
            sets.insert(*partition, places_of_set);
        }
        let stay = nodes.iter().filter(|node| node.standing != Standing::Leaves);
        // One that is joining counts once it is active: until then a set it would complete stays as it is.
        let able = stay.filter(|node| node.standing == Standing::Takes || !node.holds.is_empty()).count();
        let replicas = ring.replication_factor.min(able);
        let takes = |(at, node): (At, &Node)| (node.standing == Standing::Takes).then_some((node.holds.len(), at));
        let takers = nodes.iter().enumerate().filter_map(takes).collect();
        Self { zones: zones.len().max(1), nodes, sets, replicas, takers }
    }

    pub(super) fn set(&self, partition: PartitionId) -> Vec<NodeId> {
        self.sets.get(&partition).into_iter().flatten().map(|at| self.nodes[*at].id).collect()
    }

    fn load(&self, at: At) -> usize {
        self.nodes[at].holds.len()
    }

    fn add(&mut self, partition: PartitionId, at: At) {
        self.reload(at, |holds| holds.insert(partition));
        self.sets.entry(partition).or_default().push(at);
    }

    fn remove(&mut self, partition: PartitionId, at: At) {
        self.reload(at, |holds| holds.remove(&partition));
        self.sets.entry(partition).or_default().retain(|have| *have != at);
    }

    fn reload(&mut self, at: At, change: impl FnOnce(&mut BTreeSet<PartitionId>) -> bool) {
        let node = &mut self.nodes[at];
        let takes = node.standing == Standing::Takes;
        if takes {
            self.takers.remove(&(node.holds.len(), at));
        }
        change(&mut node.holds);
        if takes {
            self.takers.insert((node.holds.len(), at));
        }
    }

    /// How many of a partition's replicas each zone holds, on nodes that stay.
    fn crowd(&self, partition: PartitionId) -> Vec<usize> {
        let mut crowd = vec![0; self.zones];
        for at in &self.sets[&partition] {
            if self.nodes[*at].standing != Standing::Leaves {
                crowd[self.nodes[*at].zone] += 1;
            }
        }
        crowd
    }

    /// Brings one partition to as many replicas as it should have, well spread, and says what was wrong.
    pub(super) fn repair(&mut self, partition: PartitionId) -> Option<Why> {
        let mut found: Option<Why> = None;
        let mut note = |why: Why| found = Some(found.map_or(why, |have| have.min(why)));
        let leaving: VecDeque<At> =
            self.sets[&partition].iter().copied().filter(|at| self.nodes[*at].standing == Standing::Leaves).collect();
        let staying = |draft: &Self| draft.sets[&partition].len() - leaving.len();
        let mut left = leaving.len();
        while self.sets[&partition].len() - left < self.replicas {
            let Some(taker) = self.best_taker(partition) else { break };
            note(if left > 0 { Why::Leaving } else { Why::Missing });
            self.add(partition, taker);
        }
        if staying(self) > 0 || leaving.is_empty() {
            for at in &leaving {
                note(Why::Leaving);
                self.remove(partition, *at);
            }
            left = 0;
        }
        while self.sets[&partition].len() - left > self.replicas.max(1) {
            let Some(surplus) = self.worst_holder(partition) else { break };
            note(Why::Surplus);
            self.remove(partition, surplus);
        }
        while let Some((from, to)) = self.better_spread(partition) {
            note(Why::Spread);
            self.remove(partition, from);
            self.add(partition, to);
        }
        found
    }

    /// Who should get another replica: in the zone with the fewest of them, the lightest node.
    fn best_taker(&self, partition: PartitionId) -> Option<At> {
        let (crowd, set) = (self.crowd(partition), &self.sets[&partition]);
        // The lightest of each zone: takers come in order of load, so the first of a zone is among its lightest.
        let mut best: BTreeMap<usize, (usize, u64, At)> = BTreeMap::new();
        for (load, at) in self.takers.iter().filter(|(_, at)| !set.contains(at)) {
            let zone = self.nodes[*at].zone;
            let entry = (*load, self.chance(partition, *at), *at);
            let have = best.entry(zone).or_insert(entry);
            *have = (*have).min(entry);
            if best.len() == self.zones && best.values().all(|(least, ..)| least < load) {
                break;
            }
        }
        best.into_iter().min_by_key(|(zone, entry)| (crowd[*zone], *entry)).map(|(_, (.., at))| at)
    }

    /// Who should give a replica up: in the most crowded zone, the heaviest node.
    fn worst_holder(&self, partition: PartitionId) -> Option<At> {
        let crowd = self.crowd(partition);
        let set = self.sets[&partition].iter().copied().filter(|at| self.nodes[*at].standing != Standing::Leaves);
        set.max_by_key(|at| (crowd[self.nodes[*at].zone], self.load(*at), self.chance(partition, *at)))
    }

    /// A replica that shares its zone and one who could take it in a zone with at least two fewer.
    fn better_spread(&self, partition: PartitionId) -> Option<(At, At)> {
        let to = self.best_taker(partition)?;
        let crowd = self.crowd(partition);
        let set = self.sets[&partition].iter().copied().filter(|at| self.nodes[*at].standing == Standing::Takes);
        let from = set.max_by_key(|at| (crowd[self.nodes[*at].zone], self.load(*at), self.chance(partition, *at)))?;
        (crowd[self.nodes[to].zone] + 2 <= crowd[self.nodes[from].zone]).then_some((from, to))
    }

    /// Rendezvous: the same pair always has the same number.
    fn chance(&self, partition: PartitionId, at: At) -> u64 {
        let key = u64::from(partition.0) << 32 ^ self.nodes[at].id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut x = key;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Moves replicas until loads are as even as they can be; the partitions that changed.
    pub(super) fn balance(&mut self) -> BTreeSet<PartitionId> {
        let mut changed = BTreeSet::new();
        // A node from which no chain led to a lighter one stays so until a chain has moved something.
        let mut stuck: BTreeSet<At> = BTreeSet::new();
        while let Some(from) = self.heaviest(&stuck) {
            match self.chain(from) {
                None => {
                    stuck.insert(from);
                }
                Some(chain) => {
                    for (partition, from, to) in chain {
                        self.remove(partition, from);
                        self.add(partition, to);
                        changed.insert(partition);
                    }
                    stuck.clear();
                }
            }
        }
        changed
    }

    /// The heaviest node that is at least two above the lightest and not known to be stuck.
    fn heaviest(&self, stuck: &BTreeSet<At>) -> Option<At> {
        let (least, _) = self.takers.first()?;
        let heavy = self.takers.iter().rev().take_while(|(load, _)| *load >= least + 2);
        heavy.map(|(_, at)| *at).find(|at| !stuck.contains(at))
    }

    /// The shortest chain of moves that takes one replica from `from` to a node with at least two fewer. No partition
    /// is in it twice, so each of its moves stays allowed while the others are made.
    fn chain(&self, from: At) -> Option<Vec<(PartitionId, At, At)>> {
        let enough = self.load(from).checked_sub(2)?;
        let mut came: BTreeMap<At, (At, PartitionId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            let used = self.steps(&came, from, at);
            for partition in self.nodes[at].holds.iter().filter(|partition| !used.iter().any(|(p, ..)| p == *partition))
            {
                let (crowd, set) = (self.crowd(*partition), &self.sets[partition]);
                let here = self.nodes[at].zone;
                for (load, to) in &self.takers {
                    let there = self.nodes[*to].zone;
                    let allowed = there == here || crowd[there] < crowd[here];
                    if *to == from || came.contains_key(to) || set.contains(to) || !allowed {
                        continue;
                    }
                    came.insert(*to, (at, *partition));
                    if *load <= enough {
                        return Some(self.steps(&came, from, *to));
                    }
                    queue.push_back(*to);
                }
            }
        }
        None
    }

    /// The moves that lead from `from` to `to`.
    fn steps(&self, came: &BTreeMap<At, (At, PartitionId)>, from: At, to: At) -> Vec<(PartitionId, At, At)> {
        let (mut steps, mut at) = (Vec::new(), to);
        while at != from
            && let Some((before, partition)) = came.get(&at)
        {
            steps.push((*partition, *before, at));
            at = *before;
        }
        steps
    }
}
