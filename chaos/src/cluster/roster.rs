//! Whom clients may ask.

use crate::client::Client;
use std::sync::{PoisonError, RwLock};

/// Whom clients may ask: the nodes by index. Shared with the workload; nodes are added and taken away.
#[derive(Debug, Default)]
pub(crate) struct Roster(RwLock<Vec<Option<Client>>>);

impl Roster {
    /// Nodes that are listed now.
    pub(crate) fn listed(&self) -> Vec<usize> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().enumerate().filter(|(_, client)| client.is_some()).map(|(node, _)| node).collect()
    }

    /// The way to a node, `None` for one that is not listed.
    pub(crate) fn client(&self, node: usize) -> Option<Client> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned().flatten()
    }

    pub(super) fn set(&self, node: usize, client: Option<Client>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() <= node {
            all.resize(node + 1, None);
        }
        all[node] = client;
    }
}
