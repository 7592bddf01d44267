//! The wants of placement, held against rings of any kind and against all placements of small ones.

use std::collections::{BTreeMap, BTreeSet};

use engram_model::place::{NodeId, PartitionId, Zone};
use proptest::prelude::*;

use super::{Member, Ring, Standing, Why, plan};

fn ring(zones: &[(u32, Standing)], sets: Vec<Vec<u64>>, replication_factor: usize) -> Ring {
    let member = |(zone, standing): &(u32, Standing)| Member { zone: Zone(format!("z{zone}")), standing: *standing };
    Ring {
        members: (1..).map(NodeId).zip(zones.iter().map(member)).collect(),
        sets: (0..).map(PartitionId).zip(sets.into_iter().map(|set| set.into_iter().map(NodeId).collect())).collect(),
        replication_factor,
    }
}

fn takes(zones: &[u32]) -> Vec<(u32, Standing)> {
    zones.iter().map(|zone| (*zone, Standing::Takes)).collect()
}

fn loads(ring: &Ring) -> BTreeMap<NodeId, usize> {
    let mut loads: BTreeMap<NodeId, usize> =
        ring.members.iter().filter(|(_, m)| m.standing == Standing::Takes).map(|(id, _)| (*id, 0)).collect();
    for id in ring.sets.values().flatten() {
        if let Some(load) = loads.get_mut(id) {
            *load += 1;
        }
    }
    loads
}

fn moves(changes: &[super::Change]) -> usize {
    changes.iter().map(|change| change.comes().count()).sum()
}

