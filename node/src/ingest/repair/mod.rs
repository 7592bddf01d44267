//! Repair: takes from other replicas what this one lacks, all the time, and all of it when a replica set changes.
//!
//! Why by digests: a node that was away heals without anybody having kept a list for it, and two replicas that hold the
//! same cost a few numbers to compare. Everything flows by pulling: who lacks something takes it, so that two that
//! differ both ways become alike; of two values at one time the greater bits win on each of them.
//!
//! [`compare`]: a slot in which replicas differ is pulled when neither has changed since the look before. What is being
//! written differs for a moment all the time and comes by itself; but what a refused write left on one replica would come
//! and go in queries as long as the slot is written to, so a slot that has not been seen equal for [`Patience::hot_after`]
//! is pulled although it is ([`hot`]).
//!
//! [`complete`]: while a set is being replaced, each node of the new one makes sure that it holds everything that was
//! acknowledged before the change, and says so to the leader. It asks a majority of the old set, and all that leave; each
//! answers only when it refuses writes of older epochs and has made visible what it accepted before
//! ([`crate::peer::Replica::inventory`]), so nothing can be acknowledged behind its back. Then every slot that differs is pulled at once. What is written meanwhile goes
//! to the new set by itself. What was taken is proven afterwards: a refused sample, or one that the other has and this
//! replica still lacks, and it is not complete. Completing does not wait for comparing: a slow peer delays the one only.
//!
//! [`leave`]: who no longer belongs to a partition hands over what only it has, and forgets it.
//!
//! [`take`] is how all of them read, compare by content and append. Exemplars and metadata of metrics are not repaired: reads join
//! those of a majority.

mod compare;
mod complete;
mod hot;
mod leave;
mod take;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::{Epoch, NodeId, PartitionId, Sets};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::heads::Heads;
use super::partition::Handle;
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::meta::Meta;
use crate::peer::Peers;

pub use compare::Comparing;
pub use complete::Completing;

/// How soon a change that could not be completed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How long a slot that is being written may differ between replicas.
///
/// With these and a look each 5 s a leftover is taken 5 + 10 + 5 + 3 s after the replicas can talk, of the 30 that I2b
/// gives; a look itself takes part of the rest.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Not seen equal for so long, it is pulled although it is being written.
    pub hot_after: Duration,
    /// Before that, time between the last looks whether it is equal after all.
    pub again_after: Duration,
    /// What was on its way to both replicas has reached both after so long.
    pub settle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            hot_after: Duration::from_secs(10),
            again_after: Duration::from_millis(100),
            settle: Duration::from_secs(2),
        }
    }
}

/// Partitions whose replica here holds all that was acknowledged before an epoch began.
pub type Completed = Arc<Mutex<BTreeMap<PartitionId, Epoch>>>;

/// What the actor works with.
#[derive(Clone)]
pub struct Config {
    /// The ring.
    pub meta: Meta,
    /// All replicas, this node's too.
    pub peers: Peers,
    /// Heads by partition.
    pub heads: Arc<Vec<Heads>>,
    /// Actors by partition.
    pub partitions: Vec<Handle>,
    /// What the leader is told.
    pub complete: Completed,
    /// How often replicas are compared.
    pub every: Duration,
    /// How long a slot that is being written may differ.
    pub patience: Patience,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// The child that runs it.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "repair".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    tokio::select! {
        biased; // both go on side by side: in an order that can be repeated
        ended = completing(&config) => ended,
        ended = comparing(&config) => ended,
        () = config.stop.cancelled() => Ok(()),
    }
}

async fn completing(config: &Config) -> Result<(), ChildError> {
    let (mut completing, mut again) = (Completing::default(), true);
    loop {
        config.meta.next_change(if again { RETRY_AFTER } else { config.every }).await;
        again = completing.look(config, Instant::now()).await;
    }
}

async fn comparing(config: &Config) -> Result<(), ChildError> {
    let mut comparing = Comparing::default();
    loop {
        tokio::time::sleep(config.every).await;
        comparing.look(config, Instant::now()).await;
    }
}

impl Config {
    fn here(&self) -> NodeId {
        self.peers.here()
    }

    /// The partition's sets and epoch when this node belongs to it.
    fn sets(&self, partition: PartitionId) -> Option<(Sets, Epoch, bool)> {
        let ring = self.meta.ring();
        let set = ring.replicas(partition)?;
        let next = ring.next(partition);
        let sets = Sets::new(&set.replicas, next);
        let comes = next.is_some_and(|next| next.contains(&self.here()));
        let belongs = sets.nodes().any(|node| node == self.here());
        belongs.then_some((sets, set.epoch, comes))
    }

    fn all(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..u32::try_from(self.partitions.len()).unwrap_or(0)).map(PartitionId)
    }
}
