//! Sweeper: takes away what nobody is to read any more.
//!
//! ```text
//! retention      block older than the tenant keeps    ─┐
//! deleted tenant all its blocks                       ─┼─> marked (metadata): no new query reads it
//! compaction     sources, by ReplaceBlocks            ─┘     │  grace, longer than the longest query
//!                                                            └─> objects deleted ─> DropBlocks
//! orphans        parts of blocks that no metadata names, older than a day ─> deleted
//! ```
//!
//! **Age** is behind the newest sample that is in the tenant's blocks, or behind the clock where that lies ahead of it:
//! whoever loads old data keeps it, and one sample from the future deletes nothing.
//!
//! **Orphans** are what crashes leave between an upload and its commit. A bucket may hold blocks of others (a migration
//! begins by pointing at one), and it outlives metadata that was lost. So only blocks are touched that say that Engram
//! made them, of a tenant this cluster has, and whose name is younger than this cluster; what is there without
//! `meta.json` only where nothing of the tenant was made by others. Names are looked up in the metadata after the
//! listing, never before: a block that was committed in between is known by then. They are looked up again before each
//! deletion, and only what this process saw unknown in an earlier listing goes: the ages of names are told by the clocks
//! of those who made them, its own clock never goes back.
//!
//! **A whole orphan**, one with `meta.json`, is never deleted by itself. A crash between upload and commit leaves one, but
//! so does metadata that was restored from an old backup, and then it is the only copy of what the heads have long
//! forgotten: no name, age or index in it tells the two apart for ever. It is counted and told; `engram verify` lists it.
//! Only with a whole tenant that is deleted does it go.
//!
//! One node sweeps at a time, by a lease. Everything here may be repeated: a crash in the middle is finished by the next
//! round.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::Millis;
use engram_model::block::{BlockId, BlockRow};
use engram_model::error::{Class, Classed};
use engram_model::tenant::TenantId;
use engram_model::time::{Clock, Stopwatch};
use engram_storage::block::Meta as BlockJson;
use engram_storage::object::{Store, block_key};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::heads;
use super::job::PROPOSE_WITHIN;
use super::reach::Reach;
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::meta::Meta;
use crate::meta::blocks::Lease;
use crate::metrics::Reading;
use crate::peer::Peers;

/// The lease of whoever sweeps.
const LEASE_KEY: &str = "sweep";
const LEASE: Duration = Duration::from_secs(120);
/// Blocks of one command.
const BLOCKS_AT_ONCE: usize = 256;

/// What the sweeper works with.
#[derive(Clone)]
pub struct Config {
    /// The metadata.
    pub meta: Meta,
    /// The replicas: a deleted tenant is gone when no head holds anything of it.
    pub peers: Peers,
    /// Whether blocks may be changed.
    pub reach: Reach,
    /// Where blocks lie.
    pub store: Store,
    /// The node's clock.
    pub clock: Clock,
    /// How often to sweep.
    pub every: Duration,
    /// How old blocks become of tenants that do not say; 0: they are kept for ever.
    pub retention_ms: i64,
    /// How long the objects of a marked block stay.
    pub grace_ms: i64,
    /// How old an object without metadata must be.
    pub orphan_after_ms: i64,
    /// How often to look for orphans: it lists the store.
    pub orphans_every_ms: i64,
    /// The door to it.
    pub handle: Sweeping,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// The door to the sweeper. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sweeping(Arc<Inner>);

#[derive(Default)]
struct Inner {
    wake: Notify,
    marked: AtomicU64,
    deleted: AtomicU64,
    deleted_bytes: AtomicU64,
    orphans: AtomicU64,
    tenants: AtomicU64,
    failures: AtomicU64,
    /// When orphans were looked for last.
    looked_at: Mutex<Option<Millis>>,
    seen: Mutex<Seen>,
}

/// What listings of this process found of a tenant that no metadata names.
#[derive(Default)]
struct Seen {
    /// Since when.
    since: BTreeMap<(TenantId, BlockId), Stopwatch>,
    /// Those of them that are whole and ours.
    whole: BTreeSet<(TenantId, BlockId)>,
}

impl Seen {
    /// Notes a listing; those that an earlier one had, at least so long ago.
    fn note(&mut self, tenant: &TenantId, unknown: &[BlockId], after: Duration) -> Vec<BlockId> {
        let is_there = |key: &(TenantId, BlockId)| key.0 != *tenant || unknown.contains(&key.1);
        self.since.retain(|key, _| is_there(key));
        self.whole.retain(is_there);
        let mut ripe = Vec::new();
        for id in unknown {
            match self.since.entry((tenant.clone(), *id)) {
                Entry::Occupied(since) if since.get().elapsed() >= after => ripe.push(*id),
                Entry::Occupied(_) => {}
                Entry::Vacant(fresh) => drop(fresh.insert(Stopwatch::start())),
            }
        }
        ripe
    }
}

impl Sweeping {
    /// Makes the sweeper sweep now, orphans too.
    pub fn wake(&self) {
        *self.0.looked_at.lock() = None;
        self.0.wake.notify_one();
    }

