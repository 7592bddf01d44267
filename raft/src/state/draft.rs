//! A batch being made: reads see its own writes first and the store below.
//!
//! Why: several committed entries are applied in one atomic batch, and each must see what the one before did. The
//! draft also remembers the typed rows it wrote, so that views are renewed without reading anything back.

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::Millis;
use engram_model::block::{BlockId, BlockRow, Deletion, Seals};
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::TenantId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::leases::LeaseRow;
use super::ring::{Cluster, NodeRow, PartitionRow};
use super::tenants::TenantRow;
use crate::codec;
use crate::error::Error;

/// A table of the agreed state: one column family, one byte in snapshots. Numbers and names never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// The cluster, log time, registration tokens, what is applied.
    Meta = 1,
    /// Nodes by id.
    Nodes = 2,
    /// Partitions by number.
    Partitions = 3,
    /// Tenants by name.
    Tenants = 4,
    /// Blocks by tenant and name.
    Blocks = 5,
    /// Seals by tenant and partition.
    Seals = 6,
    /// Deletions by tenant and index.
    Deletions = 7,
    /// Leases by key.
    Leases = 8,
}

impl Table {
    /// Every table, in the order of snapshots.
    pub(crate) const ALL: [Self; 8] = [
        Self::Meta,
        Self::Nodes,
        Self::Partitions,
        Self::Tenants,
        Self::Blocks,
        Self::Seals,
        Self::Deletions,
        Self::Leases,
    ];

    /// The column family's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Nodes => "nodes",
            Self::Partitions => "partitions",
            Self::Tenants => "tenants",
            Self::Blocks => "blocks",
            Self::Seals => "seals",
            Self::Deletions => "deletions",
            Self::Leases => "leases",
        }
    }

    /// Its byte in snapshots.
    pub(crate) fn byte(self) -> u8 {
        self as u8
    }

    /// The table of a snapshot's byte.
    pub(crate) fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.byte() == byte)
    }
}

/// Called with key and value of each row of a scan.
pub(crate) type Each<'e> = &'e mut dyn FnMut(&[u8], &[u8]) -> Result<(), Error>;

/// What a draft stands on: RocksDB, a pinned snapshot of it, or a map in tests.
pub(crate) trait Base {
    /// One row's bytes.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;
    /// Every row of a table in order of its keys.
    fn scan(&self, table: Table, each: Each<'_>) -> Result<(), Error>;
}

/// A row of a table.
pub(crate) trait Row: Serialize + DeserializeOwned {
    /// Where it lies.
    const TABLE: Table;
    /// What it is found by.
    type Key: ?Sized;
    /// The key's bytes; their order is the key's order.
    fn key(key: &Self::Key) -> Vec<u8>;
    /// How views learn of it.
    fn change(key: &Self::Key, row: Arc<Self>) -> Option<Change>;
}

/// A row that may be deleted.
pub(crate) trait Leaves: Row {
    /// How views learn that it is gone.
    fn gone(key: &Self::Key) -> Change;
}

/// A row that was written or deleted, for views.
#[derive(Debug)]
pub(crate) enum Change {
    /// The cluster's row.
    Cluster(Arc<Cluster>),
    /// A node's row.
    Node(NodeId, Arc<NodeRow>),
    /// A partition's row.
    Partition(PartitionId, Arc<PartitionRow>),
    /// A tenant's row; none: it is gone.
    Tenant(TenantId, Option<Arc<TenantRow>>),
    /// A block's row; none: it is gone.
    Block(TenantId, BlockId, Option<Arc<BlockRow>>),
    /// The seals of a tenant in a partition.
    Seals(TenantId, PartitionId, Arc<Seals>),
    /// A deletion of series; none: it is gone.
    Deletion(TenantId, u64, Option<Arc<Deletion>>),
    /// A lease; none: nobody holds it.
    Lease(String, Option<Arc<LeaseRow>>),
    /// Log time.
    Time(Millis),
}

/// A batch being made.
pub(crate) struct Draft<'a> {
    base: &'a dyn Base,
    writes: Writes,
    changes: Vec<Change>,
}

/// Rows to write, in order; none: to delete.
pub(crate) type Writes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;
/// Rows to write and the changes views must learn of.
pub(crate) type Written = (Writes, Vec<Change>);

impl<'a> Draft<'a> {
    /// An empty batch over `base`.
    pub(crate) fn new(base: &'a dyn Base) -> Self {
        Self { base, writes: BTreeMap::new(), changes: Vec::new() }
    }

    /// A row, as the batch so far leaves it.
    pub(crate) fn row<R: Row>(&self, key: &R::Key) -> Result<Option<R>, Error> {
        let at = (R::TABLE, R::key(key));
        if let Some(written) = self.writes.get(&at) {
            return written.as_ref().map(|bytes| codec::decode(R::TABLE.name(), bytes)).transpose();
        }
        let Some(bytes) = self.base.get(at.0, &at.1)? else { return Ok(None) };
        codec::decode(R::TABLE.name(), &bytes).map(Some)
    }

    /// Writes a row.
    pub(crate) fn put<R: Row>(&mut self, key: &R::Key, row: R) -> Result<(), Error> {
        let bytes = codec::encode(R::TABLE.name(), &row)?;
        self.writes.insert((R::TABLE, R::key(key)), Some(bytes));
        self.changes.extend(R::change(key, Arc::new(row)));
        Ok(())
    }

    /// Deletes a row, whether it is there or not.
    pub(crate) fn delete<R: Leaves>(&mut self, key: &R::Key) {
        self.writes.insert((R::TABLE, R::key(key)), None);
        self.changes.push(R::gone(key));
    }

    /// Moves log time forward to `at`, never back, and says where it is.
    pub(crate) fn advance_time(&mut self, at: Millis) -> Result<Millis, Error> {
        let before = self.row::<LogTime>(&())?.map_or(Millis::MIN, |t| t.at);
        if at > before {
            self.put::<LogTime>(&(), LogTime { at })?;
        }
        Ok(at.max(before))
    }

    /// The rows and changes.
    pub(crate) fn finish(self) -> Written {
        (self.writes, self.changes)
    }
}

/// Log time: the greatest of all applied commands.
#[derive(Debug, Serialize, serde::Deserialize)]
pub(crate) struct LogTime {
    pub(crate) at: Millis,
}

impl Row for LogTime {
    const TABLE: Table = Table::Meta;
    type Key = ();

    fn key(_: &()) -> Vec<u8> {
        b"time".to_vec()
    }

    fn change(_: &(), row: Arc<Self>) -> Option<Change> {
        Some(Change::Time(row.at))
    }
}
