//! The metadata group of a schedule: real consensus over the simulated network and disks, with the product's own log,
//! snapshots and state machine.
//!
//! What is not the product's: the bytes' place ([`MemoryDisk`]), the road ([`Ways`]), chance and threads
//! ([`engram_raft::here`]), and who decides about votes, here [`keep_members`]. What is seen besides the checkers: a term
//! has one leader, an index has one state, and one command is acknowledged at it.

use super::host::Planted;
use super::member::Member;
use super::world::{Event, Shared, World};
use engram_model::place::NodeId;
use engram_raft::group::{FOUNDER, FirstStart, Status, Timing};
use engram_raft::here::Life;
use engram_raft::rpc::{Carrier, Hub, Network};
use engram_raft::state::NodeSpec;
use engram_raft::{Betrayal, Command, Group, GroupOptions, MemoryDisk, Proposal, View};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Raft's beats: short, so that a schedule has many elections.
const TIMING: Timing = Timing { heartbeat_ms: 200, election_min_ms: 600, election_max_ms: 1200 };
/// When a connection that has gone silent is given up: the pings of a real one.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// How long a change of members, or a command of the surroundings, may take.
const CHANGE_WITHIN: Duration = Duration::from_secs(3);
/// How a status names who leads.
const LEADER: &str = "leader";
/// How often the members are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a node of the group stands on.
struct Seat {
    id: NodeId,
    disk: MemoryDisk,
    first: FirstStart,
    tasks: Mutex<Life>,
}

/// What happened to a group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// Terms in which somebody led.
    pub(super) terms: u64,
    /// Times that a node was seen to have forgotten more of its log.
    pub(super) purges: u64,
    /// Snapshots that were sent and installed.
    pub(super) snapshots: u64,
}

/// What was seen of the group.
struct Seen {
    /// The newest state that any node has shown.
    newest: Arc<View>,
    /// The state of each index.
    states: BTreeMap<u64, Arc<View>>,
    /// Who led in each term.
    led: BTreeMap<u64, usize>,
    /// What was acknowledged at each index.
    told: BTreeMap<u64, Proposal>,
    /// What each node has purged, and how often.
    purged: BTreeMap<usize, u64>,
    purges: BTreeMap<usize, u64>,
    /// Who is to vote.
    voters: BTreeSet<usize>,
}

/// See the module's text.
pub(super) struct Rafts {
    hub: Hub,
    seats: Vec<Seat>,
    snapshot_every: u64,
    snapshot_keep: u64,
    seen: Mutex<Seen>,
}

pub(super) fn spec(at: usize) -> NodeSpec {
    NodeSpec {
        zone: format!("zone-{at}"),
        grpc: format!("host-{at}"),
        http: format!("host-{at}"),
        version: "1".to_owned(),
    }
}

