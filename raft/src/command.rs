//! Every command, versioned: the only way agreed state changes.
//!
//! Why one enum: a command is bytes in a log that outlives the binary that wrote it and must mean the same on every
//! node. Rules: a variant's name and meaning never change (a new meaning is a new variant); a field that is added
//! carries `#[serde(default)]`; a node that meets a variant it does not know stops instead of guessing
//! ([`crate::Error::Corrupt`]). A command names what it expects to find (version, epoch), so that a repeated or late
//! one is refused instead of applied twice.
//!
//! [`Envelope`] adds what the leader knows: its clock. Applying never reads a clock of its own.

use std::fmt;

use engram_model::block::{BlockId, BlockMeta};
use engram_model::digest::Digest;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::{Millis, TimeRange};
use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::state::{NodeSpec, NodeState};

/// Largest encoded proposal in bytes; 64 of them still fit one append message.
pub const COMMAND_BYTES_MAX: usize = 256 << 10;

/// One change of the agreed state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command: names the cluster, admits its founder, gives it every partition. Repeating it with the same
    /// cluster id changes nothing.
    Bootstrap {
        /// Random name of the cluster, never reused.
        cluster_id: String,
        /// Partitions of the cluster, fixed for ever.
        partition_count: u32,
        /// Id of the founder: 1, which no log index of a registration can be.
        founder: NodeId,
        /// The founder.
        node: NodeSpec,
    },
    /// Admits a node; its id is this entry's log index. Repeating it with the same token answers the same id.
    RegisterNode {
        /// Random text of the joining node, so that a repeated registration is recognised.
        token: String,
        /// Who asks.
        node: NodeSpec,
    },
    /// A node tells its addresses, zone and version anew.
    UpdateNode {
        /// Which.
        id: NodeId,
        /// What is true now.
        node: NodeSpec,
    },
    /// Moves a node through its life: joining, active, suspect, draining, dead.
    SetNodeState {
        /// Which.
        id: NodeId,
        /// Into which state; from `dead` none leads back.
        to: NodeState,
        /// The state the caller has read. Entries of old logs name none: then any will do.
        #[serde(default)]
        expected: Option<NodeState>,
    },
    /// As `SetNodeState`, if no node and no replica set has changed since the ring of index `ring`.
    SteerNode {
        /// Which.
        id: NodeId,
        /// Into which state.
        to: NodeState,
        /// The ring the caller has read.
        ring: u64,
    },
    /// Says for the whole cluster how many replicas each partition should have, if the ring is still that of `ring`.
    SetReplicationFactor {
        /// How many.
        factor: u32,
        /// The ring the caller has read.
        ring: u64,
    },
    /// Gives a partition another replica set; its epoch grows by one.
    SetReplicas {
        /// Which.
        partition: PartitionId,
        /// The epoch the caller has read.
        expected: Epoch,
        /// The set that answers reads, in order of preference.
        replicas: Vec<NodeId>,
        /// While a change runs: the set that will replace it.
        next: Option<Vec<NodeId>>,
    },
    /// Makes a tenant, as its first write does. If there is one already it stays as it is.
    CreateTenant {
        /// Its name.
        tenant: TenantId,
        /// Its limits.
        limits: TenantLimits,
        /// How many partitions it uses; 0: all.
        shard_size: u32,
    },
    /// Changes a tenant if it is still at the version the caller has read.
    UpdateTenant {
        /// Its name.
        tenant: TenantId,
        /// The version the caller has read.
        expected: u64,
        /// New limits, or none to keep them.
        limits: Option<TenantLimits>,
        /// New shard size, or none to keep it.
        shard_size: Option<u32>,
    },
    /// Marks a tenant for deletion if it is still at the version the caller has read.
    DeleteTenant {
        /// Its name.
        tenant: TenantId,
        /// The version the caller has read.
        expected: u64,
    },
    /// Forgets a tenant that is marked for deletion, has no deletion of series and no open seal. The caller has seen that
    /// it has no blocks and that no head holds anything of it. Its seal numbers stay: a tenant that comes again under
    /// this name goes on counting.
    RemoveTenant {
        /// Its name.
        tenant: TenantId,
    },
    /// Ends a window of a tenant in a partition: every replica sets aside what it holds of it.
    Seal {
        /// Whose.
        tenant: TenantId,
        /// Where.
        partition: PartitionId,
        /// The number the caller has read as the next one: whoever is late is refused, so a repetition seals nothing.
        number: u64,
        /// The window.
        window: TimeRange,
    },
    /// Commits what a seal's cut gave. Repeating it with the same block changes nothing.
    CommitCut {
        /// Whose.
        tenant: TenantId,
        /// Where.
        partition: PartitionId,
        /// The seal.
        number: u64,
        /// The block; none when nothing was set aside, or all of it is deleted.
        block: Option<Box<BlockMeta>>,
        /// Digest of everything that was set aside, before deletions.
        digest: Digest,
        /// The lease under which it was made.
        fence: Option<Fence>,
    },
    /// A replica has forgotten what it had set aside for a seal that is cut. The seal goes when all replicas have.
    Forgot {
        /// Whose.
        tenant: TenantId,
        /// Where.
        partition: PartitionId,
        /// The seal.
        number: u64,
        /// The replica.
        node: NodeId,
    },
    /// Adds blocks that replace nothing: imported ones, and late ones of a cut. All or none; those that are there
    /// already with the same content are passed over.
    AddBlocks {
        /// Whose.
        tenant: TenantId,
        /// The blocks.
        blocks: Vec<BlockMeta>,
        /// The lease under which it was done.
        fence: Option<Fence>,
    },
    /// Puts blocks in the place of others, which are marked by it. All or none, and only if the digests say that no
    /// sample is lost: results + duplicates + deleted = sources.
    ReplaceBlocks {
        /// Whose.
        tenant: TenantId,
        /// The blocks to replace, sorted.
        sources: Vec<BlockId>,
        /// The blocks instead of them; none when every sample was deleted.
        results: Vec<BlockMeta>,
        /// Digest of samples that several sources held: what was held more than once.
        duplicates: Digest,
        /// Digest of samples that were deleted by orders or retention.
        deleted: Digest,
        /// The lease under which it was made.
        fence: Option<Fence>,
    },
    /// Puts blocks of the same digest in the place of a quarantined one, which is marked by it.
    RepairBlock {
        /// Whose.
        tenant: TenantId,
        /// The quarantined block.
        damaged: BlockId,
        /// The blocks instead of it.
        results: Vec<BlockMeta>,
        /// The lease under which it was made.
        fence: Option<Fence>,
    },
    /// Marks blocks for deletion: they are not read any more, their objects stay for a grace. Those marked already
    /// keep their mark.
    MarkBlocks {
        /// Whose.
        tenant: TenantId,
        /// Which, sorted.
        blocks: Vec<BlockId>,
        /// The reason, for people.
        why: String,
        /// The lease under which it was decided.
        fence: Option<Fence>,
    },
    /// Forgets marked blocks; their objects are gone. Those that are not there are passed over.
    DropBlocks {
        /// Whose.
        tenant: TenantId,
        /// Which, sorted.
        blocks: Vec<BlockId>,
        /// The lease under which it was done.
        fence: Option<Fence>,
    },
    /// Says that a block is damaged, or that it is whole again.
    QuarantineBlock {
        /// Whose.
        tenant: TenantId,
        /// Which.
        block: BlockId,
        /// What was found; none: it is whole again.
        why: Option<String>,
    },
    /// Deletes series: what the selectors select within the range is hidden from now on. The caller has parsed the
    /// selectors; here only their size is checked.
    AddDeletion {
        /// Whose.
        tenant: TenantId,
        /// One of them must select a series.
        selectors: Vec<String>,
        /// Samples of this time.
        range: TimeRange,
    },
    /// Forgets a deletion that every block and head has carried out.
    RemoveDeletion {
        /// Whose.
        tenant: TenantId,
        /// Its index.
        index: u64,
        /// The lease under which it was decided.
        fence: Option<Fence>,
    },
    /// Takes a lease that nobody holds, or that has expired by log time; renews it for the holder that has it.
    AcquireLease {
        /// What is leased.
        key: String,
        /// Who wants it.
        holder: Holder,
        /// How long from log time on, in milliseconds.
        ttl_ms: i64,
        /// Other leases the caller has seen expired long ago, to be cleared away.
        expired: Vec<String>,
    },
    /// Gives a lease back.
    ReleaseLease {
        /// The lease as it was got.
        fence: Fence,
    },
    /// Goes on without nodes that are gone for good, the majority among them: they are dead, and every partition is held by
    /// those of its replicas that are left, or by the survivor alone. Nobody proposes it: [`crate::recover`] writes it.
    TakeOver {
        /// Who goes on.
        survivor: NodeId,
        /// Who does not.
        lost: Vec<NodeId>,
    },
}

