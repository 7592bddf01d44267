//! What the group does once it is open: starts, proposes, reads, tells how it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, Instant as _, ServerState};
use tokio::time::Instant;

use super::{Committed, Identity, Raft, Status};
use crate::codec;
use crate::command::{COMMAND_BYTES_MAX, Command, Outcome, Proposal};
use crate::error::{Error, Hint};
use crate::rpc::{CallError, Links, Method, Network, Proposed, ReadAt, Service};
use crate::runtime::Receiver;
use crate::state::{NodeSpec, View};

/// Time a single node gets to elect itself, recover and bootstrap.
const START_WITHIN: Duration = Duration::from_secs(30);
/// Pause before a proposal that was not appended is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// Time one attempt to tell the group about this node gets, and the pause after a failed one.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(10);
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);

pub(super) fn stopped(error: impl fmt::Display) -> Error {
    Error::Stopped { why: error.to_string() }
}

/// One node's part in an open group.
pub(super) struct Inner {
    pub(super) identity: Identity,
    pub(super) raft: Raft,
    pub(super) service: Service,
    pub(super) links: Links,
    pub(super) network: Network,
    pub(super) views: Receiver<Arc<View>>,
}

impl Inner {
    /// Makes the group at the very first start, and gets a group of one going.
    pub(super) async fn start(&self, node: &NodeSpec) -> Result<(), Error> {
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
        let address = node.map(|n| n.addr.clone()).unwrap_or_default();
        Some(self.links.newest(Hint { id: NodeId(id), address }))
    }

    pub(super) async fn propose(&self, proposal: Proposal, within: Duration) -> Result<Committed, Error> {
        let bytes = codec::encode("proposal", &proposal)?.len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(Error::TooLarge { bytes, max: COMMAND_BYTES_MAX });
        }
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match self.leader().filter(|l| l.id != self.identity.id) {
                None => self.service.propose_here(proposal.clone(), left).await,
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

    pub(super) async fn linearizable(&self, within: Duration) -> Result<Arc<View>, Error> {
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

    /// Why the core stopped; waits until it does.
    pub(super) async fn failed(&self) -> Error {
        let waited = self.raft.wait(None).metrics(|m| m.running_state.is_err(), "the group stops").await;
        match waited.map(|m| m.running_state) {
            Ok(Err(fatal)) => stopped(fatal),
            Ok(Ok(())) => stopped("no reason given"),
            Err(error) => stopped(error),
        }
    }

    pub(super) async fn applied(&self, index: u64, deadline: Instant) -> Result<Arc<View>, Error> {
        let mut views = self.views.clone();
        let shown = tokio::time::timeout_at(deadline, views.until(|v| v.applied >= Some(index))).await;
        match shown {
            Ok(Ok(view)) => Ok(view),
            Ok(Err(closed)) => Err(stopped(closed)),
            Err(_) => Err(Error::NoQuorum { why: format!("entry {index} is not applied here yet") }),
        }
    }

    /// The outcome of a change of members.
    pub(super) fn changed<T, E: fmt::Display>(
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

    pub(super) fn status(&self) -> Status {
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
            quorum_silent_ms: m.last_quorum_acked.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
            learners: learners.map(NodeId).collect(),
            voters: voters.into_iter().map(NodeId).collect(),
            failed: m.running_state.as_ref().err().map(ToString::to_string),
        }
    }
}

/// Tells the group what is true of this node now, until the agreed state says so.
pub(super) async fn announce(inner: Arc<Inner>, node: NodeSpec) {
    let id = inner.identity.id;
    let mut views = inner.views.clone();
    // A node that has just joined learns of itself from the leader first.
    let Ok(mut view) = views.until(|v| v.nodes.get(&id).is_some()).await else { return };
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
        view = views.borrow().clone();
    }
}