/// Wants 1 and 2 of the module's text.
fn check(ring: &Ring) -> Result<(), TestCaseError> {
    let stays = |id: &NodeId| ring.members.get(id).is_some_and(|m| m.standing != Standing::Leaves);
    let takers: Vec<_> = ring.members.iter().filter(|(_, m)| m.standing == Standing::Takes).collect();
    for (partition, set) in &ring.sets {
        let distinct: BTreeSet<_> = set.iter().collect();
        prop_assert_eq!(distinct.len(), set.len(), "a node twice in {:?}", partition);
        let kept = set.iter().filter(|id| ring.members.get(id).is_some_and(|m| m.standing == Standing::Keeps)).count();
        let possible = ring.replication_factor.min(takers.len() + kept);
        if possible == 0 {
            continue; // nobody can take it: what there is stays
        }
        prop_assert!(set.len() <= ring.replication_factor, "{:?} has {:?}", partition, set);
        prop_assert!(set.iter().all(stays), "{:?} is on a node that leaves: {:?}", partition, set);
        prop_assert!(
            set.len() >= possible.min(takers.len()).max(1),
            "{:?} has {:?}, {} are possible",
            partition,
            set,
            possible
        );
        let crowd = |zone: &Zone| set.iter().filter(|id| ring.members[id].zone == *zone).count();
        for id in set.iter().filter(|id| ring.members[id].standing == Standing::Takes) {
            let here = crowd(&ring.members[id].zone);
            for (_, other) in takers.iter().filter(|(other, _)| !set.contains(other)) {
                prop_assert!(crowd(&other.zone) + 2 > here, "{:?} could be spread better: {:?}", partition, set);
            }
        }
    }
    Ok(())
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![6 => Just(Standing::Takes), 1 => Just(Standing::Keeps), 2 => Just(Standing::Leaves)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_state_converges_in_one_plan(
        members in proptest::collection::vec((0_u32..4, standing()), 1..9),
        sets in proptest::collection::vec(proptest::collection::btree_set(1_u64..11, 1..5), 1..24),
        replication_factor in 1_usize..5,
    ) {
        let sets = sets.into_iter().map(|set| set.into_iter().collect()).collect();
        let before = ring(&members, sets, replication_factor);
        let changes = plan(&before);
        let after = before.clone().after(&changes);
        check(&after)?;
        prop_assert_eq!(plan(&after), vec![], "a second plan changes nothing");
        prop_assert_eq!(plan(&before), changes, "the same ring, the same plan");
        prop_assert!(after.sets.values().all(|set| !set.is_empty()));
    }

    #[test]
    fn equal_zones_have_equal_loads(zones in 3_u32..6, nodes in 1_u32..5, partitions in 1_usize..80) {
        let members: Vec<u32> = (0..zones).flat_map(|zone| vec![zone; nodes as usize]).collect();
        let before = ring(&takes(&members), vec![vec![1]; partitions], 3);
        let after = before.clone().after(&plan(&before));
        let loads = loads(&after);
        prop_assert!(loads.values().max().unwrap() - loads.values().min().unwrap() <= 1, "{:?}", loads);
    }

    #[test]
    fn a_node_that_comes_gets_its_share_and_no_other_moves(zones in 3_u32..5, nodes in 1_u32..4, partitions in 1_usize..80) {
        let members: Vec<u32> = (0..zones).flat_map(|zone| vec![zone; nodes as usize]).collect();
        let before = ring(&takes(&members), vec![vec![1]; partitions], 3);
        let mut grown = before.clone().after(&plan(&before));
        let new = NodeId(1000);
        grown.members.insert(new, Member { zone: Zone("z0".to_owned()), standing: Standing::Takes });
        let changes = plan(&grown);
        let gets = changes.iter().filter(|change| change.to.contains(&new)).count();
        prop_assert!(gets > 0 || partitions * 3 <= members.len() || loads(&grown).values().max().unwrap() < &2);
        // Chains may be longer than one move where only its own zone can give; never longer than two.
        prop_assert!(moves(&changes) <= 2 * gets.max(1), "{} moves for {} replicas", moves(&changes), gets);
        prop_assert!(changes.iter().all(|change| change.why == Why::Balance));
    }

    #[test]
    fn a_node_that_goes_moves_only_what_it_held(zones in 3_u32..5, nodes in 2_u32..4, partitions in 1_usize..80) {
        let members: Vec<u32> = (0..zones).flat_map(|zone| vec![zone; nodes as usize]).collect();
        let before = ring(&takes(&members), vec![vec![1]; partitions], 3);
        let mut full = before.clone().after(&plan(&before));
        let held = loads(&full)[&NodeId(1)];
        full.members.get_mut(&NodeId(1)).unwrap().standing = Standing::Leaves;
        let changes = plan(&full);
        // What it held goes elsewhere; evening out the others may take some more.
        prop_assert!(moves(&changes) >= held && moves(&changes) <= 2 * held + members.len(), "{} moves, {} held", moves(&changes), held);
        let stays: Vec<_> = changes.iter().filter(|change| change.why == Why::Leaving).collect();
        prop_assert_eq!(stays.len(), held);
    }
}

/// The least sum of squares any placement has, by trying all of them.
fn best_by_force(members: &[u32], partitions: usize, replication_factor: usize) -> usize {
    let zones: BTreeSet<u32> = members.iter().copied().collect();
    let spread = |set: &[usize]| {
        let crowd = |zone: u32| set.iter().filter(|at| members[**at] == zone).count();
        set.iter().all(|at| {
            let free = |zone: u32| (0..members.len()).any(|other| members[other] == zone && !set.contains(&other));
            zones.iter().all(|zone| !free(*zone) || crowd(*zone) + 2 > crowd(members[*at]))
        })
    };
    let mut sets = vec![vec![]];
    for _ in 0..replication_factor.min(members.len()) {
        let longer = |set: &Vec<usize>| {
            let from = set.last().map_or(0, |last| last + 1);
            (from..members.len()).map(|at| [&set[..], &[at]].concat()).collect::<Vec<_>>()
        };
        sets = sets.iter().flat_map(longer).collect();
    }
    sets.retain(|set| spread(set));
    let mut reached: BTreeSet<Vec<usize>> = BTreeSet::from([vec![0; members.len()]]);
    for _ in 0..partitions {
        let more = |loads: &Vec<usize>| {
            let add = |set: &Vec<usize>| {
                let mut loads = loads.clone();
                set.iter().for_each(|at| loads[*at] += 1);
                loads
            };
            sets.iter().map(add).collect::<Vec<_>>()
        };
        reached = reached.iter().flat_map(more).collect();
    }
    reached.iter().map(|loads| loads.iter().map(|load| load * load).sum()).min().unwrap()
}

#[test]
fn loads_are_as_even_as_any_placement_can_make_them() {
    let shapes: [&[u32]; 7] =
        [&[0, 1, 2], &[0, 0, 1, 2], &[0, 0, 1, 1, 2], &[0, 1, 2, 3], &[0, 0, 1], &[0, 0, 0, 1, 2], &[0, 1, 1, 2, 3]];
    for members in shapes {
        for partitions in 1..5 {
            let before = ring(&takes(members), vec![vec![1]; partitions], 3);
            let after = before.clone().after(&plan(&before));
            let squares: usize = loads(&after).values().map(|load| load * load).sum();
            assert_eq!(squares, best_by_force(members, partitions, 3), "{members:?}, {partitions} partitions");
        }
    }
}

#[test]
fn what_is_missing_comes_before_what_is_uneven() {
    let mut members = takes(&[0, 1, 2, 0, 1, 2]);
    members[1].1 = Standing::Leaves;
    let sets = vec![vec![1, 3], vec![1, 2, 3], vec![1, 3, 5], vec![1, 3, 5]];
    let changes = plan(&ring(&members, sets, 3));
    let order: Vec<_> = changes.iter().map(|change| (change.partition.0, change.why)).collect();
    assert_eq!(order[..2], [(0, Why::Missing), (1, Why::Leaving)], "{changes:?}");
    assert!(order[2..].iter().all(|(_, why)| *why == Why::Balance), "{changes:?}");
}

#[test]
fn a_suspect_keeps_what_it_has_and_gets_nothing() {
    let mut members = takes(&[0, 1, 2, 2]);
    members[2].1 = Standing::Keeps;
    let before = ring(&members, vec![vec![1, 2, 3], vec![1, 2]], 3);
    let changes = plan(&before);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].to, [NodeId(1), NodeId(2), NodeId(4)]);
}

