//! Keeper: bounds what a node holds. Drops samples past their retention, and keeps the log short.
//!
//! Why checkpoints: the log holds every append since the node began, and recovery reads all of it. When it has grown
//! to several times what the heads hold, every head is written into the log anew, as compressed chunks, and the
//! segments before are dropped. A crash at any point leaves either the old segments or a complete round.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_model::time::Stopwatch;
use engram_storage::log::NodeLog;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::entry::{self, Kind};
use super::partition::{Handle, append_durably};
use crate::actor::{ChildError, ChildSpec, RestartLimit};

/// How long one partition may take for its part.
const PARTITION_DEADLINE: Duration = Duration::from_secs(600);

/// What the keeper works with.
#[derive(Clone)]
pub struct Config {
    /// Actors by partition.
    pub partitions: Vec<Handle>,
    /// The node's log.
    pub log: Arc<NodeLog>,
    /// How long samples stay behind a tenant's newest, in milliseconds; 0: for ever.
    pub retention_ms: i64,
    /// Size of one of its segments, in bytes.
    pub segment_bytes: u64,
    /// A log smaller than this is left alone, in bytes.
    pub checkpoint_bytes_min: u64,
    /// How often to look.
    pub every: Duration,
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
    // What the log held right after the last round: the next is due when it has grown to a multiple of that.
    let mut after_last = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(config.every) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        if config.retention_ms > 0 {
            for partition in &config.partitions {
                partition.retain(config.retention_ms, PARTITION_DEADLINE).await?;
            }
        }
        let held = config.log_bytes();
        if checkpoint_is_due(held, after_last, config.checkpoint_bytes_min) {
            let watch = Stopwatch::start();
            round(&config).await?;
            after_last = config.log_bytes();
            tracing::info!(
                before_bytes = held,
                after_bytes = after_last,
                seconds = watch.elapsed().as_secs_f64(),
                "checkpoint: the log was shortened"
            );
        }
    }
}

/// A round costs about what it writes, so it waits until the log has grown fourfold.
fn checkpoint_is_due(held: u64, after_last: u64, min: u64) -> bool {
    held > min && held / 4 > after_last
}

/// Writes every head into the log and drops the segments before.
///
/// # Errors
/// The log failed, or a partition did not answer; the old segments stay then.
pub async fn round(config: &Config) -> Result<(), ChildError> {
    let mut marker = Vec::new();
    entry::begin(&mut marker, Kind::Round, PartitionId(0), &TenantId::anonymous());
    let begin = append_durably(&config.log, marker).await?;
    for partition in &config.partitions {
        partition.checkpoint(PARTITION_DEADLINE).await?;
    }
    config.log.truncate_below(begin);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_waits_for_growth() {
        assert!(!checkpoint_is_due(100, 0, 1000));
        assert!(checkpoint_is_due(1001, 0, 1000));
        assert!(!checkpoint_is_due(3000, 1000, 1000));
        assert!(checkpoint_is_due(4004, 1000, 1000));
    }
}
