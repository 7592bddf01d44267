//! Faults: what happens to nodes, network and disks while clients write, and how it is all taken back.

use super::member::{announce, leader};
use super::net::Weather;
use super::rafts;
use super::world::Shared;
use crate::history::FaultState;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_raft::{Command, Proposal};
use engram_storage::object::faults::Fault;
use engram_storage::object::metrics::Op;
use futures::FutureExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a change of replicas may take before it is taken back.
const MOVE_WITHIN: Duration = Duration::from_secs(8);
/// How often nodes are looked at: who fell starts again, who has completed a replica ends its move.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Replicas of each partition.
pub(super) const REPLICAS: usize = 3;

/// One after another, some at once, until the time is over.
pub(super) async fn storm(world: Shared, lasts: Duration) {
    let until = tokio::time::Instant::now() + lasts;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(world.millis(200, 1500)).await;
        strike(&world).await;
        if world.percent(30) {
            strike(&world).await;
        }
        tokio::time::sleep(world.millis(300, 2500)).await;
        if world.percent(70) {
            world.net.heal();
            world.fault("network healed".to_owned(), FaultState::Struck);
        }
        if world.percent(50) {
            world.hosts.iter().for_each(|host| host.leave_room(None));
        }
        if world.percent(70) {
            start_all(&world);
        }
    }
}

async fn strike(world: &Shared) {
    let count = world.hosts.len();
    if let Some(group) = world.rafts.as_ref().filter(|_| world.percent(35)) {
        return world.fault(rafts::strike(world, group), FaultState::Struck);
    }
    let node = world.pick(count);
    let name = match world.below(16) {
        0 | 1 => {
            world.hosts[node].crash(world, true);
            format!("power lost at node {node}")
        }
        2 => {
            world.hosts[node].crash(world, false);
            format!("node {node} killed")
        }
        3 => {
            (0..count).for_each(|at| world.hosts[at].crash(world, true));
            "power lost everywhere".to_owned()
        }
        4 => {
            let after = world.below(3);
            world.hosts[node].spoil(|disk| disk.fail_sync_after(after));
            format!("a sync of node {node} fails")
        }
        5 => {
            let after = world.below(40);
            world.hosts[node].spoil(|disk| disk.stop_after(after));
            format!("the disk of node {node} stops")
        }
        6 => {
            world.net.isolate(node);
            format!("node {node} isolated")
        }
        7 => {
            let other = world.pick(count);
            world.net.cut(node, other);
            format!("way from node {node} to node {other} cut")
        }
        8 | 9 => {
            let weather = Weather {
                lost: world.below(30),
                twice: world.below(30),
                delay_ms: 1 + world.below(60),
                slow: world.below(20),
                slow_ms: 1 + world.below(1500),
            };
            world.net.set_weather(weather.clone());
            format!("{weather:?}")
        }
        10 => {
            let ms = world.below(3000);
            world.hosts[node].set_lag(ms);
            format!("node {node} learns {ms} ms late")
        }
        11 => {
            checkpoint(world, node);
            format!("node {node} writes a checkpoint")
        }
        12 => spoil_store(world),
        13 => {
            let bytes = world.pick(40_000);
            world.hosts[node].leave_room(Some(bytes));
            format!("the disk of node {node} has room for {bytes} bytes")
        }
        _ => move_one(world),
    };
    world.fault(name, FaultState::Struck);
}

/// A round of checkpoints, which may be hit by whatever comes next.
fn checkpoint(world: &Shared, node: usize) {
    let Some(life) = world.hosts[node].life() else { return };
    let keeper = life.keeper.clone();
    life.spawn(async move {
        // What does not succeed is tried again by a real keeper; here the next strike does.
        let _later = engram_node::ingest::keeper::round(&keeper).await;
    });
}

/// Some requests to the bucket fail, take effect and are told to have failed, or take long.
fn spoil_store(world: &Shared) -> String {
    let op = [Op::Put, Op::Get, Op::Head][world.pick(3)];
    let fault = match world.below(3) {
        0 => Fault::Fail,
        1 => Fault::FailAfter,
        _ => Fault::Delay(world.millis(100, 3000)),
    };
    let times = 1 + world.below(3);
    world.store_faults.next(op, "", times, fault);
    format!("the bucket: {fault:?} of {times} {op:?}")
}

