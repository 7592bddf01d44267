//! The thread that owns the files: takes what waits, writes, syncs once, answers in order.
//!
//! Order of a roll, each step durable before the next: `next.tmp` preallocated → header written and synced → renamed
//! → directory synced → first group. So a numbered segment always has its header.
//!
//! A full disk is found at the first step, before anything is promised on the new file. The thread then waits for room
//! and holds what it has; the log is not failed, and goes on by itself.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engram_model::time::Stopwatch;

use super::group::{BLOCK, Builder};
use super::queue::{Job, Queue};
use super::{LogMetrics, Options, Position, Replayed, segment};
use crate::Error;
use crate::disk::{Disk, DiskFile};

/// How long the thread rests before it asks a full disk again.
const FULL_REST: Duration = Duration::from_millis(250);

/// A segment that is full.
struct Sealed {
    number: u64,
    /// Position of its first record.
    first: u64,
}

pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    metrics: Arc<LogMetrics>,
    /// Oldest first.
    sealed: VecDeque<Sealed>,
    file: Box<dyn DiskFile>,
    header: segment::Header,
    /// Where the next group goes.
    at: u64,
    /// Position of the next record.
    next: u64,
    /// Preallocated for the next roll.
    spare: Option<Box<dyn DiskFile>>,
    /// That there is none is known and said.
    spare_failed: bool,
    group: Builder,
}

/// Fails the queue when the thread leaves without saying so: a panic must not leave callers waiting for ever.
struct Watch<'a> {
    queue: &'a Queue,
    ended: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.queue.fail("the thread of the log panicked", Vec::new());
        }
    }
}

