//! What only the leader can do or know about the group's members.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_model::place::NodeId;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;

use super::Group;
use super::inner::stopped;
use crate::error::Error;

impl Group {
    /// How far each member's log is known to agree with the leader's, by index; empty on a node that does not lead.
    #[must_use]
    pub fn progress(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let known = metrics.replication.as_ref();
        known.map_or_else(BTreeMap::new, |all| {
            all.iter().map(|(id, at)| (NodeId(*id), at.as_ref().map_or(0, |at| at.index))).collect()
        })
    }

    /// As leader: asks a voter to lead instead. Returns when the request is on its way; who leads then shows in the
    /// status.
    ///
    /// # Errors
    /// The group has stopped on this node.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), Error> {
        self.inner.raft.trigger().transfer_leader(to.0).await.map_err(stopped)
    }

    /// As leader: a learner that is gone for good is no longer sent the log.
    ///
    /// # Errors
    /// [`Error::NotLeader`], or the change was not committed in time.
    pub async fn forget_learner(&self, id: NodeId, within: Duration) -> Result<(), Error> {
        let gone = ChangeMembers::RemoveNodes(BTreeSet::from([id.0]));
        let change = self.inner.raft.change_membership(gone, true);
        self.inner.changed(tokio::time::timeout(within, change).await)
    }
}
