//! The log store: entries, vote, what is committed and purged.
//!
//! An entry is readable when `append` returns and durable when its callback fires; between the two it lies in the
//! [`Tail`], which holds what the writer has not written yet. A reader takes the tail first and the database for
//! everything before it: an entry moves from tail to database, never back, so in this order none is missed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::{Stream, TryStreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::type_config::alias::{EntryOf, VoteOf};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::writer::{self, Done, Job};
use super::{Db, LOG, LogId, blocking};
use crate::codec;
use crate::error::Error;
use crate::group::TypeConfig;

/// Bytes of entries read for one message to a follower.
const READ_BYTES_MAX: usize = 4 << 20;

type Entry = EntryOf<TypeConfig>;
/// An entry as it lies on disk, with its index.
pub(super) type Encoded = (u64, Arc<[u8]>);

/// Entries that are appended and not written yet.
#[derive(Default)]
pub(super) struct Tail {
    entries: BTreeMap<u64, (u64, Arc<[u8]>)>,
    /// Unwritten appends: mark and last index, oldest first.
    marks: VecDeque<(u64, u64)>,
    next_mark: u64,
}

impl Tail {
    fn push(&mut self, entries: &[Encoded]) -> u64 {
        let mark = self.next_mark;
        self.next_mark += 1;
        for (index, bytes) in entries {
            self.entries.insert(*index, (mark, bytes.clone()));
        }
        if let Some((last, _)) = entries.last() {
            self.marks.push_back((mark, *last));
        }
        mark
    }

    /// The append `mark` and all before it are in the database.
    pub(super) fn written(&mut self, mark: u64) {
        while let Some(&(oldest, last)) = self.marks.front()
            && oldest <= mark
        {
            self.marks.pop_front();
            // A truncated index may have been appended anew: that one has a later mark and stays.
            while let Some(first) = self.entries.first_entry()
                && *first.key() <= last
                && first.get().0 <= mark
            {
                first.remove();
            }
        }
    }

    fn truncate(&mut self, from: u64) {
        self.entries.split_off(&from);
    }
}

/// The log store. Clones share everything; openraft holds one as writer and some as readers.
#[derive(Clone)]
pub(crate) struct LogStore {
    db: Arc<Db>,
    jobs: mpsc::Sender<Job>,
    tail: Arc<Mutex<Tail>>,
    known: Arc<Mutex<Known>>,
}

/// What is small and asked often.
#[derive(Default)]
struct Known {
    vote: Option<VoteOf<TypeConfig>>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl Known {
    fn read(db: &Db) -> Result<Self, Error> {
        Ok(Self { vote: db.raft_get("vote")?, committed: db.raft_get("committed")?, purged: db.raft_get("purged")? })
    }
}

impl LogStore {
    /// Opens the log and checks that it is whole.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if entries are missing in the middle, or the log ends before what was committed: then this
    /// node may have forgotten what it promised, must not vote, and must rejoin under a new id.
    pub(crate) fn open(db: Arc<Db>, applied: Option<LogId>) -> Result<Self, Error> {
        let known = Known::read(&db)?;
        check(&db, &known, applied)?;
        let tail = Arc::new(Mutex::new(Tail::default()));
        let jobs = writer::start(db.clone(), tail.clone())?;
        Ok(Self { db, jobs, tail, known: Arc::new(Mutex::new(known)) })
    }

    async fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).await.map_err(|_| io::Error::other("the log's writer has stopped"))
    }

    async fn written(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(job(done)).await?;
        wait.await.map_err(io::Error::other)?
    }

    /// Entries of `start..end`, at least one and at most `bytes_max` bytes of them.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let tail: Vec<Encoded> =
            self.tail.lock().entries.range(start..end).map(|(i, (_, b))| (*i, b.clone())).collect();
        let stored_end = tail.first().map_or(end, |(first, _)| *first);
        let db = self.db.clone();
        let all = move || {
            let (mut rows, mut full) = stored(&db, start, stored_end, bytes_max)?;
            let mut bytes: usize = rows.iter().map(|(_, b)| b.len()).sum();
            for (index, entry) in tail {
                full = full || (!rows.is_empty() && bytes + entry.len() > bytes_max);
                if full {
                    break;
                }
                bytes += entry.len();
                rows.push((index, entry));
            }
            decode(rows)
        };
        // A few rows come from memory in microseconds; a long read must not hold a worker.
        if end - start <= 32 { all().map_err(Error::into_io) } else { blocking(all).await }
    }
}

