//! The agreed state and the one function that changes it: `apply(draft, envelope, index) -> Outcome`.
//!
//! Why pure: every node applies the same log and must come to the same bytes, or "agreed" means nothing. So nothing
//! here reads a clock, a random number, a file or a map without order; it reads rows through [`Draft`], and what it
//! writes is one batch that the store commits together with the applied index. The rows live in RocksDB column
//! families, one [`Table`] each, because the design size does not fit one struct; later kinds of rows (blocks, seals,
//! leases) are further tables and further variants of [`Command`], no row written today changes.
//!
//! Map: [`draft`] a batch being made · [`ring`] cluster, nodes, partitions · [`tenants`] limits and shards ·
//! [`view`] what the rest of the node sees. A refused command writes nothing but log time.

mod draft;
mod ring;
mod tenants;
mod view;

pub use ring::{Cluster, NODES_MAX, NodeRow, NodeSpec, NodeState, PARTITIONS_MAX, PartitionRow, REPLICAS_MAX};
pub use tenants::{SHARD_SIZES_MAX, ShardSize, TENANTS_MAX, TenantRow};
pub use view::View;

pub(crate) use draft::{Base, Draft, Each, Table};

use engram_model::Millis;
use serde::{Deserialize, Serialize};

use crate::command::{Command, Envelope, Outcome};
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
    match command {
        Command::Bootstrap { cluster_id, partition_count, founder, node } => {
            ring::bootstrap(draft, cluster_id, *partition_count, (*founder, node), stamp)
        }
        Command::RegisterNode { token, node } => ring::register(draft, token, node, stamp),
        Command::UpdateNode { id, node } => ring::update(draft, *id, node, stamp),
        Command::SetNodeState { id, to } => ring::set_state(draft, *id, *to, stamp),
        Command::SetReplicas { partition, expected, replicas, next } => {
            ring::set_replicas(draft, (*partition, *expected), replicas, next.as_deref(), stamp)
        }
        Command::CreateTenant { tenant, limits, shard_size } => {
            tenants::create(draft, tenant, limits, *shard_size, stamp)
        }
        Command::UpdateTenant { tenant, expected, limits, shard_size } => {
            tenants::update(draft, (tenant, *expected), limits.as_ref(), *shard_size, stamp)
        }
        Command::DeleteTenant { tenant, expected } => tenants::delete(draft, tenant, *expected, stamp),
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
pub(crate) mod tests;