#[test]
fn the_last_replica_stays_where_it_is_when_nobody_can_take_it() {
    let members = [(0, Standing::Leaves), (1, Standing::Keeps)];
    assert_eq!(plan(&ring(&members, vec![vec![1]], 3)), vec![]);
}

#[test]
fn a_large_cluster_is_planned() {
    let members: Vec<u32> = (0..300).map(|node| node % 3).collect();
    let before = ring(&takes(&members), vec![vec![1]; 4096], 3);
    let after = before.clone().after(&plan(&before));
    let loads = loads(&after);
    assert!(loads.values().max().unwrap() - loads.values().min().unwrap() <= 1);
}

/// Nodes 1.. in zones, all active; each partition has a set.
fn view(zones: &[&str], sets: &[&[u64]]) -> crate::View {
    use crate::state::{NodeRow, NodeSpec, NodeState, PartitionRow, Stamp};
    let stamp = || Stamp { index: 1, at: 0, by: String::new() };
    let mut view = crate::View::default();
    for (id, zone) in (1..).map(NodeId).zip(zones) {
        let spec = NodeSpec { zone: (*zone).to_owned(), ..NodeSpec::default() };
        let row = NodeRow { spec, state: NodeState::Active, admitted: stamp(), changed: stamp() };
        view.nodes.insert(id, std::sync::Arc::new(row));
    }
    for (id, set) in (0..).map(PartitionId).zip(sets) {
        let replicas = set.iter().copied().map(NodeId).collect();
        let current = engram_model::place::ReplicaSet { epoch: engram_model::place::Epoch(1), replicas };
        let row = PartitionRow { current, next: None, changed: stamp() };
        view.partitions.insert(id, std::sync::Arc::new(row));
    }
    view
}

