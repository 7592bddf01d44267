//! Members that come, go and are lost for good.

use super::Nemesis;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::history::FaultState;
use engram_model::time::Stopwatch;
use rand::seq::IndexedRandom;
use std::time::Duration;

/// Longest time for a cluster to change its members.
pub(super) const CHURN_WITHIN: Duration = Duration::from_secs(120);

impl Nemesis {
    /// A node joins; when it has its share, one of the old is drained, removed and ended.
    pub(super) async fn churn(&mut self, cluster: &mut Cluster) -> Result<(), Error> {
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
        cluster.healing();
        cluster.whole(CHURN_WITHIN).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }

    /// A node's disk is lost for good. It is removed from the cluster, and comes back empty, as a new node.
    pub(super) async fn wipe(&mut self, cluster: &mut Cluster) -> Result<(), Error> {
        let node = cluster.running().choose(&mut self.chance).copied().unwrap_or(0);
        let at = cluster.running().into_iter().find(|other| *other != node).unwrap_or(node);
        let name = format!("node {node} loses its disk for good");
        let id = cluster.id_of(&cluster.status(at).await?, node);
        let id = id.ok_or_else(|| Error::Usage(format!("node {node} has no id in the cluster")))?;
        self.recorder.fault(&name, FaultState::Installed, "");
        cluster.kill(&[node]).await?;
        self.recorder.fault(&name, FaultState::Struck, "");
        std::fs::remove_dir_all(cluster.data(node))?;
        steer(cluster, at, id, "remove").await?;
        cluster.healing();
        cluster.start(&[node]).await?;
        cluster.whole(CHURN_WITHIN).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }
}

/// What whoever runs a cluster does with a node whose disk is beyond help: it is removed, emptied, and joins as a new one.
///
/// # Errors
/// The cluster does not let it go, or does not become whole.
pub(super) async fn replace(cluster: &mut Cluster, node: usize) -> Result<(), Error> {
    let at = cluster.running().into_iter().find(|other| *other != node).unwrap_or(node);
    let id = cluster.id_of(&cluster.status(at).await?, node);
    let id = id.ok_or_else(|| Error::Usage(format!("node {node} has no id in the cluster")))?;
    cluster.kill_any(&[node]).await?;
    for entry in std::fs::read_dir(cluster.data(node))? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    steer(cluster, at, id, "remove").await?;
    cluster.healing();
    cluster.start(&[node]).await?;
    cluster.whole(CHURN_WITHIN).await?;
    Ok(())
}

/// Asks until the cluster agrees: it refuses while the node still holds something, or is not known to be away.
pub(super) async fn steer(cluster: &Cluster, at: usize, id: u64, act: &str) -> Result<(), Error> {
    let watch = Stopwatch::start();
    loop {
        match cluster.steer(at, id, act).await {
            Ok(()) => return Ok(()),
            Err(error) if watch.elapsed() > CHURN_WITHIN => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