    /// For the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
    pub fn readings(&self) -> Vec<Reading> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let inner = &self.0;
        vec![
            Reading::counter("sweeper_marked", "Blocks marked because they are too old", get(&inner.marked)),
            Reading::counter("sweeper_deleted", "Blocks deleted by this node", get(&inner.deleted)),
            Reading::counter("sweeper_deleted_bytes", "Bytes of them", get(&inner.deleted_bytes)),
            Reading::gauge(
                "sweeper_unknown_blocks",
                "Whole blocks of ours that no metadata names: of a crash, or the metadata is older than the store",
                inner.seen.lock().whole.len() as f64,
            ),
            Reading::counter("sweeper_orphans", "Objects without metadata deleted, in blocks", get(&inner.orphans)),
            Reading::counter("sweeper_tenants", "Deleted tenants that are gone for good", get(&inner.tenants)),
            Reading::counter("sweeper_failures", "Tenants that could not be swept; tried again", get(&inner.failures)),
        ]
    }
}

/// The child that sweeps.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "sweeper".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    loop {
        tokio::select! {
            biased;
            () = round(&config) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(config.every) => {}
            () = config.handle.0.wake.notified() => {}
            () = config.stop.cancelled() => return Ok(()),
        }
    }
}

/// Sweeps everything once, if this node has the lease.
pub async fn round(config: &Config) {
    let lease = match config.meta.lease(LEASE_KEY, LEASE, PROPOSE_WITHIN).await {
        Ok(Some(lease)) => lease,
        Ok(None) => return,
        Err(error) => return tracing::debug!(%error, "no lease to sweep"),
    };
    for tenant in config.meta.tenants_to_sweep() {
        // Renewed for each tenant: deleting the objects of one may take long, the fence goes with every command.
        let swept = match config.meta.lease(LEASE_KEY, LEASE, PROPOSE_WITHIN).await {
            Ok(Some(have)) if have == lease => sweep(config, &tenant, &lease).await,
            Ok(_) => return,
            Err(error) => Err(error),
        };
        told(config, &tenant, swept);
    }
    let now = config.clock.now();
    let is_time = config.handle.0.looked_at.lock().is_none_or(|at| now.saturating_sub(at) >= config.orphans_every_ms);
    if is_time && config.reach.is_open() {
        match config.store.list_tenants().await {
            Ok(tenants) => {
                // What belongs to nobody we know may be another cluster's.
                for tenant in tenants.into_iter().filter(|tenant| config.meta.tenant(tenant).version > 0) {
                    told(config, &tenant, orphans(config, &tenant, now, false).await);
                }
                *config.handle.0.looked_at.lock() = Some(now);
            }
            Err(error) => tracing::warn!(%error, "orphans cannot be looked for"),
        }
    }
    if let Err(error) = config.meta.release(&lease, PROPOSE_WITHIN).await {
        tracing::debug!(%error, "the lease to sweep is not given back, it expires by itself");
    }
}

fn told(config: &Config, tenant: &TenantId, swept: Result<(), Error>) {
    if let Err(error) = swept {
        config.handle.0.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%tenant, %error, "a tenant could not be swept, it is tried again");
    }
}

/// What is to happen to the blocks of a tenant: pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decision {
    /// To be marked.
    old: Vec<BlockId>,
    /// Whose objects are to be deleted.
    gone: Vec<Arc<BlockRow>>,
}

/// `retention_ms` of 0 keeps everything; `is_deleted`: the whole tenant goes.
fn decide(rows: &[Arc<BlockRow>], now: Millis, retention_ms: i64, grace_ms: i64, is_deleted: bool) -> Decision {
    let newest = rows.iter().filter(|row| row.marked.is_none()).map(|row| row.meta.range.end).max();
    let oldest_kept = newest.map(|newest| newest.min(now).saturating_sub(retention_ms));
    let mut decision = Decision::default();
    for row in rows {
        match &row.marked {
            Some(mark) if mark.at.saturating_add(grace_ms) <= now => decision.gone.push(row.clone()),
            Some(_) => {}
            None => {
                let is_old = retention_ms > 0 && oldest_kept.is_some_and(|kept| row.meta.range.end <= kept);
                if is_old || is_deleted {
                    decision.old.push(row.meta.id);
                }
            }
        }
    }
    decision
}