#[test]
fn a_preview_is_the_plan_of_the_ring_it_thinks_of() {
    use super::preview::{Margin, What, preview};
    let view = view(&["a", "b", "c", "a", "b", "c"], &[&[1, 2, 3], &[4, 5, 6], &[1, 2, 3], &[4, 5, 6]]);
    let good = Margin { without_quorum: 0, nodes: 1, zones: 1, short: 0 };
    let seen = preview(&view, &What::Rebalance, 3).unwrap();
    assert_eq!((seen.changes.len(), seen.now, seen.during, seen.after), (0, good, good, good));

    let seen = preview(&view, &What::Drain(NodeId(1)), 3).unwrap();
    let mut drained = Ring::of(&view, 3);
    drained.members.get_mut(&NodeId(1)).unwrap().standing = Standing::Leaves;
    assert_eq!(seen.changes, plan(&drained));
    assert_eq!((seen.now, seen.during, seen.after), (good, good, good));
    let load = |id: u64| seen.nodes.iter().find(|load| load.id == NodeId(id)).unwrap();
    assert_eq!((load(1).before, load(1).after, load(4).after, load(4).comes), (2, 0, 4, 2));

    let seen = preview(&view, &What::LoseZone(Zone("a".into())), 3).unwrap();
    assert_eq!(seen.lost, BTreeSet::from([NodeId(1), NodeId(4)]));
    assert_eq!(seen.during, Margin { without_quorum: 0, nodes: 0, zones: 0, short: 4 });
    assert_eq!((seen.after.without_quorum, seen.after.nodes, seen.after.zones, seen.after.short), (0, 1, 0, 0));

    let seen = preview(&view, &What::AddNodes(3, Zone("a".into())), 3).unwrap();
    assert!(seen.nodes.iter().filter(|load| load.is_new).count() == 3 && !seen.changes.is_empty());
    let seen = preview(&view, &What::ReplicationFactor(5), 3).unwrap();
    assert_eq!((seen.after.nodes, seen.after.short, seen.now.short, seen.during.short), (2, 0, 0, 4));
    assert!(preview(&view, &What::Drain(NodeId(9)), 3).unwrap_err().contains("no node 9"));
    assert!(preview(&view, &What::LoseZone(Zone("x".into())), 3).is_err());
}

#[test]
fn a_preview_of_a_shard_speaks_of_that_tenant() {
    use super::preview::{What, preview};
    use crate::state::{ShardSize, Stamp, TenantRow};
    let stamp = || Stamp { index: 1, at: 0, by: "test".to_owned() };
    let mut view = view(&["a", "b", "c"], &[&[1, 2, 3], &[1, 2, 3], &[1, 2, 3], &[1, 2]]);
    let acme = engram_model::tenant::TenantId::new("acme").unwrap();
    let sizes = [2, 1].map(|size| ShardSize { size, index: 1, at: 0 });
    let row = TenantRow {
        version: 7,
        limits: engram_model::tenant::TenantLimits::default(),
        shards: sizes.to_vec(),
        created: stamp(),
        changed: stamp(),
        deleted: None,
    };
    view.tenants.insert(acme.clone(), std::sync::Arc::new(row));
    let ask = |text: &str| preview(&view, &text.parse::<What>().unwrap(), 3);
    let seen = ask("shard-size:acme:4").unwrap();
    let shard = seen.shard.clone().unwrap();
    assert_eq!((shard.before, shard.after, shard.read, shard.series_permille), (1, 4, 4, 750));
    // All four partitions from then on, the one with two replicas among them.
    assert_eq!((seen.changes.len(), seen.after.nodes, seen.after.short), (0, 0, 1));
    assert_eq!(seen.name.what.to_string(), "shard-size:acme:4:7");
    assert!(
        ask("shard-size:acme:4:7").is_ok() && ask("shard-size:acme:4:6").unwrap_err().contains("has changed since")
    );
    let smaller = ask("shard-size:acme:1").unwrap().shard.unwrap();
    assert_eq!((smaller.after, smaller.read, smaller.series_permille), (1, 2, 0), "queries cover what it ever used");
    assert!(ask("shard-size:nobody:1").is_err());
}

