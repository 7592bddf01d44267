//! What shows that a fault did hit. A fault that was installed and met nobody proves nothing: then the run is *unknown*.
//!
//! Each is looked for from outside of what it is done to: what strace wrote, what a node logged since, the time it says it
//! has, whether it is gone. What comes late is waited for, so that a slow machine does not make a good run an unknown one.
//!
//! Killed, stopped and paused nodes, cut lines and a power that is gone need no proof of their own: there the harness does
//! it all itself, and fails when it cannot.

use super::{Wound, clocks};
use crate::cluster::{Cluster, Injected, Syncs};
use crate::error::Error;
use engram_model::time::Stopwatch;
use std::time::Duration;

/// How long a fault may stand before something meets it.
pub(super) const HITS_WITHIN: Duration = Duration::from_secs(30);
/// How long a node may go on whose syncs fail. Those that keep nothing of value may fail before one that does.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// In words what shows that the fault hit, or why nobody knows.
pub(super) type Proof = Result<String, String>;

/// What shows that a wound is one. `before`: how much each node had printed when it began.
///
/// # Errors
/// A node that must end went on.
pub(super) async fn proof(cluster: &mut Cluster, wound: &Wound, before: &[usize]) -> Result<Proof, Error> {
    match wound {
        Wound::Syncs { nodes, syncs, held } => {
            let hits = hits(cluster, nodes, held).await;
            if *syncs == Syncs::Fail && hits.is_ok() && cluster.peer().is_none() {
                return ended(cluster, nodes).await.map(|()| hits.map(|hits| format!("{hits}; ended by itself")));
            }
            Ok(hits)
        }
        Wound::Full(nodes) => Ok(full(cluster, nodes, before).await),
        Wound::Clocks { nodes, shift, .. } => Ok(clocks::seen(cluster, nodes, *shift).await),
        Wound::Killed(_) | Wound::Stopped(_) | Wound::Paused(_) | Wound::Network { .. } | Wound::NoPower(_) => {
            Ok(Ok(String::new()))
        }
    }
}

/// Waits until strace has changed a call of each of them.
async fn hits(cluster: &mut Cluster, nodes: &[usize], held: &[Injected]) -> Proof {
    let (watch, mut told) = (Stopwatch::start(), Vec::new());
    for (node, injected) in nodes.iter().zip(held) {
        loop {
            let hits = injected.hits();
            if hits > 0 {
                told.push(format!("{hits} calls of node {node} were hit"));
                break;
            }
            // One that has ended calls nothing more.
            if watch.elapsed() > HITS_WITHIN || cluster.alive(*node).is_err() {
                return Err(format!("no call of node {node} was hit"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(told.join("; "))
}

/// Waits until each of them has ended by itself.
///
/// # Errors
/// One goes on.
pub(super) async fn ended(cluster: &mut Cluster, nodes: &[usize]) -> Result<(), Error> {
    let watch = Stopwatch::start();
    for node in nodes {
        while cluster.alive(*node).is_ok() {
            if watch.elapsed() > ENDS_WITHIN {
                let text = format!("node {node} goes on {} s after its syncs fail", ENDS_WITHIN.as_secs());
                return Err(Error::Usage(text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// Waits until each of them has said that its disk is full.
async fn full(cluster: &Cluster, nodes: &[usize], before: &[usize]) -> Proof {
    let watch = Stopwatch::start();
    for node in nodes {
        let since = before.get(*node).copied().unwrap_or(0);
        while !cluster.said(*node, since, "No space left") {
            if watch.elapsed() > HITS_WITHIN {
                return Err(format!("node {node} did not say that its disk is full"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok("each said that its disk is full".to_owned())
}