async fn sweep(config: &Config, tenant: &TenantId, lease: &Lease) -> Result<(), Error> {
    let is_deleted = config.meta.tenant_deleted(tenant);
    let limits = config.meta.tenant(tenant).limits;
    let retention_ms = limits.compactor_blocks_retention_period_ms.unwrap_or(config.retention_ms);
    let view = config.meta.blocks(tenant);
    if !config.reach.is_open() && !view.blocks.is_empty() {
        return Ok(());
    }
    let decision = decide(&view.blocks, config.clock.now(), retention_ms, config.grace_ms, is_deleted);
    let why = if is_deleted { "the tenant is deleted" } else { "older than its retention" };
    for old in decision.old.chunks(BLOCKS_AT_ONCE) {
        config.meta.mark_blocks(("sweeper", why), tenant, old.to_vec(), Some(lease), PROPOSE_WITHIN).await?;
        config.handle.0.marked.fetch_add(old.len() as u64, Ordering::Relaxed);
        tracing::info!(%tenant, blocks = old.len(), why, "blocks are marked for deletion");
    }
    for gone in decision.gone.chunks(BLOCKS_AT_ONCE) {
        for row in gone {
            config.store.delete_block(tenant, row.meta.id).await.map_err(|e| storage_error(&e))?;
            config.handle.0.deleted_bytes.fetch_add(row.meta.bytes(), Ordering::Relaxed);
        }
        let ids = gone.iter().map(|row| row.meta.id).collect();
        config.meta.drop_blocks(tenant, ids, Some(lease), PROPOSE_WITHIN).await?;
        config.handle.0.deleted.fetch_add(gone.len() as u64, Ordering::Relaxed);
        tracing::info!(%tenant, blocks = gone.len(), "blocks are deleted");
    }
    if is_deleted { end(config, tenant).await } else { Ok(()) }
}

/// Forgets a deleted tenant once nothing of it is left anywhere.
async fn end(config: &Config, tenant: &TenantId) -> Result<(), Error> {
    let view = config.meta.blocks(tenant);
    for deletion in &view.deletions {
        match config.meta.remove_deletion(tenant, deletion.index, None, PROPOSE_WITHIN).await {
            Err(error) if error.class != Class::NotFound => return Err(error),
            _ => {}
        }
    }
    let is_sealed = !config.meta.open_seals_of(tenant).is_empty();
    if !view.blocks.is_empty() || is_sealed || !heads::held(&config.meta, &config.peers, tenant).await?.is_empty() {
        return Ok(());
    }
    // Nothing can be on its way any more.
    if config.reach.is_open() {
        orphans(config, tenant, config.clock.now(), true).await?;
    }
    config.meta.remove_tenant(tenant, PROPOSE_WITHIN).await?;
    config.handle.0.tenants.fetch_add(1, Ordering::Relaxed);
    tracing::info!(%tenant, "a deleted tenant is gone for good");
    Ok(())
}

/// Deletes what uploads left behind that were never finished; with `all`, whatever is ours, of a tenant that is deleted.
async fn orphans(config: &Config, tenant: &TenantId, now: Millis, all: bool) -> Result<(), Error> {
    let listed = config.store.list_blocks(tenant).await.map_err(|e| storage_error(&e))?;
    // Everything that was committed before the listing is in the view after this.
    config.meta.see(PROPOSE_WITHIN).await?;
    let Some(born) = config.meta.cluster_made_at() else { return Ok(()) };
    let known: BTreeSet<BlockId> = config.meta.blocks(tenant).blocks.iter().map(|row| row.meta.id).collect();
    let unknown: Vec<BlockId> = listed.into_iter().filter(|id| !known.contains(id)).collect();
    let after_ms = if all { 0 } else { config.orphan_after_ms };
    let after = Duration::from_millis(u64::try_from(after_ms).unwrap_or(0));
    let ripe = config.handle.0.seen.lock().note(tenant, &unknown, after);
    let (mut gone, mut parts, mut is_shared) = (Vec::new(), Vec::new(), false);
    for id in unknown {
        let is_old = is_old(id, born, now, after_ms);
        match maker(config, tenant, id).await? {
            Maker::Engram if is_old && all => gone.push(id),
            Maker::Engram if is_old => tell_whole(config, tenant, id),
            Maker::Other => is_shared = true,
            Maker::Unknown if is_old && (all || ripe.contains(&id)) => parts.push(id),
            Maker::Engram | Maker::Unknown => {}
        }
    }
    if !is_shared {
        gone.append(&mut parts);
    }
    for id in gone {
        // A commit may have come since.
        config.meta.see(PROPOSE_WITHIN).await?;
        if config.meta.block(tenant, id).is_some() {
            continue;
        }
        config.store.delete_block(tenant, id).await.map_err(|e| storage_error(&e))?;
        config.handle.0.orphans.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%tenant, block = %id, "objects that no metadata names are deleted");
    }
    Ok(())
}