impl Writer {
    /// Starts a new segment behind what was replayed.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        replayed: &Replayed,
        metrics: Arc<LogMetrics>,
    ) -> Result<Self, Error> {
        let mut sealed: VecDeque<_> =
            replayed.segments.iter().map(|&(number, first)| Sealed { number, first }).collect();
        // A last segment without records is replaced, or each start would leave a file behind.
        let replaced = if replayed.last_is_empty { sealed.pop_back() } else { None };
        let number = match (&replaced, sealed.back()) {
            (Some(same), _) => same.number,
            (None, Some(last)) => last.number + 1,
            (None, None) => 1,
        };
        if disk.list(dir)?.iter().any(|name| name == segment::NEXT) {
            disk.remove(&dir.join(segment::NEXT))?;
        }
        let header = segment::Header { number, first: replayed.next.0, salt: segment::salt(options.chance, number) };
        let spare = allocate(disk.as_ref(), dir, options.segment_bytes)?;
        let file = install(disk.as_ref(), dir, spare, &header)?;
        metrics.segments.store(sealed.len() as u64 + 1, Ordering::Relaxed);
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            options,
            metrics,
            sealed,
            file,
            header,
            at: BLOCK as u64,
            next: replayed.next.0,
            spare: None,
            spare_failed: false,
            group: Builder::default(),
        })
    }

    pub(super) fn run(mut self, queue: &Queue) {
        let mut watch = Watch { queue, ended: false };
        while self.turn(queue) {}
        watch.ended = true;
    }

    /// Does what waits; false when that was the last.
    pub(super) fn turn(&mut self, queue: &Queue) -> bool {
        let work = queue.take(self.options.group_bytes);
        #[cfg(feature = "mutants")]
        if engram_model::mutant::Mutant::AckBeforeFsync.lives()
            && let Err(error) = self.file.sync_data()
        {
            queue.fail(&error.to_string(), work.jobs);
            return false;
        }
        if !work.jobs.is_empty()
            && let Err(error) = self.commit(work.jobs, queue)
        {
            tracing::error!(%error, dir = %self.dir.display(), "the log failed");
            return false;
        }
        if let Some(mark) = work.truncate_below {
            self.forget(mark);
        }
        if work.ended {
            return false;
        }
        // Between two thirds and the roll there is nearly always a moment in which nothing waits.
        if self.spare.is_none() && !self.spare_failed && self.at > self.options.segment_bytes / 3 * 2 && queue.is_idle()
        {
            self.prepare();
        }
        true
    }

    /// Whether the disk was full when the last segment was to be made.
    pub(super) fn waits_for_room(&self) -> bool {
        self.metrics.waits_for_room.load(Ordering::Relaxed)
    }

    /// Makes one group durable and answers its appends; on failure the queue is failed first, so that no append can
    /// slip in between.
    fn commit(&mut self, jobs: Vec<Job>, queue: &Queue) -> Result<(), Error> {
        match self.write(&jobs, queue) {
            Ok(None) => {
                queue.put_back(jobs);
                Ok(())
            }
            Ok(Some(first)) => {
                for (position, job) in (first..).zip(jobs) {
                    (job.done)(Ok(Position(position)));
                }
                Ok(())
            }
            Err(error) => {
                queue.fail(&error.to_string(), jobs);
                Err(error)
            }
        }
    }

    /// Writes and syncs one group; returns the position of its first record. None: nothing was done, there is no room, and
    /// who turns by hand tries again.
    fn write(&mut self, jobs: &[Job], queue: &Queue) -> Result<Option<u64>, Error> {
        self.group.clear(self.options.group_bytes.saturating_mul(2));
        let mut payload_bytes = 0;
        for job in jobs {
            payload_bytes += job.payload.len();
            self.group.push(&job.payload);
        }
        let disk_bytes = self.group.disk_bytes();
        let is_full = self.at > BLOCK as u64 && self.at + disk_bytes > self.options.segment_bytes;
        if is_full && !self.roll(queue)? {
            return Ok(None);
        }
        let bytes = self.group.finish(self.next, self.header.salt_crc());
        self.file.write_at(self.at, bytes)?;
        let watch = Stopwatch::start();
        sync(&*self.file)?;
        self.metrics.synced(watch.elapsed());
        self.metrics.wrote(jobs.len(), payload_bytes, bytes.len());
        let first = self.next;
        self.at += disk_bytes;
        self.next += jobs.len() as u64;
        Ok(Some(first))
    }

    /// Goes on in the next segment. False: there is no room for it.
    fn roll(&mut self, queue: &Queue) -> Result<bool, Error> {
        let number = self.header.number + 1;
        let header = segment::Header { number, first: self.next, salt: segment::salt(self.options.chance, number) };
        let spare = match self.spare.take() {
            Some(spare) => spare,
            None => match self.allocate_when_there_is_room(queue)? {
                Some(spare) => spare,
                None => return Ok(false),
            },
        };
        self.file = install(self.disk.as_ref(), &self.dir, spare, &header)?;
        self.sealed.push_back(Sealed { number: self.header.number, first: self.header.first });
        self.header = header;
        self.at = BLOCK as u64;
        self.spare_failed = false;
        self.metrics.rolls.fetch_add(1, Ordering::Relaxed);
        self.metrics.segments.store(self.sealed.len() as u64 + 1, Ordering::Relaxed);
        Ok(true)
    }

    /// Waits as long as the disk is full and the log is open. None: by hand, where nobody may wait here.
    fn allocate_when_there_is_room(&self, queue: &Queue) -> Result<Option<Box<dyn DiskFile>>, Error> {
        loop {
            let allocated = allocate(self.disk.as_ref(), &self.dir, self.options.segment_bytes);
            let waits = &self.metrics.waits_for_room;
            match allocated {
                Err(error) if error.is_disk_full() && (queue.is_open_by_hand() || queue.rest(FULL_REST)) => {
                    if !waits.swap(true, Ordering::Relaxed) {
                        tracing::error!(%error, "the disk is full: writes are refused until there is room");
                    }
                    if queue.is_open_by_hand() {
                        return Ok(None);
                    }
                }
                done => {
                    if waits.swap(false, Ordering::Relaxed) && done.is_ok() {
                        tracing::info!("there is room on the disk again: writes go on");
                    }
                    return done.map(Some);
                }
            }
        }
    }

    /// Preallocates ahead. That it fails is no failure of the log yet: nothing was promised on this file, and the
    /// roll starts from nothing again.
    fn prepare(&mut self) {
        match allocate(self.disk.as_ref(), &self.dir, self.options.segment_bytes) {
            Ok(spare) => self.spare = Some(spare),
            Err(error) => {
                self.spare_failed = true;
                tracing::warn!(%error, "cannot preallocate the next log segment");
            }
        }
    }

    /// Removes segments that hold only records below `mark`, oldest first, so that no hole can arise. A file that
    /// cannot be removed is tried again at the next mark.
    fn forget(&mut self, mark: Position) {
        let mut removed = false;
        while let Some(oldest) = self.sealed.front() {
            let behind = self.sealed.get(1).map_or(self.header.first, |next| next.first);
            if behind > mark.0 {
                break;
            }
            if let Err(error) = self.disk.remove(&segment::path(&self.dir, oldest.number)) {
                tracing::warn!(%error, "cannot remove a log segment that is not needed any more");
                break;
            }
            self.sealed.pop_front();
            removed = true;
        }
        // Without this sync a crash may bring segments back; replay bears it.
        if removed && let Err(error) = self.disk.sync_dir(&self.dir) {
            tracing::warn!(%error, "cannot sync the log's directory after removing segments");
        }
        self.metrics.segments.store(self.sealed.len() as u64 + 1, Ordering::Relaxed);
    }
}

/// Makes a group durable before it is answered.
fn sync(file: &dyn DiskFile) -> Result<(), Error> {
    #[cfg(feature = "mutants")]
    if engram_model::mutant::Mutant::AckBeforeFsync.lives() {
        return Ok(());
    }
    file.sync_data()
}

/// A file of zeros under the name that replay ignores.
fn allocate(disk: &dyn Disk, dir: &Path, bytes: u64) -> Result<Box<dyn DiskFile>, Error> {
    let path = dir.join(segment::NEXT);
    if disk.list(dir)?.iter().any(|name| name == segment::NEXT) {
        disk.remove(&path)?;
    }
    let file = disk.create(&path)?;
    if let Err(error) = file.preallocate(bytes) {
        // A part of it would keep from others what little room there is.
        drop(file);
        if let Err(error) = disk.remove(&path) {
            tracing::warn!(%error, "cannot remove a log segment that was not allocated");
        }
        return Err(error);
    }
    file.sync_all()?;
    Ok(file)
}

/// Turns the spare into a segment.
fn install(
    disk: &dyn Disk,
    dir: &Path,
    spare: Box<dyn DiskFile>,
    header: &segment::Header,
) -> Result<Box<dyn DiskFile>, Error> {
    spare.write_at(0, &header.encode())?;
    spare.sync_data()?;
    disk.rename(&dir.join(segment::NEXT), &segment::path(dir, header.number))?;
    disk.sync_dir(dir)?;
    Ok(spare)
}
