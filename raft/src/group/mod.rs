//! The one handle a node holds on the metadata group: open, propose, read, follow, shut down.
//!
//! Why: the rest of the node must not know the consensus library. It hands in commands and gets outcomes, follows
//! views, and asks for a linearizable one where staleness would matter. A single node is a group of one: at its first
//! start it makes the group, elects itself and bootstraps the cluster; at later ones it recovers what it had.
//!
//! A proposal is retried only while it certainly was not appended (no leader, or a leader that refused it). Once it
//! may stand in somebody's log, and the answer stays away, the caller is told [`Error::Unknown`] and must look.

mod inner;
mod members;
mod options;

pub use options::{FirstStart, GroupOptions, Timing};

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use engram_model::place::NodeId;
use openraft::BasicNode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::inner::{Inner, announce, stopped};
use crate::command::{Envelope, Outcome, Proposal};
use crate::error::{Error, Hint};
use crate::here;
use crate::rpc::{Links, Network, Service};
use crate::runtime::Runtime;
use crate::state::View;
use crate::store::{Db, LogStore, Machine, SnapshotDir, backup};

openraft::declare_raft_types!(
    /// The group's types: commands in envelopes, outcomes, nodes by number.
    pub(crate) TypeConfig:
        D = Envelope,
        R = Outcome,
        NodeId = u64,
        Node = BasicNode,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;

/// Id of the node that makes a cluster. Raft's own first entries take the log indexes 0 and 1, so no registration,
/// whose index becomes the id, can be given it.
pub const FOUNDER: NodeId = NodeId(1);
/// Time the store gets to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);
/// Most time a forwarded proposal may take at the leader.
const FORWARDED_WITHIN: Duration = Duration::from_secs(30);

/// Who this node is, written once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: NodeId,
    pub(crate) cluster_id: String,
    /// Set on the founder, so that a bootstrap that a crash interrupted is finished as it was begun.
    pub(crate) partition_count: Option<u32>,
}

impl Identity {
    fn of(first: &FirstStart) -> Self {
        match first {
            FirstStart::Bootstrap { cluster_id, partition_count } => {
                Self { id: FOUNDER, cluster_id: cluster_id.clone(), partition_count: Some(*partition_count) }
            }
            FirstStart::Join { cluster_id, id } => {
                Self { id: *id, cluster_id: cluster_id.clone(), partition_count: None }
            }
        }
    }
}

/// A committed and applied command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its log index; a view at or above it shows the effect.
    pub index: u64,
    /// What it did; never [`Outcome::Refused`], which is [`Error::Refused`].
    pub outcome: Outcome,
}

/// How the group is doing, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// The cluster it belongs to.
    pub cluster_id: String,
    /// Raft's term.
    pub term: u64,
    /// What this node is in it: leader, follower, candidate, learner.
    pub role: &'static str,
    /// The leader, if known.
    pub leader: Option<Hint>,
    /// Last entry of the log.
    pub last_log: Option<u64>,
    /// Last committed entry known here.
    pub committed: Option<u64>,
    /// Last applied entry.
    pub applied: Option<u64>,
    /// What the newest snapshot covers.
    pub snapshot: Option<u64>,
    /// What is purged from the log.
    pub purged: Option<u64>,
    /// On the leader: since when no majority has answered. Minutes of it deserve an alarm.
    pub quorum_silent_ms: Option<u64>,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who only follows.
    pub learners: Vec<NodeId>,
    /// Why the group has stopped on this node, if it has.
    pub failed: Option<String>,
}

/// The metadata group, as one node takes part in it.
pub struct Group {
    inner: Arc<Inner>,
    tasks: Mutex<JoinSet<()>>,
    closed: Mutex<Option<oneshot::Receiver<()>>>,
    /// For backups. Weak: the database closes when the core lets go of it.
    db: Weak<Db>,
    snapshots: Arc<SnapshotDir>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("id", &self.inner.identity.id).finish_non_exhaustive()
    }
}

/// What the disk gives back at a start.
struct Opened {
    identity: Identity,
    log: LogStore,
    machine: Machine,
    snapshots: Arc<SnapshotDir>,
    db: Weak<Db>,
    closed: oneshot::Receiver<()>,
}

fn open_store(options: &GroupOptions) -> Result<Opened, Error> {
    let (db, closed) = match &options.memory {
        Some(disk) => Db::in_memory(disk),
        None => Db::open(&options.dir)?,
    };
    let db = Arc::new(db);
    let identity = match db.raft_get("identity")? {
        Some(identity) => identity,
        None => {
            let identity = Identity::of(&options.first_start);
            db.raft_put("identity", &identity)?;
            identity
        }
    };
    let snapshots = match &options.memory {
        Some(disk) => SnapshotDir::in_memory(disk)?,
        None => SnapshotDir::open(&options.dir)?,
    };
    let snapshots = Arc::new(snapshots);
    let machine = Machine::open(db.clone(), snapshots.clone())?;
    let weak = Arc::downgrade(&db);
    let log = LogStore::open(db, machine.applied())?;
    Ok(Opened { identity, log, machine, snapshots, db: weak, closed })
}

