//! What each single replica holds, laid side by side: the truth behind reads that ask a majority.
//!
//! Every node tells of its own replicas only (`admin/replicas`). All members of a partition's set must tell the same
//! digest of every slot. What is left out: slots that are older than what one of them keeps; and those in the window of a
//! seal that one has forgotten, because a block holds it, and another has not yet.

use crate::history::Held;
use engram_model::digest::{Digest, SLOT_MS};
use engram_model::{Millis, TimeRange};
use std::collections::{BTreeMap, BTreeSet};

/// What comes of laying them side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// What differs, in words.
    pub(crate) differing: Vec<String>,
    /// Slots of partitions of which all members hold the same.
    pub(crate) alike: u64,
    /// Slots of which nothing can be said.
    pub(crate) left_out: u64,
    /// Replicas that were looked at.
    pub(crate) replicas: u64,
}

/// Lays side by side what nodes tell of one tenant.
pub(crate) fn compare<'a>(told: impl Iterator<Item = &'a Held>) -> Compared {
    let mut partitions: BTreeMap<u32, Vec<&Held>> = BTreeMap::new();
    told.for_each(|held| partitions.entry(held.partition).or_default().push(held));
    let mut compared = Compared::default();
    for (partition, rows) in partitions {
        match members(&rows) {
            Ok(members) => slots(partition, &members, &mut compared),
            Err(why) => compared.differing.push(format!("partition {partition}: {why}")),
        }
    }
    compared
}

/// The rows of those that belong to the set all agree upon.
fn members<'a>(rows: &[&'a Held]) -> Result<Vec<&'a Held>, String> {
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    let view = |held: &Held| (held.epoch, held.members.clone(), held.moves);
    if let Some(other) = rows.iter().find(|held| view(held) != view(first)) {
        return Err(format!("node {} knows another replica set than node {}", other.node, first.node));
    }
    if first.moves {
        return Err("its replicas are being moved".to_owned());
    }
    let find = |id: &u64| {
        let row = rows.iter().find(|held| held.node == *id).ok_or_else(|| format!("node {id} tells nothing of it"))?;
        if row.complete { Ok(*row) } else { Err(format!("node {id} is not ready to tell: {}", row.why)) }
    };
    first.members.iter().map(find).collect()
}

fn slots(partition: u32, members: &[&Held], compared: &mut Compared) {
    compared.replicas += members.len() as u64;
    let floor = members.iter().filter_map(|held| held.floor).max().unwrap_or(Millis::MIN);
    let windows = forgotten_by_some(members);
    let of: Vec<BTreeMap<Millis, Digest>> = members.iter().map(|held| held.slots.iter().copied().collect()).collect();
    let all: BTreeSet<Millis> = of.iter().flat_map(BTreeMap::keys).copied().collect();
    for slot in all {
        let range = TimeRange { start: slot, end: slot.saturating_add(SLOT_MS) };
        if slot < floor || windows.iter().any(|window| window.overlaps(range)) {
            compared.left_out += 1;
            continue;
        }
        let have = |at: usize| of[at].get(&slot).copied().unwrap_or_default();
        let odd = (1..members.len()).find(|at| have(*at) != have(0));
        let Some(odd) = odd else {
            compared.alike += 1;
            continue;
        };
        compared.differing.push(format!(
            "partition {partition}, slot {slot}: node {} holds {} samples, node {} holds {}{}",
            members[0].node,
            have(0).count,
            members[odd].node,
            have(odd).count,
            if have(0).count == have(odd).count { ", others" } else { "" }
        ));
    }
}

/// Windows of seals that some members have forgotten and others have not, or do not know.
fn forgotten_by_some(members: &[&Held]) -> Vec<TimeRange> {
    let mut by_seal: BTreeMap<u64, (TimeRange, Vec<bool>)> = BTreeMap::new();
    for seal in members.iter().flat_map(|held| &held.seals) {
        let window = TimeRange { start: seal.start, end: seal.end };
        by_seal.entry(seal.number).or_insert_with(|| (window, Vec::new())).1.push(seal.forgotten);
    }
    let uneven = |(window, forgotten): (TimeRange, Vec<bool>)| {
        let same = forgotten.len() == members.len() && forgotten.iter().all(|one| *one == forgotten[0]);
        (!same).then_some(window)
    };
    by_seal.into_values().filter_map(uneven).collect()
}

