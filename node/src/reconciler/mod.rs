//! Reconciler: on the leader, brings the cluster from what is to what should be, one bounded step at a time.
//!
//! Why one actor: who is there, who votes, who holds what hang together, and two minds would undo each other's steps.
//! It looks at every node twice a second, decides by a pure function ([`decide`]) and proposes what came out. Each
//! proposal names what it expects to find, so that a former leader that does not know it yet changes nothing.
//!
//! | | |
//! |---|---|
//! | a node was admitted | it follows the metadata; active as soon as it is ready |
//! | silent | suspect after seconds (keeps all it has), dead after minutes (for good); back when it answers |
//! | voters | 1, 3 or 5 by the number of nodes, spread over zones; who is silent gives way to who is not |
//! | replicas | as [`crate::meta::nodes`] plans: both sets side by side until every new one is complete |
//!
//! A change of replicas that cannot be completed because a new node is gone goes back to the old set, and so does one
//! whose new set has lost its majority: writes need that of both. Death is for good, so nobody is declared dead who
//! may be needed: a node stays suspect while for one of its partitions those that answer are no majority of each set.
//! Nor is anybody when more than half of all nodes are silent: that is a fault of the network or a disaster, and a
//! person's. A leader that stood still itself begins to listen anew.

mod operator;
mod pace;
mod round;

pub use operator::Operator;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::{Epoch, NodeId, PartitionId, majority};
use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::members::call::Calls;
use crate::members::proto::Beating;
use crate::members::service::Door;
use crate::meta::Meta;
use crate::meta::nodes::{Change, ClusterView, Member, NodeState};
use pace::Pace;
use round::{Held, ask_all, left};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a step may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// Partitions that change at once.
const MOVES_MAX: usize = 16;
/// A node whose log is so far behind the leader's is not made a voter yet.
const VOTER_LAG_MAX: u64 = 1000;
/// How long moves wait for a node that was admitted to be ready.
const EXPECT_WITHIN: Duration = Duration::from_secs(60);
/// Two looks are never further apart than this, the steps between them aside, while this process runs at all.
const LOOKS_APART_MAX: Duration = Duration::from_secs(3);
/// How long the new replicas of a partition may take to be complete.
const MOVE_WITHIN: Duration = Duration::from_secs(3600);

/// What the actor works with.
#[derive(Clone)]
pub struct Config {
    /// The metadata.
    pub meta: Meta,
    /// This node's own answer to a beat.
    pub door: Arc<Door>,
    /// Replicas of each partition.
    pub replication_factor: usize,
    /// Silence after which a node is suspect.
    pub suspect_after: Duration,
    /// Silence after which it is dead.
    pub dead_after: Duration,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// The child that runs it.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "reconciler".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

/// What is known of a node.
#[derive(Clone, Debug)]
struct Seen {
    /// When it answered last; at first, when this node began to lead.
    heard: Instant,
    /// Whether it has answered at all.
    answered: bool,
    ready: bool,
    complete: BTreeMap<PartitionId, Epoch>,
}

/// What a leader has observed since it leads.
#[derive(Clone, Debug, Default)]
struct Observed {
    nodes: BTreeMap<NodeId, Seen>,
    /// Since when a partition is at an epoch in which its set changes.
    moving: BTreeMap<PartitionId, (Epoch, Instant)>,
    /// Since when a node was admitted and is not active.
    joining: BTreeMap<NodeId, Instant>,
    /// Whether nodes are asked how much they hold.
    wants_sizes: bool,
}

/// Bounds of silence.
#[derive(Clone, Copy, Debug)]
struct Patience {
    suspect_after: Duration,
    dead_after: Duration,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Lets a node follow the metadata.
    Follow(NodeId, String),
    /// A node that is gone follows no more.
    Forget(NodeId),
    /// Another state, if it is still in the one it was seen in.
    State { id: NodeId, from: NodeState, to: NodeState },
    /// Another leader.
    Lead(NodeId),
    /// Other voters.
    Vote(BTreeSet<NodeId>),
    /// A partition's sets, if it is still at the epoch.
    Replicas { partition: PartitionId, expected: Epoch, replicas: Vec<NodeId>, next: Option<Vec<NodeId>> },
}

async fn run(config: Config) -> Result<(), ChildError> {
    let calls = Calls::new(&config.door.tls);
    let mut observed = Observed::default();
    let (mut looked, mut busy) = (Instant::now(), Duration::ZERO);
    let mut pace = Pace::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        if !config.meta.leads() {
            // What was seen under an earlier lead says nothing any more.
            (observed, pace) = (Observed::default(), Pace::default());
            (looked, busy) = (Instant::now(), Duration::ZERO);
            *config.door.backfill.lock() = None;
            continue;
        }
        let now = Instant::now();
        let held = observed.look(&config, &calls, now).await;
        let patience = Patience { suspect_after: config.suspect_after, dead_after: config.dead_after };
        let apart = looked.elapsed().saturating_sub(std::mem::take(&mut busy));
        looked = Instant::now();
        if patience.stood_still(apart) {
            tracing::warn!(apart_ms = apart.as_millis(), "this node stood still: who was silent is heard anew");
            observed = Observed::default();
            continue;
        }
        if !config.meta.leads() {
            continue;
        }
        let view = config.meta.cluster();
        observed.note(&view, now);
        let here = config.meta.node_id();
        let plan = config.meta.placement(config.replication_factor);
        let left = left(&view, &plan, &held, |node, partition| observed.is_complete(&view, node, partition));
        *config.door.backfill.lock() = Some(pace.look(now, left));
        for step in decide(&view, &plan, &observed, (here, Instant::now()), patience) {
            tracing::info!(?step, "reconciling");
            let begun = Instant::now();
            let taken = take(&config.meta, &step).await;
            busy += begun.elapsed().min(STEP_WITHIN);
            if let Err(error) = taken {
                tracing::warn!(?step, %error, "the step is tried again");
                break;
            }
        }
    }
}

