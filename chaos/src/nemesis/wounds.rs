//! How each fault is done and undone.

use super::Wound;
use super::clocks;
use crate::cluster::Cluster;
use crate::error::Error;
use std::time::Duration;

pub(super) async fn strike(cluster: &mut Cluster, wound: &mut Wound) -> Result<(), Error> {
    match wound {
        Wound::Killed(nodes) => cluster.kill(nodes).await?,
        Wound::Stopped(nodes) => {
            for node in nodes.iter() {
                cluster.stop(*node).await?;
            }
        }
        Wound::Paused(nodes) => nodes.iter().for_each(|node| cluster.pause(*node, true)),
        Wound::Network { pairs, rule, before } => {
            *before = (cluster.packets().unwrap_or_default(), cluster.refused());
            cluster.links.set(pairs, *rule);
        }
        Wound::NoPower(nodes) => {
            // Without power nobody answers any more. A sync that is under way while ext4 is shut down may be told to have
            // succeeded, although its bytes lie where the journal will never say that something was written.
            cluster.freeze(nodes).await?;
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
        Wound::Clocks { nodes, shift, strobes } => {
            for clock in nodes.iter().filter_map(|node| cluster.clock(*node)) {
                clocks::put(&clock, *shift, strobes)?;
            }
        }
    }
    Ok(())
}

pub(super) async fn heal(cluster: &mut Cluster, wound: &mut Wound) -> Result<(), Error> {
    cluster.healing();
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
        Wound::Clocks { nodes, strobes, .. } => {
            strobes.shutdown().await;
            for node in nodes.iter() {
                cluster.clock(*node).map_or(Ok(()), |clock| clock.set(0))?;
                cluster.ready(*node).await?;
            }
        }
    }
    Ok(())
}

/// A node ends itself when its disk does not keep what it must: whoever runs it starts it again.
pub(super) async fn revive(cluster: &mut Cluster, nodes: &[usize]) -> Result<(), Error> {
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