#[cfg(test)]
pub(super) mod planted {
    use super::*;
    use crate::history::SealSeen;

    /// A replica of partition 3 on a node, with so many samples in each of the first slots.
    pub(in crate::check) fn held(node: u64, counts: &[u64]) -> Held {
        let digest = |count: u64| Digest { count, low: count * 7, high: count * 11 };
        let slots = (0..).map(|slot: i64| slot * SLOT_MS).zip(counts.iter().map(|count| digest(*count)));
        Held {
            partition: 3,
            epoch: 5,
            members: vec![1, 2, 4],
            moves: false,
            node,
            complete: true,
            why: String::new(),
            floor: None,
            seals: Vec::new(),
            slots: slots.filter(|(_, digest)| digest.count > 0).collect(),
        }
    }

    pub(in crate::check) fn seal(number: u64, slot: i64, forgotten: bool) -> SealSeen {
        SealSeen { number, start: slot * SLOT_MS, end: (slot + 1) * SLOT_MS, forgotten }
    }
}

#[cfg(test)]
mod tests {
    use super::planted::{held, seal};
    use super::*;

    #[test]
    fn a_hole_in_one_replica_of_three_is_seen() {
        let alike = [held(1, &[9, 4]), held(2, &[9, 4]), held(4, &[9, 4]), held(7, &[1])];
        let compared = compare(alike.iter());
        assert_eq!((compared.differing.len(), compared.alike, compared.replicas), (0, 2, 3), "7 is no member");
        for (hole, slots) in [(held(4, &[9, 3]), 1), (held(4, &[9]), 1), (held(4, &[]), 2), (held(4, &[9, 4, 1]), 1)] {
            assert_eq!(compare([held(1, &[9, 4]), held(2, &[9, 4]), hole].iter()).differing.len(), slots);
        }
        let mut others = held(2, &[9, 4]);
        others.slots[1].1.low += 1;
        assert_eq!(compare([held(1, &[9, 4]), others, held(4, &[9, 4])].iter()).differing.len(), 1);
        assert_eq!(compare([held(1, &[9]), held(2, &[9])].iter()).differing.len(), 1, "a member tells nothing");
    }

    #[test]
    fn who_is_not_ready_or_knows_another_set_is_not_alike() {
        let with = |change: fn(&mut Held)| {
            let mut odd = held(4, &[9]);
            change(&mut odd);
            compare([held(1, &[9]), held(2, &[9]), odd].iter()).differing.len()
        };
        assert_eq!(with(|_| ()), 0);
        assert_eq!(with(|held| held.complete = false), 1);
        assert_eq!(with(|held| held.epoch += 1), 1);
        assert_eq!(with(|held| held.moves = true), 1);
    }

    #[test]
    fn what_only_some_have_forgotten_is_left_out_and_nothing_else() {
        let sealed =
            |node, counts: &[u64], forgotten| Held { seals: vec![seal(8, 0, forgotten)], ..held(node, counts) };
        let compared = compare([sealed(1, &[9, 4], false), sealed(2, &[0, 4], true), sealed(4, &[9, 4], false)].iter());
        assert_eq!((compared.differing.len(), compared.left_out, compared.alike), (0, 1, 1));
        let compared = compare([sealed(1, &[9, 4], false), sealed(2, &[0, 3], true), sealed(4, &[9, 4], false)].iter());
        assert_eq!((compared.differing.len(), compared.left_out), (1, 1), "the other slot differs all the same");
        let compared = compare([sealed(1, &[9], false), sealed(2, &[8], false), sealed(4, &[9], false)].iter());
        assert_eq!((compared.differing.len(), compared.left_out), (1, 0), "nobody has forgotten it");
        let old = |node, counts: &[u64]| Held { floor: Some(SLOT_MS), ..held(node, counts) };
        assert!(compare([old(1, &[9, 4]), held(2, &[0, 4]), held(4, &[9, 4])].iter()).differing.is_empty());
    }
}
