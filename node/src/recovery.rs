//! The part of the assembly that brings the heads back from the log, and tells how far it is.
//!
//! In two steps, because the node answers in between: [`read`] reads the log to its end, so that it can be written again,
//! while what was read is applied; [`finish`] applies the rest, and each partition is served as soon as it is whole. Until
//! all are, the node is not ready: whoever asks for a partition that is not whole is told to come again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engram_model::time::Stopwatch;
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;
use engram_storage::log::NodeLog;

use crate::actor::{Condition, Health};
use crate::assembly::{StartError, millis};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::ingest::heads::Heads;
use crate::ingest::open::{OpenError, Place};
use crate::ingest::reached::Reached;
use crate::ingest::recover::Rest;
use crate::meta::Meta;

/// Full chunks that lie on the heap, in all partitions, before they are put into files; each partition has its share.
const FULL_CHUNK_BYTES: usize = 64 << 20;
/// How often a long recovery says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Entries between two looks at the time.
const LOOK_EVERY: u64 = 4096;

/// The log has been read to its end.
pub(crate) struct Found {
    pub(crate) heads: Arc<Vec<Heads>>,
    pub(crate) log: Arc<NodeLog>,
    pub(crate) reached: Reached,
    pub(crate) unfinished: Unfinished,
}

/// What of the log is still to be applied.
pub(crate) struct Unfinished {
    rest: Rest,
    watch: Stopwatch,
    health: Health,
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Storage(error) => Self::Storage(error),
            OpenError::Lost(why) => Self::Failed(why),
        }
    }
}

fn part(health: &Health, what: String) {
    health.set("node/log", Condition::Starting(what));
}

/// Says how far the reading of the log is, now and then.
struct Progress {
    health: Health,
    watch: Stopwatch,
    told: Duration,
    /// Of all segments, as far as they are allocated.
    bytes: u64,
}

impl Progress {
    fn tell(&mut self, entries: u64, bytes: u64) {
        if entries % LOOK_EVERY != 1 {
            return;
        }
        let what = format!("replaying the log, {entries} entries, {bytes} of at most {} bytes so far", self.bytes);
        let elapsed = self.watch.elapsed();
        if elapsed >= self.told + TELL_EVERY {
            self.told = elapsed;
            tracing::info!(entries, bytes, of_bytes = self.bytes, seconds = elapsed.as_secs_f64(), "replaying the log");
        }
        part(&self.health, what);
    }
}

/// Bytes of all files in the log's directory; a node that is new has none.
fn log_bytes(disk: &dyn Disk, dir: &Path) -> Result<u64, StartError> {
    let lens = disk.list(dir).unwrap_or_default().into_iter().map(|name| disk.open(&dir.join(name))?.len());
    Ok(lens.sum::<Result<u64, _>>()?)
}

/// Opens the log and reads all of it; most of it is applied to the heads then.
pub(crate) async fn read(config: &Config, dir: &DataDir, meta: &Meta, health: &Health) -> Result<Found, StartError> {
    let place = Place {
        disk: Arc::new(RealDisk),
        root: dir.root().to_owned(),
        head: dir.head(),
        log: dir.log(),
        partitions: meta.ring().partition_count(),
        window_ms: millis(config.blocks.window),
        full_chunk_bytes: FULL_CHUNK_BYTES,
        segment_bytes: config.log.segment_bytes_max,
        chance: uuid::Uuid::new_v4().as_u64_pair().0,
        by_hand: None,
    };
    let (for_log, health) = (place.heads()?, health.clone());
    let reading = move || -> Result<Found, StartError> {
        let (watch, bytes) = (Stopwatch::start(), log_bytes(place.disk.as_ref(), &place.log)?);
        let mut progress = Progress { health: health.clone(), watch, told: Duration::ZERO, bytes };
        let opened = place.open(for_log, &mut |entries, bytes| progress.tell(entries, bytes))?;
        let unfinished = Unfinished { rest: opened.rest, watch: progress.watch, health };
        Ok(Found { heads: opened.heads, log: opened.log, reached: opened.reached, unfinished })
    };
    let read = tokio::task::spawn_blocking(reading).await;
    read.map_err(|e| StartError::Failed(format!("replaying the log: {e}")))?
}

/// Applies what is left, while partitions that are whole are served.
pub(crate) async fn finish(unfinished: Unfinished) -> Result<(), StartError> {
    let Unfinished { rest, watch, health } = unfinished;
    let read_seconds = watch.elapsed().as_secs_f64();
    let told = health.clone();
    let work = move || {
        let first = std::sync::OnceLock::new();
        let done = rest.apply(|served, all| {
            first.get_or_init(|| watch.elapsed());
            part(&told, format!("{served} of {all} partitions are read from the log"));
        })?;
        let seconds = watch.elapsed().as_secs_f64();
        if done.entries > 0 {
            let first_seconds = first.get().map_or(seconds, Duration::as_secs_f64);
            let (entries, samples, bytes) = (done.entries, done.samples, done.bytes);
            tracing::info!(entries, samples, bytes, read_seconds, first_seconds, seconds, "the log has been replayed");
        }
        Ok(())
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| StartError::Failed(format!("replaying the log: {e}")))?.map_err(StartError::Failed)?;
    health.set("node/log", Condition::Running);
    Ok(())
}
