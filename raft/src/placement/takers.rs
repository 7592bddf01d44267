//! Nodes that take replicas, in order of load, by zone.
//!
//! Why by zone: what a partition may have next depends on the zones it is in, and those are few. So the lightest node that
//! may take it is found by passing over a few zones and a few nodes, however many there are.
//!
//! Equally light ones stand on a circle of hashes, and a partition takes the first from its own point on: every leader
//! chooses alike, partitions are scattered, and a node that comes or goes changes few choices.

use std::collections::BTreeSet;

use super::draft::At;

/// A node's load, its point on the circle, and its place.
type Taker = (usize, u64, At);

pub(super) struct Takers {
    zones: Vec<BTreeSet<Taker>>,
    /// The least load in each zone that has anybody, the point of the zone, and the zone.
    lightest: BTreeSet<(usize, u64, usize)>,
}

impl Takers {
    pub(super) fn new(zones: usize) -> Self {
        Self { zones: vec![BTreeSet::new(); zones], lightest: BTreeSet::new() }
    }

    pub(super) fn insert(&mut self, zone: usize, taker: Taker) {
        self.change(zone, |zone| zone.insert(taker));
    }

    pub(super) fn remove(&mut self, zone: usize, taker: Taker) {
        self.change(zone, |zone| zone.remove(&taker));
    }

    fn change(&mut self, zone: usize, change: impl FnOnce(&mut BTreeSet<Taker>) -> bool) {
        let head = |all: &BTreeSet<Taker>| all.first().map(|(load, ..)| (*load, mix(zone as u64), zone));
        let before = head(&self.zones[zone]);
        change(&mut self.zones[zone]);
        let after = head(&self.zones[zone]);
        if before != after {
            if let Some(before) = before {
                self.lightest.remove(&before);
            }
            self.lightest.extend(after);
        }
    }

    /// The least load of all.
    pub(super) fn least(&self) -> Option<usize> {
        self.lightest.first().map(|(load, ..)| *load)
    }

    /// Everybody, with the load.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, At)> + '_ {
        self.zones.iter().flatten().map(|(load, _, at)| (*load, *at))
    }

    /// Everybody by zone, the lightest first; zones without anybody are left out.
    pub(super) fn by_zone(&self) -> Vec<(usize, Vec<At>)> {
        let of = |zone: &BTreeSet<Taker>| zone.iter().map(|(.., at)| *at).collect();
        self.zones.iter().map(of).enumerate().filter(|(_, nodes): &(usize, Vec<At>)| !nodes.is_empty()).collect()
    }

    /// The lightest node of a zone that is not in `set`, and its load; of equal ones the first from `point` on.
    pub(super) fn lightest_of(&self, zone: usize, point: u64, set: &[At]) -> Option<(usize, At)> {
        let all = &self.zones[zone];
        let free = |taker: &&Taker| !set.contains(&taker.2);
        let load = all.iter().find(free)?.0;
        let mut from_point = all.range((load, point, 0)..=(load, u64::MAX, At::MAX));
        let first = from_point.find(free).or_else(|| all.range((load, 0, 0)..).find(free));
        first.map(|(load, _, at)| (*load, *at))
    }

    /// The lightest node of the zones that may have it, not in `set`; of equally light zones, and then of nodes, the
    /// first from `point` on. `may` refuses few zones.
    pub(super) fn lightest(&self, point: u64, may: impl Fn(usize) -> bool, set: &[At]) -> Option<(usize, At)> {
        let (mut best, mut from_load): (Option<(usize, At)>, usize) = (None, 0);
        // Zones whose lightest is equally light, in order of the circle, then those after it.
        while let Some(&(load, ..)) = self.lightest.range((from_load, 0, 0)..).next() {
            if best.is_some_and(|(have, _)| have <= load) {
                break;
            }
            let from_point = self.lightest.range((load, point, 0)..=(load, u64::MAX, usize::MAX));
            let before_point = self.lightest.range((load, 0, 0)..(load, point, 0));
            for (.., zone) in from_point.chain(before_point).filter(|(.., zone)| may(*zone)) {
                let found = self.lightest_of(*zone, point, set);
                if found.is_some_and(|(have, _)| have == load) {
                    return found;
                }
                // Its lightest are in the set already: another zone may have a lighter one.
                best = best.into_iter().chain(found).min_by_key(|(load, _)| *load);
            }
            from_load = load + 1;
        }
        best
    }
}

/// A number spread evenly (the end of `SplitMix64`).
pub(super) fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a walk over everybody: as light, allowed, and not in the set.
        #[test]
        fn the_lightest_that_may_is_found(
            nodes in proptest::collection::vec((0_usize..5, 0_usize..4), 0..20),
            refused in proptest::collection::btree_set(0_usize..5, 0..3),
            set in proptest::collection::vec(0_usize..20, 0..4),
            gone in proptest::collection::btree_set(0_usize..20, 0..5),
            point in any::<u64>(),
        ) {
            let mut takers = Takers::new(5);
            let taker = |at: usize| (nodes[at].1, mix(at as u64), at);
            (0..nodes.len()).for_each(|at| takers.insert(nodes[at].0, taker(at)));
            gone.iter().filter(|at| **at < nodes.len()).for_each(|at| takers.remove(nodes[*at].0, taker(*at)));
            let there = || (0..nodes.len()).filter(|at| !gone.contains(at));
            let fits = |at: &usize| !refused.contains(&nodes[*at].0) && !set.contains(at);
            let found = takers.lightest(point, |zone| !refused.contains(&zone), &set);
            prop_assert_eq!(found.map(|(load, _)| load), there().filter(fits).map(|at| nodes[at].1).min());
            prop_assert!(found.is_none_or(|(load, at)| fits(&at) && !gone.contains(&at) && nodes[at].1 == load));
            prop_assert_eq!(takers.least(), there().map(|at| nodes[at].1).min());
            let mut all: Vec<(usize, At)> = takers.all().collect();
            all.sort_by_key(|(_, at)| *at);
            prop_assert_eq!(all, there().map(|at| (nodes[at].1, at)).collect::<Vec<_>>());
            let by_zone: Vec<At> = takers.by_zone().into_iter().flat_map(|(_, nodes)| nodes).collect();
            prop_assert_eq!(by_zone.len(), there().count());
        }
    }
}
