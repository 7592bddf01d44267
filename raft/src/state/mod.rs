//! The agreed state and the one function that changes it: `apply(draft, envelope, index) -> Outcome`.
//!
//! Why pure: every node applies the same log and must come to the same bytes, or "agreed" means nothing. So nothing
//! here reads a clock, a random number, a file or a map without order; it reads rows through [`Draft`], and what it
//! writes is one batch that the store commits together with the applied index. The rows live in RocksDB column
//! families, one [`Table`] each, because the design size does not fit one struct; later kinds of rows are further tables
//! and further variants of [`Command`], no row written today changes.
//!
//! Map: [`draft`] a batch being made · [`ring`] cluster, nodes, partitions · [`tenants`] limits and shards · [`seals`]
//! sealed windows and their cuts · [`blocks`] blocks and what may become of them, [`check`] what may be said of one ·
//! [`deletions`] deleted series · [`leases`] who may do what, with fencing numbers · [`view`] what the rest of the node
//! sees. A refused command writes nothing but log time.

mod blocks;
mod check;
mod deletions;
mod draft;
mod leases;
mod ring;
mod seals;
mod tenants;
mod view;

pub use blocks::{BLOCKS_MAX, BLOCKS_PER_COMMAND_MAX};
pub use check::{FILES_MAX, SOURCES_MAX};
pub use deletions::{DELETIONS_MAX, SELECTOR_BYTES_MAX, SELECTORS_MAX};
pub use leases::{LEASE_TTL_MS_MAX, LEASES_MAX, LeaseRow};
pub use ring::{Cluster, NODES_MAX, NodeRow, NodeSpec, NodeState, PARTITIONS_MAX, PartitionRow, REPLICAS_MAX};
pub use seals::OPEN_SEALS_MAX;
pub use tenants::{SHARD_SIZES_MAX, ShardSize, TENANTS_MAX, TenantRow};
pub use view::{TenantBlocks, TenantDeletions, TenantSeals, View};

pub(crate) use draft::{Base, Draft, Each, Table, Writes};
pub(crate) use ring::take_over;

use engram_model::Millis;
use engram_model::tenant::TenantId;
use serde::{Deserialize, Serialize};

use crate::command::{Command, Envelope, Fence, Outcome};
use crate::error::{Error, Refusal};

/// Who changed something, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Log index of the command.
    pub index: u64,
    /// Log time of the command.
    pub at: Millis,
    /// Who wanted it.
    pub by: String,
}

/// Longest free text of a command (author, zone, address, version, token) in bytes.
pub const TEXT_BYTES_MAX: usize = 255;

/// The key of a tenant's rows: its name, a zero byte (no name holds one), then what tells its rows apart.
fn tenant_key(tenant: &TenantId, rest: &[u8]) -> Vec<u8> {
    let name = tenant.as_str().as_bytes();
    let mut key = Vec::with_capacity(name.len() + 1 + rest.len());
    key.extend_from_slice(name);
    key.push(0);
    key.extend_from_slice(rest);
    key
}

/// Checks a free text's length.
fn bounded(what: &str, text: &str) -> Result<(), Refusal> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    let want = format!("at most {TEXT_BYTES_MAX} bytes");
    Err(Refusal::Bounds { what: what.to_owned(), want, got: text.len() as u64 })
}