/// Begins a change of replicas, as the reconciler would.
fn move_one(world: &Shared) -> String {
    let Some(lead) = leader(world) else { return "nobody leads, nothing moves".to_owned() };
    let view = world.view();
    let partition = PartitionId(u32::try_from(world.pick(view.partitions.len())).unwrap_or(0));
    let Some(row) = view.partitions.get(&partition) else { return "there is no such partition".to_owned() };
    if row.next.is_some() {
        return format!("partition {} moves already", partition.0);
    }
    let mut next: Vec<NodeId> = world.hosts.iter().map(|host| host.id).collect();
    while next.len() > REPLICAS {
        next.remove(world.pick(next.len()));
    }
    let (now, epoch) = (row.current.replicas.clone(), row.current.epoch);
    let text = format!("partition {} moves from {now:?} to {next:?}", partition.0);
    set_replicas(world, lead, (partition, epoch), now, Some(next));
    text
}

fn set_replicas(
    world: &Shared,
    lead: usize,
    (partition, expected): (PartitionId, Epoch),
    replicas: Vec<NodeId>,
    next: Option<Vec<NodeId>>,
) {
    let command = Command::SetReplicas { partition, expected, replicas, next };
    let proposal = Proposal { by: "sim".to_owned(), command };
    if world.rafts.is_some() {
        return rafts::propose(world, lead, proposal);
    }
    // That somebody else was first is no failure.
    let _refused = world.log.commit(proposal, world.hosts[lead].clock.now());
    announce(world);
}

/// Looks after the nodes as their surroundings do: who fell is started again, and, as the reconciler does, what has
/// been completed is committed, what takes too long is taken back.
pub(super) async fn tend(world: Shared) {
    let mut since = std::collections::BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for host in &world.hosts {
            if host.life().is_some_and(|life| life.fallen.load(Ordering::Relaxed)) {
                world.fault(format!("node {} ends, its log has failed", host.at), FaultState::Struck);
                // A disk that stops does so until the machine is switched off and on.
                host.crash(&world, host.disk_fails());
                start(&world, host.at);
            }
        }
        let view = world.view();
        for (partition, row) in view.partitions.iter() {
            let (Some(next), epoch) = (&row.next, row.current.epoch) else { continue };
            let Some(lead) = leader(&world) else { continue };
            let begun = *since.entry((*partition, epoch)).or_insert_with(tokio::time::Instant::now);
            let complete = |id: &NodeId| {
                let Some(at) = world.host_of(*id).filter(|at| world.net.is_open(*at, lead)) else { return false };
                let Some(life) = world.hosts[at].life() else { return false };
                life.complete.lock().get(partition) == Some(&epoch)
            };
            if next.iter().all(complete) {
                world.tell(|| format!("partition {} has moved to {next:?}", partition.0));
                set_replicas(&world, lead, (*partition, epoch), next.clone(), None);
            } else if begun.elapsed() > MOVE_WITHIN {
                world.tell(|| format!("partition {} does not move", partition.0));
                set_replicas(&world, lead, (*partition, epoch), row.current.replicas.clone(), None);
            }
        }
    }
}

/// Starts a node that is down. That it does not come back is what must never happen.
pub(super) fn start(world: &Shared, at: usize) {
    let host = &world.hosts[at];
    if host.is_up() || host.is_starting() {
        return;
    }
    let mut starting = Box::pin(begin(world.clone(), at));
    // Where nothing has to be waited for it has started now.
    if starting.as_mut().now_or_never().is_none() {
        world.spawn(starting);
    }
}

async fn begin(world: Shared, at: usize) {
    let host = &world.hosts[at];
    match host.start(&world).await {
        Ok(false) => world.tell(|| format!("node {at} dies while it starts")),
        Ok(true) => world.fault(format!("node {at} starts"), FaultState::Struck),
        // The disk may have been told to fail: it is, until the power is off.
        Err(why) if host.disk_fails() => {
            world.tell(|| format!("node {at} does not start: {why}"));
            host.power(&world);
        }
        // So is one for which there is no room.
        Err(why) if host.is_full() => world.tell(|| format!("node {at} does not start: {why}")),
        Err(why) => world.trouble(format!("node {at} does not come back: {why}")),
    }
}

pub(super) fn start_all(world: &Shared) {
    (0..world.hosts.len()).for_each(|at| start(world, at));
}

/// Takes all faults back.
pub(super) fn heal(world: &Shared) {
    world.net.heal();
    world.store_faults.clear();
    if let Some(rafts) = &world.rafts {
        rafts.want_voters((0..world.hosts.len()).collect());
    }
    for host in &world.hosts {
        host.set_lag(0);
        host.leave_room(None);
        if host.disk_fails() {
            host.crash(world, true);
            host.power(world);
        }
    }
    start_all(world);
}
