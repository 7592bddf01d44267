//! The adversary: what is done to a cluster while it works, and how it is undone.
//!
//! A fault is *installed*, held for a while and *healed*; both are written into the history, so that checkers know when
//! what was broken. Whom it hits, how hard and how long is decided by the run's seed. A fault this machine cannot do is
//! *skipped*, and the run proves nothing about it.
//!
//! - [`mod@self`]: the kinds of faults, and a round of them
//! - `hand`: faults of several steps
//! - `wounds`: how each is done and undone
//! - `proof`: what shows that a fault did hit; without it nothing is proved and the run is *unknown*
//! - `network`: which pairs of nodes a fault of the network hits, and how
//! - `files`: files that are damaged, syncs that are held, calls that fail
//! - `meddled`: writes that are cut short, a sync that fails once
//! - `clocks`: clocks that are wrong
//! - `store`: the object store
//! - `members`: members that come and go
//! - `whole`, `flood`: what is done to a cluster as a whole
//! - `spares`: which faults leave a majority alive

mod clocks;
mod files;
mod flood;
mod hand;
mod meddled;
mod members;
mod network;
mod proof;
mod spares;
mod store;
mod whole;
mod wounds;

use crate::check::{ROUND_DARK, ROUND_SERVED, ROUND_WHOLE};
use crate::cluster::{Cluster, Counts, Damage, Injected, Mood, Pair, Rule, Scarce, Syncs, Trap};
use crate::error::Error;
use crate::history::{FaultState, Recorder};
use engram_model::time::Stopwatch;
use members::{CHURN_WITHIN, steer};
use proof::{Proof, proof};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use wounds::{heal, strike};

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// One node after the other, in an order of chance that is the same for the whole run.
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
    /// Each round other calls on files fail now and then.
    Calls(Whom),
    /// Stopped between a write and its sync, then let go on or killed, by chance.
    HeldSync(Whom),
    /// Some writes to files are cut short.
    CutShort(Whom),
    /// One sync fails once, then the power goes: of each node in turn, and of all.
    SyncOnce,
    /// Killed, its files damaged, started again; replaced by an empty node where it refuses.
    Damage(Whom, &'static [Damage]),
    /// Its files damaged while it runs, then killed; as above after that.
    LiveDamage(Whom, Damage),
    /// Its clock is wrong.
    Clock(Whom, Shift),
    /// The object store is in one mood after the other.
    Store(&'static [Mood]),
    /// Nodes are killed or stopped at one request to the object store after the other.
    Trap(&'static [Trap]),
    /// Members change while lines are cut.
    ChurnCut,
    /// A member lags behind what is kept of the metadata's log.
    Lag,
    /// Each node becomes another binary.
    Upgrade,
    /// Certificates are replaced under load, and their CA.
    Rotate,
    /// A certificate ends under load.
    Expire,
    /// Too little of something, at each node in turn.
    Scarce(&'static [Scarce]),
    /// Far too much to do.
    Flood,
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

pub(crate) use clocks::Shift;
pub(crate) use network::Shape;
pub(crate) use whole::LINES_BREAK;

/// By then replicas have again what they missed.
const LEVEL_AFTER: Duration = Duration::from_secs(10);

/// Packets of each line when a fault of the network began, and how many the nodes had refused as turned.
type Before = (BTreeMap<Pair, Counts>, u64);

/// What is broken now.
#[derive(Debug)]
enum Wound {
    Killed(Vec<usize>),
    Stopped(Vec<usize>),
    Paused(Vec<usize>),
    Network { pairs: Vec<Pair>, rule: Rule, before: Before },
    NoPower(Vec<usize>),
    Full(Vec<usize>),
    Syncs { nodes: Vec<usize>, syncs: Syncs, held: Vec<Injected> },
    Clocks { nodes: Vec<usize>, shift: Shift, strobes: JoinSet<()> },
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
    /// In which order nodes have their turns: the more of it, the later.
    turns: u64,
}

impl Nemesis {
    pub(crate) fn new(recorder: Arc<Recorder>, seed: u64, client_timeout: Duration) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let turns = chance.random();
        Self { recorder, chance, client_timeout, turns }
    }

    /// Does `act` as often as `pace` says; nothing is broken any more when it returns well.
    ///
    /// # Errors
    /// A node did not come back, or ended though nothing was done to it.
    pub(crate) async fn rounds(&mut self, cluster: &mut Cluster, act: Act, pace: Pace) -> Result<(), Error> {
        // What one replica loses for good may not meet what another has not yet got again: that would be two faults at
        // once, which nothing with three copies bears.
        let (mixed, mut lost) = (matches!(act, Act::AnyOf(_)), false);
        for round in 0..pace.rounds {
            if round > 0 {
                self.rest(cluster, pace.rest_ms).await;
            }
            let act = self.decided(act);
            let loses = mixed && matches!(act, Act::Damage(..) | Act::LiveDamage(..) | Act::WipeNode);
            if loses || lost {
                cluster.whole(CHURN_WITHIN).await?;
                tokio::time::sleep(LEVEL_AFTER).await;
            }
            lost = loses;
            let serves = act.spares_a_majority(cluster.running().len(), cluster.zones());
            self.recorder.mark(if serves { ROUND_SERVED } else { ROUND_DARK });
            match act {
                Act::Churn => self.churn(cluster).await?,
                Act::WipeNode => self.wipe(cluster).await?,
                Act::PlantedLie => self.lie(cluster, pace).await?,
                Act::SlowThenDark => self.slow_then_dark(cluster, pace).await?,
                Act::BridgeThenKill => self.bridge_then_kill(cluster, pace).await?,
                Act::Strand => self.strand(cluster, pace).await?,
                Act::CutShort(whom) => self.cut_short(cluster, whom, round, pace).await?,
                Act::SyncOnce => self.sync_once(cluster, round, pace).await?,
                Act::HeldSync(whom) => self.held_sync(cluster, whom, round, pace).await?,
                Act::Damage(whom, kinds) => {
                    self.damage(cluster, whom, in_turn(kinds, round), round, pace).await?;
                }
                Act::Store(moods) => self.mood(cluster, in_turn(moods, round), pace).await?,
                Act::Trap(traps) => self.trap(cluster, in_turn(traps, round), pace).await?,
                Act::ChurnCut => self.churn_cut(cluster).await?,
                Act::Lag => self.lag(cluster, pace).await?,
                Act::Upgrade => self.upgrade(cluster, round, pace).await?,
                Act::Rotate => self.rotate(cluster, round).await?,
                Act::Expire => self.expire(cluster, round, pace).await?,
                Act::Scarce(kinds) => self.scarce(cluster, in_turn(kinds, round), round, pace).await?,
                Act::Flood => self.flood(cluster, pace).await?,
                Act::LiveDamage(whom, damage) => self.live_damage(cluster, whom, damage, round, pace).await?,
                _ => self.round(cluster, act, round, pace).await?,
            }
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
        let before: Vec<usize> = (0..cluster.count()).map(|node| cluster.told(node)).collect();
        // Written down before it is done: what fails by it must not look as if it had failed without a fault.
        self.recorder.fault(&name, FaultState::Installed, "");
        strike(cluster, &mut wound).await?;
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        let proof = proof(cluster, &wound, &before).await?;
        heal(cluster, &mut wound).await?;
        self.healed(&name, proof);
        Ok(())
    }

    /// Writes down that a fault is over, and what proves that it was there.
    fn healed(&self, name: &str, proof: Proof) {
        if let Err(why) = &proof {
            self.recorder.fault(name, FaultState::Unknown, why);
        }
        self.recorder.fault(name, FaultState::Healed, &proof.unwrap_or_default());
    }

    /// The time between two rounds; when the cluster is whole in it, that is marked.
    async fn rest(&mut self, cluster: &mut Cluster, mean_ms: u64) {
        let rest = Duration::from_millis(self.about(mean_ms));
        let watch = Stopwatch::start();
        // A node that ended by itself is found by whoever needs it next.
        if let Ok(Ok(_)) = tokio::time::timeout(rest, cluster.whole(rest)).await {
            self.recorder.mark(ROUND_WHOLE);
        }
        tokio::time::sleep(rest.saturating_sub(watch.elapsed())).await;
    }

    fn about(&mut self, mean_ms: u64) -> u64 {
        self.chance.random_range(mean_ms / 2..=mean_ms + mean_ms / 2)
    }

    async fn wait(&mut self, mean_ms: u64) {
        let ms = self.about(mean_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    async fn targets(&mut self, cluster: &Cluster, whom: Whom, round: u32) -> Vec<usize> {
        let mut running = cluster.running();
        match whom {
            Whom::All => running,
            Whom::EachNode => {
                // The same order of chance in every round: each node has its turn.
                running.sort_unstable();
                running.shuffle(&mut StdRng::seed_from_u64(self.turns));
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
                let (name, pairs, rule) = network::plan(shape, &nodes, (leader, round), &mut self.chance);
                (name, Wound::Network { pairs, rule, before: Before::default() })
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
                (format!("{syncs} at {}", names(&nodes)), Wound::Syncs { nodes, syncs, held: Vec::new() })
            }
            Act::Calls(whom) => {
                let nodes = self.targets(cluster, whom, round).await;
                let syncs = Syncs::Flawed(files::FLAWS[round as usize % files::FLAWS.len()]);
                (format!("{syncs} at {}", names(&nodes)), Wound::Syncs { nodes, syncs, held: Vec::new() })
            }
            Act::Clock(whom, shift) => {
                let nodes = self.targets(cluster, whom, round).await;
                let shift = shift.in_round(round);
                let name = format!("the clock of {} {shift}", names(&nodes));
                (name, Wound::Clocks { nodes, shift, strobes: JoinSet::new() })
            }
            Act::Churn
            | Act::WipeNode
            | Act::PlantedLie
            | Act::SlowThenDark
            | Act::Strand
            | Act::BridgeThenKill
            | Act::AnyOf(_)
            | Act::Any
            | Act::HeldSync(_)
            | Act::CutShort(_)
            | Act::SyncOnce
            | Act::Damage(..)
            | Act::Store(_)
            | Act::Trap(_)
            | Act::ChurnCut
            | Act::Lag
            | Act::Upgrade
            | Act::Rotate
            | Act::Expire
            | Act::Scarce(_)
            | Act::Flood
            | Act::LiveDamage(..) => {
                unreachable!("decided before")
            }
        }
    }

    /// All disks say that they have synced and have not; then the power goes.
    async fn lie(&mut self, cluster: &mut Cluster, pace: Pace) -> Result<(), Error> {
        let (name, nodes) = ("planted: syncs lie, then power loss of all", cluster.running());
        self.recorder.fault(name, FaultState::Installed, "");
        let mut lies = Wound::Syncs { nodes: nodes.clone(), syncs: Syncs::Lie, held: Vec::new() };
        strike(cluster, &mut lies).await?;
        self.wait(pace.hold_ms).await;
        let proof = proof(cluster, &lies, &[]).await?;
        let mut dark = Wound::NoPower(nodes);
        strike(cluster, &mut dark).await?;
        self.recorder.fault(name, FaultState::Struck, "");
        drop(lies);
        heal(cluster, &mut dark).await?;
        self.healed(name, proof);
        Ok(())
    }
}

/// One of several, in turn.
fn in_turn<T: Copy>(all: &[T], round: u32) -> T {
    all[round as usize % all.len()]
}

fn names(nodes: &[usize]) -> String {
    let list = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("node{} {list}", if nodes.len() == 1 { "" } else { "s" })
}

/// A rule that lets nothing pass.
const CUT: Rule = Rule { cut: true, ..Rule::OPEN };
