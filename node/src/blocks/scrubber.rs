//! Scrubber: reads every block again, slowly, for ever, and says what is damaged.
//!
//! Why: bytes rot where nobody looks, and a damaged block that is found while its sources are there is mended; one that
//! is found by a query a year later is not.
//!
//! Order: by tenant and name, round after round, so the block that was checked longest ago is always the next. Where it
//! stands is written down beside the data, or each start would check the first blocks again. One node scrubs at a time,
//! by a lease. A block is checked at a pace (bytes a second); what looks damaged is looked at again before it is told:
//! then it is quarantined in the metadata, which compaction, queries and people see, and repaired where that is possible.
//! A quarantined block that is whole again leaves quarantine.
//!
//! What fails (no lease, no answer from the store) is tried again with the next block; nothing is quarantined because the
//! store did not answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use engram_model::Millis;
use engram_model::block::{BlockId, BlockRow};
use engram_model::tenant::TenantId;
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::check::{self, Checked, Depth, Pace};
use super::reach::Reach;
use super::repair::{Outcome, Workshop};
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::meta::Meta;
use crate::metrics::Reading;

/// What is leased.
const LEASE: &str = "scrub";
/// A lease lasts this long beside the time the block takes.
const LEASE_MARGIN: Duration = Duration::from_secs(120);
/// After a round nothing is read until it began so long ago.
const ROUND_MS_MIN: i64 = 24 * 60 * 60 * 1000;
/// Between two blocks, and before something is tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// How long the metadata may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(30);
/// Who changes the metadata.
const BY: &str = "scrubber";
/// Longest reason that is put into the metadata.
const WHY_CHARS_MAX: usize = 500;

/// What the scrubber works with.
#[derive(Clone)]
pub struct Config {
    /// Where blocks are, and how they are made again.
    pub shop: Workshop,
    /// The file that says how far it is.
    pub state: PathBuf,
    /// How fast it reads.
    pub pace: Pace,
    /// What it tells.
    pub handle: Scrubbing,
    /// Whether blocks may be judged by what lies in the store.
    pub reach: Reach,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// What the scrubber has done. Cheap to clone.
#[derive(Clone, Default)]
pub struct Scrubbing(Arc<Inner>);

#[derive(Default)]
struct Inner {
    blocks: AtomicU64,
    bytes: AtomicU64,
    damaged: AtomicU64,
    repaired: AtomicU64,
    failures: AtomicU64,
    /// No block was checked longer ago; 0: nothing is known.
    oldest_at: AtomicI64,
}

impl Scrubbing {
    /// For the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
    pub fn readings(&self, meta: &Meta, now: Millis) -> Vec<Reading> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let oldest = self.0.oldest_at.load(Ordering::Relaxed);
        let age = if oldest == 0 { 0.0 } else { now.saturating_sub(oldest).max(0) as f64 / 1000.0 };
        let tenants = meta.tenants_with_blocks();
        let quarantined = tenants.iter().flat_map(|(tenant, _)| meta.blocks(tenant).blocks);
        let quarantined = quarantined.filter(|row| row.quarantined.is_some() && row.marked.is_none()).count();
        vec![
            Reading::counter("scrub_blocks", "Blocks that this node has checked", get(&self.0.blocks)),
            Reading::counter("scrub_bytes", "Bytes it has read for that", get(&self.0.bytes)),
            Reading::counter("scrub_damaged", "Blocks it found damaged", get(&self.0.damaged)),
            Reading::counter("scrub_repaired", "Damaged blocks it has made again", get(&self.0.repaired)),
            Reading::counter("scrub_failures", "Checks that could not be done; tried again", get(&self.0.failures)),
            Reading::gauge(
                "scrub_oldest_check_seconds",
                "No block was checked longer ago, as far as this node knows",
                age,
            ),
            Reading::gauge("blocks_quarantined", "Damaged blocks: queries of their time fail", quarantined as f64),
        ]
    }
}

/// The child that scrubs.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "scrubber".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    let mut progress = Progress::read(&config.state);
    loop {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        let now = config.shop.clock.now();
        config.handle.0.oldest_at.store(progress.oldest_at(now), Ordering::Relaxed);
        if progress.is_resting(now) || !config.reach.is_open() {
            continue;
        }
        let step = tokio::select! {
            step = step(&config, &mut progress, now) => step,
            () = config.stop.cancelled() => return Ok(()),
        };
        if let Err(error) = step {
            config.handle.0.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "a block could not be checked, it is tried again");
        }
    }
}

/// Checks every block once, now.
///
/// # Errors
/// The store or the metadata do not answer.
pub async fn round(config: &Config) -> Result<(), Error> {
    if !config.reach.is_open() {
        return Err(config.reach.closed());
    }
    for (tenant, _) in config.shop.meta.tenants_with_blocks() {
        for row in config.shop.meta.blocks(&tenant).blocks.iter().filter(|row| row.marked.is_none()) {
            one(config, row).await?;
        }
    }
    Ok(())
}

/// Checks the next block.
async fn step(config: &Config, progress: &mut Progress, now: Millis) -> Result<(), Error> {
    let meta = &config.shop.meta;
    let Some(row) = next(meta, progress.after.as_ref()) else {
        progress.round_ended(now);
        return progress.write(config).await;
    };
    let seconds = row.meta.bytes().saturating_mul(4).checked_div(config.pace.bytes_per_second).unwrap_or(0);
    let ttl = LEASE_MARGIN.saturating_add(Duration::from_secs(seconds));
    if meta.lease(LEASE, ttl, PROPOSE_WITHIN).await?.is_none() {
        return Ok(());
    }
    one(config, &row).await?;
    progress.after = Some((row.meta.tenant.clone(), row.meta.id));
    progress.write(config).await
}

