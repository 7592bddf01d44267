//! The object store: slow, silent, lying; and nodes that die or stop at a chosen request of theirs.

use super::proof::HITS_WITHIN;
use super::{Nemesis, Pace, Proof};
use crate::cluster::{Cluster, Deed, Mood, Store, Trap};
use crate::error::Error;
use crate::history::FaultState;
use engram_model::time::Stopwatch;
use std::time::Duration;

/// How long a trap lies before it counts as never reached.
const REACHED_WITHIN: Duration = Duration::from_secs(60);

/// How long a lease of a node that says nothing may last, and the work of the one after it.
const AGAIN_WITHIN: Duration = Duration::from_secs(150);

fn store(cluster: &mut Cluster) -> Result<&mut Store, Error> {
    cluster.store().ok_or_else(|| Error::Usage("this cluster has no object store".to_owned()))
}

/// A mood in words.
fn told(mood: Mood) -> String {
    let mut words = Vec::new();
    let mut put = |is: bool, word: String| words.extend(is.then_some(word));
    put(mood.down, "it is not there".to_owned());
    put(mood.silent, "it answers nothing".to_owned());
    put(mood.refused > 0, format!("it refuses {} %", mood.refused));
    put(mood.late_ms > 0, format!("it is {} ms late", mood.late_ms));
    put(mood.unanswered > 0, format!("it does {} % of changes and does not say so", mood.unanswered));
    put(mood.halves > 0, format!("{} % of uploads end half way", mood.halves));
    put(mood.stale, "its lists are old".to_owned());
    format!("the object store: {}", words.join(", "))
}

impl Nemesis {
    /// The store is in a mood for a while.
    pub(super) async fn mood(&mut self, cluster: &mut Cluster, mood: Mood, pace: Pace) -> Result<(), Error> {
        let name = told(mood);
        self.recorder.fault(&name, FaultState::Installed, "");
        store(cluster)?.set(mood);
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        let proof = met(cluster, mood).await?;
        cluster.healing();
        store(cluster)?.set(Mood::default());
        self.healed(&name, proof);
        Ok(())
    }

    /// The node that makes a certain request is killed or stopped there, and later goes on.
    pub(super) async fn trap(&mut self, cluster: &mut Cluster, trap: Trap, pace: Pace) -> Result<(), Error> {
        let when = if trap.after { "after" } else { "before" };
        let name = format!("{:?} of a node {when} its {:?} of …{}", trap.deed, trap.verb, trap.ends);
        store(cluster)?.lay(trap);
        self.recorder.fault(&name, FaultState::Installed, "");
        let Some(node) = store(cluster)?.caught(REACHED_WITHIN).await else {
            self.healed(&name, Err("no node came there".to_owned()));
            return Ok(());
        };
        self.recorder.fault(&name, FaultState::Struck, "");
        if trap.deed == Deed::Kill {
            cluster.kill_any(&[node]).await?;
        }
        let proof = if trap.merged { made_again(cluster).await? } else { Ok(String::new()) };
        self.wait(pace.hold_ms).await;
        cluster.healing();
        if trap.deed == Deed::Kill {
            cluster.start(&[node]).await?;
        } else {
            cluster.pause(node, false);
            cluster.ready(node).await?;
        }
        self.healed(&name, proof.map(|told| format!("node {node}{told}")));
        Ok(())
    }
}

/// Waits until requests have met all that a mood is.
async fn met(cluster: &mut Cluster, mood: Mood) -> Result<Proof, Error> {
    let watch = Stopwatch::start();
    loop {
        let (met, there) = (store(cluster)?.met(), store(cluster)?.objects());
        let missing: Vec<_> = mood.kinds().into_iter().filter(|kind| !met.contains_key(kind)).collect();
        if missing.is_empty() {
            return Ok(Ok(format!("requests met {met:?}; {there} objects")));
        }
        if watch.elapsed() > HITS_WITHIN {
            return Ok(Err(format!("no request met: {}", missing.join(", "))));
        }
        if mood.stale {
            ask_for_lists(cluster).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Nodes ask for lists every few hours, and whenever a person asks what lies there that nobody knows; that is done here.
async fn ask_for_lists(cluster: &Cluster) {
    let at = cluster.running().first().and_then(|node| cluster.roster.client(*node));
    let (Some(client), Some(bucket)) = (at, cluster.bucket()) else { return };
    for tenant in bucket.tenants() {
        // What is answered does not matter here: it is as old as the list.
        let _told = client.ask("admin/blocks/orphans", &[], Some(&tenant)).await;
    }
}

/// Waits until another node has made a block of what the one that is caught was making one of.
async fn made_again(cluster: &mut Cluster) -> Result<Proof, Error> {
    let watch = Stopwatch::start();
    while store(cluster)?.made_again() == 0 {
        if watch.elapsed() > AGAIN_WITHIN {
            return Ok(Err("no other node took its work over".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(Ok(format!("; another took its work over after {:.0} s", watch.elapsed().as_secs_f64())))
}
