//! The database of log and state: RocksDB, or its twin in memory for simulations.
//!
//! One door for both: families of rows in the order of their keys, batches that are written whole or not at all, a sync
//! that makes all before it durable, views that later writes do not change. What is above it does not know which it is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::{ColumnFamily, DB, DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions, WriteBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::memory::{self, Change, MemoryDisk, Tables};
use super::{LOG, RAFT, wal};
use crate::codec;
use crate::error::Error;
use crate::state::{Base, Each, Table};

enum Rows {
    Rocks(Rocks),
    Memory(memory::Opened),
}

pub(super) struct Rocks {
    db: DB,
    /// The greatest sequence number that is known to be synced.
    synced: AtomicU64,
    /// Declared after `db`: nobody else may mend the logs of a database that is open.
    _lock: File,
}

/// The open database. Dropping the last handle closes it and then fires the `closed` channel.
pub(crate) struct Db {
    rows: Rows,
    /// Declared after `rows`, so that it drops when the database is closed.
    _closed: oneshot::Sender<()>,
}

impl Rocks {
    fn open(dir: &Path) -> Result<Self, Error> {
        let path: PathBuf = dir.join("db");
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        let lock = dir.join("LOCK");
        let file = File::options().write(true).create(true).truncate(false).open(&lock);
        let file = file.and_then(|file| file.try_lock().map(|()| file).map_err(std::io::Error::from));
        let lock = file.map_err(|e| Error::io(&lock, e))?;
        if let Some(torn) = wal::mend(&path, dir)? {
            let (log, at, bytes) = (torn.log.display(), torn.at, torn.bytes);
            tracing::warn!(%log, at, bytes, kept = %dir.display(), "metadata: an end that was never synced is cut off");
        }
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // A torn end is normal and cut off before; damage before it is not, and going on without what is behind it would be
        // to forget votes and entries that others count on. The manifest knows which logs must be there.
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
        let db = DB::open_cf_with_opts(&options, &path, families)?;
        // What was found was written to tables and synced.
        let synced = AtomicU64::new(db.latest_sequence_number());
        let rocks = Self { db, synced, _lock: lock };
        // Durable before any other: so the first record of the new log is never one that a power loss may take.
        rocks.write(rocks.batch(), true)?;
        Ok(rocks)
    }

    fn family(&self, name: &'static str) -> Result<&ColumnFamily, Error> {
        self.db.cf_handle(name).ok_or_else(|| Error::corrupt("database", format!("no column family {name}")))
    }

    /// A batch that says what is synced, and nothing else yet.
    fn batch(&self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        // Without the family no batch can be written at all, and each `put` says so.
        if let Ok(raft) = self.family(RAFT) {
            batch.put_cf(raft, wal::SYNCED, self.synced.load(Ordering::Acquire).to_le_bytes());
        }
        batch
    }

    fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), Error> {
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(sync);
        // Others may write meanwhile, before this batch or after it: its last number is this one or a later one.
        let last = self.db.latest_sequence_number().saturating_add(u64::try_from(batch.len()).unwrap_or_default());
        self.db.write_opt(batch, &options)?;
        if sync {
            self.synced.fetch_max(last, Ordering::AcqRel);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        let last = self.db.latest_sequence_number();
        self.db.flush_wal(true)?;
        self.synced.fetch_max(last, Ordering::AcqRel);
        Ok(())
    }
}

/// Key and value.
type Pair = (Vec<u8>, Vec<u8>);
/// Called with key and value; says whether to go on.
type Row<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<bool, Error>;

impl Db {
    /// Opens or makes the database in `dir/db`, once its logs end where they must. The receiver resolves once it is closed
    /// for good.
    pub(crate) fn open(dir: &Path) -> Result<(Self, oneshot::Receiver<()>), Error> {
        Ok(Self::of(Rows::Rocks(Rocks::open(dir)?)))
    }

    /// The database on a disk in memory.
    pub(crate) fn in_memory(disk: &MemoryDisk) -> (Self, oneshot::Receiver<()>) {
        Self::of(Rows::Memory(disk.open()))
    }

    fn of(rows: Rows) -> (Self, oneshot::Receiver<()>) {
        let (closed, gone) = oneshot::channel();
        (Self { rows, _closed: closed }, gone)
    }

    /// A row.
    pub(super) fn row(&self, family: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match &self.rows {
            Rows::Rocks(rocks) => Ok(rocks.db.get_cf(rocks.family(family)?, key)?),
            Rows::Memory(disk) => Ok(disk.rows().get(family).and_then(|rows| rows.get(key)).cloned()),
        }
    }