async fn take(meta: &Meta, step: &Step) -> Result<(), Error> {
    match step.clone() {
        Step::Follow(id, address) => meta.add_learner(id, &address, STEP_WITHIN).await,
        Step::Forget(id) => meta.forget_learner(id, STEP_WITHIN).await,
        Step::State { id, from, to } => meta.set_node_state("reconciler", id, (from, to), STEP_WITHIN).await,
        Step::Lead(id) => meta.transfer_leader(id).await,
        Step::Vote(voters) => meta.set_voters(voters, STEP_WITHIN).await,
        Step::Replicas { partition, expected, replicas, next } => {
            meta.set_replicas(partition, expected, (replicas, next), STEP_WITHIN).await
        }
    }
}

impl Observed {
    /// Looks at every node that is not dead, all at once. While replicas move, also at what they hold.
    async fn look(&mut self, config: &Config, calls: &Calls, now: Instant) -> Held {
        let answers = ask_all(&config.meta, &config.door, calls, self.wants_sizes).await;
        self.nodes.retain(|id, _| answers.contains_key(id));
        let held = Held::of(answers.iter().filter_map(|(id, answer)| Some((*id, answer.as_ref().ok()?))));
        for (id, answer) in answers {
            let new = Seen { heard: now, answered: false, ready: false, complete: BTreeMap::new() };
            let seen = self.nodes.entry(id).or_insert(new);
            match answer {
                Ok(beating) => seen.heard(&beating, config, id),
                Err(why) => tracing::debug!(node = id.0, why, "a node is silent"),
            }
        }
        held
    }

    /// Whether a node has said that it holds all of a partition that changes.
    fn is_complete(&self, view: &ClusterView, node: NodeId, partition: PartitionId) -> bool {
        let epoch = view.partitions.iter().find(|placed| placed.id == partition).map(|placed| placed.current.epoch);
        epoch.is_some() && self.nodes.get(&node).and_then(|seen| seen.complete.get(&partition).copied()) == epoch
    }

    /// Notes since when something is under way.
    fn note(&mut self, view: &ClusterView, now: Instant) {
        let joining = view.members.iter().filter(|m| m.state == NodeState::Joining).map(|m| m.id);
        self.joining = joining.map(|id| (id, self.joining.get(&id).copied().unwrap_or(now))).collect();
        let mut moving = BTreeMap::new();
        for placed in view.partitions.iter().filter(|placed| placed.next.is_some()) {
            let epoch = placed.current.epoch;
            let since = self.moving.get(&placed.id).filter(|(at, _)| *at == epoch).map_or(now, |(_, since)| *since);
            moving.insert(placed.id, (epoch, since));
        }
        self.wants_sizes = !moving.is_empty();
        self.moving = moving;
    }

