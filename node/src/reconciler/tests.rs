//! Goal: the right step at the right time. Method: the pure decision over clusters made by hand.

use engram_model::place::ReplicaSet;

use super::*;
use crate::meta::nodes::{NodeSpec, Placed, Why};

const PATIENCE: Patience = Patience { suspect_after: Duration::from_secs(5), dead_after: Duration::from_secs(60) };

struct World {
    view: ClusterView,
    observed: Observed,
    now: Instant,
}

impl World {
    /// Nodes 1.. in the given zones, all active, in the group and just heard; the first votes.
    fn new(zones: &[&str]) -> Self {
        let now = Instant::now() + Duration::from_secs(1000);
        let mut world =
            Self { view: ClusterView { last_log: 50, ..ClusterView::default() }, observed: Observed::default(), now };
        for (i, zone) in (1_u64..).zip(zones) {
            let spec = NodeSpec { zone: (*zone).into(), grpc: format!("n{i}:1"), ..NodeSpec::default() };
            world.view.members.push(Member { id: NodeId(i), spec, state: NodeState::Active });
            world.view.learners.insert(NodeId(i));
            world.view.progress.insert(NodeId(i), 50);
            let seen = Seen { heard: now, answered: true, ready: true, complete: BTreeMap::new() };
            world.observed.nodes.insert(NodeId(i), seen);
        }
        world.view.learners.remove(&NodeId(1));
        world.view.voters.insert(NodeId(1));
        world
    }

    fn silent(&mut self, id: u64, seconds: u64) -> &mut Self {
        self.observed.nodes.get_mut(&NodeId(id)).unwrap().heard = self.now - Duration::from_secs(seconds);
        self
    }

    fn state(&mut self, id: u64, state: NodeState) -> &mut Self {
        self.view.members.iter_mut().find(|m| m.id == NodeId(id)).unwrap().state = state;
        self
    }

    fn vote(&mut self, ids: &[u64]) -> &mut Self {
        self.view.voters = ids.iter().map(|id| NodeId(*id)).collect();
        self.view.learners =
            self.view.members.iter().map(|m| m.id).filter(|id| !self.view.voters.contains(id)).collect();
        self
    }

    fn partition(&mut self, epoch: u64, replicas: &[u64], next: Option<&[u64]>) -> &mut Self {
        let ids = |all: &[u64]| all.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
        let current = ReplicaSet { epoch: Epoch(epoch), replicas: ids(replicas) };
        let id = PartitionId(u32::try_from(self.view.partitions.len()).unwrap());
        self.view.partitions.push(Placed { id, current, next: next.map(ids) });
        self
    }

    fn decide(&self, plan: &[Change]) -> Vec<Step> {
        decide(&self.view, plan, &self.observed, (NodeId(1), self.now), PATIENCE)
    }
}

fn becomes(id: u64, from: NodeState, to: NodeState) -> Vec<Step> {
    vec![Step::State { id: NodeId(id), from, to }]
}

fn votes(ids: &[u64]) -> Vec<Step> {
    vec![Step::Vote(ids.iter().map(|id| NodeId(*id)).collect())]
}

#[test]
fn a_node_that_was_admitted_follows_and_is_active_when_ready() {
    let mut world = World::new(&["a", "b"]);
    world.state(2, NodeState::Joining).view.learners.clear();
    assert_eq!(world.decide(&[]), vec![Step::Follow(NodeId(2), "n2:1".into())]);
    world.view.learners.insert(NodeId(2));
    world.observed.nodes.get_mut(&NodeId(2)).unwrap().ready = false;
    assert_eq!(world.decide(&[]), vec![]);
    world.observed.nodes.get_mut(&NodeId(2)).unwrap().ready = true;
    assert_eq!(world.decide(&[]), becomes(2, NodeState::Joining, NodeState::Active));
}

#[test]
fn silence_makes_suspect_then_dead_and_a_word_makes_active() {
    let mut world = World::new(&["a", "b", "c"]);
    world.vote(&[1, 2, 3]).silent(3, 6);
    assert_eq!(world.decide(&[]), becomes(3, NodeState::Active, NodeState::Suspect));
    world.state(3, NodeState::Suspect);
    assert_eq!(world.decide(&[]), vec![]);
    world.silent(3, 61);
    assert_eq!(world.decide(&[]), becomes(3, NodeState::Suspect, NodeState::Dead));
    // When most are silent nobody is buried.
    world.silent(2, 61);
    assert_eq!(world.decide(&[]), becomes(2, NodeState::Active, NodeState::Suspect));
    world.silent(2, 0).silent(3, 0);
    assert_eq!(world.decide(&[]), becomes(3, NodeState::Suspect, NodeState::Active));
}

