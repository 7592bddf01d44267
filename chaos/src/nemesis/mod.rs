//! The adversary: what is done to a cluster while it works, and how it is undone.
//!
//! A fault is *installed*, held for a while and *healed*; both are written into the history, so that checkers know when
//! what was broken. Whom it hits, how hard and how long is decided by the run's seed. A fault this machine cannot do is
//! *skipped*, and the run proves nothing about it.
//!
//! - [`mod@self`]: the kinds of faults, and a round of them
//! - `hand`: faults of several steps
//! - `network`: which pairs of nodes a fault of the network hits, and how

mod hand;
mod network;

use crate::cluster::{Cluster, Injected, Rule, Syncs};
use crate::error::Error;
use crate::history::{FaultState, Recorder};
use engram_model::time::Stopwatch;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

/// Longest time for a cluster to change its members.
const CHURN_WITHIN: Duration = Duration::from_secs(120);

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// One node after the other, in an order of chance.
    EachNode,
    /// A zone at a time.
    Zone,
    /// All zones but one.
    AllZonesButOne,
    /// The leader of the metadata group.
    Leader,
    All,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// SIGKILL; started again to heal.
    Kill(Whom),
    /// SIGSTOP and SIGCONT.
    Pause(Whom),
    /// SIGTERM; started again to heal.
    Restart(Whom),
    /// The network between nodes.
    Network(network::Shape),
    /// Whatever was not synced is gone.
    PowerLoss(Whom),
    /// The disk has no room.
    DiskFull(Whom),
    /// What a node asks its disk to keep goes wrong.
    Syncs(Whom, Syncs),
    /// For testing the tests: all disks lie about syncs for a while, then all lose their power.
    PlantedLie,
    /// Every sync of all takes longer, and then all lose their power.
    SlowThenDark,
    /// Two nodes see only a third, which is killed when they see each other again.
    BridgeThenKill,
    /// A coordinator does not hear that the replicas it knows are no more.
    Strand,
    /// A node joins, another gives its replicas away and goes.
    Churn,
    /// The node's disk is replaced by an empty one; it joins as a new node.
    WipeNode,
    /// One of these, at random.
    AnyOf(&'static [Act]),
    /// One of the others that need no disks of their own, at random.
    Any,
}

pub(crate) use network::Shape;

/// What is broken now.
#[derive(Debug)]
enum Wound {
    Killed(Vec<usize>),
    Stopped(Vec<usize>),
    Paused(Vec<usize>),
    Network { pairs: Vec<(usize, usize)>, rule: Rule },
    NoPower(Vec<usize>),
    Full(Vec<usize>),
    Syncs { nodes: Vec<usize>, syncs: Syncs, held: Vec<Injected> },
}

/// Times of a round; each is taken half as long to one and a half times as long, by chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) rounds: u32,
    pub(crate) hold_ms: u64,
    pub(crate) rest_ms: u64,
}

/// The adversary of one run.
#[derive(Debug)]
pub(crate) struct Nemesis {
    recorder: Arc<Recorder>,
    chance: StdRng,
    client_timeout: Duration,
}

impl Nemesis {
    pub(crate) fn new(recorder: Arc<Recorder>, seed: u64, client_timeout: Duration) -> Self {
        Self { recorder, chance: StdRng::seed_from_u64(seed), client_timeout }
    }

    /// Does `act` as often as `pace` says; nothing is broken any more when it returns well.
    ///
    /// # Errors
    /// A node did not come back, or ended though nothing was done to it.
    pub(crate) async fn rounds(&mut self, cluster: &mut Cluster, act: Act, pace: Pace) -> Result<(), Error> {
        for round in 0..pace.rounds {
            let act = self.decided(act);
            match act {
                Act::Churn => self.churn(cluster).await?,
                Act::WipeNode => self.wipe(cluster).await?,
                Act::PlantedLie => self.lie(cluster, pace).await?,
                Act::SlowThenDark => self.slow_then_dark(cluster, pace).await?,
                Act::BridgeThenKill => self.bridge_then_kill(cluster, pace).await?,
                Act::Strand => self.strand(cluster, pace).await?,
                _ => self.round(cluster, act, round, pace).await?,
            }
            self.wait(pace.rest_ms).await;
        }
        Ok(())
    }

    fn decided(&mut self, act: Act) -> Act {
        const ANY: [Act; 9] = [
            Act::Kill(Whom::Zone),
            Act::Kill(Whom::Leader),
            Act::Kill(Whom::All),
            Act::Pause(Whom::Leader),
            Act::Restart(Whom::EachNode),
            Act::Network(Shape::IsolateLeader),
            Act::Network(Shape::OneWay),
            Act::Network(Shape::Bridge),
            Act::Network(Shape::Lossy),
        ];
        match act {
            Act::Any => ANY.choose(&mut self.chance).copied().unwrap_or(ANY[0]),
            Act::AnyOf(all) => all.choose(&mut self.chance).copied().unwrap_or(ANY[0]),
            act => act,
        }
    }

