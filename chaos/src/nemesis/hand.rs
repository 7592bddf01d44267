//! Faults of several steps: each leads a cluster to a place where one safeguard alone keeps a promise.
//!
//! - a coordinator that does not hear that the replicas it writes to are replicas no more: only the epoch refuses
//! - a replica that learns late of a seal, so that the block lacks what it has: only the digest keeps that
//! - a power loss while every sync takes long: only the order of sync and answer keeps what was acknowledged

use super::{Before, CHURN_WITHIN, CUT, Nemesis, Pace, Wound, heal, proof, steer, strike};
use crate::cluster::{Cluster, Rule, Syncs, between};
use crate::error::Error;
use crate::history::FaultState;
use engram_model::time::Stopwatch;
use rand::seq::SliceRandom;
use std::time::Duration;

/// How long a sync takes longer before the power goes.
const SLOW_MS: u64 = 300;
/// How long a node may take to apply what was agreed without it.
const CATCH_UP: Duration = Duration::from_millis(1_500);

impl Nemesis {
    /// A node sees two replicas of some partitions and nobody else, so it learns nothing new. Those two give their
    /// replicas away, and all the while clients write through it.
    pub(super) async fn strand(&mut self, cluster: &mut Cluster, pace: Pace) -> Result<(), Error> {
        let leader = cluster.leader().await.unwrap_or(0);
        let (alone, pair) = self.stranded(cluster, leader).await?;
        let far = cluster.running().into_iter().filter(|node| *node != alone && !pair.contains(node)).collect();
        let name = format!("node {alone} sees only nodes {} and {}, which give their replicas away", pair[0], pair[1]);
        self.recorder.fault(&name, FaultState::Installed, "");
        let mut wound = Wound::Network { pairs: between(&[vec![alone], far]), rule: CUT, before: Before::default() };
        strike(cluster, &mut wound).await?;
        let status = cluster.status(leader).await?;
        let ids: Vec<u64> = pair.iter().filter_map(|node| cluster.id_of(&status, *node)).collect();
        for id in &ids {
            steer(cluster, leader, *id, "drain").await?;
        }
        let watch = Stopwatch::start();
        // Partitions of the node that nobody sees are not moved meanwhile.
        let waits = |set: &Vec<usize>| !set.contains(&alone) && pair.iter().any(|node| set.contains(node));
        while cluster.replicas(leader).await?.iter().any(waits) {
            if watch.elapsed() > CHURN_WITHIN {
                return Err(Error::Usage(format!("nodes {pair:?} still hold replicas")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        heal(cluster, &mut wound).await?;
        for id in &ids {
            steer(cluster, leader, *id, "undrain").await?;
        }
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }

    /// Two nodes that are a majority of some partition, and one that holds nothing of it; none is the leader.
    async fn stranded(&mut self, cluster: &Cluster, leader: usize) -> Result<(usize, [usize; 2]), Error> {
        let mut sets = cluster.replicas(leader).await?;
        sets.shuffle(&mut self.chance);
        for set in sets {
            let two: Vec<usize> = set.iter().copied().filter(|node| *node != leader).take(2).collect();
            let outside = cluster.running().into_iter().find(|node| *node != leader && !set.contains(node));
            if let ([one, other], Some(alone)) = (&two[..], outside) {
                return Ok((alone, [*one, *other]));
            }
        }
        Err(Error::Usage("there are too few nodes to strand one".to_owned()))
    }

    /// A node and the leader do not see each other, so it seals later than the others what it still takes; when it has
    /// caught up, the one that saw both is killed, and what it alone holds would be missed.
    pub(super) async fn bridge_then_kill(&mut self, cluster: &mut Cluster, pace: Pace) -> Result<(), Error> {
        let leader = cluster.leader().await.unwrap_or(0);
        let mut others: Vec<usize> = cluster.running().into_iter().filter(|node| *node != leader).collect();
        others.shuffle(&mut self.chance);
        let [late, middle, ..] = others[..] else {
            return Err(Error::Usage("there are too few nodes for a bridge".to_owned()));
        };
        let name = format!("node {late} and leader {leader} see only node {middle}");
        self.recorder.fault(&name, FaultState::Installed, "");
        // Not held back but lost: what is delivered late would mend what is missing.
        let rule = Rule { breaks: 10_000, ..Rule::default() };
        let mut bridge =
            Wound::Network { pairs: between(&[vec![late], vec![leader]]), rule, before: Before::default() };
        strike(cluster, &mut bridge).await?;
        self.wait(pace.hold_ms).await;
        heal(cluster, &mut bridge).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        tokio::time::sleep(CATCH_UP).await;
        let name = format!("kill -9 node {middle}");
        self.recorder.fault(&name, FaultState::Installed, "");
        let mut killed = Wound::Killed(vec![middle]);
        strike(cluster, &mut killed).await?;
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        heal(cluster, &mut killed).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }

    /// Every sync of every node takes longer; in the middle of that the power of all is gone.
    pub(super) async fn slow_then_dark(&mut self, cluster: &mut Cluster, pace: Pace) -> Result<(), Error> {
        let (name, nodes) = (format!("syncs {SLOW_MS} ms late at all nodes"), cluster.running());
        self.recorder.fault(&name, FaultState::Installed, "");
        let syncs = Syncs::Held(SLOW_MS);
        let mut slow = Wound::Syncs { nodes: nodes.clone(), syncs, held: Vec::new() };
        strike(cluster, &mut slow).await?;
        self.wait(pace.hold_ms).await;
        let late = proof(cluster, &slow, &[]).await?;
        let dark = "power loss of all nodes meanwhile";
        self.recorder.fault(dark, FaultState::Installed, "");
        let mut wound = Wound::NoPower(nodes);
        strike(cluster, &mut wound).await?;
        drop(slow);
        self.healed(&name, late);
        heal(cluster, &mut wound).await?;
        self.recorder.fault(dark, FaultState::Healed, "");
        Ok(())
    }
}
