//! The group's store: one RocksDB for Raft's log and vote and for the agreed state.
//!
//! Why one: log and state share one write-ahead log, so what survives a crash is a prefix of what was written,
//! in the order in which it was written.
//!
//! What is synced when: entries and votes before anyone is told of them ([`log`]); the state before it is shown (a node
//! that comes back without a leader would show less than before: epochs and versions would go back); the committed
//! index, truncation and purge never (they ride on the next sync; losing them costs a replay, not an answer); snapshots
//! as files, before the log they replace may go ([`snapshot`]). No call here runs long on a worker of the runtime: the
//! log has one writer thread, the rest runs on the blocking pool.
//!
//! Map: [`log`] entries and vote · [`writer`] the thread that groups commits · [`machine`] applied state ·
//! [`snapshot`] files · [`backup`] for another cluster · [`recover`] when the majority is gone · [`rows`] the database, [`wal`] the end of its log after a power loss,
//! [`files`] the folder, and [`memory`] instead of both in a simulation. Column families and keys are drawn in `docs/formats/raft.md`.

pub mod backup;
pub mod recover;

mod files;
mod log;
mod machine;
mod memory;
mod rows;
mod snapshot;
mod wal;
mod writer;

pub(crate) use log::LogStore;
pub(crate) use machine::Machine;
pub use memory::{Betrayal, MemoryDisk};
pub(crate) use rows::Db;
use rows::{Batch, Pinned};
pub(crate) use snapshot::{Receiving, SnapshotDir, SnapshotFile};

use openraft::type_config::alias::LogIdOf;

use crate::error::Error;
use crate::group::TypeConfig;
use crate::here;

/// Position of an entry: term, leader, index.
pub(crate) type LogId = LogIdOf<TypeConfig>;

/// Entries by index, eight bytes big-endian.
const LOG: &str = "log";
/// Vote, committed, purged, identity.
const RAFT: &str = "raft";

/// Runs blocking work off the runtime's workers, for openraft.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, std::io::Error> {
    here::blocking(work).await.map_err(Error::into_io)
}

#[cfg(test)]
mod tests;