/// Counts a whole block that nobody knows, and tells of it once.
fn tell_whole(config: &Config, tenant: &TenantId, block: BlockId) {
    if config.handle.0.seen.lock().whole.insert((tenant.clone(), block)) {
        tracing::warn!(
            %tenant, %block,
            "a whole block is in no metadata: left by a crash, or the metadata was restored from before it; it stays"
        );
    }
}

/// Whether a name is younger than the cluster and older than an upload takes.
fn is_old(id: BlockId, born: Millis, now: Millis, after_ms: i64) -> bool {
    let at = i64::try_from(id.0 >> 80).unwrap_or(i64::MAX);
    at > born && at.saturating_add(after_ms) <= now
}

/// Who made a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    Engram,
    Other,
    /// There is no `meta.json`: an upload that was not finished, or a deletion.
    Unknown,
}

async fn maker(config: &Config, tenant: &TenantId, id: BlockId) -> Result<Maker, Error> {
    let key = block_key(tenant, id, "meta.json");
    let Some(bytes) = config.store.get(&key).await.map_err(|e| storage_error(&e))? else { return Ok(Maker::Unknown) };
    // What cannot be read is not ours to delete.
    let read = BlockJson::read(Path::new(&key), &bytes);
    Ok(if read.is_ok_and(|meta| meta.engram.is_some()) { Maker::Engram } else { Maker::Other })
}

fn storage_error(error: &engram_storage::Error) -> Error {
    Error::new(error.class(), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::TimeRange;
    use engram_model::block::{BlockMeta, Mark, Origin};
    use engram_model::digest::Digest;

    const HOUR: i64 = 3_600_000;

    fn row(id: u128, end: i64, marked_at: Option<Millis>) -> Arc<BlockRow> {
        let meta = BlockMeta {
            id: BlockId(id),
            tenant: TenantId::anonymous(),
            range: TimeRange::new(end - 2 * HOUR, end),
            level: 1,
            origin: Origin::Imported,
            shard: None,
            sources: Vec::new(),
            series: 1,
            chunks: 1,
            digest: Digest::EMPTY,
            files: Vec::new(),
            as_of: 0,
            made_at: 0,
        };
        let mark = |at| Mark { index: 1, at, by: String::new(), why: String::new() };
        Arc::new(BlockRow { meta, index: 1, marked: marked_at.map(mark), quarantined: None })
    }

    fn old(rows: &[Arc<BlockRow>], now: Millis, retention_ms: i64) -> Vec<u128> {
        decide(rows, now, retention_ms, HOUR, false).old.iter().map(|id| id.0).collect()
    }

    #[test]
    fn age_is_behind_the_newest_sample_and_never_behind_the_future() {
        let rows = [row(1, 10 * HOUR, None), row(2, 20 * HOUR, None), row(3, 30 * HOUR, None)];
        assert_eq!(old(&rows, 1_000_000 * HOUR, 10 * HOUR), [1, 2], "old data is kept as long as new data");
        assert_eq!(old(&rows, 1_000_000 * HOUR, 11 * HOUR), [1]);
        assert_eq!(old(&rows, 1_000_000 * HOUR, 0), [0; 0], "for ever");
        assert_eq!(old(&rows, 20 * HOUR, 10 * HOUR), [1], "a sample from the future deletes nothing");
        let marked = [row(1, 10 * HOUR, None), row(3, 30 * HOUR, Some(0))];
        assert_eq!(old(&marked, 1_000_000 * HOUR, 10 * HOUR), [0; 0], "what goes is no measure of age");
    }

    #[test]
    fn objects_stay_for_the_grace_and_a_deleted_tenant_goes_whole() {
        let rows = [row(1, 10 * HOUR, Some(5 * HOUR)), row(2, 20 * HOUR, None)];
        let gone = |now| decide(&rows, now, 0, HOUR, false).gone.len();
        assert_eq!((gone(6 * HOUR - 1), gone(6 * HOUR)), (0, 1));
        assert_eq!(decide(&rows, 0, 0, HOUR, true).old, [BlockId(2)]);
    }

    #[test]
    fn names_older_than_the_cluster_and_young_ones_are_let_alone() {
        let id = |at| BlockId::new(at, 7);
        let is_old = |at, now| is_old(id(at), 100, now, 50);
        assert!(is_old(101, 151) && !is_old(101, 150) && !is_old(100, 1000) && !is_old(99, 1000));
    }
}