impl Group {
    /// Opens the group in its directory. A group of one is ready when this returns: it leads, has recovered
    /// everything it ever answered, and the cluster is bootstrapped. A node of a larger group is not waited for; it
    /// follows the leader as soon as there is one.
    ///
    /// # Errors
    /// The settings contradict each other, or the disk does not give back what was written to it.
    pub async fn open(options: GroupOptions) -> Result<Self, Error> {
        let config = Arc::new(options.config()?);
        let for_store = options.clone();
        let store = here::blocking(move || open_store(&for_store)).await?;
        let Opened { identity, log, machine, snapshots, db, closed } = store;
        let (id, views) = (identity.id, machine.watch());
        let links =
            Links::new(id, &identity.cluster_id, (options.network.clone(), options.dial.clone()), views.clone());
        let raft = Raft::new(id.0, config, links.clone(), log, machine).await.map_err(stopped)?;
        let end = (id, identity.cluster_id.clone());
        let service = Service::new(end, raft.clone(), snapshots.clone(), options.clock.clone(), FORWARDED_WITHIN);
        if let Network::Memory(hub) = &options.network {
            hub.join(id, service.clone());
        }
        let inner = Arc::new(Inner { identity, raft, service, links, network: options.network.clone(), views });
        inner.start(&options.node).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(announce(inner.clone(), options.node));
        Ok(Self { inner, tasks: Mutex::new(tasks), closed: Mutex::new(Some(closed)), db, snapshots })
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.inner.identity.id
    }

    /// Proposes a command and waits until it is applied at the leader. Asks the leader if this node is not it.
    ///
    /// # Errors
    /// [`Error::Refused`]: committed, changed nothing. [`Error::NotLeader`]: certainly not appended.
    /// [`Error::Unknown`]: it may take effect, now or later.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the command back: as [`Error::Unknown`].
    pub async fn propose(&self, proposal: Proposal, within: Duration) -> Result<Committed, Error> {
        self.inner.propose(proposal, within).await
    }

    /// The newest view, no older than anything that was answered anywhere before the call.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::NoQuorum`]: nobody could confirm in time that it is the newest.
    pub async fn linearizable(&self, within: Duration) -> Result<Arc<View>, Error> {
        self.inner.linearizable(within).await
    }

    /// The view once it shows the entry at `index`.
    ///
    /// # Errors
    /// [`Error::NoQuorum`] if that takes longer than `within`.
    pub async fn applied(&self, index: u64, within: Duration) -> Result<Arc<View>, Error> {
        self.inner.applied(index, Instant::now() + within).await
    }

    /// Follows the views; the newest is there at once.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.inner.views.plain()
    }

    /// This node's end of the group, for the node's gRPC server: `service().into_grpc()`.
    #[must_use]
    pub fn service(&self) -> Service {
        self.inner.service.clone()
    }

    /// How the group is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Waits until the group stops on this node, by [`Group::shutdown`] or because its disk failed, and says why. The
    /// supervisor's signal to open it anew from disk.
    pub async fn failed(&self) -> Error {
        self.inner.failed().await
    }

    /// As leader: lets a registered node follow the log. Returns when it was told; it catches up by itself.
    ///
    /// # Errors
    /// [`Error::NotLeader`], or the change was not committed in time.
    pub async fn add_learner(&self, id: NodeId, address: &str, within: Duration) -> Result<(), Error> {
        let change = self.inner.raft.add_learner(id.0, BasicNode::new(address), false);
        self.inner.changed(tokio::time::timeout(within, change).await)
    }

    /// As leader: makes these nodes, and no others, the voters; former ones go on as learners.
    ///
    /// # Errors
    /// [`Error::NotLeader`], or the change was not committed in time.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>, within: Duration) -> Result<(), Error> {
        let voters: BTreeSet<u64> = voters.into_iter().map(|id| id.0).collect();
        let change = self.inner.raft.change_membership(voters, true);
        self.inner.changed(tokio::time::timeout(within, change).await)
    }

    /// As leader: builds a snapshot now, so that older entries can be purged.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn snapshot(&self) -> Result<(), Error> {
        self.inner.raft.trigger().snapshot().await.map_err(stopped)
    }

    /// A backup of everything that was answered anywhere before the call, as a file without a name that stands at its
    /// start. See [`crate::backup`].
    ///
    /// # Errors
    /// As [`Group::linearizable`]; the disk failed; the group has stopped.
    pub async fn backup(&self, within: Duration) -> Result<std::fs::File, Error> {
        self.linearizable(within).await?;
        let (db, snapshots) = (self.db.clone(), self.snapshots.clone());
        let write = move || match db.upgrade() {
            Some(db) => backup::write(&db, &snapshots),
            None => Err(Error::Stopped { why: "the store is closed".to_owned() }),
        };
        here::blocking(write).await
    }

    /// Stops taking part, syncs and closes the store; the directory can be opened again afterwards.
    ///
    /// # Errors
    /// The store did not close in time.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.tasks.lock().abort_all();
        if let Network::Memory(hub) = &self.inner.network {
            hub.leave(self.id());
        }
        self.inner.raft.shutdown().await.map_err(stopped)?;
        let Some(closed) = self.closed.lock().take() else { return Ok(()) };
        match tokio::time::timeout(CLOSE_WITHIN, closed).await {
            // The sender is dropped, never used: an error is how "closed" looks.
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Stopped { why: "the store is still open".to_owned() }),
        }
    }
}
