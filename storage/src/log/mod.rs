//! The node log: one durable log that all partitions of a node share.
//!
//! Why one: a sync costs milliseconds whatever it carries, so the appends of many requests wait for one together
//! (group commit). Without it each partition would pay for its own, and a node with 64 of them would spend its disk
//! on waiting. An append is answered after the sync and never before.
//!
//! The life of a record: [`NodeLog::try_append`] puts it in a bounded queue · the thread `engram-log` takes all that
//! waits, writes it as one group, syncs once, answers in order · [`NodeLog::open`] reads it back after a crash ·
//! [`NodeLog::truncate_below`] lets go of whole segments. A write or sync that fails is never tried again: the log is
//! failed from then on and the process must end, because memory and disk may tell different stories.
//!
//! Map: [`mod@replay`] reading, torn tail against damage · `group` and `segment` the bytes, drawn in
//! `docs/formats/log.md` · `queue` the bound · `writer` the thread · [`metrics`] what is counted.
//!
//! What a record means is the caller's affair. The directory belongs to one process; who else might open it is not
//! checked here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{JoinHandle, ThreadId};

use parking_lot::Mutex;

use crate::Error;
use crate::disk::Disk;

mod group;
pub mod metrics;
mod queue;
pub mod replay;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

pub use metrics::LogMetrics;
pub use replay::{Replayed, replay};

pub use queue::OnWork;
use queue::{Job, Queue};

/// The place of a record: its number, counted from 1 over the life of the log, without holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Called once with the record's position, or with why it is not known to be durable.
pub type Done = Box<dyn FnOnce(Result<Position, Error>) + Send>;

/// Takes each record at replay; an error ends it.
pub type Each<'a> = &'a mut dyn FnMut(Position, &[u8]) -> Result<(), Error>;

/// How large things may grow.
#[derive(Clone, Debug)]
pub struct Options {
    /// A segment is rolled before it grows above this. Smaller ones are forgotten sooner, larger ones roll less often.
    pub segment_bytes: u64,
    /// The largest payload taken, at most 1 GiB.
    pub record_bytes_max: usize,
    /// A group is closed once it holds this much: bounds how long the first of a group waits for the last.
    pub group_bytes: usize,
    /// Records that may wait in the queue, at least 1.
    pub queue_records_max: usize,
    /// Bytes that may wait in the queue; one record is always taken.
    pub queue_bytes_max: usize,
    /// Chance for the salts of new segments; a sender who knew it could forge records inside payloads.
    pub chance: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            record_bytes_max: 64 << 20,
            group_bytes: 8 << 20,
            queue_records_max: 8192,
            queue_bytes_max: 256 << 20,
            chance: 0,
        }
    }
}

/// No record and no sum at which a group is closed is larger, whatever the options say: lengths are 32 bits on disk.
const BYTES_CEILING: usize = 1 << 30;

/// The handle of the log. Dropping it closes it.
pub struct NodeLog {
    queue: Arc<Queue>,
    metrics: Arc<LogMetrics>,
    dir: PathBuf,
    record_bytes_max: usize,
    replayed: Replayed,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
}

/// What the log's thread does, done by hand: for simulations, in which there is one thread and time stands still while
/// it works.
pub struct Hand {
    writer: writer::Writer,
    queue: Arc<Queue>,
}

impl fmt::Debug for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hand").finish_non_exhaustive()
    }
}

impl Hand {
    /// Makes durable what waits, or as much as goes into one group, and answers it. False when it was the last turn: the
    /// log is closed or has failed.
    pub fn turn(&mut self) -> bool {
        self.writer.turn(&self.queue)
    }

    /// Whether the last turn found no room on the disk: what waits is still there, and is done by a later turn.
    pub fn waits_for_room(&self) -> bool {
        self.writer.waits_for_room()
    }
}

impl fmt::Debug for NodeLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeLog").field("dir", &self.dir).field("replayed", &self.replayed).finish_non_exhaustive()
    }
}