/// Rows of the database in `start..end`, and whether more of them would have gone over `bytes_max`. The first one is
/// given always.
fn stored(db: &Db, start: u64, end: u64, bytes_max: usize) -> Result<(Vec<Encoded>, bool), Error> {
    if start >= end {
        return Ok((Vec::new(), false));
    }
    let (mut rows, mut bytes, mut full) = (Vec::new(), 0_usize, false);
    db.each(LOG, (&start.to_be_bytes(), Some(&end.to_be_bytes())), &mut |key, value| {
        bytes = bytes.saturating_add(value.len());
        full = bytes > bytes_max && !rows.is_empty();
        if !full {
            rows.push((index_of(key)?, Arc::from(value)));
        }
        Ok(!full)
    })?;
    Ok((rows, full))
}

/// Decodes rows and refuses a hole.
fn decode(rows: Vec<Encoded>) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::with_capacity(rows.len());
    let mut next = rows.first().map(|(first, _)| *first);
    for (index, bytes) in rows {
        if Some(index) != next {
            return Err(Error::corrupt("log", format!("entry {next:?} is missing before {index}")));
        }
        let entry: Entry = codec::decode("log", &bytes)?;
        if entry.log_id.index != index {
            return Err(Error::corrupt("log", format!("entry {} lies at {index}", entry.log_id.index)));
        }
        entries.push(entry);
        next = Some(index + 1);
    }
    Ok(entries)
}

fn index_of(key: &[u8]) -> Result<u64, Error> {
    let key = key.try_into().map_err(|_| Error::corrupt("log", "key is not 8 bytes"))?;
    Ok(u64::from_be_bytes(key))
}

/// The last entry of the database.
fn last_stored(db: &Db) -> Result<Option<LogId>, Error> {
    let Some((_, value)) = db.last(LOG)? else { return Ok(None) };
    Ok(Some(codec::decode::<Entry>("log", &value)?.log_id))
}

/// Whether the log is whole, as [`LogStore::open`] finds out.
pub(super) fn whole(db: &Db, applied: Option<LogId>) -> Result<(), Error> {
    check(db, &Known::read(db)?, applied)
}

fn check(db: &Db, known: &Known, applied: Option<LogId>) -> Result<(), Error> {
    let first_index = known.purged.map_or(0, |p| p.index + 1);
    let mut next = first_index;
    db.each(LOG, (&[], None), &mut |key, _| {
        let index = index_of(key)?;
        if index != next {
            return Err(Error::corrupt("log", format!("entry {next} is missing before {index}")));
        }
        next += 1;
        Ok(true)
    })?;
    let have = next.checked_sub(1).max(applied.map(|a| a.index));
    if let Some(committed) = known.committed
        && have < Some(committed.index)
    {
        let why = format!("it ends at {have:?} and {} was committed; rejoin under a new id", committed.index);
        return Err(Error::corrupt("log", why));
    }
    Ok(())
}

fn bounds<RB: RangeBounds<u64>>(range: &RB) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    /// In pieces: after a long absence everything between applied and committed would not fit memory at once.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let pieces = stream::try_unfold((self.clone(), bounds(&range)), |(log, (start, end))| async move {
            let piece = log.read(start, end, READ_BYTES_MAX).await?;
            let Some(last) = piece.last() else { return Ok::<_, io::Error>(None) };
            let next = last.log_id.index + 1;
            Ok(Some((stream::iter(piece.into_iter().map(Ok)), (log, (next, end)))))
        });
        pieces.try_flatten()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<TypeConfig>>> {
        Ok(self.known.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = self.known.lock().purged;
        let tail = self.tail.lock().entries.last_key_value().map(|(_, (_, bytes))| bytes.clone());
        let last = match tail {
            Some(bytes) => Some(codec::decode::<Entry>("log", &bytes).map_err(Error::into_io)?.log_id),
            None => last_stored(&self.db).map_err(Error::into_io)?,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> io::Result<()> {
        let bytes = codec::encode("vote", vote).map_err(Error::into_io)?;
        self.written(|done| Job::Vote { bytes, done }).await?;
        self.known.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        let bytes = codec::encode("committed", &committed).map_err(Error::into_io)?;
        self.known.lock().committed = Some(committed);
        self.send(Job::Committed { bytes }).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.known.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encode = |e: Entry| Ok((e.log_id.index, Arc::from(codec::encode("log", &e)?)));
        let entries: Result<Vec<Encoded>, Error> = entries.into_iter().map(encode).collect();
        let entries = entries.map_err(Error::into_io)?;
        let mark = self.tail.lock().push(&entries);
        self.send(Job::Append { mark, entries, done: callback }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |l| l.index + 1);
        self.tail.lock().truncate(from);
        self.written(|done| Job::Truncate { from, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let from = self.known.lock().purged.map_or(0, |p| p.index + 1);
        self.written(|done| Job::Purge { from, upto, done }).await?;
        self.known.lock().purged = Some(upto);
        Ok(())
    }
}