/// A lease as its holder got it: a command that carries it is refused once somebody else has the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// What is leased.
    pub key: String,
    /// The number it was given: the log index of the entry that gave it, so it only grows.
    pub number: u64,
}

/// Who holds a lease: one life of a process. A node that was started anew takes its own leases over at once, with
/// another number, because only one process can own its data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// A random number of this life of it.
    pub life: u64,
}

impl Command {
    /// The variant's name, for logs and counters.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bootstrap { .. } => "bootstrap",
            Self::RegisterNode { .. } => "register_node",
            Self::UpdateNode { .. } => "update_node",
            Self::SetNodeState { .. } => "set_node_state",
            Self::SteerNode { .. } => "steer_node",
            Self::SetReplicationFactor { .. } => "set_replication_factor",
            Self::SetReplicas { .. } => "set_replicas",
            Self::CreateTenant { .. } => "create_tenant",
            Self::UpdateTenant { .. } => "update_tenant",
            Self::DeleteTenant { .. } => "delete_tenant",
            Self::RemoveTenant { .. } => "remove_tenant",
            Self::Seal { .. } => "seal",
            Self::CommitCut { .. } => "commit_cut",
            Self::Forgot { .. } => "forgot",
            Self::AddBlocks { .. } => "add_blocks",
            Self::ReplaceBlocks { .. } => "replace_blocks",
            Self::RepairBlock { .. } => "repair_block",
            Self::MarkBlocks { .. } => "mark_blocks",
            Self::DropBlocks { .. } => "drop_blocks",
            Self::QuarantineBlock { .. } => "quarantine_block",
            Self::AddDeletion { .. } => "add_deletion",
            Self::RemoveDeletion { .. } => "remove_deletion",
            Self::AcquireLease { .. } => "acquire_lease",
            Self::ReleaseLease { .. } => "release_lease",
            Self::TakeOver { .. } => "take_over",
        }
    }
}

