//! What can go wrong between a proposal and its outcome, and who must act.

use engram_model::block::BlockId;
use engram_model::digest::Digest;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::tenant::TenantId;
use engram_model::{Class, Classed, Millis};
use serde::{Deserialize, Serialize};

use crate::state::NodeState;

/// Where the leader is thought to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Its id.
    pub id: NodeId,
    /// Its gRPC address, `host:port`.
    pub address: String,
}

/// Why a committed command changed nothing. Part of the outcome, so it is the same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The first command must be `Bootstrap`.
    #[error("the cluster is not bootstrapped yet")]
    NotBootstrapped,
    /// Another cluster lives here.
    #[error("the cluster is bootstrapped already, as {cluster}")]
    AlreadyBootstrapped {
        /// The id it was given.
        cluster: String,
    },
    /// A text or number is outside its bounds.
    #[error("{what} must be {want}, got {got}")]
    Bounds {
        /// Which field.
        what: String,
        /// What is allowed.
        want: String,
        /// What came.
        got: u64,
    },
    /// No node has this id.
    #[error("there is no node {}", .id.0)]
    UnknownNode {
        /// The id.
        id: NodeId,
    },
    /// A node cannot go from this state to that one.
    #[error("node {} is {from}, it cannot become {to}", .id.0)]
    NodeState {
        /// The node.
        id: NodeId,
        /// Where it is.
        from: NodeState,
        /// Where it was to go.
        to: NodeState,
    },
    /// No partition has this number.
    #[error("there is no partition {}", .partition.0)]
    UnknownPartition {
        /// The number.
        partition: PartitionId,
    },
    /// Somebody else changed the replica set first.
    #[error("partition {} is at epoch {}, not {}", .partition.0, .found.0, .expected.0)]
    Epoch {
        /// The partition.
        partition: PartitionId,
        /// The epoch the caller had read.
        expected: Epoch,
        /// The epoch it has.
        found: Epoch,
    },
    /// Nodes or replica sets have changed since the caller looked.
    #[error("nodes or replica sets have changed since: the ring is of index {found}, not {expected}")]
    Ring {
        /// The ring the caller had read.
        expected: u64,
        /// The ring it is.
        found: u64,
    },
    /// A replica set must name at least one node, each once, none dead.
    #[error("replica set of partition {}: {why}", .partition.0)]
    Replicas {
        /// The partition.
        partition: PartitionId,
        /// What is wrong with it.
        why: String,
    },
    /// No tenant has this name.
    #[error("there is no tenant {tenant}")]
    UnknownTenant {
        /// The name.
        tenant: TenantId,
    },
    /// The tenant is marked for deletion.
    #[error("tenant {tenant} is being deleted")]
    TenantDeleted {
        /// The name.
        tenant: TenantId,
    },
    /// Something of the tenant is left.
    #[error("tenant {tenant} cannot be forgotten: {why}")]
    TenantInUse {
        /// The name.
        tenant: TenantId,
        /// What is left.
        why: String,
    },
    /// Somebody else changed the tenant first.
    #[error("tenant {tenant} is at version {found}, not {expected}")]
    Version {
        /// The name.
        tenant: TenantId,
        /// The version the caller had read.
        expected: u64,
        /// The version it has.
        found: u64,
    },
    /// A bound is reached.
    #[error("the cluster already has {max} {what}")]
    TooMany {
        /// Of what.
        what: String,
        /// The bound.
        max: u64,
    },
    /// Somebody else sealed first.
    #[error("the next seal of {tenant} in partition {} is {found}, not {expected}", .partition.0)]
    SealNumber {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// The number the caller had read.
        expected: u64,
        /// The number it is.
        found: u64,
    },
    /// No seal of this number is open.
    #[error("seal {number} of {tenant} in partition {} is not open", .partition.0)]
    UnknownSeal {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// The number.
        number: u64,
    },
    /// The seal has another cut already.
    #[error("seal {number} of {tenant} in partition {} is cut already{}", .partition.0, .block.map(|id| format!(", as block {id}")).unwrap_or_default())]
    CutAlready {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// The number.
        number: u64,
        /// Its block.
        block: Option<BlockId>,
    },
    /// A replica cannot forget what is in no block yet.
    #[error("seal {number} of {tenant} in partition {} is not cut yet", .partition.0)]
    NotCut {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// The number.
        number: u64,
    },
    /// No block has this name.
    #[error("tenant {tenant} has no block {block}")]
    UnknownBlock {
        /// The tenant.
        tenant: TenantId,
        /// The name.
        block: BlockId,
    },
    /// Another block has this name.
    #[error("there is another block {block} already")]
    BlockExists {
        /// The name.
        block: BlockId,
    },
    /// What is said of a block cannot be.
    #[error("block {block}: {why}")]
    BadBlock {
        /// Its name.
        block: BlockId,
        /// What is wrong.
        why: String,
    },
    /// The block is marked for deletion.
    #[error("block {block} is marked for deletion since index {index}")]
    BlockMarked {
        /// Its name.
        block: BlockId,
        /// Of the metadata.
        index: u64,
    },
    /// Only marked blocks can be dropped.
    #[error("block {block} is not marked for deletion")]
    BlockInUse {
        /// Its name.
        block: BlockId,
    },
    /// The block is known to be damaged.
    #[error("block {block} is quarantined: {why}")]
    BlockQuarantined {
        /// Its name.
        block: BlockId,
        /// What was found.
        why: String,
    },
    /// Only a quarantined block can be repaired.
    #[error("block {block} is not quarantined")]
    NotQuarantined {
        /// Its name.
        block: BlockId,
    },
    /// A replacement would lose or invent samples.
    #[error("digests do not add up: the sources hold {} samples ({:016x}{:016x}), results, duplicates and deleted {} ({:016x}{:016x})", .sources.count, .sources.high, .sources.low, .accounted.count, .accounted.high, .accounted.low)]
    Digest {
        /// Of what is to be replaced.
        sources: Digest,
        /// Of what comes instead, duplicates and deleted samples.
        accounted: Digest,
    },
    /// No deletion has this index.
    #[error("tenant {tenant} has no deletion {index}")]
    UnknownDeletion {
        /// The tenant.
        tenant: TenantId,
        /// The index.
        index: u64,
    },
    /// Somebody else holds the lease.
    #[error("lease {key} is held by node {} until {expires_at}", .node.0)]
    LeaseHeld {
        /// What is leased.
        key: String,
        /// The holder.
        node: NodeId,
        /// Log time until then.
        expires_at: Millis,
    },
    /// Another block of the seal is agreed that the caller did not know of.
    #[error("seal {number} of {tenant} in partition {} has a block since index {found}, this one knows those of {expected}", .partition.0)]
    SealCompleted {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// The number.
        number: u64,
        /// The index whose blocks the caller had compared with.
        expected: u64,
        /// The index of the seal's newest block.
        found: u64,
    },
    /// The lease under which the command was made is somebody else's, or nobody's, by now.
    #[error("lease {key} has fence {}, not {expected}", .found.map_or_else(|| "none".to_owned(), |f| f.to_string()))]
    Fenced {
        /// What is leased.
        key: String,
        /// The number the caller has.
        expected: u64,
        /// The number it has; none: nobody holds it.
        found: Option<u64>,
    },
}

