//! From a disk to the partitions that answer: the log is opened and read, most of it is applied, and the rest is for the
//! caller ([`Rest`]), because a partition may be served as soon as it is whole; each partition's actor starts.
//!
//! Why apart from the assembly of a node: this is what comes back after a crash, and whoever tests crashes, on whatever
//! disk, must come back by it.

use std::path::PathBuf;
use std::sync::Arc;

use engram_model::place::PartitionId;
use engram_model::time::Clock;
use engram_storage::Error;
use engram_storage::chunk::ChunkFiles;
use engram_storage::disk::Disk;
use engram_storage::head::{HeadOptions, Symbols};
use engram_storage::log::{Hand, NodeLog, OnWork, Options, Position};
use tokio_util::sync::CancellationToken;

use super::heads::Heads;
use super::partition::{self, Handle, LogBudget};
use super::reached::Reached;
use super::recover::{Parallel, Rest};
use crate::actor::Supervisor;
use crate::meta::Meta;

/// Bytes that may wait at the log; the log's own queue is larger, so nobody blocks in it.
const LOG_BUDGET_BYTES: usize = 256 << 20;

/// Where everything is, and how large it may grow.
pub struct Place {
    /// On which disk.
    pub disk: Arc<dyn Disk>,
    /// The data directory, which has a note of how far the log had come.
    pub root: PathBuf,
    /// Directory of the chunk files.
    pub head: PathBuf,
    /// Directory of the log.
    pub log: PathBuf,
    /// Partitions of the cluster.
    pub partitions: u32,
    /// Length of the windows that heads are cut by.
    pub window_ms: i64,
    /// Full chunks that lie on the heap, in all partitions, before they are put into files.
    pub full_chunk_bytes: usize,
    /// Size of the log's segments, in bytes.
    pub segment_bytes: u64,
    /// Chance for the salts of the log's segments.
    pub chance: u64,
    /// Called when the log has something to do, when that is done by hand.
    pub by_hand: Option<OnWork>,
}

/// What was there.
pub struct Opened {
    /// The heads by partition.
    pub heads: Arc<Vec<Heads>>,
    /// The log, open for appends.
    pub log: Arc<NodeLog>,
    /// What keeps the log going, when that is done by hand.
    pub hand: Option<Hand>,
    /// The note.
    pub reached: Reached,
    /// What is still to be applied.
    pub rest: Rest,
}

/// Why it could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk, or damage on it.
    #[error(transparent)]
    Storage(#[from] Error),
    /// What is there cannot be all.
    #[error("{0}")]
    Lost(String),
}

impl Place {
    /// The heads, empty.
    ///
    /// # Errors
    /// The disk, or a chunk file that is not as it was synced.
    pub fn heads(&self) -> Result<Arc<Vec<Heads>>, Error> {
        let symbols = Arc::new(Symbols::default());
        let options = HeadOptions { window_ms: self.window_ms };
        let each = self.full_chunk_bytes / (self.partitions.max(1) as usize);
        let files = ChunkFiles::open_all(&self.disk, &self.head, self.partitions, each)?;
        let with_files = |files| Heads::with_files(symbols.clone(), options, files);
        Ok(Arc::new(files.into_iter().map(with_files).collect()))
    }

    /// Opens the log, reads it to its end and applies most of it to `heads`, which are empty. `progress` is told of each
    /// entry how many were read before it, and their bytes. Takes its time, and blocks.
    ///
    /// # Errors
    /// The disk, damage, or a log that ends before it had come to.
    pub fn open(self, heads: Arc<Vec<Heads>>, progress: &mut dyn FnMut(u64, u64)) -> Result<Opened, OpenError> {
        let reached = Reached::new(self.disk.clone(), &self.root);
        let options = Options {
            segment_bytes: self.segment_bytes,
            record_bytes_max: 1 << 30,
            queue_records_max: 1 << 16,
            queue_bytes_max: 4 * LOG_BUDGET_BYTES,
            chance: self.chance,
            ..Options::default()
        };
        reached.check_there(&self.log).map_err(OpenError::Lost)?;
        let (path, mut recovery) = (&self.log, Parallel::new(heads.clone()));
        let mut each = |position: Position, bytes: &[u8]| {
            let (entries, bytes_before) = recovery.taken();
            progress(entries, bytes_before);
            recovery.take(position, bytes).map_err(|what| Error::corrupt(path, position.0, what))
        };
        let (log, hand) = match self.by_hand {
            None => (NodeLog::open(self.disk, path, options, &mut each)?, None),
            told => {
                let (log, hand) = NodeLog::open_by_hand(self.disk, path, options, &mut each, told)?;
                (log, Some(hand))
            }
        };
        reached.check(path, log.replayed()).map_err(OpenError::Lost)?;
        let rest = recovery.read().map_err(OpenError::Lost)?;
        reached.note(log.durable().0)?;
        Ok(Opened { heads, log: Arc::new(log), hand, reached, rest })
    }
}

/// Starts the actor of each partition.
pub fn start(
    (heads, log): (&Arc<Vec<Heads>>, &Arc<NodeLog>),
    (meta, clock): (&Meta, &Clock),
    stop: &CancellationToken,
    supervisor: &mut Supervisor,
) -> Vec<Handle> {
    let budget = LogBudget::new(LOG_BUDGET_BYTES);
    let mut handles = Vec::with_capacity(heads.len());
    for (i, own) in (0_u32..).zip(heads.iter()) {
        let (handle, child) = partition::child(partition::Config {
            partition: PartitionId(i),
            heads: own.clone(),
            all_heads: heads.clone(),
            log: log.clone(),
            budget: budget.clone(),
            meta: meta.clone(),
            clock: clock.clone(),
            stop: stop.clone(),
        });
        handles.push(handle);
        supervisor.spawn(child);
    }
    handles
}
