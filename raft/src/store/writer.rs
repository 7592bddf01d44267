//! The one thread that writes the log: group commit.
//!
//! Why one thread: appends, votes, truncations and purges must reach the disk in the order they were asked for, and
//! an fsync costs milliseconds. So the writer takes everything that is waiting, makes one batch of it, writes it once
//! (synced if an entry or a vote is in it) and then answers all. While one group is being synced the next one
//! gathers. It also keeps RocksDB's stalls away from the runtime's workers.
//!
//! After a failed write nothing is tried again: what the disk holds is unknown, every later job fails, the group
//! stops and reopens from disk.

use std::sync::Arc;

use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use super::log::{Encoded, Tail};
use super::{Db, LOG, LogId, RAFT};
use crate::codec;
use crate::error::Error;
use crate::group::TypeConfig;

/// Jobs waiting above which `append` waits.
const JOBS_MAX: usize = 1024;
/// Jobs of one group.
const GROUP_JOBS_MAX: usize = 256;
/// Bytes of one group, before the job that goes over it.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// Answered when the job is written.
pub(super) type Done = oneshot::Sender<std::io::Result<()>>;

/// One thing to write.
pub(super) enum Job {
    /// Entries, in order; `mark` names them in the tail.
    Append { mark: u64, entries: Vec<Encoded>, done: IOFlushed<TypeConfig> },
    /// The vote.
    Vote { bytes: Vec<u8>, done: Done },
    /// What is committed; nobody waits.
    Committed { bytes: Vec<u8> },
    /// Removes entries from an index on.
    Truncate { from: u64, done: Done },
    /// Removes entries up to `upto`, of which those before `from` are gone already.
    Purge { from: u64, upto: LogId, done: Done },
}

/// Starts the thread; it ends when every sender is gone.
pub(super) fn start(db: Arc<Db>, tail: Arc<Mutex<Tail>>) -> Result<mpsc::Sender<Job>, Error> {
    let (tx, rx) = mpsc::channel(JOBS_MAX);
    std::thread::Builder::new()
        .name("raft-log".to_owned())
        .spawn(move || run(&db, &tail, rx))
        .map_err(|source| Error::Io { path: "raft-log thread".to_owned(), source })?;
    Ok(tx)
}

fn run(db: &Db, tail: &Mutex<Tail>, mut rx: mpsc::Receiver<Job>) {
    let mut failed: Option<String> = None;
    while let Some(first) = rx.blocking_recv() {
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while group.len() < GROUP_JOBS_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(job) = rx.try_recv() else { break };
            bytes += job.bytes();
            group.push(job);
        }
        if failed.is_none()
            && let Err(error) = write(db, &group)
        {
            tracing::error!(%error, "metadata log cannot be written, the group stops");
            failed = Some(error.to_string());
        }
        for job in group {
            let result = failed.as_ref().map_or(Ok(()), |why| Err(std::io::Error::other(why.clone())));
            job.answer(tail, result);
        }
    }
}

/// One batch, one write.
fn write(db: &Db, group: &[Job]) -> Result<(), Error> {
    let (log, raft) = (db.family(LOG)?, db.family(RAFT)?);
    let mut batch = WriteBatch::default();
    let mut sync = false;
    for job in group {
        match job {
            Job::Append { entries, .. } => {
                sync = true;
                for (index, bytes) in entries {
                    batch.put_cf(log, index.to_be_bytes(), bytes);
                }
            }
            Job::Vote { bytes, .. } => {
                sync = true;
                batch.put_cf(raft, "vote", bytes);
            }
            Job::Committed { bytes } => batch.put_cf(raft, "committed", bytes),
            Job::Truncate { from, .. } => {
                batch.delete_range_cf(log, from.to_be_bytes(), u64::MAX.to_be_bytes());
            }
            Job::Purge { from, upto, .. } => {
                batch.put_cf(raft, "purged", codec::encode("purged", upto)?);
                batch.delete_range_cf(log, from.to_be_bytes(), upto.index.saturating_add(1).to_be_bytes());
            }
        }
    }
    db.write(batch, sync)
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.iter().map(|(_, bytes)| bytes.len()).sum(),
            _ => 64,
        }
    }

    fn answer(self, tail: &Mutex<Tail>, result: std::io::Result<()>) {
        match self {
            Self::Append { mark, done, .. } => {
                if result.is_ok() {
                    tail.lock().written(mark);
                }
                done.io_completed(result);
            }
            // Whoever does not wait any more has stopped; there is nobody to tell.
            Self::Vote { done, .. } | Self::Truncate { done, .. } | Self::Purge { done, .. } => drop(done.send(result)),
            Self::Committed { .. } => {}
        }
    }
}