#[test]
fn voters_are_odd_and_spread_over_zones() {
    assert_eq!(World::new(&["a", "b"]).decide(&[]), vec![]);
    assert_eq!(World::new(&["a", "b", "c"]).decide(&[]), votes(&[1, 2, 3]));
    assert_eq!(World::new(&["a", "a", "b", "c"]).decide(&[]), votes(&[1, 3, 4]));
    assert_eq!(World::new(&["a", "a", "b", "b", "c", "c"]).decide(&[]), votes(&[1, 2, 3, 4, 5]));
    // One that lags is not taken yet, and two are no better than one.
    let mut world = World::new(&["a", "b", "c"]);
    world.view.last_log = 5000;
    world.view.progress.insert(NodeId(1), 5000);
    world.view.progress.insert(NodeId(2), 4900);
    assert_eq!(world.decide(&[]), vec![]);
}

#[test]
fn a_silent_voter_gives_way_and_a_leader_that_goes_hands_over() {
    let mut world = World::new(&["a", "a", "b", "b", "c", "c"]);
    world.vote(&[1, 3, 4, 5, 6]).state(5, NodeState::Suspect).silent(5, 9);
    assert_eq!(world.decide(&[]), votes(&[1, 2, 3, 4, 6]));
    let mut world = World::new(&["a", "b", "c", "c"]);
    world.vote(&[1, 2, 3]).state(1, NodeState::Draining);
    assert_eq!(world.decide(&[]), vec![Step::Lead(NodeId(2))]);
}

#[test]
fn replicas_change_in_two_steps_and_go_back_when_they_cannot() {
    let mut world = World::new(&["a", "b", "c"]);
    world.vote(&[1, 2, 3]).partition(1, &[1], None);
    let ids = |all: &[u64]| all.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
    let change = Change { partition: PartitionId(0), from: ids(&[1]), to: ids(&[1, 2, 3]), why: Why::Missing };
    let step = |expected, replicas: &[u64], next: Option<&[u64]>| Step::Replicas {
        partition: PartitionId(0),
        expected: Epoch(expected),
        replicas: ids(replicas),
        next: next.map(ids),
    };
    assert_eq!(world.decide(std::slice::from_ref(&change)), vec![step(1, &[1], Some(&[1, 2, 3]))]);
    world.view.partitions.clear();
    world.partition(2, &[1], Some(&[1, 2, 3]));
    // Every new replica must say so for this very epoch.
    for (id, epoch) in [(1, 2), (2, 2), (3, 1)] {
        world.observed.nodes.get_mut(&NodeId(id)).unwrap().complete.insert(PartitionId(0), Epoch(epoch));
    }
    assert_eq!(world.decide(std::slice::from_ref(&change)), vec![]);
    world.observed.nodes.get_mut(&NodeId(3)).unwrap().complete.insert(PartitionId(0), Epoch(2));
    assert_eq!(world.decide(&[]), vec![step(2, &[1, 2, 3], None)]);
    world.observed.nodes.get_mut(&NodeId(3)).unwrap().complete.clear();
    world.state(3, NodeState::Draining).vote(&[1]);
    let taken = world.decide(&[]);
    assert!(taken.contains(&step(2, &[1], None)), "{taken:?}");
}

#[test]
fn few_partitions_move_at_once_and_none_to_the_silent() {
    let mut world = World::new(&["a", "b", "c"]);
    world.vote(&[1, 2, 3]);
    let mut plan = Vec::new();
    for i in 0..40_u32 {
        world.partition(1, &[1], None);
        let to = vec![NodeId(1), NodeId(if i < 4 { 3 } else { 2 })];
        plan.push(Change { partition: PartitionId(i), from: vec![NodeId(1)], to, why: Why::Missing });
    }
    world.silent(3, 6).state(3, NodeState::Suspect);
    let steps = world.decide(&plan);
    assert_eq!(steps.len(), MOVES_MAX);
    assert!(matches!(&steps[0], Step::Replicas { partition: PartitionId(4), .. }));
}

