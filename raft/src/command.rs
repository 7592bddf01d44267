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

use engram_model::Millis;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::tenant::{TenantId, TenantLimits};
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
            Self::SetReplicas { .. } => "set_replicas",
            Self::CreateTenant { .. } => "create_tenant",
            Self::UpdateTenant { .. } => "update_tenant",
            Self::DeleteTenant { .. } => "delete_tenant",
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
    /// Nothing changed, for this reason.
    Refused(Refusal),
}
