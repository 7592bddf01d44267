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
use tokio::sync::{mpsc, oneshot};

use super::log::{Encoded, Tail};
use super::{Batch, Db, LOG, LogId, RAFT};
use crate::codec;
use crate::error::Error;
use crate::group::TypeConfig;
use crate::here;

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

/// Starts the thread, or the task that does the same in a simulation; it ends when every sender is gone.
pub(super) fn start(db: Arc<Db>, tail: Arc<Mutex<Tail>>) -> Result<mpsc::Sender<Job>, Error> {
    let (tx, mut rx) = mpsc::channel(JOBS_MAX);
    let mut writer = Writer { db, tail, failed: None };
    if here::is_here() {
        let turns = async move {
            while let Some(first) = rx.recv().await {
                let group = gather(first, &mut rx);
                // Power may go between the two: then the disk has what it has, and nobody was told.
                let written = writer.write(&group, false);
                here::disk_time().await;
                let synced = written.and_then(|sync| if sync { writer.db.sync() } else { Ok(()) });
                writer.answer(group, synced);
            }
        };
        drop(here::spawn(turns));
        return Ok(tx);
    }
    let turns = move || {
        while let Some(first) = rx.blocking_recv() {
            let group = gather(first, &mut rx);
            let written = writer.write(&group, true);
            writer.answer(group, written.map(drop));
        }
    };
    std::thread::Builder::new()
        .name("raft-log".to_owned())
        .spawn(turns)
        .map_err(|source| Error::Io { path: "raft-log thread".to_owned(), source })?;
    Ok(tx)
}

/// Everything that is waiting, within the bounds of a group.
fn gather(first: Job, rx: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.bytes();
    let mut group = vec![first];
    while group.len() < GROUP_JOBS_MAX && bytes < GROUP_BYTES_MAX {
        let Ok(job) = rx.try_recv() else { break };
        bytes += job.bytes();
        group.push(job);
    }
    group
}

struct Writer {
    db: Arc<Db>,
    tail: Arc<Mutex<Tail>>,
    failed: Option<String>,
}

impl Writer {
    /// Writes a group; whether it has to be synced, which is done already where `at_once` says so.
    fn write(&self, group: &[Job], at_once: bool) -> Result<bool, Error> {
        if self.failed.is_some() {
            return Ok(false);
        }
        let (batch, sync) = batch(&self.db, group)?;
        self.db.write(batch, sync && at_once)?;
        Ok(sync)
    }

    fn answer(&mut self, group: Vec<Job>, written: Result<(), Error>) {
        if let Err(error) = written {
            tracing::error!(%error, "metadata log cannot be written, the group stops");
            self.failed.get_or_insert(error.to_string());
        }
        for job in group {
            let result = self.failed.as_ref().map_or(Ok(()), |why| Err(std::io::Error::other(why.clone())));
            job.answer(&self.tail, result);
        }
    }
}

/// One batch of a group, and whether it is to be synced.
fn batch<'a>(db: &'a Db, group: &[Job]) -> Result<(Batch<'a>, bool), Error> {
    let mut batch = db.batch();
    let mut sync = false;
    for job in group {
        match job {
            Job::Append { entries, .. } => {
                sync = true;
                for (index, bytes) in entries {
                    batch.put(LOG, index.to_be_bytes(), bytes)?;
                }
            }
            Job::Vote { bytes, .. } => {
                sync = true;
                batch.put(RAFT, "vote", bytes)?;
            }
            Job::Committed { bytes } => batch.put(RAFT, "committed", bytes)?,
            Job::Truncate { from, .. } => {
                batch.delete_range(LOG, &from.to_be_bytes(), &u64::MAX.to_be_bytes())?;
            }
            Job::Purge { from, upto, .. } => {
                batch.put(RAFT, "purged", codec::encode("purged", upto)?)?;
                batch.delete_range(LOG, &from.to_be_bytes(), &upto.index.saturating_add(1).to_be_bytes())?;
            }
        }
    }
    Ok((batch, sync))
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