#[test]
fn a_partition_is_short_of_what_there_could_be() {
    use super::under_replicated;
    use crate::state::{NodeRow, NodeState};
    let set = |view: &mut crate::View, id: u64, state: NodeState| {
        let row = view.nodes.get(&NodeId(id)).unwrap();
        let row = NodeRow { state, ..NodeRow::clone(row) };
        view.nodes.insert(NodeId(id), std::sync::Arc::new(row));
    };
    // Just formed: the founder holds all of them alone.
    let mut one = view(&["a", "b", "c"], &[&[1], &[1], &[1]]);
    assert_eq!((under_replicated(&one, 3), under_replicated(&one, 1)), (3, 0));
    set(&mut one, 2, NodeState::Joining);
    set(&mut one, 3, NodeState::Joining);
    assert_eq!(under_replicated(&one, 3), 0, "nobody else could hold one yet");
    let mut two = view(&["a", "b"], &[&[1, 2], &[1]]);
    assert_eq!(under_replicated(&two, 3), 1, "two nodes, two replicas");
    set(&mut two, 2, NodeState::Suspect);
    assert_eq!(under_replicated(&two, 3), 2);
    set(&mut two, 2, NodeState::Dead);
    assert_eq!(under_replicated(&two, 3), 0);
    let mut all = view(&["a", "b", "c"], &[&[1, 2, 3]]);
    set(&mut all, 2, NodeState::Draining);
    assert_eq!(under_replicated(&all, 3), 0, "who drains holds what it holds");
}

#[test]
fn names_of_plans_read_back() {
    use super::preview::PlanName;
    let names = [
        "rebalance@0",
        "drain:3@17",
        "undrain:3@17",
        "lose-node:1@2",
        "lose-zone:eu@x@9",
        "add-nodes:3:a:b@4",
        "replication-factor:5@1",
        "shard-size:acme:8@1",
        "shard-size:acme:0:17@1",
    ];
    for name in names {
        assert_eq!(name.parse::<PlanName>().unwrap().to_string(), name);
    }
    for none in [
        "drain:3",
        "drain:x@1",
        "add-nodes:0:a@1",
        "replication-factor:99@1",
        "rebalance:1@1",
        "@",
        "lose-zone:@3",
        "shard-size:acme@1",
        "shard-size:a b:1@1",
        "shard-size:acme:x@1",
    ] {
        assert!(none.parse::<PlanName>().is_err(), "{none}");
    }
}

proptest! {
    /// The margin against trying every choice of nodes and zones.
    #[test]
    fn the_margin_is_what_trying_all_losses_says(
        zones in proptest::collection::vec(0_usize..3, 2..7),
        sets in proptest::collection::vec(proptest::collection::btree_set(1_u64..7, 1..5), 1..5),
    ) {
        use engram_model::place::Sets;
        use super::preview::{What, preview};
        let names: Vec<&str> = zones.iter().map(|zone| ["a", "b", "c"][*zone]).collect();
        let count = names.len() as u64;
        let sets: Vec<Vec<u64>> = sets.into_iter().map(|set| set.into_iter().filter(|id| *id <= count).collect()).collect();
        let sets: Vec<&[u64]> = sets.iter().map(Vec::as_slice).filter(|set| !set.is_empty()).collect();
        let now = preview(&view(&names, &sets), &What::Rebalance, 3).unwrap().now;
        let survives = |gone: &[NodeId]| {
            let ids = |set: &[u64]| set.iter().copied().map(NodeId).collect::<Vec<_>>();
            sets.iter().all(|set| !Sets::new(&ids(set), None).cannot_have_majority(gone))
        };
        let worst = |units: &[Vec<NodeId>]| {
            let choices = 0_u32..1 << units.len();
            let gone = |choice: u32| units.iter().enumerate().filter(|(i, _)| choice >> i & 1 == 1).flat_map(|(_, u)| u.clone()).collect::<Vec<_>>();
            choices.filter(|choice| !survives(&gone(*choice))).map(|choice| choice.count_ones() as usize).min().map_or(usize::MAX, |fewest| fewest - 1)
        };
        let nodes: Vec<Vec<NodeId>> = (1..=count).map(|id| vec![NodeId(id)]).collect();
        let in_zone = |zone: usize| (1..).zip(&zones).filter(|(_, at)| **at == zone).map(|(id, _)| NodeId(id)).collect::<Vec<_>>();
        let of_zones: Vec<Vec<NodeId>> = (0..3).map(in_zone).filter(|zone| !zone.is_empty()).collect();
        if !sets.is_empty() {
            prop_assert_eq!(now.nodes, worst(&nodes));
            prop_assert_eq!(now.zones, worst(&of_zones));
        }
    }
}
