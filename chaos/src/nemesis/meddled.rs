//! Writes that are cut short, and a sync that fails once.

use super::proof::{HITS_WITHIN, ended};
use super::wounds::{heal, strike};
use super::{Nemesis, Pace, Whom, Wound, names};
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
/// How long the rest may still be hit once enough of them are.
const ENOUGH_WITHIN: Duration = Duration::from_secs(5);

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
        // Once a majority has ended by it, nobody asks the rest for a sync of metadata.
        let enough = if synced == Synced::Meta { nodes.len() / 2 + 1 } else { nodes.len() };
        let (hit, missed) = failed(cluster, &nodes, &before, enough).await;
        self.recorder.fault(&name, FaultState::Struck, "");
        // The names in a folder may be made durable by what comes after; the bytes of a log cannot.
        if hit.len() >= enough && synced != Synced::Folder {
            ended(cluster, &hit).await?;
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
        let proof = if hit.len() >= enough {
            let (hit, all) = (hit.len(), nodes.len());
            Ok(format!("one failed at {hit} of {all}; {gone} ended by it; {lied} later syncs of it were lied about"))
        } else {
            Err(format!("no such sync of {} was asked for", names(&missed)))
        };
        self.healed(&name, proof);
        Ok(())
    }
}

/// Waits until a sync of each has failed, or of `enough` of them and no other for a while. Answers with those where one has, and the rest.
async fn failed(cluster: &mut Cluster, nodes: &[usize], before: &[Meddled], enough: usize) -> (Vec<usize>, Vec<usize>) {
    let watch = Stopwatch::start();
    loop {
        let fails = |(node, before): (&usize, &Meddled)| (*node, cluster.meddled(*node).fails > before.fails);
        let (hit, missed): (Vec<_>, Vec<_>) = nodes.iter().zip(before).map(fails).partition(|(_, hit)| *hit);
        let within = if hit.len() >= enough { ENOUGH_WITHIN } else { HITS_WITHIN };
        if missed.is_empty() || watch.elapsed() > within {
            let ids = |nodes: Vec<(usize, bool)>| nodes.into_iter().map(|(node, _)| node).collect();
            return (ids(hit), ids(missed));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
