//! What waits for the log's thread: bounded in records and bytes, and the place where its failure is known.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Done, Position};
use crate::Error;

/// One append.
pub(super) struct Job {
    pub(super) payload: Vec<u8>,
    pub(super) done: Done,
}

/// What the thread is to do next.
pub(super) struct Work {
    /// In order of the appends; may be empty.
    pub(super) jobs: Vec<Job>,
    /// Set when the mark moved.
    pub(super) truncate_below: Option<Position>,
    /// Nothing waits and nothing will come.
    pub(super) ended: bool,
}

type OnFailed = Box<dyn FnOnce(Error) + Send>;
/// Called when there is something to do.
pub type OnWork = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    bytes: usize,
    mark: Position,
    mark_moved: bool,
    closed: bool,
    failed: Option<Arc<str>>,
    on_failed: Vec<OnFailed>,
}

pub(super) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    ended: Condvar,
    /// Told instead of a thread, where none waits.
    told: Option<OnWork>,
    records_max: usize,
    bytes_max: usize,
    dir: PathBuf,
}

impl Queue {
    pub(super) fn new(records_max: usize, bytes_max: usize, dir: &Path, told: Option<OnWork>) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            ended: Condvar::new(),
            told,
            records_max: records_max.max(1),
            bytes_max,
            dir: dir.to_owned(),
        }
    }

    fn failure(&self, why: &Arc<str>) -> Error {
        Error::Failed { path: self.dir.clone(), why: Arc::clone(why) }
    }

    fn notify(&self) {
        match &self.told {
            Some(told) => told(),
            None => drop(self.work.notify_one()),
        }
    }

    /// Adds an append; with `wait` it waits for room.
    pub(super) fn push(&self, job: Job, wait: bool) -> Result<(), Error> {
        let mut state = self.state.lock();
        loop {
            if let Some(why) = &state.failed {
                return Err(self.failure(why));
            }
            if state.closed {
                return Err(Error::Closed { what: "node log" });
            }
            let over_records = state.jobs.len() >= self.records_max;
            let over_bytes = !state.jobs.is_empty() && state.bytes + job.payload.len() > self.bytes_max;
            if !over_records && !over_bytes {
                break;
            }
            if !wait {
                let max = if over_records { self.records_max } else { self.bytes_max };
                return Err(Error::Full { what: "log queue", max: max as u64 });
            }
            if self.told.is_some() {
                // Who would make room runs on this very thread.
                return Err(Error::Full { what: "log queue", max: self.records_max as u64 });
            }
            self.room.wait(&mut state);
        }
        state.bytes += job.payload.len();
        state.jobs.push_back(job);
        if state.jobs.len() == 1 {
            self.notify();
        }
        Ok(())
    }

    /// Waits for something to do, where a thread does, and takes it: appends until they hold `group_bytes`.
    pub(super) fn take(&self, group_bytes: usize) -> Work {
        let mut state = self.state.lock();
        while self.told.is_none() && state.jobs.is_empty() && !state.mark_moved && !state.closed {
            self.work.wait(&mut state);
        }
        let mut jobs = Vec::with_capacity(state.jobs.len().min(1024));
        let mut bytes = 0;
        while bytes < group_bytes
            && let Some(job) = state.jobs.pop_front()
        {
            bytes += job.payload.len();
            jobs.push(job);
        }
        state.bytes -= bytes;
        let truncate_below = std::mem::take(&mut state.mark_moved).then_some(state.mark);
        let ended = state.closed && state.jobs.is_empty();
        drop(state);
        self.room.notify_all();
        Work { jobs, truncate_below, ended }
    }

    /// Puts appends back that were taken, in front of what waits.
    pub(super) fn put_back(&self, jobs: Vec<Job>) {
        let mut state = self.state.lock();
        state.bytes += jobs.iter().map(|job| job.payload.len()).sum::<usize>();
        jobs.into_iter().rev().for_each(|job| state.jobs.push_front(job));
    }

    /// Whether no thread waits for work, so that who calls may not rest, and the log is open.
    pub(super) fn is_open_by_hand(&self) -> bool {
        self.told.is_some() && !self.state.lock().closed
    }

    /// Whether nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.state.lock().jobs.is_empty()
    }

    /// Rests for `time`, less when the log is closed in between. Whether it is still open.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        self.ended.wait_while_for(&mut state, |state| !state.closed, time);
        !state.closed
    }

    pub(super) fn truncate_below(&self, position: Position) {
        let mut state = self.state.lock();
        if position > state.mark {
            state.mark = position;
            state.mark_moved = true;
            self.notify();
        }
    }

    /// Takes no more appends; those that wait are still done.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.notify();
        self.room.notify_all();
        self.ended.notify_all();
    }

    pub(super) fn failed(&self) -> Option<Error> {
        self.state.lock().failed.as_ref().map(|why| self.failure(why))
    }

    pub(super) fn on_failed(&self, act: OnFailed) {
        let mut state = self.state.lock();
        match &state.failed {
            None => state.on_failed.push(act),
            Some(why) => {
                let error = self.failure(why);
                drop(state);
                act(error);
            }
        }
    }

    /// Marks the log failed, then answers `group` and all that waits, in order, then tells those who asked. The first
    /// reason stays.
    pub(super) fn fail(&self, why: &str, group: Vec<Job>) {
        let mut state = self.state.lock();
        let why = Arc::clone(state.failed.get_or_insert_with(|| why.into()));
        let told = std::mem::take(&mut state.on_failed);
        let waiting = std::mem::take(&mut state.jobs);
        state.bytes = 0;
        drop(state);
        self.room.notify_all();
        group.into_iter().chain(waiting).for_each(|job| (job.done)(Err(self.failure(&why))));
        told.into_iter().for_each(|act| act(self.failure(&why)));
    }
}
