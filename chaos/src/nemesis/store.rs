//! The object store: slow, silent, lying; and nodes that die or stop at a chosen request of theirs.

use super::{Nemesis, Pace};
use crate::cluster::{Cluster, Deed, Mood, Store, Trap};
use crate::error::Error;
use crate::history::FaultState;
use std::time::Duration;

/// How long a trap lies before it counts as never reached.
const REACHED_WITHIN: Duration = Duration::from_secs(60);

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
        store(cluster)?.set(Mood::default());
        let there = store(cluster)?.objects();
        self.recorder.fault(&name, FaultState::Healed, &format!("{there} objects"));
        Ok(())
    }

    /// The node that makes a certain request is killed or stopped there, and later goes on.
    pub(super) async fn trap(&mut self, cluster: &mut Cluster, trap: Trap, pace: Pace) -> Result<(), Error> {
        let when = if trap.after { "after" } else { "before" };
        let name = format!("{:?} of a node {when} its {:?} of …{}", trap.deed, trap.verb, trap.ends);
        store(cluster)?.lay(trap);
        self.recorder.fault(&name, FaultState::Installed, "");
        let Some(node) = store(cluster)?.caught(REACHED_WITHIN).await else {
            self.recorder.fault(&name, FaultState::Unknown, "no node came there");
            self.recorder.fault(&name, FaultState::Healed, "");
            self.recorder.fault(&name, FaultState::Healed, "");
            return Ok(());
        };
        self.recorder.fault(&name, FaultState::Struck, "");
        if trap.deed == Deed::Kill {
            cluster.kill_any(&[node]).await?;
        }
        self.wait(pace.hold_ms).await;
        if trap.deed == Deed::Kill {
            cluster.start(&[node]).await?;
        } else {
            cluster.pause(node, false);
            cluster.ready(node).await?;
        }
        self.recorder.fault(&name, FaultState::Healed, &format!("node {node}"));
        Ok(())
    }
}
