//! Recovery on all cores: while one thread reads the log, others apply what has been read, each one partition at a time.
//!
//! Why by partition and not in the order of the log: the series of one partition fit into a core's caches, those of all
//! do not, and an entry touches every series it has a sample for. It takes half the time even on one core.
//!
//! ```text
//! log ──read, checked──► batch: entries by partition, at most BATCH_BYTES ──full──► applied by a thread a core
//!                        the next batch, filled meanwhile                           (the largest partition first)
//! end of the log ──────► Rest: the last batch ──► node answers; a partition is served when its entries are applied
//! ```
//!
//! Memory: two batches and the samples that heads gather of one, whatever the length of the log. What was read is not read again, so a log longer than the page
//! cache costs no more than its length. Reading every partition's entries by themselves (an index first, then each in
//! turn) would serve the first one sooner in a long log, and read such a log once for each partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use engram_model::place::PartitionId;
use engram_storage::blocking;
use engram_storage::log::Position;
use parking_lot::Mutex;

use super::{Gate, OnePartition, Pace, Recovered};
use crate::ingest::heads::Heads;

/// A batch is applied when it holds this much: many samples of each series, or heads gain little by gathering them.
const BATCH_BYTES: usize = 64 << 20;
/// More threads than this find nothing to do.
const THREADS_MAX: usize = 32;

/// Entries of one partition, one after the other.
#[derive(Debug, Default)]
struct Entries {
    bytes: Vec<u8>,
    /// Position of each, and where it ends.
    ends: Vec<(Position, usize)>,
}

/// Entries that were read and are not applied yet, by partition.
#[derive(Debug, Default)]
struct Batch {
    partitions: Vec<Entries>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, partition: usize, position: Position, bytes: &[u8]) {
        if self.partitions.len() <= partition {
            self.partitions.resize_with(partition + 1, Entries::default);
        }
        let entries = &mut self.partitions[partition];
        entries.bytes.extend_from_slice(bytes);
        entries.ends.push((position, entries.bytes.len()));
        self.bytes += bytes.len() + size_of::<(Position, usize)>();
    }
}

/// What all threads share.
struct Shared {
    heads: Arc<Vec<Heads>>,
    partitions: Vec<Mutex<OnePartition>>,
    threads: usize,
}

/// Takes the entries of a log. From [`Self::new`] on the heads are not to be read; each is again once it is recovered.
pub struct Parallel {
    shared: Arc<Shared>,
    gate: Gate,
    batch: Batch,
    batch_bytes: usize,
    /// Applies the batch before.
    applying: Option<JoinHandle<Result<(), String>>>,
}

impl Parallel {
    /// `heads[i]` are those of partition `i`.
    #[must_use]
    pub fn new(heads: Arc<Vec<Heads>>) -> Self {
        Self::with_batches(heads, BATCH_BYTES)
    }

    /// As [`Self::new`], with batches of about `batch_bytes`.
    #[must_use]
    pub fn with_batches(heads: Arc<Vec<Heads>>, batch_bytes: usize) -> Self {
        heads.iter().for_each(|heads| heads.set_recovering(true));
        let partitions = (0..).zip(heads.iter()).map(|(i, _)| Mutex::new(OnePartition::new(PartitionId(i)))).collect();
        let threads = blocking::cores().min(THREADS_MAX);
        let gate = Gate::new(heads.len());
        let shared = Arc::new(Shared { heads, partitions, threads });
        Self { shared, gate, batch: Batch::default(), batch_bytes, applying: None }
    }

    /// Takes the entry at `position`; waits when the batches are full.
    ///
    /// # Errors
    /// What is wrong with this entry, or with one before it.
    pub fn take(&mut self, position: Position, bytes: &[u8]) -> Result<(), String> {
        if self.gate.is_cut(position) {
            self.shared.partitions.iter().for_each(|one| one.lock().await_checkpoints());
        }
        if let Some(partition) = self.gate.pass(position, bytes)? {
            self.batch.push(partition, position, bytes);
        }
        if self.batch.bytes >= self.batch_bytes {
            self.wait()?;
            let (shared, batch) = (self.shared.clone(), std::mem::take(&mut self.batch));
            if blocking::is_here() {
                return shared.apply(batch, |_| Ok(()));
            }
            let apply = move || shared.apply(batch, |_| Ok(()));
            let thread = std::thread::Builder::new().name("engram-recover".to_owned()).spawn(apply);
            self.applying = Some(thread.map_err(|e| format!("cannot start a thread: {e}"))?);
        }
        Ok(())
    }