impl Classed for Refusal {
    fn class(&self) -> Class {
        match self {
            Self::NotBootstrapped | Self::Epoch { .. } => Class::Unavailable,
            Self::UnknownNode { .. }
            | Self::UnknownPartition { .. }
            | Self::UnknownTenant { .. }
            | Self::UnknownSeal { .. }
            | Self::UnknownBlock { .. }
            | Self::UnknownDeletion { .. } => Class::NotFound,
            Self::TooMany { .. } => Class::Limited,
            Self::Version { .. }
            | Self::Ring { .. }
            | Self::TenantInUse { .. }
            | Self::SealNumber { .. }
            | Self::CutAlready { .. }
            | Self::SealCompleted { .. }
            | Self::NotCut { .. }
            | Self::BlockExists { .. }
            | Self::BlockMarked { .. }
            | Self::BlockInUse { .. }
            | Self::BlockQuarantined { .. }
            | Self::NotQuarantined { .. }
            | Self::LeaseHeld { .. }
            | Self::Fenced { .. } => Class::Conflict,
            // A block whose digest does not add up was made wrongly, or its sources have rotted.
            Self::Digest { .. } => Class::Internal,
            _ => Class::Invalid,
        }
    }
}

/// What can go wrong in the metadata group.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This node does not lead and the leader could not be asked in time. Nothing was appended: ask again.
    #[error("this node does not lead the metadata group{}", .leader.as_ref().map(|h| format!(", node {} at {} does", h.id.0, h.address)).unwrap_or_default())]
    NotLeader {
        /// Who does, if known.
        leader: Option<Hint>,
    },
    /// The command was committed and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The proposal may or may not be committed; look before asking again.
    #[error("outcome of the proposal is unknown: {why}")]
    Unknown {
        /// What happened to it.
        why: String,
    },
    /// No majority of voters answered; a read, so nothing was changed.
    #[error("the metadata group has no quorum: {why}")]
    NoQuorum {
        /// Who is missing, as far as known.
        why: String,
    },
    /// The command is larger than an entry may be.
    #[error("command of {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Another node was meant: an address was given away, or names the wrong machine.
    #[error("call for node {} of cluster {cluster} reached another", .to.0)]
    Misaddressed {
        /// Who was meant.
        to: NodeId,
        /// Of which cluster.
        cluster: String,
    },
    /// The settings contradict each other.
    #[error("metadata settings: {why}")]
    Settings {
        /// Which and how.
        why: String,
    },
    /// The group is shut down, or stopped after a failure of its disk.
    #[error("the metadata group has stopped: {why}")]
    Stopped {
        /// Why.
        why: String,
    },
    /// The store failed.
    #[error("metadata store: {0}")]
    Store(#[from] rocksdb::Error),
    /// A file of the store failed.
    #[error("metadata file {path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// How.
        source: std::io::Error,
    },
    /// Bytes that this version did not write.
    #[error("damaged metadata ({what}): {why}")]
    Corrupt {
        /// Which kind of record.
        what: &'static str,
        /// What was found.
        why: String,
    },
}

impl Error {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    pub(crate) fn corrupt(what: &'static str, why: impl Into<String>) -> Self {
        Self::Corrupt { what, why: why.into() }
    }

    /// The shape openraft wants storage failures in.
    pub(crate) fn into_io(self) -> std::io::Error {
        match self {
            Self::Io { source, .. } => source,
            other => std::io::Error::other(other.to_string()),
        }
    }
}

impl Classed for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotLeader { .. } | Self::NoQuorum { .. } | Self::Stopped { .. } => Class::Unavailable,
            Self::Refused(refusal) => refusal.class(),
            Self::Unknown { .. } => Class::Timeout,
            Self::TooLarge { .. } | Self::Settings { .. } | Self::Misaddressed { .. } => Class::Invalid,
            Self::Store(_) | Self::Io { .. } | Self::Corrupt { .. } => Class::Internal,
        }
    }
}
