//! Writes that are cut short, and a sync that fails once.

use super::proof::{HITS_WITHIN, ended};
use super::wounds::{heal, strike};
use super::{Nemesis, Pace, Proof, Whom, Wound, names};
use crate::cluster::{Cluster, Meddled, Synced};
use crate::error::Error;
use crate::history::FaultState;
use engram_model::time::Stopwatch;
use rand::RngExt;
use std::time::Duration;

/// One of so many writes is cut short.
const ONE_OF: u32 = 3;
/// Whose sync fails, in turn.
const SYNCED: [Synced; 3] = [Synced::Log, Synced::Meta, Synced::Folder];
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Nemesis {
    /// The kernel takes a part of what a node writes, now and then. That is no error, and nobody may notice.
    pub(super) async fn cut_short(
        &mut self,
        cluster: &mut Cluster,
        whom: Whom,
        round: u32,
        pace: Pace,
    ) -> Result<(), Error> {
        let nodes = self.targets(cluster, whom, round).await;
        let name = format!("one of {ONE_OF} writes to files is cut short at {}", names(&nodes));
        let before: Vec<Meddled> = nodes.iter().map(|node| cluster.meddled(*node)).collect();
        self.recorder.fault(&name, FaultState::Installed, "");
        for node in &nodes {
            let chance = self.chance.random();
            cluster.meddle(*node)?.cut_short(ONE_OF, chance)?;
        }
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        let cut = |done: Meddled, before: &Meddled| [0_usize, 1].map(|at| done.shorts[at] - before.shorts[at]);
        let (watch, mut told) = (Stopwatch::start(), Ok(Vec::new()));
        for (node, before) in nodes.iter().zip(&before) {
            // Metadata is not written all the time.
            while cut(cluster.meddled(*node), before).contains(&0) && watch.elapsed() < HITS_WITHIN {
                cluster.alive(*node)?;
                tokio::time::sleep(LOOK_EVERY).await;
            }
            match cut(cluster.meddled(*node), before) {
                [0, _] | [_, 0] => {
                    told = Err(format!("no write of node {node} to its log or its metadata was cut short"))
                }
                [log, meta] => {
                    let text =
                        format!("node {node}: {log} writes of its log and {meta} of its metadata were cut short");
                    told = told.map(|told: Vec<String>| [told, vec![text]].concat());
                }
            }
        }
        cluster.healing();
        for node in &nodes {
            cluster.meddle(*node)?.rest()?;
            // A write that was cut short has not failed.
            cluster.alive(*node)?;
            cluster.ready(*node).await?;
        }
        self.healed(&name, told.map(|told| told.join("; ")));
        Ok(())
    }

    /// One sync fails once, of one kind of file; what was written there before is lost, and the kernel does not say so again.
    /// Then the power goes. First at each node in turn, after that at all of them at once.
    pub(super) async fn sync_once(&mut self, cluster: &mut Cluster, round: u32, pace: Pace) -> Result<(), Error> {
        let synced = super::in_turn(&SYNCED, round);
        let all = round as usize >= SYNCED.len();
        let nodes = self.targets(cluster, if all { Whom::All } else { Whom::EachNode }, round).await;
        let name = format!("one sync of {synced} fails at {}, then power loss", names(&nodes));
        let before: Vec<Meddled> = nodes.iter().map(|node| cluster.meddled(*node)).collect();
        self.recorder.fault(&name, FaultState::Installed, "");
        for node in &nodes {
            cluster.meddle(*node)?.fail_once(synced)?;
        }
        let proof = failed(cluster, &nodes, &before).await;
        self.recorder.fault(&name, FaultState::Struck, "");
        // The names in a folder may be made durable by what comes after; the bytes of a log cannot.
        if proof.is_ok() && synced != Synced::Folder {
            ended(cluster, &nodes).await?;
        }
        self.wait(pace.hold_ms).await;
        let gone = nodes.iter().filter(|node| cluster.alive(**node).is_err()).count();
        let lied: u64 = nodes.iter().zip(&before).map(|(node, before)| cluster.meddled(*node).lies - before.lies).sum();
        for node in &nodes {
            cluster.meddle(*node)?.rest()?;
        }
        let mut dark = Wound::NoPower(nodes.clone());
        strike(cluster, &mut dark).await?;
        heal(cluster, &mut dark).await?;
        let text =
            |what| format!("{what}; {gone} of {} ended by it; {lied} later syncs of it were lied about", nodes.len());
        self.healed(&name, proof.map(text));
        Ok(())
    }
}

/// Waits until a sync of each has failed.
async fn failed(cluster: &mut Cluster, nodes: &[usize], before: &[Meddled]) -> Proof {
    let watch = Stopwatch::start();
    for (node, before) in nodes.iter().zip(before) {
        while cluster.meddled(*node).fails == before.fails {
            if watch.elapsed() > HITS_WITHIN {
                return Err(format!("no such sync of node {node} was asked for"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok("one failed at each".to_owned())
}