/// A command with its author, as a caller hands it in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Who wants it: a user, a token's name, or the part of the node that acts on its own.
    pub by: String,
    /// What.
    pub command: Command,
}

/// A command as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The leader's clock when it proposed. Applying uses the greatest time seen so far, so log time never runs back.
    pub at: Millis,
    /// Who wanted it.
    pub by: String,
    /// What.
    pub command: Command,
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} at {}", self.command.name(), self.by, self.at)
    }
}

/// What a committed entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The entry was Raft's own: a new leader's first entry or a change of voters.
    Internal,
    /// Done (or found done already); there is nothing to tell.
    Done,
    /// The node that was admitted, now or by an earlier entry with the same token.
    Node {
        /// Its id.
        id: NodeId,
    },
    /// The partition's new epoch.
    Partition {
        /// One more than before.
        epoch: Epoch,
    },
    /// The tenant as it is now.
    Tenant {
        /// Its version.
        version: u64,
        /// Whether this entry made it.
        created: bool,
    },
    /// The window is sealed.
    Seal {
        /// The seal's number.
        number: u64,
    },
    /// A deletion is ordered.
    Deletion {
        /// Its index.
        index: u64,
    },
    /// The lease is held.
    Lease {
        /// The number for [`Fence`].
        fence: u64,
        /// Log time at which it expires.
        expires_at: Millis,
    },
    /// Nothing changed, for this reason.
    Refused(Refusal),
}