impl NodeLog {
    /// Gives every record in `dir` to `each`, in order, then opens the log for appends. A torn tail is cut off.
    ///
    /// Memory: one group at a time. Before it returns, all that `each` saw is synced.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damage that is not a torn tail (the records before it were given to `each`),
    /// [`Error::Io`], and whatever `each` returns.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options, each: Each<'_>) -> Result<Self, Error> {
        let (mut log, hand) = Self::open_by_hand(disk, dir, options, each, None)?;
        let thread = std::thread::Builder::new()
            .name("engram-log".into())
            .spawn(move || hand.writer.run(&hand.queue))
            .map_err(|source| Error::io("start the thread of", dir, source))?;
        log.thread_id = thread.thread().id();
        log.thread = Mutex::new(Some(thread));
        Ok(log)
    }

    /// As [`Self::open`], but nothing is made durable until somebody takes a turn. With `told`, which is called when
    /// there is something to do, nothing here ever waits: a full queue refuses, and a full disk fails the log.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_by_hand(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        each: Each<'_>,
        told: Option<OnWork>,
    ) -> Result<(Self, Hand), Error> {
        disk.create_dir(dir)?;
        let replayed = replay(disk.as_ref(), dir, each)?;
        let options = Options {
            record_bytes_max: options.record_bytes_max.min(BYTES_CEILING),
            group_bytes: options.group_bytes.clamp(1, BYTES_CEILING),
            ..options
        };
        let record_bytes_max = options.record_bytes_max;
        let queue = Arc::new(Queue::new(options.queue_records_max, options.queue_bytes_max, dir, told));
        let metrics = Arc::new(LogMetrics::default());
        let writer = writer::Writer::open(disk, dir, options, &replayed, Arc::clone(&metrics))?;
        let hand = Hand { writer, queue: Arc::clone(&queue) };
        let (thread, thread_id) = (Mutex::new(None), std::thread::current().id());
        Ok((Self { queue, metrics, dir: dir.to_owned(), record_bytes_max, replayed, thread, thread_id }, hand))
    }

    /// What was found when the log was opened. A caller that remembers positions of its own must find
    /// `replayed().next` above all of them; otherwise the log was lost or exchanged and must not be used.
    #[must_use]
    pub fn replayed(&self) -> &Replayed {
        &self.replayed
    }

    /// The last position that is known to be durable; 0: none yet.
    #[must_use]
    pub fn durable(&self) -> Position {
        let written = self.metrics.records.load(Ordering::Relaxed);
        Position(self.replayed.next.0.saturating_sub(1).saturating_add(written))
    }

    /// Asks for `payload` to be made durable; `done` is called on the log's thread after the sync that covers it,
    /// in the order of the appends, and must be short. Waits for room in the queue: for threads, not for tasks.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Closed`], [`Error::Failed`]; `done` is not called then.
    pub fn append(&self, payload: Vec<u8>, done: Done) -> Result<(), Error> {
        self.check(&payload)?;
        self.queue.push(Job { payload, done }, true)
    }

    /// As [`Self::append`], but does not wait.
    ///
    /// # Errors
    /// As [`Self::append`], and [`Error::Full`] when the queue is.
    pub fn try_append(&self, payload: Vec<u8>, done: Done) -> Result<(), Error> {
        self.check(&payload)?;
        let pushed = self.queue.push(Job { payload, done }, false);
        if let Err(Error::Full { .. }) = pushed {
            self.metrics.refused_full.fetch_add(1, Ordering::Relaxed);
        }
        pushed
    }

    fn check(&self, payload: &[u8]) -> Result<(), Error> {
        let (len, max) = (payload.len(), self.record_bytes_max);
        if len <= max {
            return Ok(());
        }
        Err(Error::TooLarge { what: "log record", len: len as u64, max: max as u64 })
    }

    /// Says that no record below `position` is needed any more. Segments that hold only such records are removed by
    /// the log's thread, soon; the active one stays. A lower position than an earlier one is ignored.
    pub fn truncate_below(&self, position: Position) {
        self.queue.truncate_below(position);
    }

    /// Whether the disk is full: what is appended now waits until there is room, or until the log is closed.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.metrics.waits_for_room.load(Ordering::Relaxed)
    }

    /// Why the log is failed, if it is.
    #[must_use]
    pub fn failed(&self) -> Option<Error> {
        self.queue.failed()
    }

    /// Calls `act` once when the log fails, at once when it has failed already. The process must end then.
    pub fn on_failed(&self, act: impl FnOnce(Error) + Send + 'static) {
        self.queue.on_failed(Box::new(act));
    }

    /// What the log counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<LogMetrics> {
        &self.metrics
    }

    /// Makes all that was appended durable, answers it, ends the thread. Later appends are refused. May be called
    /// from several threads and more than once. From a `done` it closes without waiting: that is the thread itself.
    ///
    /// # Errors
    /// [`Error::Failed`] when the log has failed before or while closing.
    pub fn close(&self) -> Result<(), Error> {
        self.queue.close();
        // The last handle may go in a `done`, and a thread that joins itself waits for ever.
        if std::thread::current().id() != self.thread_id {
            // Held while joining, so that a second closer returns only after the thread ended.
            let mut thread = self.thread.lock();
            if let Some(thread) = thread.take()
                && thread.join().is_err()
            {
                self.queue.fail("the thread of the log panicked", Vec::new());
            }
        }
        self.queue.failed().map_or(Ok(()), Err)
    }
}

impl Drop for NodeLog {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the log was failed when it was closed");
        }
    }
}
