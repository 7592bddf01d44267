//! The receiving end: decodes a request, hands it to Raft, encodes the answer.

use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use engram_model::time::Clock;
use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::storage::Snapshot;
use openraft::type_config::alias::{SnapshotMetaOf, VoteOf};
use serde::{Deserialize, Serialize};

use super::{Method, Proposed, ReadAt};
use crate::codec;
use crate::command::{Envelope, Proposal};
use crate::error::{Error, Hint};
use crate::group::{Raft, TypeConfig};
use crate::here;
use crate::store::{Receiving, SnapshotDir, SnapshotFile};

/// What precedes a snapshot's bytes.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) to: NodeId,
    pub(crate) cluster: String,
    pub(crate) vote: VoteOf<TypeConfig>,
    pub(crate) meta: SnapshotMetaOf<TypeConfig>,
}

/// One node's end of the group: answers the others' calls, over whichever road they came.
#[derive(Clone)]
pub struct Service {
    me: NodeId,
    cluster: Arc<str>,
    raft: Raft,
    snapshots: Arc<SnapshotDir>,
    clock: Clock,
    /// How long a forwarded proposal may take here; the caller's own deadline is usually shorter.
    forwarded_within: Duration,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

fn hint(forward: &ForwardToLeader<TypeConfig>) -> Option<Hint> {
    let id = forward.leader_id?;
    let address = forward.leader_node.as_ref().map(|n| n.addr.clone()).unwrap_or_default();
    Some(Hint { id: NodeId(id), address })
}

fn stopped(error: impl std::fmt::Display) -> Error {
    Error::Stopped { why: error.to_string() }
}

impl Service {
    pub(crate) fn new(
        (me, cluster): (NodeId, String),
        raft: Raft,
        snapshots: Arc<SnapshotDir>,
        clock: Clock,
        forwarded_within: Duration,
    ) -> Self {
        Self { me, cluster: cluster.into(), raft, snapshots, clock, forwarded_within }
    }

    /// Whether a call is meant for this node of this cluster.
    pub(crate) fn check(&self, to: NodeId, cluster: &str) -> Result<(), Error> {
        if to == self.me && cluster == &*self.cluster {
            return Ok(());
        }
        Err(Error::Misaddressed { to, cluster: cluster.to_owned() })
    }

    /// Answers a call.
    pub(crate) async fn handle(&self, method: Method, body: &[u8]) -> Result<Vec<u8>, Error> {
        match method {
            Method::Append => {
                let request = codec::decode("append", body)?;
                codec::encode("append", &self.raft.append_entries(request).await.map_err(stopped)?)
            }
            Method::Vote => {
                let request = codec::decode("vote request", body)?;
                codec::encode("vote response", &self.raft.vote(request).await.map_err(stopped)?)
            }
            Method::PreVote => {
                let request = codec::decode("vote request", body)?;
                codec::encode("vote response", &self.raft.pre_vote(request).await.map_err(stopped)?)
            }
            Method::TransferLeader => {
                let request = codec::decode("transfer", body)?;
                codec::encode("transfer", &self.raft.handle_transfer_leader(request).await.map_err(stopped)?)
            }
            Method::Propose => {
                let proposal: Proposal = codec::decode("proposal", body)?;
                codec::encode("proposed", &self.propose_here(proposal, self.forwarded_within).await)
            }
            Method::ReadIndex => codec::encode("read index", &self.read_index_here().await?),
        }
    }

    /// Proposes as leader, stamping this node's clock; never forwards.
    pub(crate) async fn propose_here(&self, proposal: Proposal, within: Duration) -> Proposed {
        let envelope = Envelope { at: self.clock.now(), by: proposal.by, command: proposal.command };
        match tokio::time::timeout(within, self.raft.client_write(envelope)).await {
            Err(_) => Proposed::Unknown(format!("not committed within {} ms", within.as_millis())),
            Ok(Ok(written)) => Proposed::Done { index: written.log_id.index, outcome: written.data },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => Proposed::NotLeader(hint(&to)),
            // Discarded while another leader's log was adopted, or the core died on the way.
            Ok(Err(other)) => Proposed::Unknown(other.to_string()),
        }
    }

    /// The index a read must wait for, confirmed by a majority.
    pub(crate) async fn read_index_here(&self) -> Result<ReadAt, Error> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(ReadAt::Index(read.index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => Ok(ReadAt::NotLeader(hint(&to))),
            Err(RaftError::APIError(other)) => Ok(ReadAt::NoQuorum(other.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
        }
    }

    /// Begins to receive a snapshot.
    pub(crate) async fn receive(&self, head: &[u8]) -> Result<(SnapshotHead, Receiving), Error> {
        let head: SnapshotHead = codec::decode("snapshot head", head)?;
        self.check(head.to, &head.cluster)?;
        let snapshots = self.snapshots.clone();
        Ok((head, here::blocking(move || snapshots.receive()).await?))
    }

    /// Keeps a piece.
    pub(crate) async fn piece(&self, mut receiving: Receiving, piece: bytes::Bytes) -> Result<Receiving, Error> {
        here::blocking(move || {
            receiving.push(&piece)?;
            Ok(receiving)
        })
        .await
    }

    /// Verifies and installs a received snapshot; the answer is encoded.
    pub(crate) async fn install(&self, head: SnapshotHead, receiving: Receiving) -> Result<Vec<u8>, Error> {
        let meta = head.meta.clone();
        let snapshot: SnapshotFile = here::blocking(move || receiving.finish(&meta)).await?;
        let snapshot = Snapshot { meta: head.meta, snapshot };
        let answer = self.raft.install_full_snapshot(head.vote, snapshot).await.map_err(stopped)?;
        codec::encode("snapshot answer", &answer)
    }
}
