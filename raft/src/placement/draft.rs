//! A ring being changed: sets, loads, and the two movements (repair one partition, balance all).
//!
//! Why it is fast: the reconciler plans twice a second, whatever the size. Each choice is a look into an ordered set, never a
//! walk over the nodes: who takes is ordered by load in its zone ([`Takers`]), and a search for a chain meets each node once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engram_model::place::{NodeId, PartitionId};

use super::takers::{Takers, mix};
use super::{Ring, Standing, Why};

/// A node by its place in [`Draft::nodes`].
pub(super) type At = usize;

struct Node {
    id: NodeId,
    zone: usize,
    standing: Standing,
    /// Partitions it holds.
    holds: BTreeSet<PartitionId>,
}

pub(super) struct Draft {
    nodes: Vec<Node>,
    sets: BTreeMap<PartitionId, Vec<At>>,
    replicas: usize,
    /// Nodes that take.
    takers: Takers,
}

/// One replica goes from one node to another.
type Move = (PartitionId, At, At);

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
        let mut takers = Takers::new(zones.len().max(1));
        for (at, node) in nodes.iter().enumerate().filter(|(_, node)| node.standing == Standing::Takes) {
            takers.insert(node.zone, (node.holds.len(), mix(node.id.0), at));
        }
        Self { nodes, sets, replicas, takers }
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
        let point = mix(node.id.0);
        let before = node.holds.len();
        change(&mut node.holds);
        if node.standing == Standing::Takes {
            self.takers.remove(node.zone, (before, point, at));
            self.takers.insert(node.zone, (node.holds.len(), point, at));
        }
    }

    /// How many of a partition's replicas each zone that has any holds, on nodes that stay.
    fn crowd(&self, partition: PartitionId) -> Crowd {
        let mut crowd = Crowd(Vec::new());
        for at in &self.sets[&partition] {
            if self.nodes[*at].standing != Standing::Leaves {
                crowd.add(self.nodes[*at].zone);
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
        let point = mix(u64::from(partition.0));
        let in_free = self.takers.lightest(point, |zone| crowd.of(zone) == 0, set);
        let best = in_free.or_else(|| {
            let zones = crowd.0.iter();
            let of = zones.filter_map(|(zone, count)| Some((*count, self.takers.lightest_of(*zone, point, set)?)));
            of.min_by_key(|(count, (load, at))| (*count, *load, self.chance(partition, *at))).map(|(_, best)| best)
        });
        best.map(|(_, at)| at)
    }

    /// Who should give a replica up: in the most crowded zone, the heaviest node.
    fn worst_holder(&self, partition: PartitionId) -> Option<At> {
        let crowd = self.crowd(partition);
        let set = self.sets[&partition].iter().copied().filter(|at| self.nodes[*at].standing != Standing::Leaves);
        set.max_by_key(|at| (crowd.of(self.nodes[*at].zone), self.load(*at), self.chance(partition, *at)))
    }

    /// A replica that shares its zone and one who could take it in a zone with at least two fewer.
    fn better_spread(&self, partition: PartitionId) -> Option<(At, At)> {
        let crowd = self.crowd(partition);
        let set = self.sets[&partition].iter().copied().filter(|at| self.nodes[*at].standing == Standing::Takes);
        let from =
            set.max_by_key(|at| (crowd.of(self.nodes[*at].zone), self.load(*at), self.chance(partition, *at)))?;
        if crowd.of(self.nodes[from].zone) < 2 {
            return None;
        }
        let to = self.best_taker(partition)?;
        (crowd.of(self.nodes[to].zone) + 2 <= crowd.of(self.nodes[from].zone)).then_some((from, to))
    }

    /// How far a node is from a partition on the circle of hashes: the same pair always has the same number.
    fn chance(&self, partition: PartitionId, at: At) -> u64 {
        mix(self.nodes[at].id.0).wrapping_sub(mix(u64::from(partition.0)))
    }

    /// Moves replicas until loads are as even as they can be; the partitions that changed.
    ///
    /// Who cannot give is remembered until all have been tried: what is moved meanwhile may have opened a way, so it ends
    /// only with a round in which nothing could be moved.
    pub(super) fn balance(&mut self) -> BTreeSet<PartitionId> {
        let mut changed = BTreeSet::new();
        loop {
            let mut moved = false;
            // Who has not been found unable to give in this round, the heaviest last.
            let mut givers: BTreeSet<(usize, At)> = self.takers.all().collect();
            while let (Some((heavy, from)), Some(least)) = (givers.last().copied(), self.takers.least()) {
                if heavy < least + 2 {
                    break;
                }
                let chain = match self.direct(from) {
                    Some(step) => Ok(vec![step]),
                    None => self.chain(from),
                };
                match chain {
                    // Nobody who was met leads further, and none of them is heavier.
                    Err(met) => met.into_iter().for_each(|at| {
                        givers.remove(&(self.load(at), at));
                    }),
                    Ok(chain) => {
                        moved = true;
                        let ends = [Some(from), chain.first().map(|(.., to)| *to)];
                        let tried: Vec<At> =
                            ends.into_iter().flatten().filter(|at| givers.remove(&(self.load(*at), *at))).collect();
                        for (partition, from, to) in chain {
                            self.remove(partition, from);
                            self.add(partition, to);
                            changed.insert(partition);
                        }
                        givers.extend(tried.into_iter().map(|at| (self.load(at), at)));
                    }
                }
            }
            if !moved {
                return changed;
            }
        }
    }

    /// A move of one replica of `from` to the lightest node that may have it, when that has at least two fewer.
    fn direct(&self, from: At) -> Option<Move> {
        let enough = self.load(from).checked_sub(2)?;
        let here = self.nodes[from].zone;
        self.nodes[from].holds.iter().find_map(|partition| {
            let (crowd, set) = (self.crowd(*partition), &self.sets[partition]);
            let point = mix(u64::from(partition.0));
            let (load, to) = self.takers.lightest(point, |zone| crowd.allows(here, zone), set)?;
            (load <= enough).then_some((*partition, from, to))
        })
    }

    /// The shortest chain of moves that takes one replica from `from` to a node with at least two fewer, the last move
    /// first. No partition is in it twice, so each of its moves stays allowed while the others are made. Without one:
    /// everybody who was met.
    fn chain(&self, from: At) -> Result<Vec<Move>, Vec<At>> {
        let Some(enough) = self.load(from).checked_sub(2) else { return Err(vec![from]) };
        let mut came: BTreeMap<At, (At, PartitionId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        // Whom nobody has met yet, by zone, the lightest first.
        let mut unmet = self.takers.by_zone();
        while let Some(at) = queue.pop_front() {
            let used = self.steps(&came, from, at);
            let here = self.nodes[at].zone;
            for partition in self.nodes[at].holds.iter().filter(|partition| !used.iter().any(|(p, ..)| p == *partition))
            {
                let (crowd, set) = (self.crowd(*partition), &self.sets[partition]);
                for (_, nodes) in unmet.iter_mut().filter(|(zone, _)| crowd.allows(here, *zone)) {
                    let mut stay = Vec::new();
                    for to in std::mem::take(nodes) {
                        if to == from {
                            continue;
                        }
                        if set.contains(&to) {
                            stay.push(to);
                            continue;
                        }
                        came.insert(to, (at, *partition));
                        if self.load(to) <= enough {
                            return Ok(self.steps(&came, from, to));
                        }
                        queue.push_back(to);
                    }
                    *nodes = stay;
                }
                unmet.retain(|(_, nodes)| !nodes.is_empty());
            }
        }
        Err(came.into_keys().chain([from]).collect())
    }

    /// The moves that lead from `from` to `to`, the last first.
    fn steps(&self, came: &BTreeMap<At, (At, PartitionId)>, from: At, to: At) -> Vec<Move> {
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

/// How many replicas of one partition there are in each zone that has any.
struct Crowd(Vec<(usize, usize)>);

impl Crowd {
    fn add(&mut self, zone: usize) {
        match self.0.iter_mut().find(|(have, _)| *have == zone) {
            Some((_, count)) => *count += 1,
            None => self.0.push((zone, 1)),
        }
    }

    fn of(&self, zone: usize) -> usize {
        self.0.iter().find(|(have, _)| *have == zone).map_or(0, |(_, count)| *count)
    }

    /// Whether a replica may move from a zone to another without the partition being spread worse.
    fn allows(&self, here: usize, there: usize) -> bool {
        here == there || self.of(there) < self.of(here)
    }
}
