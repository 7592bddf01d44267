//! What the rest of the node sees of the agreed state: an immutable value, stamped with the applied index.
//!
//! Why: readers must never meet the store, a lock or a half-applied batch. A view is published after each batch;
//! making the next one shares every row and almost every pointer with the last (see [`SharedMap`]).

use std::sync::Arc;

use engram_model::Millis;
use engram_model::block::{BlockId, BlockRow, Deletion, Seals};
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::TenantId;

use super::draft::{Base, Change, LogTime, Table};
use super::leases::LeaseRow;
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
    /// Blocks of each tenant that has any, marked and quarantined ones included.
    pub blocks: SharedMap<TenantId, TenantBlocks>,
    /// Seals of each tenant that ever had one.
    pub seals: SharedMap<TenantId, TenantSeals>,
    /// Deletions of each tenant that has any.
    pub deletions: SharedMap<TenantId, TenantDeletions>,
    /// Leases that somebody holds.
    pub leases: SharedMap<String, LeaseRow>,
    /// Log time: the greatest of all applied commands.
    pub time: Millis,
}

/// The blocks of one tenant, by name and so by the time they were made.
pub type TenantBlocks = SharedMap<BlockId, BlockRow>;
/// The deletions of one tenant, by index.
pub type TenantDeletions = SharedMap<u64, Deletion>;

/// The seals of one tenant, by partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantSeals {
    /// Every partition that ever had one.
    pub all: SharedMap<PartitionId, Seals>,
    /// Those that have open ones.
    pub open: SharedMap<PartitionId, Seals>,
}

impl TenantSeals {
    fn insert(&mut self, partition: PartitionId, row: Arc<Seals>) {
        if row.open.is_empty() {
            self.open.remove(&partition);
        } else {
            self.open.insert(partition, row.clone());
        }
        self.all.insert(partition, row);
    }
}

/// Tenant and rest of a key made by `tenant_key`.
fn split<const N: usize>(what: &'static str, key: &[u8]) -> Result<(TenantId, [u8; N]), Error> {
    let wrong = || Error::corrupt(what, "key is not a tenant's");
    let (name, rest) = key.split_last_chunk::<N>().ok_or_else(wrong)?;
    let Some((0, name)) = name.split_last() else { return Err(wrong()) };
    let name = std::str::from_utf8(name).map_err(|e| Error::corrupt(what, e.to_string()))?;
    Ok((TenantId::new(name).map_err(|e| Error::corrupt(what, e.to_string()))?, *rest))
}

impl View {
    /// Index of the last change of a node or a replica set.
    #[must_use]
    pub fn ring(&self) -> u64 {
        self.cluster.as_ref().map_or(0, |cluster| cluster.ring)
    }

    /// Replicas each partition should have: what was agreed for the cluster, else `option`.
    #[must_use]
    pub fn replication_factor(&self, option: usize) -> usize {
        let agreed = self.cluster.as_ref().and_then(|cluster| cluster.replication_factor);
        agreed.map_or(option, |factor| factor as usize)
    }

    /// Reads everything from a store.
    pub(crate) fn load(base: &dyn Base, applied: Option<u64>) -> Result<Self, Error> {
        let mut view = Self { applied, ..Self::default() };
        base.scan(Table::Meta, &mut |key, value| {
            if key == b"cluster" {
                view.cluster = Some(Arc::new(codec::decode("cluster", value)?));
            } else if key == b"time" {
                view.time = codec::decode::<LogTime>("time", value)?.at;
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
        view.load_storage(base)?;
        Ok(view)
    }

    fn load_storage(&mut self, base: &dyn Base) -> Result<(), Error> {
        base.scan(Table::Blocks, &mut |key, value| {
            let (tenant, id) = split("blocks", key)?;
            let mut row: BlockRow = codec::decode("blocks", value)?;
            // One name for all of a tenant's rows, not one each: there may be millions.
            row.meta.tenant = self.tenants.key(&tenant).unwrap_or(&tenant).clone();
            let id = BlockId(u128::from_be_bytes(id));
            self.blocks.edit(&tenant, |blocks| blocks.insert(id, Arc::new(row)));
            Ok(())
        })?;
        base.scan(Table::Seals, &mut |key, value| {
            let (tenant, partition) = split("seals", key)?;
            let row = Arc::new(codec::decode("seals", value)?);
            let partition = PartitionId(u32::from_be_bytes(partition));
            self.seals.edit(&tenant, |seals| seals.insert(partition, row));
            Ok(())
        })?;
        base.scan(Table::Deletions, &mut |key, value| {
            let (tenant, index) = split("deletions", key)?;
            let row = Arc::new(codec::decode("deletions", value)?);
            self.deletions.edit(&tenant, |deletions| deletions.insert(u64::from_be_bytes(index), row));
            Ok(())
        })?;
        base.scan(Table::Leases, &mut |key, value| {
            let key = std::str::from_utf8(key).map_err(|e| Error::corrupt("leases", e.to_string()))?;
            self.leases.insert(key.to_owned(), Arc::new(codec::decode("leases", value)?));
            Ok(())
        })
    }

    /// The view after a batch.
    pub(crate) fn after(&self, applied: Option<u64>, changes: Vec<Change>) -> Self {
        let mut next = Self { applied, ..self.clone() };
        for change in changes {
            match change {
                Change::Cluster(row) => next.cluster = Some(row),
                Change::Node(key, row) => next.nodes.insert(key, row),
                Change::Partition(key, row) => next.partitions.insert(key, row),
                Change::Tenant(key, Some(row)) => next.tenants.insert(key, row),
                Change::Tenant(key, None) => drop(next.tenants.remove(&key)),
                Change::Block(tenant, id, row) => keep(&mut next.blocks, &tenant, id, row),
                Change::Seals(tenant, partition, row) => {
                    next.seals.edit(&tenant, |seals| seals.insert(partition, row));
                }
                Change::Deletion(tenant, index, row) => keep(&mut next.deletions, &tenant, index, row),
                Change::Lease(key, Some(row)) => next.leases.insert(key, row),
                Change::Lease(key, None) => drop(next.leases.remove(&key)),
                Change::Time(at) => next.time = at,
            }
        }
        next
    }
}

/// Puts a row among a tenant's, or takes it out; a tenant without rows has no map.
fn keep<K: Ord + Clone, V>(
    tenants: &mut SharedMap<TenantId, SharedMap<K, V>>,
    tenant: &TenantId,
    key: K,
    row: Option<Arc<V>>,
) {
    let Some(row) = row else {
        tenants.edit(tenant, |rows| drop(rows.remove(&key)));
        if tenants.get(tenant).is_some_and(|rows| rows.is_empty()) {
            tenants.remove(tenant);
        }
        return;
    };
    tenants.edit(tenant, |rows| rows.insert(key, row));
}
