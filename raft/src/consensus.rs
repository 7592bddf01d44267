//! What a node asks of the metadata group, as a port: [`Group`] is it, and a simulation may be.
//!
//! Why: everything a node decides stands on the views and answers that come through here. A simulation puts a
//! [`crate::Sequence`] behind it and decides itself which node learns what, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::command::Proposal;
use crate::error::Error;
use crate::group::{Committed, Group, Status};
use crate::state::View;

/// The metadata group, as one node takes part in it.
pub trait Consensus: Send + Sync {
    /// This node's id.
    fn id(&self) -> NodeId;
    /// See [`Group::propose`].
    fn propose(&self, proposal: Proposal, within: Duration) -> BoxFuture<'_, Result<Committed, Error>>;
    /// See [`Group::linearizable`].
    fn linearizable(&self, within: Duration) -> BoxFuture<'_, Result<Arc<View>, Error>>;
    /// See [`Group::applied`].
    fn applied(&self, index: u64, within: Duration) -> BoxFuture<'_, Result<Arc<View>, Error>>;
    /// See [`Group::watch`].
    fn watch(&self) -> watch::Receiver<Arc<View>>;
    /// See [`Group::status`].
    fn status(&self) -> Status;
    /// See [`Group::progress`].
    fn progress(&self) -> BTreeMap<NodeId, u64>;
    /// See [`Group::add_learner`].
    fn add_learner<'a>(&'a self, id: NodeId, address: &'a str, within: Duration) -> BoxFuture<'a, Result<(), Error>>;
    /// See [`Group::forget_learner`].
    fn forget_learner(&self, id: NodeId, within: Duration) -> BoxFuture<'_, Result<(), Error>>;
    /// See [`Group::set_voters`].
    fn set_voters(&self, voters: BTreeSet<NodeId>, within: Duration) -> BoxFuture<'_, Result<(), Error>>;
    /// See [`Group::transfer_leader`].
    fn transfer_leader(&self, to: NodeId) -> BoxFuture<'_, Result<(), Error>>;
    /// See [`Group::backup`].
    fn backup(&self, within: Duration) -> BoxFuture<'_, Result<File, Error>>;
}

impl Consensus for Group {
    fn id(&self) -> NodeId {
        Self::id(self)
    }

    fn propose(&self, proposal: Proposal, within: Duration) -> BoxFuture<'_, Result<Committed, Error>> {
        Self::propose(self, proposal, within).boxed()
    }

    fn linearizable(&self, within: Duration) -> BoxFuture<'_, Result<Arc<View>, Error>> {
        Self::linearizable(self, within).boxed()
    }

    fn applied(&self, index: u64, within: Duration) -> BoxFuture<'_, Result<Arc<View>, Error>> {
        Self::applied(self, index, within).boxed()
    }

    fn watch(&self) -> watch::Receiver<Arc<View>> {
        Self::watch(self)
    }

    fn status(&self) -> Status {
        Self::status(self)
    }

    fn progress(&self) -> BTreeMap<NodeId, u64> {
        Self::progress(self)
    }

    fn add_learner<'a>(&'a self, id: NodeId, address: &'a str, within: Duration) -> BoxFuture<'a, Result<(), Error>> {
        Self::add_learner(self, id, address, within).boxed()
    }

    fn forget_learner(&self, id: NodeId, within: Duration) -> BoxFuture<'_, Result<(), Error>> {
        Self::forget_learner(self, id, within).boxed()
    }

    fn set_voters(&self, voters: BTreeSet<NodeId>, within: Duration) -> BoxFuture<'_, Result<(), Error>> {
        Self::set_voters(self, voters, within).boxed()
    }

    fn transfer_leader(&self, to: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        Self::transfer_leader(self, to).boxed()
    }

    fn backup(&self, within: Duration) -> BoxFuture<'_, Result<File, Error>> {
        Self::backup(self, within).boxed()
    }
}