    async fn round(&mut self, cluster: &mut Cluster, act: Act, round: u32, pace: Pace) -> Result<(), Error> {
        let (name, mut wound) = self.decide(cluster, act, round).await;
        // Written down before it is done: what fails by it must not look as if it had failed without a fault.
        self.recorder.fault(&name, FaultState::Installed, "");
        strike(cluster, &mut wound).await?;
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        heal(cluster, &mut wound).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }

    async fn wait(&mut self, mean_ms: u64) {
        let ms = self.chance.random_range(mean_ms / 2..=mean_ms + mean_ms / 2);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    async fn targets(&mut self, cluster: &Cluster, whom: Whom, round: u32) -> Vec<usize> {
        let mut running = cluster.running();
        match whom {
            Whom::All => running,
            Whom::EachNode => {
                // The same order in every round: each node has its turn.
                running.sort_unstable();
                let turn = round as usize % running.len().max(1);
                running.get(turn).copied().into_iter().collect()
            }
            Whom::Leader => {
                let known = cluster.leader().await;
                known.or_else(|| running.choose(&mut self.chance).copied()).into_iter().collect()
            }
            Whom::Zone => cluster.zone(self.chance.random_range(0..cluster.zones())),
            Whom::AllZonesButOne => {
                let spared = self.chance.random_range(0..cluster.zones());
                (0..cluster.zones()).filter(|zone| *zone != spared).flat_map(|zone| cluster.zone(zone)).collect()
            }
        }
    }

    /// Whom and what, with a name for people.
    async fn decide(&mut self, cluster: &Cluster, act: Act, round: u32) -> (String, Wound) {
        match act {
            Act::Kill(whom) => {
                let nodes = self.targets(cluster, whom, round).await;
                (format!("kill -9 {}", names(&nodes)), Wound::Killed(nodes))
            }
            Act::Restart(whom) => {
                let nodes = self.targets(cluster, whom, round).await;
                (format!("restart {}", names(&nodes)), Wound::Stopped(nodes))
            }
            Act::Pause(whom) => {
                let nodes = self.targets(cluster, whom, round).await;
                (format!("pause {}", names(&nodes)), Wound::Paused(nodes))
            }
            Act::Network(shape) => {
                let leader = cluster.leader().await;
                let mut nodes = cluster.running();
                nodes.shuffle(&mut self.chance);
                let (name, pairs, rule) = network::plan(shape, &nodes, leader, &mut self.chance);
                (name, Wound::Network { pairs, rule })
            }
            Act::PowerLoss(whom) => {
                let nodes = self.targets(cluster, whom, round).await;
                (format!("power loss of {}", names(&nodes)), Wound::NoPower(nodes))
            }
            Act::DiskFull(whom) => {
                let nodes = self.targets(cluster, whom, round).await;
                (format!("disk full at {}", names(&nodes)), Wound::Full(nodes))
            }
            Act::Syncs(whom, syncs) => {
                let nodes = self.targets(cluster, whom, round).await;
                let what = match syncs {
                    Syncs::Slow(ms) | Syncs::Held(ms) => format!("syncs {ms} ms slower"),
                    Syncs::Fail => "syncs fail".to_owned(),
                    Syncs::Lie => "syncs lie".to_owned(),
                };
                (format!("{what} at {}", names(&nodes)), Wound::Syncs { nodes, syncs, held: Vec::new() })
            }
            Act::Churn
            | Act::WipeNode
            | Act::PlantedLie
            | Act::SlowThenDark
            | Act::Strand
            | Act::BridgeThenKill
            | Act::AnyOf(_)
            | Act::Any => {
                unreachable!("decided before")
            }
        }
    }

    /// A node joins; when it has its share, one of the old is drained, removed and ended.
    async fn churn(&mut self, cluster: &mut Cluster) -> Result<(), Error> {
        let old = cluster.running().choose(&mut self.chance).copied().unwrap_or(0);
        let new = cluster.add(self.client_timeout).await?;
        let name = format!("node {new} joins, node {old} is drained and removed");
        self.recorder.fault(&name, FaultState::Installed, "");
        cluster.start(&[new]).await?;
        cluster.whole(CHURN_WITHIN).await?;
        let at = cluster.running().into_iter().find(|node| *node != old).unwrap_or(new);
        let id = cluster.id_of(&cluster.status(at).await?, old);
        let id = id.ok_or_else(|| Error::Usage(format!("node {old} has no id in the cluster")))?;
        steer(cluster, at, id, "drain").await?;
        cluster.unlist(old);
        steer(cluster, at, id, "remove").await?;
        cluster.kill_any(&[old]).await?;
        cluster.whole(CHURN_WITHIN).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }

    /// All disks say that they have synced and have not; then the power goes.
    async fn lie(&mut self, cluster: &mut Cluster, pace: Pace) -> Result<(), Error> {
        let (name, nodes) = ("planted: syncs lie, then power loss of all", cluster.running());
        self.recorder.fault(name, FaultState::Installed, "");
        let mut lies = Wound::Syncs { nodes: nodes.clone(), syncs: Syncs::Lie, held: Vec::new() };
        strike(cluster, &mut lies).await?;
        self.wait(pace.hold_ms).await;
        let mut dark = Wound::NoPower(nodes);
        strike(cluster, &mut dark).await?;
        drop(lies);
        heal(cluster, &mut dark).await?;
        self.recorder.fault(name, FaultState::Healed, "");
        Ok(())
    }

    /// A node's disk is lost for good. It is removed from the cluster, and comes back empty, as a new node.
    async fn wipe(&mut self, cluster: &mut Cluster) -> Result<(), Error> {
        let node = cluster.running().choose(&mut self.chance).copied().unwrap_or(0);
        let at = cluster.running().into_iter().find(|other| *other != node).unwrap_or(node);
        let name = format!("node {node} loses its disk for good");
        let id = cluster.id_of(&cluster.status(at).await?, node);
        let id = id.ok_or_else(|| Error::Usage(format!("node {node} has no id in the cluster")))?;
        cluster.kill(&[node]).await?;
        self.recorder.fault(&name, FaultState::Installed, "");
        std::fs::remove_dir_all(cluster.data(node))?;
        steer(cluster, at, id, "remove").await?;
        cluster.start(&[node]).await?;
        cluster.whole(CHURN_WITHIN).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }
}

/// Asks until the cluster agrees: it refuses while the node still holds something, or is not known to be away.
async fn steer(cluster: &Cluster, at: usize, id: u64, act: &str) -> Result<(), Error> {
    let watch = Stopwatch::start();
    loop {
        match cluster.steer(at, id, act).await {
            Ok(()) => return Ok(()),
            Err(error) if watch.elapsed() > CHURN_WITHIN => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn strike(cluster: &mut Cluster, wound: &mut Wound) -> Result<(), Error> {
    match wound {
        Wound::Killed(nodes) => cluster.kill(nodes).await?,
        Wound::Stopped(nodes) => {
            for node in nodes.iter() {
                cluster.stop(*node).await?;
            }
        }
        Wound::Paused(nodes) => nodes.iter().for_each(|node| cluster.pause(*node, true)),
        Wound::Network { pairs, rule } => cluster.links.set(pairs, *rule),
        Wound::NoPower(nodes) => {
            for node in nodes.iter() {
                cluster.disk(*node).power_off()?;
            }
            cluster.kill_any(nodes).await?;
        }
        Wound::Full(nodes) => {
            for node in nodes.iter() {
                cluster.disk(*node).fill()?;
            }
        }
        Wound::Syncs { nodes, syncs, held } => {
            for node in nodes.iter() {
                held.push(cluster.inject(*node, *syncs).await?);
            }
        }
    }
    Ok(())
}

async fn heal(cluster: &mut Cluster, wound: &mut Wound) -> Result<(), Error> {
    match wound {
        Wound::Killed(nodes) | Wound::Stopped(nodes) => {
            cluster.start(nodes).await?;
        }
        Wound::Paused(nodes) => {
            nodes.iter().for_each(|node| cluster.pause(*node, false));
            for node in nodes.iter() {
                cluster.ready(*node).await?;
            }
        }
        Wound::Network { .. } => cluster.links.heal(),
        Wound::NoPower(nodes) => {
            for node in nodes.iter() {
                cluster.disk(*node).power_on()?;
            }
            cluster.start(nodes).await?;
        }
        Wound::Full(nodes) => {
            for node in nodes.iter() {
                cluster.disk(*node).empty()?;
            }
            revive(cluster, nodes).await?;
        }
        Wound::Syncs { nodes, held, .. } => {
            held.clear();
            revive(cluster, nodes).await?;
        }
    }
    Ok(())
}

/// A node ends itself when its disk does not keep what it must: whoever runs it starts it again.
async fn revive(cluster: &mut Cluster, nodes: &[usize]) -> Result<(), Error> {
    // It may be just about to.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for node in nodes {
        // One that is ending answers no more and is waited for; one that is ready has borne it.
        if cluster.ready(*node).await.is_err() {
            cluster.kill_any(&[*node]).await?;
            cluster.start(&[*node]).await?;
        }
    }
    Ok(())
}

fn names(nodes: &[usize]) -> String {
    let list = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("node{} {list}", if nodes.len() == 1 { "" } else { "s" })
}

/// A rule that lets nothing pass.
const CUT: Rule = Rule { cut: true, delay_ms: 0, jitter_ms: 0, breaks: 0, bytes_per_second: 0 };