    /// Rows from a key on and before `end`, in order, as long as `each` says so.
    pub(super) fn each(
        &self,
        family: &'static str,
        (from, end): (&[u8], Option<&[u8]>),
        each: Row<'_>,
    ) -> Result<(), Error> {
        match &self.rows {
            Rows::Rocks(rocks) => {
                let mut options = ReadOptions::default();
                if let Some(end) = end {
                    options.set_iterate_upper_bound(end.to_vec());
                }
                let mode = IteratorMode::From(from, Direction::Forward);
                for row in rocks.db.iterator_cf_opt(rocks.family(family)?, options, mode) {
                    let (key, value) = row?;
                    if !each(&key, &value)? {
                        break;
                    }
                }
            }
            Rows::Memory(disk) => {
                let tables = disk.rows();
                let rows = tables.get(family).into_iter().flat_map(|rows| rows.range(from.to_vec()..));
                for (key, value) in rows.take_while(|(key, _)| end.is_none_or(|end| key.as_slice() < end)) {
                    if !each(key, value)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The last row.
    pub(super) fn last(&self, family: &'static str) -> Result<Option<Pair>, Error> {
        match &self.rows {
            Rows::Rocks(rocks) => {
                let last = rocks.db.iterator_cf(rocks.family(family)?, IteratorMode::End).next().transpose()?;
                Ok(last.map(|(key, value)| (key.into_vec(), value.into_vec())))
            }
            Rows::Memory(disk) => {
                let tables = disk.rows();
                let last = tables.get(family).and_then(|rows| rows.last_key_value());
                Ok(last.map(|(key, value)| (key.clone(), value.clone())))
            }
        }
    }

    /// A value of the `raft` column family.
    pub(crate) fn raft_get<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.row(RAFT, key.as_bytes())? else { return Ok(None) };
        codec::decode(key, &bytes).map(Some)
    }

    /// Writes a value of the `raft` column family and syncs it.
    pub(crate) fn raft_put<T: Serialize>(&self, key: &'static str, value: &T) -> Result<(), Error> {
        let mut batch = self.batch();
        batch.put(RAFT, key, codec::encode(key, value)?)?;
        self.write(batch, true)
    }

    /// An empty batch of this database.
    pub(super) fn batch(&self) -> Batch<'_> {
        let changes = match &self.rows {
            Rows::Rocks(rocks) => Changes::Rocks(rocks, rocks.batch()),
            Rows::Memory(_) => Changes::Memory(Vec::new()),
        };
        Batch(changes)
    }

    /// Writes a batch; with `sync` it is durable, and everything before it too, when this returns.
    pub(super) fn write(&self, batch: Batch<'_>, sync: bool) -> Result<(), Error> {
        match (&self.rows, batch.0) {
            (Rows::Rocks(rocks), Changes::Rocks(_, batch)) => rocks.write(batch, sync),
            (Rows::Memory(disk), Changes::Memory(batch)) => {
                disk.write(batch).map_err(in_memory)?;
                if sync { self.sync() } else { Ok(()) }
            }
            _ => Err(Error::corrupt("batch", "it belongs to another database")),
        }
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        match &self.rows {
            Rows::Rocks(rocks) => rocks.sync(),
            Rows::Memory(disk) => disk.sync().map_err(in_memory),
        }
    }
}

fn in_memory(source: std::io::Error) -> Error {
    Error::io(Path::new("in memory"), source)
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
        self.row(table.name(), key)
    }

    fn scan(&self, table: Table, each: Each<'_>) -> Result<(), Error> {
        self.each(table.name(), (&[], None), &mut |key, value| each(key, value).map(|()| true))
    }
}

enum Changes<'a> {
    Rocks(&'a Rocks, WriteBatch),
    Memory(Vec<Change>),
}

/// Changes of rows that become true together.
pub(super) struct Batch<'a>(Changes<'a>);

impl Batch<'_> {
    pub(super) fn put(
        &mut self,
        family: &'static str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        match &mut self.0 {
            Changes::Rocks(rocks, batch) => batch.put_cf(rocks.family(family)?, key, value),
            Changes::Memory(all) => all.push(Change::Put(family, key.as_ref().to_vec(), value.as_ref().to_vec())),
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, family: &'static str, key: impl AsRef<[u8]>) -> Result<(), Error> {
        match &mut self.0 {
            Changes::Rocks(rocks, batch) => batch.delete_cf(rocks.family(family)?, key),
            Changes::Memory(all) => all.push(Change::Delete(family, key.as_ref().to_vec())),
        }
        Ok(())
    }

    /// From `from` to before `end`.
    pub(super) fn delete_range(&mut self, family: &'static str, from: &[u8], end: &[u8]) -> Result<(), Error> {
        match &mut self.0 {
            Changes::Rocks(rocks, batch) => batch.delete_range_cf(rocks.family(family)?, from, end),
            Changes::Memory(all) => all.push(Change::DeleteRange(family, from.to_vec(), end.to_vec())),
        }
        Ok(())
    }
}

/// A view of the database that later writes do not change.
pub(super) enum Pinned<'a> {
    Rocks(&'a Rocks, rocksdb::Snapshot<'a>),
    Memory(Arc<Tables>),
}

impl<'a> Pinned<'a> {
    pub(super) fn new(db: &'a Db) -> Self {
        match &db.rows {
            Rows::Rocks(rocks) => Self::Rocks(rocks, rocks.db.snapshot()),
            Rows::Memory(disk) => Self::Memory(disk.rows()),
        }
    }
}

impl Base for Pinned<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Rocks(rocks, snapshot) => Ok(snapshot.get_cf(rocks.family(table.name())?, key)?),
            Self::Memory(tables) => Ok(tables.get(table.name()).and_then(|rows| rows.get(key)).cloned()),
        }
    }

    fn scan(&self, table: Table, each: Each<'_>) -> Result<(), Error> {
        match self {
            Self::Rocks(rocks, snapshot) => {
                for row in snapshot.iterator_cf(rocks.family(table.name())?, IteratorMode::Start) {
                    let (key, value) = row?;
                    each(&key, &value)?;
                }
                Ok(())
            }
            Self::Memory(tables) => {
                let rows = tables.get(table.name());
                rows.into_iter().flatten().try_for_each(|(key, value)| each(key, value))
            }
        }
    }
}