impl Rafts {
    /// Disks of nodes that have never been in a group, the first of them its founder. The numbers of the seed: how soon
    /// the log is replaced by a snapshot.
    pub(super) fn new(seed: u64, ids: &[NodeId], partitions: u32, planted: Planted) -> Self {
        let betrayal = match planted {
            Planted::LyingGroupDisk => Betrayal::Syncs,
            Planted::LostVotes => Betrayal::Votes,
            _ => Betrayal::None,
        };
        let cluster_id = || "sim".to_owned();
        let first = |id: NodeId| match id {
            FOUNDER => FirstStart::Bootstrap { cluster_id: cluster_id(), partition_count: partitions },
            id => FirstStart::Join { cluster_id: cluster_id(), id },
        };
        let seat =
            |id: &NodeId| Seat { id: *id, disk: MemoryDisk::new(betrayal), first: first(*id), tasks: Mutex::default() };
        let seen = Seen {
            newest: Arc::default(),
            states: BTreeMap::new(),
            led: BTreeMap::new(),
            told: BTreeMap::new(),
            purged: BTreeMap::new(),
            purges: BTreeMap::new(),
            voters: (0..ids.len()).collect(),
        };
        Self {
            hub: Hub::new(),
            seats: ids.iter().map(seat).collect(),
            snapshot_every: 8 + seed / 16 % 4 * 20,
            snapshot_keep: seed / 64 % 3 * 4,
            seen: Mutex::new(seen),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest state that any node has shown.
    pub(super) fn view(&self) -> Arc<View> {
        self.seen().newest.clone()
    }

    /// Who is to vote from now on.
    pub(super) fn want_voters(&self, voters: BTreeSet<usize>) {
        self.seen().voters = voters;
    }

    /// The disk of a node.
    pub(super) fn disk(&self, at: usize) -> &MemoryDisk {
        &self.seats[at].disk
    }

    /// Ends what a node does; with `power` it loses what was not synced, but for what that chance leaves.
    pub(super) fn end(&self, at: usize, power: Option<u64>) {
        let seat = &self.seats[at];
        self.hub.leave(seat.id);
        seat.tasks.lock().unwrap_or_else(PoisonError::into_inner).end();
        match power {
            Some(chance) => seat.disk.power_off(chance),
            None => seat.disk.kill(),
        }
    }

    /// Opens a node's part of the group, and waits as a real node does until it shows that node.
    pub(super) async fn open(&self, world: &Shared, at: usize) -> Result<Arc<Group>, String> {
        let (seat, life) = (&self.seats[at], Life::default());
        *seat.tasks.lock().unwrap_or_else(PoisonError::into_inner) = life.clone();
        let options = GroupOptions {
            memory: Some(seat.disk.clone()),
            network: Network::Memory(self.hub.clone()),
            timing: TIMING,
            snapshot_every: self.snapshot_every,
            snapshot_keep: self.snapshot_keep,
            ..GroupOptions::new(PathBuf::new(), spec(at), seat.first.clone(), world.hosts[at].clock.clone())
        };
        let group = life.scope(Group::open(options)).await.map_err(|e| e.to_string())?;
        let mut views = group.watch();
        let is_there = |view: &Arc<View>| view.cluster.is_some() && view.nodes.get(&seat.id).is_some();
        views.wait_for(is_there).await.map_err(|e| e.to_string())?;
        Ok(Arc::new(group))
    }

    /// A node shows a state.
    pub(super) fn shows(&self, world: &World, at: usize, view: &Arc<View>) {
        let Some(index) = view.applied else { return };
        let mut seen = self.seen();
        if index > seen.newest.applied.unwrap_or(0) {
            seen.newest = view.clone();
        }
        let first = seen.states.entry(index).or_insert_with(|| view.clone()).clone();
        drop(seen);
        if *first != **view {
            world.trouble(format!("node {at} has another state at index {index} than a node before it"));
        }
    }

    /// A command was acknowledged.
    pub(super) fn acknowledged(&self, world: &World, index: u64, proposal: &Proposal) {
        let first = self.seen().told.entry(index).or_insert_with(|| proposal.clone()).clone();
        if first != *proposal {
            world.trouble(format!("two commands were acknowledged at index {index}: {first:?} and {proposal:?}"));
        }
    }

    /// Looks at who leads.
    pub(super) fn look(&self, world: &World) {
        for (at, status) in statuses(world) {
            if let Some(purged) = status.purged {
                let seen = &mut *self.seen();
                let before = seen.purged.insert(at, purged).unwrap_or(0);
                *seen.purges.entry(at).or_default() += u64::from(before < purged);
            }
            if status.role != LEADER {
                continue;
            }
            let first = *self.seen().led.entry(status.term).or_insert_with(|| {
                world.note(Event::Leads, at as u64, status.term);
                at
            });
            if first != at {
                world.trouble(format!("term {} has two leaders: nodes {first} and {at}", status.term));
            }
        }
    }

    /// What happened to the group.
    pub(super) fn figures(&self) -> Figures {
        let seen = self.seen();
        Figures { terms: seen.led.len() as u64, purges: seen.purges.values().sum(), snapshots: self.hub.snapshots() }
    }

    /// Whether those who are to vote do, and nobody else is in the group.
    pub(super) fn is_whole(&self, world: &World) -> bool {
        let Some((_, status)) = leaders(world).max_by_key(|(_, status)| status.term) else { return false };
        let wanted: BTreeSet<NodeId> = self.seen().voters.iter().map(|at| world.hosts[*at].id).collect();
        status.learners.is_empty() && status.voters.iter().copied().collect::<BTreeSet<_>>() == wanted
    }

    /// Founds the cluster with the commands that one list was founded with: indexes, and so ids, are the same.
    pub(super) async fn found(&self, world: &Shared, commands: Vec<Command>) -> Result<(), String> {
        let group = self.open(world, 0).await?;
        // The first one is the group's own.
        for command in commands.into_iter().skip(1) {
            let proposal = Proposal { by: "founder".to_owned(), command };
            group.propose(proposal, CHANGE_WITHIN).await.map_err(|e| e.to_string())?;
        }
        let (here, list) = (group.watch().borrow().clone(), world.log.view(world.log.last()));
        let alike = |view: &View| {
            let sets = view.partitions.iter().map(|(id, row)| (*id, row.current.clone())).collect::<Vec<_>>();
            (sets, view.nodes.iter().map(|(id, row)| (*id, row.state)).collect::<Vec<_>>())
        };
        if alike(&here) != alike(&list) {
            return Err("the group is not founded as the list is".to_owned());
        }
        drop(group);
        self.end(0, None);
        self.hub.carried_by(Arc::new(Ways(Arc::downgrade(world))));
        Ok(())
    }
}

/// What the nodes that live say of the group.
fn statuses(world: &World) -> impl Iterator<Item = (usize, Status)> {
    (0..world.hosts.len()).filter_map(|at| Some((at, world.hosts[at].life()?.member.group()?.status())))
}

/// Those who take themselves for the leader.
fn leaders(world: &World) -> impl Iterator<Item = (usize, Status)> {
    statuses(world).filter(|(_, status)| status.role == LEADER)
}

/// Who leads: of those who take themselves for it the one of the latest term.
pub(super) fn leader(world: &World) -> Option<usize> {
    leaders(world).max_by_key(|(_, status)| status.term).map(|(at, _)| at)
}

/// Proposes at the leader what the surroundings want, as a part of that node.
pub(super) fn propose(world: &Shared, lead: usize, proposal: Proposal) {
    let Some(life) = world.hosts[lead].life() else { return };
    let member: Arc<Member> = life.member.clone();
    life.spawn(async move {
        // That somebody else was first, or that nobody answers, is no failure.
        let _refused = engram_raft::Consensus::propose(&*member, proposal, CHANGE_WITHIN).await;
    });
}

/// What the reconciler does for votes: everybody follows, those who are to vote do.
pub(super) async fn keep_members(world: Shared) {
    let Some(rafts) = &world.rafts else { return };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(life) = leader(&world).and_then(|at| world.hosts[at].life()) else { continue };
        let Some(group) = life.member.group() else { continue };
        let status = group.status();
        let inside = |id: &NodeId| status.voters.contains(id) || status.learners.contains(id);
        if let Some(at) = (0..world.hosts.len()).find(|at| !inside(&world.hosts[*at].id)) {
            let added = group.add_learner(world.hosts[at].id, &spec(at).grpc, CHANGE_WITHIN).await;
            world.tell(|| format!("node {at} is to follow: {added:?}"));
            continue;
        }
        let wanted: BTreeSet<NodeId> = rafts.seen().voters.iter().map(|at| world.hosts[*at].id).collect();
        if status.voters.iter().copied().collect::<BTreeSet<_>>() != wanted {
            let set = group.set_voters(wanted.clone(), CHANGE_WITHIN).await;
            world.tell(|| format!("{wanted:?} are to vote: {set:?}"));
        }
    }
}

/// Something that happens to the group only; says what.
pub(super) fn strike(world: &Shared, rafts: &Rafts) -> String {
    let Some(lead) = leader(world) else { return "nobody leads the metadata".to_owned() };
    let count = world.hosts.len();
    match world.below(8) {
        0 => {
            world.hosts[lead].crash(world, true);
            format!("power lost at node {lead}, which leads")
        }
        1 => {
            world.hosts[lead].crash(world, false);
            format!("node {lead} killed, which leads")
        }
        2 => {
            world.net.isolate(lead);
            format!("node {lead} isolated, which leads")
        }
        3 => {
            let other = world.pick(count);
            world.net.cut(other, lead);
            format!("way from node {other} to node {lead}, which leads, cut")
        }
        4 => {
            let after = world.below(4);
            world.hosts[lead].spoil(|_| rafts.disk(lead).fail_sync_after(after));
            format!("a sync of the metadata of node {lead}, which leads, fails")
        }
        5 => {
            let wanted: BTreeSet<usize> = (0..count).filter(|_| world.percent(70)).chain([world.pick(count)]).collect();
            rafts.want_voters(wanted.clone());
            format!("nodes {wanted:?} are to vote")
        }
        6 => {
            let to = world.hosts[world.pick(count)].id;
            with_leader(world, lead, move |group| async move { drop(group.transfer_leader(to).await) }.boxed());
            format!("node {} is to lead", to.0)
        }
        _ => {
            with_leader(world, lead, |group| async move { drop(group.snapshot().await) }.boxed());
            format!("node {lead}, which leads, makes a snapshot")
        }
    }
}

fn with_leader(world: &Shared, lead: usize, act: impl FnOnce(Arc<Group>) -> BoxFuture<'static, ()>) {
    let Some(life) = world.hosts[lead].life() else { return };
    if let Some(group) = life.member.group() {
        life.spawn(act(group.clone()));
    }
}

/// The network of the schedule, as the group's road.
struct Ways(Weak<World>);

impl Carrier for Ways {
    fn carry(&self, from: NodeId, to: NodeId) -> BoxFuture<'static, bool> {
        let world = self.0.upgrade();
        async move {
            let Some(world) = world else { return false };
            let (Some(from), Some(to)) = (world.host_of(from), world.host_of(to)) else { return false };
            let Some(takes) = world.net.pass(&world, from, to) else {
                drop(world);
                tokio::time::sleep(SILENT_FOR).await;
                return false;
            };
            let takes = takes + world.hosts[to].lag();
            drop(world);
            tokio::time::sleep(takes).await;
            true
        }
        .boxed()
    }

    fn again(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let world = self.0.upgrade()?;
        (from != to && world.net.doubles(&world)).then(|| world.millis(1, 400))
    }
}
