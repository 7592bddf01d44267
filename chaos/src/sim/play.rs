//! One schedule: a cluster is made, broken under load, healed, and what was seen is judged.

use super::clients::{self, Load};
use super::host::Host;
use super::rafts::{self, Figures, Rafts, spec};
use super::world::{Agrees, BEGINS_AT, How, Shared, World};
use super::{books, member, plan, registers};
use crate::check::{self, Asked, Outcome, Promise, Verdict};
use crate::error::Error;
use crate::history::{FaultState, Stage};
use crate::workload::Numbers;
use engram_model::digest::Digest;
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_node::peer::Replica;
use engram_raft::group::FOUNDER;
use engram_raft::state::NodeState;
use engram_raft::{Command, Outcome as Answer, Proposal, Sequence};
use engram_storage::blocking::Here;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Time between two numbers, in the time of samples: a window is full after some dozens.
const STEP_MS: i64 = 20_000;
/// The time of number 0, which is never written: all are in the past of every clock.
const BASE_MS: i64 = BEGINS_AT - 4 * 3_600_000;
/// How long faults come.
const STORM: Duration = Duration::from_secs(20);
/// How long the cluster may take for anything after that.
const HEAL_WITHIN: Duration = Duration::from_secs(30);
/// How long replicas may take to hold the same: what could not be proven to be in a block is looked at again after 10 s.
const CONVERGE_WITHIN: Duration = Duration::from_secs(60);
/// How long clients may still fail after the faults.
const SETTLE_MS: u64 = 10_000;
/// How much clocks are ahead or behind, at most.
const CLOCKS_DIFFER_MS: i64 = 60_000;
/// Window for late samples of the tenants that have one.
const LATE_MS: i64 = 3_600_000;

/// What came of a schedule.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) seed: u64,
    /// The number that two runs of a seed have in common.
    pub(super) trace: u64,
    pub(super) events: u64,
    /// Verdicts that are not good, and what must never happen.
    pub(super) bad: Vec<Verdict>,
    pub(super) troubles: Vec<String>,
    /// Operations, and those that went well.
    pub(super) ops: (usize, usize),
    pub(super) group: Figures,
    /// From the end of the faults until all replicas held the same.
    pub(super) alike_after: Duration,
}

impl Played {
    pub(super) fn is_good(&self) -> bool {
        self.bad.is_empty() && self.troubles.is_empty()
    }
}

/// Plays a seed.
///
/// # Errors
/// No runtime could be made.
pub(super) fn play(seed: u64, how: How) -> Result<Played, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let (_here, _group) = (Here::begin(), engram_raft::here::Here::begin(seed));
    Ok(runtime.block_on(run(seed, how)))
}