    fn silent(&self, id: NodeId, now: Instant) -> Duration {
        self.nodes.get(&id).map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen.heard))
    }
}

impl Patience {
    /// Whether this process did not run for so long between two looks that the silence is its own.
    fn stood_still(self, apart: Duration) -> bool {
        apart > self.suspect_after.max(LOOKS_APART_MAX)
    }
}

impl Seen {
    fn heard(&mut self, beating: &Beating, config: &Config, id: NodeId) {
        self.heard = Instant::now();
        self.answered = true;
        self.ready = beating.ready;
        let complete = beating.complete.iter().map(|one| (PartitionId(one.partition), Epoch(one.epoch)));
        self.complete = complete.collect();
        let off = beating.clock_ms.abs_diff(config.door.clock.now());
        if u128::from(off) > config.door.skew_max.as_millis() {
            tracing::warn!(node = id.0, off_ms = off, "the clock of a node is off: set it by NTP");
        }
    }
}

/// What to do now: everything of the first kind that has something to do.
fn decide(
    view: &ClusterView,
    plan: &[Change],
    observed: &Observed,
    (here, now): (NodeId, Instant),
    patience: Patience,
) -> Vec<Step> {
    let alive = |id: &NodeId| {
        observed.nodes.get(id).is_some_and(|seen| seen.answered) && observed.silent(*id, now) < patience.suspect_after
    };
    let steps = states(view, observed, (now, patience), alive);
    if !steps.is_empty() {
        return steps;
    }
    let steps = voters(view, here, alive);
    if !steps.is_empty() {
        return steps;
    }
    moves(view, plan, observed, (now, patience), alive)
}

/// Nodes from one state of their life to the next.
fn states(
    view: &ClusterView,
    observed: &Observed,
    (now, patience): (Instant, Patience),
    alive: impl Fn(&NodeId) -> bool,
) -> Vec<Step> {
    let living: Vec<&Member> = view.members.iter().filter(|m| m.state != NodeState::Dead).collect();
    let silent = |m: &Member| observed.silent(m.id, now);
    let many_silent = living.iter().filter(|m| silent(m) >= patience.suspect_after).count() * 2 > living.len();
    let in_group = |id: &NodeId| view.voters.contains(id) || view.learners.contains(id);
    let step = |member: &Member, to: NodeState| Step::State { id: member.id, from: member.state, to };
    let mut steps = Vec::new();
    for member in &view.members {
        let (id, seen) = (member.id, observed.nodes.get(&member.id));
        let ready = seen.is_some_and(|seen| seen.answered && seen.ready);
        match member.state {
            NodeState::Dead if view.learners.contains(&id) => steps.push(Step::Forget(id)),
            NodeState::Dead => {}
            state if silent(member) >= patience.dead_after && !many_silent && view.needs(id, &alive).is_none() => {
                tracing::warn!(node = id.0, %state, "a node is declared dead, what it holds is made elsewhere");
                steps.push(step(member, NodeState::Dead));
            }
            _ if !in_group(&id) => steps.push(Step::Follow(id, member.spec.grpc.clone())),
            NodeState::Joining if ready => steps.push(step(member, NodeState::Active)),
            NodeState::Active if silent(member) >= patience.suspect_after => {
                steps.push(step(member, NodeState::Suspect));
            }
            NodeState::Suspect if silent(member) < patience.suspect_after && ready => {
                steps.push(step(member, NodeState::Active));
            }
            _ => {}
        }
    }
    steps
}

