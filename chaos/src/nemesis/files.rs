//! Files that are damaged, syncs that are held, calls that fail.

use super::members::replace;
use super::proof::HITS_WITHIN;
use super::wounds::revive;
use super::{Nemesis, Pace, Proof, Whom, names};
use crate::cluster::{Cluster, Damage, Flaw, Injected, Part, Syncs, inflict};
use crate::error::Error;
use crate::history::FaultState;
use engram_model::time::Stopwatch;
use std::time::Duration;

/// Longer than anything is held.
const HELD_MS: u64 = 60_000;
/// So long writes pile up before a sync that does not come.
const PILE: Duration = Duration::from_millis(400);
/// How long a node may take to notice what is wrong with its files, after it said that it is ready.
const NOTICES: Duration = Duration::from_secs(2);

const fn flaw(calls: &'static str, error: &'static str, first: u32, then: u32) -> Flaw {
    Flaw { calls, error, first, then }
}

/// Calls that fail now and then, one kind a round. Names of calls that this machine does not have are not among them.
pub(super) const FLAWS: [Flaw; 6] = [
    flaw("pwrite64,pwritev", "EINTR", 1, 3),
    flaw("pwrite64,pwritev", "ENOSPC", 5, 50),
    flaw("rename,renameat,renameat2", "ENOSPC", 1, 2),
    flaw("pwrite64,pwritev", "EAGAIN", 5, 50),
    flaw("fallocate,ftruncate", "ENOSPC", 1, 2),
    flaw("fsync,fdatasync", "EINTR", 3, 20),
];

/// Waits until each node stands before a sync.
async fn held_there(held: &[Injected]) -> Proof {
    let watch = Stopwatch::start();
    for one in held {
        while !one.holds().await {
            if watch.elapsed() > HITS_WITHIN {
                return Err("no sync was asked for".to_owned());
            }
        }
    }
    Ok(String::new())
}

impl Nemesis {
    /// A node stands still between what it wrote and the sync of it; then it is let go on, or is killed there.
    pub(super) async fn held_sync(
        &mut self,
        cluster: &mut Cluster,
        whom: Whom,
        round: u32,
        pace: Pace,
    ) -> Result<(), Error> {
        let nodes = self.targets(cluster, whom, round).await;
        let killed = round % 2 == 1;
        let end = if killed { "killed there" } else { "let go on" };
        let name = format!("stopped between write and sync, {end}: {}", names(&nodes));
        self.recorder.fault(&name, FaultState::Installed, "");
        let mut held = Vec::new();
        for node in &nodes {
            held.push(cluster.inject(*node, Syncs::Held(HELD_MS)).await?);
        }
        tokio::time::sleep(PILE).await;
        let proof = held_there(&held).await;
        nodes.iter().for_each(|node| cluster.pause(*node, true));
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        if killed {
            // While it is held it cannot be gone; when it is let go it must not get to the sync.
            cluster.strike_dead(&nodes);
            drop(held);
            cluster.kill_any(&nodes).await?;
            cluster.healing();
            cluster.start(&nodes).await?;
        } else {
            drop(held);
            cluster.healing();
            nodes.iter().for_each(|node| cluster.pause(*node, false));
            revive(cluster, &nodes).await?;
        }
        self.healed(&name, proof);
        Ok(())
    }

    /// Nodes are killed, files of theirs are damaged, they are started again; one that refuses to is replaced.
    pub(super) async fn damage(
        &mut self,
        cluster: &mut Cluster,
        whom: Whom,
        damage: Damage,
        round: u32,
        pace: Pace,
    ) -> Result<(), Error> {
        let nodes = self.targets(cluster, whom, round).await;
        let name = format!("{damage:?} in the files of {}", names(&nodes));
        self.recorder.fault(&name, FaultState::Installed, "");
        cluster.kill(&nodes).await?;
        self.recorder.fault(&name, FaultState::Struck, "");
        let mut told = Vec::new();
        for node in &nodes {
            match inflict(&cluster.data(*node), damage, &mut self.chance)? {
                Some(what) => told.push(what),
                None => self.recorder.fault(&name, FaultState::Unknown, "there was nothing to damage"),
            }
        }
        self.wait(pace.hold_ms).await;
        cluster.healing();
        for node in nodes {
            told.push(self.start_damaged(cluster, node).await?);
        }
        self.recorder.fault(&name, FaultState::Healed, &told.join("; "));
        Ok(())
    }

    /// Starts a node whose files are damaged. What is demanded is a word about it, not a start.
    async fn start_damaged(&mut self, cluster: &mut Cluster, node: usize) -> Result<String, Error> {
        let refused = match cluster.start(&[node]).await {
            Ok(_) => {
                tokio::time::sleep(NOTICES).await;
                cluster.alive(node).err()
            }
            Err(error) => Some(error),
        };
        let Some(refused) = refused else { return Ok(format!("node {node} went on")) };
        let text = refused.to_string();
        // One that neither starts nor says why has refused nothing.
        if text.contains("panicked") || cluster.alive(node).is_ok() {
            return Err(refused);
        }
        replace(cluster, node).await?;
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Ok(format!("node {node} refused and was replaced: {last}"))
    }

    /// Files are damaged under a running node; after a while it is killed, and started again as in [`Self::damage`].
    pub(super) async fn live_damage(
        &mut self,
        cluster: &mut Cluster,
        whom: Whom,
        damage: Damage,
        round: u32,
        pace: Pace,
    ) -> Result<(), Error> {
        let nodes = self.targets(cluster, whom, round).await;
        let name = format!("{damage:?} in the files of running {}", names(&nodes));
        self.recorder.fault(&name, FaultState::Installed, "");
        let mut told = Vec::new();
        for node in &nodes {
            let watch = Stopwatch::start();
            loop {
                match inflict(&cluster.data(*node), damage, &mut self.chance)? {
                    Some(what) => break told.push(what),
                    // What there is too little of yet may come.
                    None if watch.elapsed() < HITS_WITHIN => tokio::time::sleep(PILE).await,
                    None => {
                        self.recorder.fault(&name, FaultState::Unknown, "there was nothing to damage");
                        break;
                    }
                }
            }
        }
        self.wait(pace.hold_ms).await;
        cluster.kill_any(&nodes).await?;
        cluster.healing();
        for node in nodes {
            told.push(self.start_damaged(cluster, node).await?);
            // It says so where it is read, and goes on with the rest; whole again it is as another node, as operations.md has it.
            if damage == Damage::Bits(Part::Chunks) {
                replace(cluster, node).await?;
                told.push(format!("node {node} was replaced"));
            }
        }
        self.recorder.fault(&name, FaultState::Healed, &told.join("; "));
        Ok(())
    }
}