/// A cluster whose nodes `off` are suspect and silent for longer than anybody waits.
fn without(zones: &[&str], off: &[u64]) -> World {
    let mut world = World::new(zones);
    // All vote, so that nobody is about to be made a voter.
    world.vote(&[1, 2, 3]);
    for id in off {
        world.state(*id, NodeState::Suspect).silent(*id, 1_000);
    }
    world
}

fn buried(world: &World) -> Vec<u64> {
    let dead = |step: Step| match step {
        Step::State { id, to: NodeState::Dead, .. } => Some(id.0),
        _ => None,
    };
    world.decide(&[]).into_iter().filter_map(dead).collect()
}

#[test]
fn nobody_is_declared_dead_whose_partitions_would_lose_their_majority() {
    // Of two replicas one is no majority: declared dead, the other could never be completed again.
    let mut world = without(&["a", "b"], &[2]);
    world.partition(3, &[1, 2], None);
    assert_eq!(buried(&world), Vec::<u64>::new());
    // Who holds nothing is needed by nobody.
    world.view.partitions.clear();
    assert_eq!(buried(&world), vec![2]);
    // Four nodes of which two are silent: half is not many, and yet some partitions have lost their majority.
    let mut world = without(&["a", "b", "c", "c"], &[3, 4]);
    world.partition(3, &[1, 2, 3], None).partition(3, &[1, 3, 4], None);
    assert_eq!(buried(&world), Vec::<u64>::new());
    world.silent(4, 0);
    assert_eq!(buried(&world), vec![3]);
    // One zone of five nodes: sets lie anywhere.
    let mut world = without(&["z", "z", "z", "z", "z"], &[4, 5]);
    world.partition(3, &[1, 2, 4], None).partition(3, &[2, 4, 5], None);
    assert_eq!(buried(&world), Vec::<u64>::new());
    // The set that comes counts as well.
    let mut world = without(&["a", "b", "c", "d"], &[4]);
    world.partition(3, &[1, 2, 3], Some(&[1, 4]));
    assert_eq!(buried(&world), Vec::<u64>::new());
    world.partition(3, &[1, 2, 3], Some(&[1, 2, 4])).view.partitions.remove(0);
    assert_eq!(buried(&world), vec![4]);
}

#[test]
fn a_leader_that_stood_still_says_nothing_of_others() {
    assert!(!PATIENCE.stood_still(Duration::from_secs(5)));
    assert!(PATIENCE.stood_still(Duration::from_millis(5_001)));
    // A look takes its time; that is no pause, however impatient the options are.
    let hasty = Patience { suspect_after: Duration::from_millis(500), ..PATIENCE };
    assert!(!hasty.stood_still(Duration::from_secs(2)));
    assert!(hasty.stood_still(Duration::from_secs(4)));
}

#[test]
fn a_change_whose_new_set_has_no_majority_goes_back() {
    let mut world = World::new(&["a", "b", "c", "d", "e"]);
    world.vote(&[1, 2, 3, 4, 5]).partition(4, &[1, 2, 3], Some(&[1, 4, 5]));
    world.state(4, NodeState::Suspect).silent(4, 6);
    // Two of three answer: it may still become complete.
    assert_eq!(world.decide(&[]).iter().filter(|step| matches!(step, Step::Replicas { .. })).count(), 0);
    world.state(5, NodeState::Suspect).silent(5, 6);
    world.vote(&[1, 2, 3]);
    let replicas = vec![NodeId(1), NodeId(2), NodeId(3)];
    let back = Step::Replicas { partition: PartitionId(0), expected: Epoch(4), replicas, next: None };
    assert_eq!(moves(&world.view, &[], &world.observed, (world.now, PATIENCE), |_| true), vec![back]);
}

#[test]
fn a_node_that_never_gets_ready_is_not_waited_for() {
    let mut world = World::new(&["a", "b", "c"]);
    world.vote(&[1]).state(3, NodeState::Joining).partition(1, &[1], None);
    world.observed.nodes.get_mut(&NodeId(3)).unwrap().ready = false;
    let (from, to) = (vec![NodeId(1)], vec![NodeId(1), NodeId(2)]);
    let plan = [Change { partition: PartitionId(0), from, to, why: Why::Missing }];
    let begun = world.now;
    world.observed.note(&world.view, begun);
    assert_eq!(world.decide(&plan), vec![]);
    world.now = begun + Duration::from_secs(61);
    world.silent(1, 0).silent(2, 0).silent(3, 0);
    world.observed.note(&world.view, world.now);
    assert_eq!(world.decide(&plan).len(), 1);
}