    /// Entries and bytes taken so far.
    #[must_use]
    pub fn taken(&self) -> (u64, u64) {
        (self.gate.entries, self.gate.bytes)
    }

    fn wait(&mut self) -> Result<(), String> {
        let Some(thread) = self.applying.take() else { return Ok(()) };
        thread.join().map_err(|_| "a thread that recovers panicked".to_owned())?
    }

    /// The log has ended: what is left to apply.
    ///
    /// # Errors
    /// What is wrong with an entry.
    pub fn read(mut self) -> Result<Rest, String> {
        self.wait()?;
        Ok(Rest {
            shared: self.shared.clone(),
            gate: std::mem::take(&mut self.gate),
            batch: std::mem::take(&mut self.batch),
        })
    }
}

/// The last entries of a log.
pub struct Rest {
    shared: Arc<Shared>,
    gate: Gate,
    batch: Batch,
}

impl Rest {
    /// Applies them; each partition may be read and written as soon as it is whole. `done` is told how
    /// many are, of how many.
    ///
    /// # Errors
    /// What is wrong with a partition. Others may have been served by then, and what was promised of them holds.
    pub fn apply(self, done: impl Fn(usize, usize) + Sync) -> Result<Recovered, String> {
        let Self { shared, gate, batch } = self;
        let served = AtomicUsize::new(0);
        let finish = |partition: usize| -> Result<(), String> {
            shared.partitions[partition].lock().finish()?;
            shared.heads[partition].set_recovering(false);
            done(served.fetch_add(1, Ordering::Relaxed) + 1, shared.heads.len());
            Ok(())
        };
        let is_busy = |at: &usize| batch.partitions.get(*at).is_some_and(|entries| !entries.ends.is_empty());
        (0..shared.heads.len()).filter(|at| !is_busy(at)).try_for_each(finish)?;
        shared.apply(batch, finish)?;
        let samples = shared.partitions.iter().map(|one| one.lock().samples()).sum();
        Ok(Recovered { entries: gate.entries, samples, bytes: gate.bytes })
    }
}

impl Shared {
    /// Applies a batch on all threads; `then` is called for each partition that had entries, after them.
    fn apply(&self, batch: Batch, then: impl Fn(usize) -> Result<(), String> + Sync) -> Result<(), String> {
        let mut work: Vec<(usize, Entries)> = batch.partitions.into_iter().enumerate().collect();
        work.retain(|(_, entries)| !entries.ends.is_empty());
        // The largest first, or the last to begin would be waited for alone.
        work.sort_by_key(|(_, entries)| std::cmp::Reverse(entries.bytes.len()));
        let threads = self.threads.min(work.len());
        // Threads that find no partition help those that have one: a tenant may be all in one.
        let each = (self.threads / work.len().max(1)).max(1);
        let work: Vec<Mutex<Option<(usize, Entries)>>> = work.into_iter().map(|one| Mutex::new(Some(one))).collect();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let run = || {
            while let Some(one) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Some((partition, entries)) = one.lock().take() else { continue };
                if let Err(why) = self.apply_to(partition, &entries, Pace::InBulk(each)).and_then(|()| then(partition))
                {
                    failed.lock().get_or_insert(why);
                    next.store(work.len(), Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(run)));
            run();
        });
        failed.into_inner().map_or(Ok(()), Err)
    }

    fn apply_to(&self, partition: usize, entries: &Entries, pace: Pace) -> Result<(), String> {
        let (mut one, heads, mut from) = (self.partitions[partition].lock(), &self.heads[partition], 0);
        for (position, end) in &entries.ends {
            let bytes = &entries.bytes[from..*end];
            one.apply(heads, bytes, pace).map_err(|why| format!("position {position}: {why}"))?;
            from = *end;
        }
        one.settle(heads);
        Ok(())
    }
}
