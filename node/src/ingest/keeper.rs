//! Keeper: bounds what a node holds. Keeps the log short, and drops samples past their retention where nothing else will.
//!
//! Why not always: where blocks are made, a head is not to judge by age. A sample that was acknowledged may be of any
//! time, and what is old is sealed and cut like the rest; the sweeper then sees the block's age and the tenant's own
//! retention. Only where everything stays in memory is there nobody but the keeper to bound it.
//!
//! Why checkpoints: the log holds every append since the node began, and recovery reads all of it. When it has grown
//! to twice what the heads hold, every head is written into the log anew, as compressed chunks, and the
//! segments before are dropped. A crash at any point leaves either the old segments or a complete round.
//!
//! What does not succeed is tried again at the next look: a partition that is too busy now must not end the keeper, for
//! without it the log grows for ever. A log or a partition that is failed ends the node by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_model::time::Stopwatch;
use engram_storage::log::NodeLog;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::entry::{self, Kind};
use super::heads::Heads;
use super::partition::{Handle, append_durably};
use super::reached::Reached;
use crate::actor::{ChildError, ChildSpec, RestartLimit};

/// How long one partition may take for its part.
const PARTITION_DEADLINE: Duration = Duration::from_secs(600);

/// What the keeper works with.
#[derive(Clone)]
pub struct Config {
    /// Actors by partition.
    pub partitions: Vec<Handle>,
    /// The heads by partition.
    pub heads: Arc<Vec<Heads>>,
    /// The node's log.
    pub log: Arc<NodeLog>,
    /// How long samples stay behind a tenant's newest where the tenant does not say, in milliseconds; 0: for ever.
    pub retention_ms: i64,
    /// Whether what is in the heads becomes blocks.
    pub makes_blocks: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Size of one of its segments, in bytes.
    pub segment_bytes: u64,
    /// A log smaller than this is left alone, in bytes.
    pub checkpoint_bytes_min: u64,
    /// How often to look.
    pub every: Duration,
    /// How far the log had come, for the next start.
    pub reached: Reached,
    /// One permit, held by the one round that may be under way.
    pub turn: Arc<Semaphore>,
    /// Ends the actor.
    pub stop: CancellationToken,
}

impl Config {
    fn log_bytes(&self) -> u64 {
        self.log.metrics().segments.load(Ordering::Relaxed) * self.segment_bytes
    }
}

/// The child that runs the keeper.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "keeper".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    let (mut growth, mut noted) = (Growth::default(), 0);
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(config.every) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        retain(&config).await;
        collect_files(&config).await;
        if config.log.durable().0 > noted {
            noted = note(&config).await;
        }
        let held = config.log_bytes();
        if growth.is_due(held, config.checkpoint_bytes_min) {
            let watch = Stopwatch::start();
            let done = tokio::select! {
                biased;
                done = round(&config) => done,
                () = config.stop.cancelled() => return Ok(()),
            };
            match done {
                Ok(()) => {
                    growth.rounded();
                    let seconds = watch.elapsed().as_secs_f64();
                    tracing::info!(before_bytes = held, seconds, "checkpoint: the log is shortened");
                }
                Err(error) => tracing::warn!(%error, "checkpoint: tried again later, the log stays long"),
            }
        }
    }
}

/// Drops what is too old or empty.
pub async fn retain(config: &Config) {
    for (partition, handle) in config.partitions.iter().enumerate() {
        let keep_ms = if (config.makes_blocks)() { None } else { Some(config.retention_ms) };
        if let Err(error) = handle.retain(keep_ms, PARTITION_DEADLINE).await {
            tracing::warn!(partition, %error, "retention is tried again later");
        }
    }
}

/// When the next round is due. A round costs about what it writes, which is little since full chunks are only named; what
/// the log has grown by since is what a crash costs. So it waits until the log has doubled.
#[derive(Debug)]
struct Growth {
    /// What the log held after the last round; `None` until the first look after it, because the log's thread removes
    /// the segments only after the round has ended.
    after_last: Option<u64>,
}

/// Nothing is known of a log that was found: it is due once it is larger than the minimum.
impl Default for Growth {
    fn default() -> Self {
        Self { after_last: Some(0) }
    }
}

impl Growth {
    fn is_due(&mut self, held: u64, min: u64) -> bool {
        held > min && held / 2 > *self.after_last.get_or_insert(held)
    }

    fn rounded(&mut self) {
        self.after_last = None;
    }
}

/// Writes every head into the log and drops the segments before.
///
/// # Errors
/// The log failed, or a partition did not answer; the old segments stay then.
pub async fn round(config: &Config) -> Result<(), ChildError> {
    let _turn = config.turn.acquire().await?;
    let mut marker = Vec::new();
    entry::begin(&mut marker, Kind::Round, PartitionId(0), &TenantId::anonymous());
    let begin = append_durably(&config.log, marker).await?;
    for partition in &config.partitions {
        partition.checkpoint(begin, PARTITION_DEADLINE).await?;
    }
    config.log.truncate_below(begin);
    // What only older checkpoints name may go. Segments that a crash brings back name files that are gone: recovery
    // passes over that, for the checkpoints of this round come after.
    config.heads.iter().filter_map(Heads::files).for_each(|files| files.release());
    collect_files(config).await;
    Ok(())
}

/// Notes how far the log has come; the entry that was noted.
async fn note(config: &Config) -> u64 {
    let (reached, entry) = (config.reached.clone(), config.log.durable().0);
    match engram_storage::blocking::blocking(move || reached.note(entry)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "how far the log has come is noted later"),
        Err(error) => tracing::warn!(%error, "how far the log has come is noted later"),
    }
    entry
}

/// Removes chunk files that nobody holds any more.
async fn collect_files(config: &Config) {
    let heads = config.heads.clone();
    let work = move || heads.iter().filter_map(Heads::files).for_each(|files| files.collect());
    if let Err(error) = engram_storage::blocking::blocking(work).await {
        tracing::warn!(%error, "chunk files that nobody needs stay for now");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_waits_for_growth() {
        let mut growth = Growth::default();
        assert!(!growth.is_due(100, 1000));
        assert!(growth.is_due(1001, 1000) && growth.is_due(1001, 1000), "a round that failed stays due");
        growth.rounded();
        assert!(!growth.is_due(2000, 1000), "what is held now is the measure");
        assert!(!growth.is_due(4000, 1000));
        assert!(growth.is_due(4004, 1000));
    }
}
