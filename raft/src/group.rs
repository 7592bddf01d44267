//! The one handle a node holds on the metadata group: open, propose, read, follow, shut down.
//!
//! Why: the rest of the node must not know the consensus library. It hands in commands and gets outcomes, follows
//! views, and asks for a linearizable one where staleness would matter. A single node is a group of one: at its first
//! start it makes the group, elects itself and bootstraps the cluster; at later ones it recovers what it had.
//!
//! A proposal is retried only while it certainly was not appended (no leader, or a leader that refused it). Once it
//! may stand in somebody's log, and the answer stays away, the caller is told [`Error::Unknown`] and must look.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use engram_model::time::Clock;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, Config, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::command::{Command, Envelope, Outcome, Proposal};
use crate::error::{Error, Hint};
use crate::rpc::{CallError, Links, Method, Network, Proposed, ReadAt, Service};
use crate::state::{NodeSpec, View};
use crate::store::{Db, LogStore, Machine, SnapshotDir};

openraft::declare_raft_types!(
    /// The group's types: commands in envelopes, outcomes, nodes by number.
    pub(crate) TypeConfig:
        D = Envelope,
        R = Outcome,
        NodeId = u64,
        Node = BasicNode,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;

/// Id of the node that makes a cluster. Raft's own first entries take the log indexes 0 and 1, so no registration,
/// whose index becomes the id, can be given it.
pub const FOUNDER: NodeId = NodeId(1);
/// Time a single node gets to elect itself, recover and bootstrap.
const START_WITHIN: Duration = Duration::from_secs(30);
/// Time the store gets to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);
/// Pause before a proposal that was not appended is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// Time one attempt to tell the group about this node gets, and the pause after a failed one.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(10);
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);
/// Most time a forwarded proposal may take at the leader.
const FORWARDED_WITHIN: Duration = Duration::from_secs(30);

/// How a node comes to be in a group, at its first start only.
#[derive(Clone, Debug)]
pub enum FirstStart {
    /// It makes a new cluster, as its founder and only voter.
    Bootstrap {
        /// Random name of the cluster.
        cluster_id: String,
        /// Partitions of the cluster, fixed for ever.
        partition_count: u32,
    },
    /// It was admitted to a cluster already and waits for its leader to call.
    Join {
        /// The cluster's name.
        cluster_id: String,
        /// The id its registration was answered with.
        id: NodeId,
    },
}

/// Raft's beats. A follower that hears nothing for an election timeout stands for election.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest election timeout; several heartbeats and slow fsyncs must fit.
    pub election_min_ms: u64,
    /// Longest election timeout.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 250, election_min_ms: 1000, election_max_ms: 2000 }
    }
}

/// What a group is opened with.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// Where its files lie: `db/` and `snapshots/`.
    pub dir: PathBuf,
    /// What this node tells about itself; the group is told when it changed.
    pub node: NodeSpec,
    /// How it comes to be in a group if `dir` is empty.
    pub first_start: FirstStart,
    /// How nodes reach each other.
    pub network: Network,
    /// Raft's beats.
    pub timing: Timing,
    /// Entries after which a snapshot is built and older entries are purged.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for followers that are a little late.
    pub snapshot_keep: u64,
    /// Log time.
    pub clock: Clock,
}

impl GroupOptions {
    /// The options of a node in a directory, the rest as usual.
    #[must_use]
    pub fn new(dir: PathBuf, node: NodeSpec, first_start: FirstStart, clock: Clock) -> Self {
        let (network, timing) = (Network::default(), Timing::default());
        Self { dir, node, first_start, network, timing, snapshot_every: 10_000, snapshot_keep: 1_000, clock }
    }

    fn config(&self) -> Result<Config, Error> {
        let Timing { heartbeat_ms, election_min_ms, election_max_ms } = self.timing;
        let config = Config {
            cluster_name: "engram".to_owned(),
            heartbeat_interval: heartbeat_ms,
            election_timeout_min: election_min_ms,
            election_timeout_max: election_max_ms,
            enable_pre_vote: Some(true),
            // At least lease and election together; without it a leader cut off from its quorum beats on for ever.
            quorum_loss_probe_interval: Some(election_max_ms.saturating_mul(3)),
            enable_leader_restore: Some(false),
            max_payload_entries: 64,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.snapshot_keep,
            install_snapshot_timeout: 120_000,
            ..Config::default()
        };
        config.validate().map_err(|e| Error::Settings { why: e.to_string() })
    }
}