async fn run(seed: u64, how: How) -> Played {
    let numbers =
        Numbers { base: BASE_MS, tenants: 2, writers: 4, series: 3, step_ms: STEP_MS, late: true, shapes: true };
    let (world, commands) = found(seed, numbers, how);
    let world = Arc::new(world);
    if let Some(group) = &world.rafts {
        if let Err(why) = group.found(&world, commands).await {
            world.trouble(why);
        }
        world.spawn(rafts::keep_members(world.clone()));
    }
    plan::start_all(&world);
    if world.rafts.is_some() && !in_time(&world, HEAL_WITHIN, is_whole).await {
        world.trouble("the nodes do not come together".to_owned());
    }
    let load = Arc::new(Load::new(numbers.writers));
    let mut surroundings = JoinSet::new();
    surroundings.spawn(tick(world.clone()));
    surroundings.spawn(plan::tend(world.clone()));
    let mut clients = JoinSet::new();
    for writer in 0..numbers.writers {
        clients.spawn(clients::write(world.clone(), load.clone(), writer));
    }
    for _ in 0..2 {
        clients.spawn(clients::watch(world.clone(), load.clone()));
    }
    for client in (0..2).filter(|_| world.rafts.is_some()) {
        clients.spawn(registers::change(world.clone(), load.clone(), (client, 2)));
    }
    world.fault("storm".to_owned(), FaultState::Installed);
    plan::storm(world.clone(), STORM).await;
    plan::heal(&world);
    world.fault("storm".to_owned(), FaultState::Healed);
    world.mark(check::FAULTS_OVER);
    let over = Instant::now();
    if in_time(&world, HEAL_WITHIN, is_whole).await {
        world.mark(check::WHOLE);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.end();
    while clients.join_next().await.is_some() {}
    world.mark(check::LOAD_OVER);
    let until = Instant::now() + HEAL_WITHIN;
    while Instant::now() < until {
        if clients::answers_are_alike(&world, &load).await {
            world.mark(check::AGREED);
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let until = Instant::now() + CONVERGE_WITHIN;
    while let Some(difference) = difference(&world).await {
        if Instant::now() >= until {
            world.trouble(format!("replicas do not come to hold the same: {difference}"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let alike_after = over.elapsed();
    for stage in [Stage::Final, Stage::Again] {
        clients::read_all(&world, &load, stage).await;
    }
    books::balance(&world).await;
    surroundings.abort_all();
    world.halt();
    world.hosts.iter().for_each(|host| host.crash(&world, false));
    judge(&world, alike_after)
}

fn judge(world: &World, alike_after: Duration) -> Played {
    let (trace, events) = world.trace();
    let (history, troubles) = world.finish();
    let well = history.ops.iter().filter(|op| op.end == crate::history::End::Ok).count();
    let promise = Promise { settle_ms: SETTLE_MS, ..Promise::default() };
    // Of the metadata only what nodes say of themselves is looked at; that says enough for one checker.
    let asked = Asked { totals: true, constants: false, registers: true, blocks: false, gauges: false };
    let verdicts = check::all(&history, world.numbers, promise, asked);
    // A schedule may be too short to say something about everything; what it says must be good.
    let bad = verdicts.into_iter().filter(|verdict| verdict.outcome == Outcome::Failed).collect();
    Played {
        seed: world.seed,
        trace,
        events,
        bad,
        troubles,
        ops: (history.ops.len(), well),
        alike_after,
        group: world.rafts.as_ref().map(Rafts::figures).unwrap_or_default(),
    }
}

/// The cluster as it was founded: nodes, tenants, who holds what.
fn found(seed: u64, numbers: Numbers, how: How) -> (World, Vec<Command>) {
    let chance = &mut StdRng::seed_from_u64(seed ^ 0xf0_0d);
    let (nodes, partitions) = (chance.random_range(3..=4_usize), chance.random_range(1..=2_u32));
    let log = Sequence::default();
    let commands = RefCell::new(Vec::new());
    let commit = |command: Command| {
        commands.borrow_mut().push(command.clone());
        let done = log.commit(Proposal { by: "founder".to_owned(), command }, BEGINS_AT);
        done.unwrap_or_else(|e| unreachable!("a command of ours is refused: {e}"))
    };
    let cluster_id = "sim".to_owned();
    commit(Command::Bootstrap { cluster_id, partition_count: partitions, founder: FOUNDER, node: spec(0) });
    let mut ids = vec![FOUNDER];
    for at in 1..nodes {
        let registered = commit(Command::RegisterNode { token: format!("token-{at}"), node: spec(at) });
        let Answer::Node { id } = registered.outcome else { unreachable!("a registration answers with an id") };
        commit(Command::SetNodeState { id, to: NodeState::Active, expected: None });
        ids.push(id);
    }
    for partition in (0..partitions).map(PartitionId) {
        let mut replicas: Vec<NodeId> = ids.clone();
        while replicas.len() > plan::REPLICAS {
            replicas.remove(chance.random_range(0..replicas.len()));
        }
        let expected = log.view(log.last()).partitions.get(&partition).map(|row| row.current.epoch).unwrap_or_default();
        commit(Command::SetReplicas { partition, expected, replicas, next: None });
    }
    for tenant in 0..numbers.tenants {
        let late_ms = if numbers.is_late(tenant) { LATE_MS } else { 0 };
        let limits = TenantLimits { out_of_order_time_window_ms: late_ms, ..TenantLimits::default() };
        let name = numbers.tenant(tenant);
        let tenant = TenantId::new(&name).unwrap_or_else(|e| unreachable!("a name of ours: {e}"));
        commit(Command::CreateTenant { tenant, limits, shard_size: 0 });
    }
    let differ = if chance.random_bool(0.5) { CLOCKS_DIFFER_MS } else { CLOCKS_DIFFER_MS / 20 };
    let clock = |chance: &mut StdRng| Clock::test(BEGINS_AT + chance.random_range(-differ..=differ));
    let hosts = ids.iter().enumerate().map(|(at, id)| Host::new(at, *id, clock(chance), how.planted)).collect();
    let agrees = how.consensus.unwrap_or_else(|| Agrees::of(seed));
    let rafts = (agrees == Agrees::Raft).then(|| Rafts::new(seed, &ids, partitions, how.planted));
    (World::new(seed, numbers, (hosts, log, rafts), differ, how), commands.into_inner())
}

/// Lets the clocks of all nodes go.
async fn tick(world: Shared) {
    const EVERY_MS: i64 = 100;
    loop {
        tokio::time::sleep(Duration::from_millis(EVERY_MS.unsigned_abs())).await;
        world.hosts.iter().for_each(|host| host.clock.advance(EVERY_MS));
        if let Some(rafts) = &world.rafts {
            rafts.look(&world);
        }
    }
}

async fn in_time(world: &Shared, within: Duration, done: impl Fn(&World) -> bool) -> bool {
    let until = Instant::now() + within;
    while !done(world) {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    true
}

/// Whether all nodes live, know everything that is agreed, and no replica set changes.
fn is_whole(world: &World) -> bool {
    let view = world.view();
    let last = view.applied.unwrap_or(0);
    let moves = view.partitions.iter().any(|(_, row)| row.next.is_some());
    let knows = |host: &Host| host.life().is_some_and(|life| life.member.shown() == last);
    let members = world.rafts.as_ref().is_none_or(|rafts| rafts.is_whole(world));
    !moves && members && member::leader(world).is_some() && world.hosts.iter().all(knows)
}

/// Two replicas of a partition that do not hold the same, by digest; none when there are none.
async fn difference(world: &Shared) -> Option<String> {
    let view = world.view();
    for (partition, row) in view.partitions.iter() {
        let mut first: Option<BTreeMap<TenantId, Digest>> = None;
        for id in &row.current.replicas {
            let life = world.host_of(*id).and_then(|at| world.hosts[at].life());
            let Some(life) = life else { return Some(format!("node {} does not live", id.0)) };
            let all = match life.local.inventory(*partition, row.current.epoch).await {
                Ok(all) => all,
                Err(error) => return Some(error.message),
            };
            let all: BTreeMap<_, _> = all.into_iter().filter(|(_, digest)| digest.count > 0).collect();
            if let Some(first) = first.replace(all.clone()).filter(|first| *first != all) {
                return Some(format!("partition {}: {first:?}, {all:?} at node {}", partition.0, id.0));
            }
        }
    }
    let open: Vec<_> = view.seals.iter().filter(|(_, seals)| !seals.open.is_empty()).collect();
    (!open.is_empty()).then(|| format!("open seals: {open:?}"))
}