/// Applies one committed command. `index` is its log index; the draft must hold everything applied before.
///
/// # Errors
/// The store failed or holds bytes it should not: the node must stop. A command that may not be is no error but
/// [`Outcome::Refused`].
pub(crate) fn apply(draft: &mut Draft<'_>, envelope: &Envelope, index: u64) -> Result<Outcome, Error> {
    let at = draft.advance_time(envelope.at)?;
    let stamp = Stamp { index, at, by: envelope.by.clone() };
    match step(draft, &envelope.command, stamp) {
        Ok(outcome) => Ok(outcome),
        Err(Stop::Refused(refusal)) => Ok(Outcome::Refused(refusal)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn step(draft: &mut Draft<'_>, command: &Command, stamp: Stamp) -> Result<Outcome, Stop> {
    bounded("author", &stamp.by)?;
    if let Some(fence) = fence_of(command) {
        leases::check(draft, fence)?;
    }
    match command {
        Command::Bootstrap { cluster_id, partition_count, founder, node } => {
            ring::bootstrap(draft, cluster_id, *partition_count, (*founder, node), stamp)
        }
        Command::RegisterNode { token, node } => ring::register(draft, token, node, stamp),
        Command::UpdateNode { id, node } => ring::update(draft, *id, node, stamp),
        Command::SetNodeState { id, to, expected } => ring::set_state(draft, *id, (*expected, *to), stamp),
        Command::SteerNode { id, to, ring } => ring::steer(draft, (*id, *to), *ring, stamp),
        Command::SetReplicationFactor { factor, ring } => ring::set_factor(draft, *factor, *ring, stamp),
        Command::SetReplicas { partition, expected, replicas, next } => {
            ring::set_replicas(draft, (*partition, *expected), replicas, next.as_deref(), stamp)
        }
        Command::TakeOver { survivor, lost } => ring::go_on_without(draft, *survivor, lost, &stamp),
        Command::CreateTenant { tenant, limits, shard_size } => {
            tenants::create(draft, tenant, limits, *shard_size, stamp)
        }
        Command::UpdateTenant { tenant, expected, limits, shard_size } => {
            tenants::update(draft, (tenant, *expected), limits.as_ref(), *shard_size, stamp)
        }
        Command::DeleteTenant { tenant, expected } => tenants::delete(draft, tenant, *expected, stamp),
        Command::RemoveTenant { tenant } => tenants::remove(draft, tenant),
        other => storage_step(draft, other, stamp),
    }
}

/// Blocks and all that leads to them.
fn storage_step(draft: &mut Draft<'_>, command: &Command, stamp: Stamp) -> Result<Outcome, Stop> {
    match command {
        Command::Seal { tenant, partition, number, window } => {
            seals::seal(draft, &(tenant.clone(), *partition), *number, *window)
        }
        Command::CommitCut { tenant, partition, number, block, digest, fence: _ } => {
            seals::commit_cut(draft, &(tenant.clone(), *partition), *number, (block.as_deref(), *digest), stamp.index)
        }
        Command::Forgot { tenant, partition, number, node } => {
            seals::forgot(draft, &(tenant.clone(), *partition), *number, *node)
        }
        Command::AddBlocks { tenant, blocks, fence: _ } => blocks::add(draft, tenant, blocks, stamp.index),
        Command::ReplaceBlocks { tenant, sources, results, duplicates, deleted, fence: _ } => {
            blocks::replace(draft, tenant, (sources, results), (*duplicates, *deleted), stamp)
        }
        Command::RepairBlock { tenant, damaged, results, fence: _ } => {
            blocks::repair(draft, tenant, *damaged, results, stamp)
        }
        Command::MarkBlocks { tenant, blocks, why, fence: _ } => blocks::mark(draft, tenant, blocks, why, stamp),
        Command::DropBlocks { tenant, blocks, fence: _ } => blocks::drop_marked(draft, tenant, blocks),
        Command::QuarantineBlock { tenant, block, why } => {
            blocks::quarantine(draft, &(tenant.clone(), *block), why.as_deref())
        }
        Command::AddDeletion { tenant, selectors, range } => deletions::add(draft, tenant, selectors, *range, stamp),
        Command::RemoveDeletion { tenant, index, fence: _ } => deletions::remove(draft, &(tenant.clone(), *index)),
        Command::AcquireLease { key, holder, ttl_ms, expired } => {
            leases::acquire(draft, key, *holder, *ttl_ms, expired, &stamp)
        }
        Command::ReleaseLease { fence } => leases::release(draft, fence),
        other => unreachable!("{} is a step of its own", other.name()),
    }
}

/// The lease a command stands or falls with.
fn fence_of(command: &Command) -> Option<&Fence> {
    match command {
        Command::CommitCut { fence, .. }
        | Command::AddBlocks { fence, .. }
        | Command::ReplaceBlocks { fence, .. }
        | Command::RepairBlock { fence, .. }
        | Command::MarkBlocks { fence, .. }
        | Command::DropBlocks { fence, .. }
        | Command::RemoveDeletion { fence, .. } => fence.as_ref(),
        _ => None,
    }
}

/// Why a command stopped: it may not be, or the store failed.
enum Stop {
    Refused(Refusal),
    Failed(Error),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

#[cfg(test)]
mod storage_tests;
#[cfg(test)]
pub(crate) mod tests;