/// Who this node is, written once.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Identity {
    id: NodeId,
    cluster_id: String,
    /// Set on the founder, so that a bootstrap that a crash interrupted is finished as it was begun.
    partition_count: Option<u32>,
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
}

struct Inner {
    identity: Identity,
    raft: Raft,
    service: Service,
    links: Links,
    network: Network,
    views: watch::Receiver<Arc<View>>,
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
    closed: oneshot::Receiver<()>,
}

fn open_store(options: &GroupOptions) -> Result<Opened, Error> {
    let (db, closed) = Db::open(&options.dir)?;
    let db = Arc::new(db);
    let identity = match db.raft_get("identity")? {
        Some(identity) => identity,
        None => {
            let identity = Identity::of(&options.first_start);
            db.raft_put("identity", &identity)?;
            identity
        }
    };
    let snapshots = Arc::new(SnapshotDir::open(&options.dir)?);
    let machine = Machine::open(db.clone(), snapshots.clone())?;
    let log = LogStore::open(db, machine.applied())?;
    Ok(Opened { identity, log, machine, snapshots, closed })
}

fn stopped(error: impl fmt::Display) -> Error {
    Error::Stopped { why: error.to_string() }
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
        let store = tokio::task::spawn_blocking(move || open_store(&for_store)).await.map_err(stopped)??;
        let Opened { identity, log, machine, snapshots, closed } = store;
        let (id, views) = (identity.id, machine.watch());
        let links = Links::new(id, options.network.clone());
        let raft = Raft::new(id.0, config, links.clone(), log, machine).await.map_err(stopped)?;
        let service = Service::new(raft.clone(), snapshots, options.clock.clone(), FORWARDED_WITHIN);
        if let Network::Memory(hub) = &options.network {
            hub.join(id, service.clone());
        }
        let inner = Arc::new(Inner { identity, raft, service, links, network: options.network.clone(), views });
        inner.start(&options.node).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(announce(inner.clone(), options.node));
        Ok(Self { inner, tasks: Mutex::new(tasks), closed: Mutex::new(Some(closed)) })
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
        self.inner.views.clone()
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

impl Inner {
    /// Makes the group at the very first start, and gets a group of one going.
    async fn start(&self, node: &NodeSpec) -> Result<(), Error> {
        let me = self.identity.id;
        let initialized = self.raft.is_initialized().await.map_err(stopped)?;
        if self.identity.partition_count.is_some() && !initialized {
            let first = BTreeMap::from([(me.0, BasicNode::new(&node.grpc))]);
            self.raft.initialize(first).await.map_err(stopped)?;
        }
        // Asked of the core: the published metrics may not show yet what was just initialized or recovered.
        let alone = self.raft.with_raft_state(move |s| s.membership_state.effective().voter_ids().eq([me.0])).await;
        if !alone.map_err(stopped)? {
            return Ok(());
        }
        // Nobody else can lead: there is no reason to wait for an election timeout.
        self.raft.trigger().elect(false).await.map_err(stopped)?;
        let wait = self.raft.wait(Some(START_WITHIN));
        wait.state(ServerState::Leader, "a group of one leads").await.map_err(stopped)?;
        self.raft.wait_for_recovery(Some(START_WITHIN)).await.map_err(stopped)?;
        let Some(partition_count) = self.identity.partition_count else { return Ok(()) };
        if self.views.borrow().cluster.is_none() {
            let (cluster_id, founder) = (self.identity.cluster_id.clone(), me);
            let command = Command::Bootstrap { cluster_id, partition_count, founder, node: node.clone() };
            self.propose(Proposal { by: "bootstrap".to_owned(), command }, START_WITHIN).await?;
        }
        Ok(())
    }

    fn leader(&self) -> Option<Hint> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        let node = metrics.membership_config.get_node(&id);
        Some(Hint { id: NodeId(id), address: node.map(|n| n.addr.clone()).unwrap_or_default() })
    }

    async fn propose(&self, proposal: Proposal, within: Duration) -> Result<Committed, Error> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match self.leader().filter(|l| l.id != self.identity.id) {
                None => self.service.propose_here(proposal.clone(), left).await?,
                Some(leader) => match self.links.to(leader.clone()).call(Method::Propose, &proposal, left).await {
                    Ok(answer) => answer,
                    Err(CallError::Unreachable(_)) => Proposed::NotLeader(Some(leader)),
                    Err(CallError::Lost(why)) => Proposed::Unknown(why),
                },
            };
            match answer {
                Proposed::Done { outcome: Outcome::Refused(refusal), .. } => return Err(refusal.into()),
                Proposed::Done { index, outcome } => return Ok(Committed { index, outcome }),
                Proposed::Unknown(why) => return Err(Error::Unknown { why }),
                Proposed::NotLeader(leader) if Instant::now() + RETRY_AFTER >= deadline => {
                    return Err(Error::NotLeader { leader });
                }
                Proposed::NotLeader(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
    }

    async fn linearizable(&self, within: Duration) -> Result<Arc<View>, Error> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match self.leader().filter(|l| l.id != self.identity.id) {
                None => match tokio::time::timeout(left, self.service.read_index_here()).await {
                    Ok(answer) => answer?,
                    Err(_) => ReadAt::NoQuorum(format!("not confirmed within {} ms", within.as_millis())),
                },
                Some(leader) => match self.links.to(leader.clone()).call(Method::ReadIndex, &(), left).await {
                    Ok(answer) => answer,
                    Err(error) => ReadAt::NoQuorum(error.to_string()),
                },
            };
            let failed = match answer {
                ReadAt::Index(index) => return self.applied(index, deadline).await,
                ReadAt::NotLeader(leader) => Error::NotLeader { leader },
                ReadAt::NoQuorum(why) => Error::NoQuorum { why },
            };
            if Instant::now() + RETRY_AFTER >= deadline {
                return Err(failed);
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn applied(&self, index: u64, deadline: Instant) -> Result<Arc<View>, Error> {
        let mut views = self.views.clone();
        let shown = tokio::time::timeout_at(deadline, views.wait_for(|v| v.applied >= Some(index))).await;
        match shown {
            Ok(Ok(view)) => Ok(view.clone()),
            Ok(Err(closed)) => Err(stopped(closed)),
            Err(_) => Err(Error::NoQuorum { why: format!("entry {index} is not applied here yet") }),
        }
    }

    /// The outcome of a change of members.
    fn changed<T, E: fmt::Display>(
        &self,
        result: Result<Result<T, E>, tokio::time::error::Elapsed>,
    ) -> Result<(), Error> {
        match result {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(why)) => match self.leader().filter(|l| l.id != self.identity.id) {
                Some(leader) => Err(Error::NotLeader { leader: Some(leader) }),
                None => Err(Error::Unknown { why: why.to_string() }),
            },
            Err(late) => Err(Error::Unknown { why: late.to_string() }),
        }
    }

    fn status(&self) -> Status {
        let leader = self.leader();
        let metrics = self.raft.metrics();
        let m = metrics.borrow_watched();
        let voters: BTreeSet<u64> = m.membership_config.voter_ids().collect();
        let learners = m.membership_config.nodes().map(|(id, _)| *id).filter(|id| !voters.contains(id));
        Status {
            id: self.identity.id,
            cluster_id: self.identity.cluster_id.clone(),
            term: m.current_term,
            role: match m.state {
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            },
            leader,
            last_log: m.last_log_index,
            committed: m.local_committed.map(|id| id.index),
            applied: m.last_applied.map(|id| id.index),
            snapshot: m.snapshot.map(|id| id.index),
            purged: m.purged.map(|id| id.index),
            learners: learners.map(NodeId).collect(),
            voters: voters.into_iter().map(NodeId).collect(),
            failed: m.running_state.as_ref().err().map(ToString::to_string),
        }
    }
}

/// Tells the group what is true of this node now, until the agreed state says so.
async fn announce(inner: Arc<Inner>, node: NodeSpec) {
    let id = inner.identity.id;
    let mut views = inner.views.clone();
    // A node that has just joined learns of itself from the leader first.
    let known = views.wait_for(|v| v.nodes.get(&id).is_some()).await.map(|v| v.clone());
    let Ok(mut view) = known else { return };
    while view.nodes.get(&id).is_some_and(|row| row.spec != node) {
        let command = Command::UpdateNode { id, node: node.clone() };
        let told = inner.propose(Proposal { by: format!("node {}", id.0), command }, ANNOUNCE_WITHIN).await;
        match told {
            Ok(committed) => {
                let deadline = Instant::now() + ANNOUNCE_WITHIN;
                if let Err(error) = inner.applied(committed.index, deadline).await {
                    tracing::info!(%error, "this node's new addresses are committed but not applied here yet");
                }
            }
            Err(Error::Refused(why)) => return tracing::error!(%why, "the group does not want this node"),
            Err(error) => {
                tracing::warn!(%error, "the group does not know this node's addresses yet");
                tokio::time::sleep(ANNOUNCE_AFTER).await;
            }
        }
        view = views.borrow_and_update().clone();
    }
}
