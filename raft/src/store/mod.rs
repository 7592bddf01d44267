//! The group's store: one RocksDB for Raft's log and vote and for the agreed state.
//!
//! Why one: log and state share one write-ahead log, so what survives a crash is a prefix of what was written, and
//! the state can be applied without a sync of its own: its entries are durable before it, or vanish together with it.
//!
//! What is synced when: entries and votes before anyone is told of them ([`log`]); the state, the committed index,
//! truncation and purge never (they ride on the next sync; losing them costs a replay, not an answer); snapshots as
//! files, before the log they replace may go ([`snapshot`]). No call here runs long on a worker of the runtime: the
//! log has one writer thread, the rest runs on the blocking pool.
//!
//! Map: [`log`] entries and vote · [`writer`] the thread that groups commits · [`machine`] applied state ·
//! [`snapshot`] files · [`backup`] for another cluster ·
//! [`recover`] when the majority is gone. Column families and keys are drawn in `docs/formats/raft.md`.

pub mod backup;
pub mod recover;

mod log;
mod machine;
mod snapshot;
mod writer;

pub(crate) use log::LogStore;
pub(crate) use machine::Machine;
pub(crate) use snapshot::{Receiving, SnapshotDir, SnapshotFile};

use std::path::{Path, PathBuf};

use openraft::type_config::alias::LogIdOf;
use rocksdb::{ColumnFamily, DB, DBRecoveryMode, IteratorMode, Options, WriteBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::codec;
use crate::error::Error;
use crate::group::TypeConfig;
use crate::state::{Base, Table};

/// Position of an entry: term, leader, index.
pub(crate) type LogId = LogIdOf<TypeConfig>;

/// Entries by index, eight bytes big-endian.
const LOG: &str = "log";
/// Vote, committed, purged, identity.
const RAFT: &str = "raft";

/// The open database. Dropping the last handle closes it and then fires the `closed` channel.
pub(crate) struct Db {
    rocks: DB,
    /// Declared after `rocks`, so that it drops when the database is closed.
    _closed: oneshot::Sender<()>,
}

impl Db {
    /// Opens or makes the database in `dir/db`. The receiver resolves once it is closed for good.
    pub(crate) fn open(dir: &Path) -> Result<(Self, oneshot::Receiver<()>), Error> {
        let path: PathBuf = dir.join("db");
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // A torn end is normal; damage before it is not, and going on without what is behind it would be to forget votes
        // and entries that others count on. The manifest knows which logs must be there.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_max_total_wal_size(64 << 20);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(4);
        options.set_max_open_files(256);
        let mut family = Options::default();
        family.set_write_buffer_size(16 << 20);
        family.set_compression_type(rocksdb::DBCompressionType::Lz4);
        let names = [LOG, RAFT].into_iter().chain(Table::ALL.into_iter().map(Table::name));
        let families = names.map(|name| (name, family.clone()));
        let rocks = DB::open_cf_with_opts(&options, &path, families)?;
        let (closed, gone) = oneshot::channel();
        Ok((Self { rocks, _closed: closed }, gone))
    }

    fn family(&self, name: &'static str) -> Result<&ColumnFamily, Error> {
        self.rocks.cf_handle(name).ok_or_else(|| Error::corrupt("database", format!("no column family {name}")))
    }

    /// A value of the `raft` column family.
    pub(crate) fn raft_get<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.rocks.get_pinned_cf(self.family(RAFT)?, key)? else { return Ok(None) };
        codec::decode(key, &bytes).map(Some)
    }

    /// Writes a value of the `raft` column family and syncs it.
    pub(crate) fn raft_put<T: Serialize>(&self, key: &'static str, value: &T) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(RAFT)?, key, codec::encode(key, value)?);
        self.write(batch, true)
    }

    /// Writes a batch; with `sync` it is durable, and everything before it too, when this returns.
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), Error> {
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(sync);
        Ok(self.rocks.write_opt(batch, &options)?)
    }

    /// Makes everything written so far durable.
    fn sync(&self) -> Result<(), Error> {
        Ok(self.rocks.flush_wal(true)?)
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            tracing::error!(%error, "metadata store could not be synced before it was closed");
        }
    }
}

impl Base for Db {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.rocks.get_cf(self.family(table.name())?, key)?)
    }

    fn scan(&self, table: Table, each: crate::state::Each<'_>) -> Result<(), Error> {
        for row in self.rocks.iterator_cf(self.family(table.name())?, IteratorMode::Start) {
            let (key, value) = row?;
            each(&key, &value)?;
        }
        Ok(())
    }
}

/// A view of the database that later writes do not change.
struct Pinned<'a> {
    db: &'a Db,
    snapshot: rocksdb::Snapshot<'a>,
}

impl<'a> Pinned<'a> {
    fn new(db: &'a Db) -> Self {
        Self { db, snapshot: db.rocks.snapshot() }
    }
}

impl Base for Pinned<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.snapshot.get_cf(self.db.family(table.name())?, key)?)
    }

    fn scan(&self, table: Table, each: crate::state::Each<'_>) -> Result<(), Error> {
        for row in self.snapshot.iterator_cf(self.db.family(table.name())?, IteratorMode::Start) {
            let (key, value) = row?;
            each(&key, &value)?;
        }
        Ok(())
    }
}

/// Runs blocking work off the runtime's workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, std::io::Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Error::into_io),
        Err(stopped) => Err(std::io::Error::other(stopped)),
    }
}

#[cfg(test)]
mod tests;
