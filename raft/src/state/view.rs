//! What the rest of the node sees of the agreed state: an immutable value, stamped with the applied index.
//!
//! Why: readers must never meet the store, a lock or a half-applied batch. A view is published after each batch;
//! making the next one shares every row and almost every pointer with the last (see [`SharedMap`]).

use std::sync::Arc;

use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::TenantId;

use super::draft::{Base, Change, Table};
use super::ring::{Cluster, NodeRow, PartitionRow};
use super::tenants::TenantRow;
use crate::codec;
use crate::error::Error;
use crate::map::SharedMap;

/// The agreed state as of one log index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Log index of the last entry that is in here; none before the first.
    pub applied: Option<u64>,
    /// The cluster; none until it is bootstrapped.
    pub cluster: Option<Arc<Cluster>>,
    /// Nodes ever admitted.
    pub nodes: SharedMap<NodeId, NodeRow>,
    /// Partitions.
    pub partitions: SharedMap<PartitionId, PartitionRow>,
    /// Tenants, those marked for deletion included.
    pub tenants: SharedMap<TenantId, TenantRow>,
}

impl View {
    /// Reads everything from a store.
    pub(crate) fn load(base: &dyn Base, applied: Option<u64>) -> Result<Self, Error> {
        let mut view = Self { applied, ..Self::default() };
        base.scan(Table::Meta, &mut |key, value| {
            if key == b"cluster" {
                view.cluster = Some(Arc::new(codec::decode("cluster", value)?));
            }
            Ok(())
        })?;
        base.scan(Table::Nodes, &mut |key, value| {
            let key = key.try_into().map_err(|_| Error::corrupt("nodes", "key is not 8 bytes"))?;
            view.nodes.insert(NodeId(u64::from_be_bytes(key)), Arc::new(codec::decode("nodes", value)?));
            Ok(())
        })?;
        base.scan(Table::Partitions, &mut |key, value| {
            let key = key.try_into().map_err(|_| Error::corrupt("partitions", "key is not 4 bytes"))?;
            let row = Arc::new(codec::decode("partitions", value)?);
            view.partitions.insert(PartitionId(u32::from_be_bytes(key)), row);
            Ok(())
        })?;
        base.scan(Table::Tenants, &mut |key, value| {
            let name = std::str::from_utf8(key).map_err(|e| Error::corrupt("tenants", e.to_string()))?;
            let tenant = TenantId::new(name).map_err(|e| Error::corrupt("tenants", e.to_string()))?;
            view.tenants.insert(tenant, Arc::new(codec::decode("tenants", value)?));
            Ok(())
        })?;
        Ok(view)
    }

    /// The view after a batch.
    pub(crate) fn after(&self, applied: Option<u64>, changes: Vec<Change>) -> Self {
        let mut next = Self { applied, ..self.clone() };
        for change in changes {
            match change {
                Change::Cluster(row) => next.cluster = Some(row),
                Change::Node(key, row) => next.nodes.insert(key, row),
                Change::Partition(key, row) => next.partitions.insert(key, row),
                Change::Tenant(key, row) => next.tenants.insert(key, row),
            }
        }
        next
    }
}