/// The block behind `after`, in order of tenants and names.
fn next(meta: &Meta, after: Option<&(TenantId, BlockId)>) -> Option<Arc<BlockRow>> {
    let tenants = meta.tenants_with_blocks().into_iter().map(|(tenant, _)| tenant);
    let behind = |tenant: &TenantId, id: BlockId| after.is_none_or(|after| (&after.0, after.1) < (tenant, id));
    for tenant in tenants.filter(|tenant| after.is_none_or(|after| after.0 <= *tenant)) {
        let mut rows = meta.blocks(&tenant).blocks.into_iter();
        if let Some(row) = rows.find(|row| row.marked.is_none() && behind(&tenant, row.meta.id)) {
            return Some(row);
        }
    }
    None
}

/// Checks one block and does what follows from it.
async fn one(config: &Config, row: &BlockRow) -> Result<(), Error> {
    let (meta, block) = (&config.shop.meta, &row.meta);
    let look = || check::block(&config.shop.store, block, Depth::Deep, config.pace);
    let count = |checked: &Checked| config.handle.0.bytes.fetch_add(checked.bytes, Ordering::Relaxed);
    let mut checked = look().await?;
    count(&checked);
    config.handle.0.blocks.fetch_add(1, Ordering::Relaxed);
    if !checked.found.is_empty() {
        checked = look().await?;
        count(&checked);
    }
    // Replaced or deleted in between: it is nobody's business any more.
    let Some(now) = meta.block(&block.tenant, block.id).filter(|row| row.marked.is_none()) else { return Ok(()) };
    let (tenant, id) = (&block.tenant, block.id);
    if checked.found.is_empty() {
        if now.quarantined.is_some() {
            meta.quarantine_block(BY, tenant, id, None, PROPOSE_WITHIN).await?;
            tracing::info!(%tenant, block = %id, "a block is whole again and leaves quarantine");
        }
        return Ok(());
    }
    if now.quarantined.is_none() {
        let why: String = checked.why().chars().take(WHY_CHARS_MAX).collect();
        config.handle.0.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%tenant, block = %id, why, "a block is damaged, it is quarantined");
        meta.quarantine_block(BY, tenant, id, Some(why), PROPOSE_WITHIN).await?;
    }
    match config.shop.repair(block).await? {
        Outcome::Repaired(new) => {
            config.handle.0.repaired.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%tenant, block = %id, new = %new, "a damaged block was made again from its sources");
        }
        Outcome::Impossible(why) => {
            tracing::warn!(%tenant, block = %id, why, "a damaged block cannot be made again: import it from a backup");
        }
    }
    Ok(())
}

/// How far the scrubber is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    /// The block that was checked last in this round.
    after: Option<(TenantId, BlockId)>,
    /// When this round began; none: with the next block.
    began_at: Option<Millis>,
    /// When the last whole round began.
    whole_began_at: Option<Millis>,
}

impl Progress {
    /// Without a file, or with one that is none, it begins anew.
    fn read(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    async fn write(&self, config: &Config) -> Result<(), Error> {
        let (bytes, path) = (serde_json::to_vec(self).unwrap_or_default(), config.state.clone());
        // A crash may lose it or tear it: the round begins anew then.
        let written = engram_storage::blocking::blocking(move || std::fs::write(path, bytes)).await;
        let failed = |why: String| Error::unavailable(format!("how far the scrubber is could not be written: {why}"));
        written.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
    }

    /// Whether the round before began so lately that the next one waits; begins it when not.
    fn is_resting(&mut self, now: Millis) -> bool {
        if self.began_at.is_some() {
            return false;
        }
        let rests = self.whole_began_at.is_some_and(|at| now.saturating_sub(at) < ROUND_MS_MIN);
        if !rests {
            self.began_at = Some(now);
        }
        rests
    }

    fn round_ended(&mut self, now: Millis) {
        *self = Self { after: None, began_at: None, whole_began_at: Some(self.began_at.unwrap_or(now)) };
    }

    /// No block was checked before this.
    fn oldest_at(&self, now: Millis) -> Millis {
        self.whole_began_at.or(self.began_at).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_follow_each_other_not_too_fast() {
        let mut progress = Progress::default();
        assert!(!progress.is_resting(1000), "the first begins at once");
        assert_eq!(progress.oldest_at(5000), 1000);
        progress.after = Some((TenantId::anonymous(), BlockId(3)));
        let text = serde_json::to_string(&progress).unwrap();
        assert_eq!(serde_json::from_str::<Progress>(&text).unwrap(), progress);
        progress.round_ended(9000);
        assert_eq!((progress.after.clone(), progress.oldest_at(10_000)), (None, 1000));
        assert!(progress.is_resting(1000 + ROUND_MS_MIN - 1));
        assert!(!progress.is_resting(1000 + ROUND_MS_MIN));
        assert_eq!(progress.oldest_at(i64::MAX), 1000, "until the second round is whole");
    }

    #[test]
    fn a_file_that_is_none_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scrub.json");
        assert_eq!(Progress::read(&path), Progress::default());
        std::fs::write(&path, "{\"after\":").unwrap();
        assert_eq!(Progress::read(&path), Progress::default());
    }
}