/// Who should vote. Of those that may: first who is there, then who is alone in its zone, then who votes already.
fn voters(view: &ClusterView, here: NodeId, alive: impl Fn(&NodeId) -> bool) -> Vec<Step> {
    let stays = |m: &&Member| matches!(m.state, NodeState::Active | NodeState::Suspect);
    let count = match view.members.iter().filter(stays).count() {
        0 => return Vec::new(),
        1 | 2 => 1,
        3 | 4 => 3,
        _ => 5,
    };
    let is_near =
        |id: &NodeId| *id == here || view.progress.get(id).is_some_and(|at| at + VOTER_LAG_MAX >= view.last_log);
    let mut pool: Vec<&Member> = view
        .members
        .iter()
        .filter(stays)
        .filter(|m| view.voters.contains(&m.id) || (view.learners.contains(&m.id) && alive(&m.id) && is_near(&m.id)))
        .collect();
    let mut chosen: Vec<&Member> = Vec::new();
    while chosen.len() < count && !pool.is_empty() {
        let in_zone = |zone: &str| chosen.iter().filter(|m| m.spec.zone == zone).count();
        let key = |m: &&Member| (!alive(&m.id), in_zone(&m.spec.zone), !view.voters.contains(&m.id), m.id);
        let Some(best) = (0..pool.len()).min_by_key(|i| key(&pool[*i])) else { break };
        chosen.push(pool.swap_remove(best));
    }
    let wanted: BTreeSet<NodeId> = chosen.iter().map(|m| m.id).collect();
    // Three of which two are there yet are not better than one: a set of two stops when either does.
    if wanted == view.voters || wanted.is_empty() || wanted.len().is_multiple_of(2) {
        return Vec::new();
    }
    if !wanted.contains(&here) {
        let heir = view.voters.iter().find(|id| wanted.contains(id) && alive(id));
        return match heir {
            Some(heir) => vec![Step::Lead(*heir)],
            // Both sets vote until the change is through, then one of the new ones leads.
            None => vec![Step::Vote(wanted)],
        };
    }
    vec![Step::Vote(wanted)]
}

/// Changes of replicas: ends those that are complete, takes back those that cannot be, begins others.
fn moves(
    view: &ClusterView,
    plan: &[Change],
    observed: &Observed,
    (now, patience): (Instant, Patience),
    alive: impl Fn(&NodeId) -> bool,
) -> Vec<Step> {
    let state = |id: &NodeId| view.members.iter().find(|m| m.id == *id).map(|m| m.state);
    let (mut steps, mut under_way) = (Vec::new(), BTreeSet::new());
    for placed in &view.partitions {
        let Some(next) = &placed.next else { continue };
        let expected = placed.current.epoch;
        let complete =
            |id: &NodeId| observed.nodes.get(id).is_some_and(|seen| seen.complete.get(&placed.id) == Some(&expected));
        let late = observed.moving.get(&placed.id).is_some_and(|(_, since)| now.duration_since(*since) > MOVE_WITHIN);
        let gone = next.iter().any(|id| !matches!(state(id), Some(NodeState::Active | NodeState::Suspect)));
        let talks = |id: &&NodeId| observed.silent(**id, now) < patience.suspect_after;
        let stuck = next.iter().filter(talks).count() < majority(next.len());
        let (partition, replicas) = if next.iter().all(complete) && !stuck {
            (placed.id, next.clone())
        } else if gone || late || stuck {
            (placed.id, placed.current.replicas.clone())
        } else {
            under_way.insert(placed.id);
            continue;
        };
        steps.push(Step::Replicas { partition, expected, replicas, next: None });
    }
    // A node that is about to be there would make what is begun now half of what is needed.
    let awaited = |id: &NodeId| observed.joining.get(id).is_none_or(|since| now.duration_since(*since) < EXPECT_WITHIN);
    let expecting = view.members.iter().any(|m| m.state == NodeState::Joining && alive(&m.id) && awaited(&m.id));
    if !steps.is_empty() || expecting {
        return steps;
    }
    // Each node of the new set must say that it is complete, so each must be there.
    for change in plan.iter().filter(|change| change.to.iter().all(&alive)) {
        if under_way.len() >= MOVES_MAX {
            break;
        }
        let placed = view.partitions.iter().find(|placed| placed.id == change.partition && placed.next.is_none());
        let Some(placed) = placed else { continue };
        // Still there, or dead and waiting to be replaced: a set that names a dead node cannot be proposed again.
        let replicas = placed.current.replicas.clone();
        let (partition, expected) = (placed.id, placed.current.epoch);
        steps.push(Step::Replicas { partition, expected, replicas, next: Some(change.to.clone()) });
        under_way.insert(partition);
    }
    steps
}

#[cfg(test)]
mod tests;
