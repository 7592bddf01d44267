//! Late blocks: what a replica set aside for a seal, and the block that was cut of it lacks.
//!
//! Why: a cut holds what a majority had set aside. A replica that did not answer then may hold more: it applied the seal
//! after a sample that the others took only behind it, or alone has what was never acknowledged. It forgets nothing that
//! no block holds. So it compares, sample by sample, with all blocks of that time, and makes a block of the rest.
//!
//! ```text
//! set aside here ── less what deletions hide ── less what blocks hold ──► rest ──► verified block → objects → AddBlocks
//! ```
//!
//! The rest may be written behind the seal on other replicas too, and be cut again: compaction takes the double away.
//! A crash before the commit leaves objects that the sweeper finds; after it, the next comparison finds nothing lacking.
//! A commit whose answer was lost may arrive after that comparison: of two late blocks made as of the same index the
//! metadata take one, the other compares again.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engram_model::block::{BlockId, BlockMeta, BlockRow, Cut, Origin};
use engram_model::digest::{Digest, slot_of};
use engram_model::error::{Class, Classed};
use engram_model::merge::merge_columns;
use engram_model::place::PartitionId;
use engram_model::series::{Columns, Series};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_model::{Millis, TimeRange};
use engram_storage::block::BlockDir;
use engram_storage::compact::Cursor;
use engram_storage::disk::Disk;
use engram_storage::object::{Store, block_key};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::build::{Cutting, build};
use super::check::Depth;
use super::fetch::{self, Missing};
use super::reach::Reach;
use super::uploader::{self, About};
use crate::error::Error;
use crate::meta::Meta;
use crate::peer::Frozen;
use crate::read::hide::Hider;

/// How long one command may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);
/// Attempts to learn what became of a commit.
const COMMIT_ATTEMPTS: u32 = 5;
/// Comparisons when other late blocks of the seal come in between.
const RACES_MAX: u32 = 3;
/// Bytes of a block that are read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// What a part that was set aside belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SealKey {
    /// Whose.
    pub tenant: TenantId,
    /// Where.
    pub partition: PartitionId,
    /// The seal's number.
    pub number: u64,
}

/// What is known after a part was compared with the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// From this index of the metadata on blocks hold all of it.
    pub index: u64,
    /// What they lacked before, and a late block holds now.
    pub late: Digest,
}

/// What is known of the block of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It can be read from here, or others have replaced it.
    There,
    /// It lies nowhere that this node sees.
    Missing,
    /// A block of this time is in quarantine, this one or one it went into: what is set aside may be the last copy.
    Damaged,
}

/// Looks into committed cuts, and completes them.
pub trait Cuts: Send + Sync {
    /// What can be relied on of a block that holds a window.
    fn seen(&self, tenant: &TenantId, block: BlockId, window: TimeRange) -> BoxFuture<'_, Result<Seen, Error>>;
    /// Sees to it that blocks hold all of `mine`, whose cut is committed: what they lack becomes a late block. A sample
    /// counts as held when a block has one with a greater value at its time, or when its deletion is ordered.
    fn complete(&self, key: &SealKey, cut: Cut, mine: Frozen) -> BoxFuture<'_, Result<Shipped, Error>>;
}

/// Compares with blocks and ships the rest. Cheap to clone.
#[derive(Clone)]
pub struct LateBlocks(Arc<Inner>);

struct Inner {
    meta: Meta,
    reach: Reach,
    store: Store,
    disk: Arc<dyn Disk>,
    work: PathBuf,
    window_ms: i64,
    clock: Clock,
    /// One at a time: each holds the samples of one part.
    turn: Semaphore,
}

impl LateBlocks {
    /// Works below the directory `work`, which is made and emptied; no chunk crosses a multiple of `window_ms`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(
        (reach, store): (&Reach, &Store),
        disk: Arc<dyn Disk>,
        work: PathBuf,
        window_ms: i64,
        clock: Clock,
    ) -> Result<Self, engram_storage::Error> {
        disk.create_dir(&work)?;
        for left in disk.list_dirs(&work)?.iter().map(|name| work.join(name)) {
            uploader::clean(&*disk, &left)?;
            disk.remove_dir(&left)?;
        }
        let (meta, reach, store) = (reach.meta().clone(), reach.clone(), store.clone());
        let turn = Semaphore::new(1);
        Ok(Self(Arc::new(Inner { meta, reach, store, disk, work, window_ms, clock, turn })))
    }
}

impl Cuts for LateBlocks {
    fn seen(&self, tenant: &TenantId, block: BlockId, window: TimeRange) -> BoxFuture<'_, Result<Seen, Error>> {
        let tenant = tenant.clone();
        async move {
            let view = self.0.meta.blocks(&tenant);
            if view.blocks.iter().any(|row| row.quarantined.is_some() && row.meta.range.overlaps(window)) {
                return Ok(Seen::Damaged);
            }
            let Some(row) = self.0.meta.block(&tenant, block) else { return Ok(Seen::There) };
            let key = block_key(&tenant, block, "meta.json");
            let size = self.0.store.size(&key).await.map_err(|e| uploader::storage_error(&e))?;
            let agreed = row.meta.files.iter().find(|file| file.name == "meta.json").map(|file| file.bytes);
            // Objects of a block that was replaced may be gone before its row is.
            Ok(if row.marked.is_some() || size == agreed { Seen::There } else { Seen::Missing })
        }
        .boxed()
    }

    fn complete(&self, key: &SealKey, cut: Cut, mine: Frozen) -> BoxFuture<'_, Result<Shipped, Error>> {
        let key = key.clone();
        async move {
            // The semaphore is never closed.
            let _turn = self.0.turn.acquire().await.ok();
            let mut attempt = 1;
            loop {
                let dir = self.0.work.join(format!("{:032x}", super::build::unique()));
                let done = self.0.complete(&key, cut, mine.clone(), &dir).await;
                let disk = self.0.disk.clone();
                let removed = engram_storage::blocking::blocking(move || {
                    uploader::clean(&*disk, &dir)?;
                    disk.remove_dir(&dir)
                });
                if let Ok(Err(error)) = removed.await {
                    tracing::warn!(%error, "the work copies of a comparison cannot be removed");
                }
                match done {
                    // Another late block came first: it may hold all of it.
                    Err(error) if error.class == Class::Conflict && attempt < RACES_MAX => attempt += 1,
                    done => return done,
                }
            }
        }
        .boxed()
    }
}

impl Inner {
    async fn complete(&self, key: &SealKey, cut: Cut, mine: Frozen, dir: &Path) -> Result<Shipped, Error> {
        // A late block of an earlier life of this node may be agreed and not seen here yet.
        self.meta.see(PROPOSE_WITHIN).await?;
        let view = self.meta.blocks(&key.tenant);
        let (window, number) = (mine.window, mine.number);
        if self.meta.tenant_deleted(&key.tenant) {
            return Ok(Shipped { index: view.index, late: Digest::EMPTY });
        }
        let hidden = Hider::new(&view.deletions, window)?;
        let mut rest = on_thread(move || visible(&mine, &hidden)).await?;
        for row in candidates(&view.blocks, cut, window) {
            if rest.is_empty() {
                break;
            }
            let fetched = fetch::block(&self.store, &self.disk, &row.meta, dir).await;
            let path = match fetched {
                Ok(path) => path,
                Err(Missing::Failed(error)) => return Err(error),
                // It holds nothing that can be relied on; the scrubber deals with it.
                Err(Missing::Damaged(_)) => continue,
            };
            let disk = self.disk.clone();
            rest = on_thread(move || lacking(&*disk, &path, rest, window)).await?;
        }
        if rest.is_empty() {
            return Ok(Shipped { index: view.index, late: Digest::EMPTY });
        }
        let part = on_thread(move || frozen(number, window, rest)).await?;
        let late = part.digest();
        self.ship(key, part, view.index, dir).await?;
        // The commit is visible here, so a view of this index names the block.
        Ok(Shipped { index: self.meta.index(), late })
    }

    /// Builds, uploads and commits a late block.
    async fn ship(&self, key: &SealKey, part: Frozen, as_of: u64, dir: &Path) -> Result<(), Error> {
        let (range, made_at) = (part.window, self.clock.now());
        let id = BlockId::new(made_at, super::build::unique());
        let cutting = Cutting {
            window: part.window,
            parts: vec![part.into()],
            hidden: Hider::default(),
            window_ms: self.window_ms,
        };
        let (disk, parent) = (self.disk.clone(), dir.to_owned());
        let built = on_thread(move || {
            disk.create_dir(&parent).map_err(|e| uploader::storage_error(&e))?;
            build(disk, &parent, id, cutting, &CancellationToken::new())
        })
        .await?;
        let Some(written) = built.written else { return Ok(()) };
        let origin = Origin::Cut { partition: key.partition, seal: key.number };
        let about = About { tenant: key.tenant.clone(), range, origin, as_of, made_at };
        let block = uploader::upload(&self.store, about, &written).await?;
        uploader::confirm(&self.store, &block, Depth::Objects).await?;
        let _members = self.reach.turn().await?;
        self.commit(&key.tenant, block).await
    }

    /// Commits; while the outcome is unknown, again: the same block twice changes nothing.
    async fn commit(&self, tenant: &TenantId, block: BlockMeta) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            match self.meta.add_blocks("head", tenant, vec![block.clone()], None, PROPOSE_WITHIN).await {
                Err(error)
                    if matches!(error.class, Class::Timeout | Class::Unavailable) && attempt < COMMIT_ATTEMPTS =>
                {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => return other,
            }
        }
    }
}

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let failed = |e| Error::new(Class::Internal, format!("comparing with blocks failed: {e}"));
    engram_storage::blocking::blocking(work).await.map_err(failed)?
}

/// The blocks that may hold samples of the window, the one that was cut first. Imported ones may hide samples of their
/// own, and quarantined ones cannot be relied on.
fn candidates(rows: &[Arc<BlockRow>], cut: Cut, window: TimeRange) -> Vec<Arc<BlockRow>> {
    let relied_on = |row: &&Arc<BlockRow>| {
        let is_whole = row.marked.is_none() && row.quarantined.is_none();
        is_whole && row.meta.origin != Origin::Imported && row.meta.range.overlaps(window)
    };
    let mut all: Vec<Arc<BlockRow>> = rows.iter().filter(relied_on).cloned().collect();
    all.sort_by_key(|row| Some(row.meta.id) != cut.block);
    all
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::new(Class::Internal, error.to_string())
}

/// The part's series in order of labels, without what is deleted.
fn visible(mine: &Frozen, hidden: &Hider) -> Result<Vec<Series>, Error> {
    let (mut all, mut columns) = (Vec::with_capacity(mine.series.len()), Columns::default());
    for series in &mine.series {
        let shown = hidden.hide(series.clone());
        if !Arc::ptr_eq(&shown.source, &series.source) {
            columns.clear();
            shown.source.read(mine.window, &mut columns).map_err(|e| failed(&e))?;
            if columns.times.is_empty() && columns.histogram_times.is_empty() {
                continue;
            }
        }
        all.push(shown);
    }
    all.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok(all)
}

/// What a block does not hold of series in order of labels.
fn lacking(disk: &dyn Disk, path: &Path, rest: Vec<Series>, window: TimeRange) -> Result<Vec<Series>, Error> {
    let storage = |e: engram_storage::Error| Error::new(e.class(), e.to_string());
    let block = BlockDir::open(disk, path).map_err(storage)?;
    let mut cursor = Cursor::open(&block, PIECE_BYTES).map_err(storage)?;
    let (mut lacking, mut at) = (Vec::new(), cursor.next().map_err(storage)?);
    for series in rest {
        let mut theirs = Columns::default();
        while let Some(here) = &at {
            match here.labels.cmp(&series.labels) {
                Ordering::Greater => break,
                Ordering::Equal => {
                    for chunk in cursor.chunks(here).map_err(storage)? {
                        if chunk.first < window.end && window.start <= chunk.last {
                            chunk.decode(&mut theirs).map_err(|e| failed(&e))?;
                        }
                    }
                }
                Ordering::Less => {}
            }
            at = cursor.next().map_err(storage)?;
        }
        if theirs.times.is_empty() && theirs.histogram_times.is_empty() {
            lacking.push(series);
            continue;
        }
        let mut mine = Columns::default();
        series.source.read(window, &mut mine).map_err(|e| failed(&e))?;
        let columns = less(&theirs, &mine, window);
        if !columns.times.is_empty() || !columns.histogram_times.is_empty() {
            lacking.push(Series { labels: series.labels, source: Arc::new(columns) });
        }
    }
    Ok(lacking)
}

/// The samples that `theirs` would gain from `mine` within the window.
fn less(theirs: &Columns, mine: &Columns, window: TimeRange) -> Columns {
    let union = merge_columns(theirs, mine);
    let mut out = Columns::default();
    for (at, value) in union.times.iter().zip(&union.values) {
        let have = theirs.times.binary_search(at).ok().map(|i| theirs.values[i].to_bits());
        if window.contains(*at) && have != Some(value.to_bits()) {
            out.times.push(*at);
            out.values.push(*value);
        }
    }
    for (at, value) in union.histogram_times.iter().zip(&union.histograms) {
        let have = theirs.histogram_times.binary_search(at).ok().map(|i| &theirs.histograms[i]);
        let is_new = have.is_none_or(|have| Digest::of_histogram(0, *at, have) != Digest::of_histogram(0, *at, value));
        if window.contains(*at) && is_new {
            out.histogram_times.push(*at);
            out.histograms.push(value.clone());
        }
    }
    out
}

/// The rest as if it had been set aside so.
fn frozen(number: u64, window: TimeRange, series: Vec<Series>) -> Result<Frozen, Error> {
    let (mut digests, mut columns) = (BTreeMap::<Millis, Digest>::new(), Columns::default());
    for one in &series {
        columns.clear();
        one.source.read(window, &mut columns).map_err(|e| failed(&e))?;
        let hash = one.labels.hash128();
        for (at, value) in columns.times.iter().zip(&columns.values).filter(|(at, _)| window.contains(**at)) {
            digests.entry(slot_of(*at)).or_default().add(Digest::of_float(hash, *at, *value));
        }
        let histograms = columns.histogram_times.iter().zip(&columns.histograms);
        for (at, value) in histograms.filter(|(at, _)| window.contains(**at)) {
            digests.entry(slot_of(*at)).or_default().add(Digest::of_histogram(hash, *at, value));
        }
    }
    Ok(Frozen { number, window, digests, series })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn columns(all: &BTreeMap<i64, u32>) -> Columns {
        let (times, values) = all.iter().map(|(at, v)| (*at, f64::from(*v))).unzip();
        Columns { times, values, ..Columns::default() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// What a block holds and the rest together are the union, and the rest holds nothing the block has.
        #[test]
        fn the_rest_makes_the_union(
            theirs in prop::collection::btree_map(0_i64..40, 0_u32..3, 0..30),
            mine in prop::collection::btree_map(10_i64..30, 0_u32..3, 0..20),
        ) {
            let window = TimeRange { start: 10, end: 30 };
            let rest = less(&columns(&theirs), &columns(&mine), window);
            let mut want = BTreeMap::new();
            for (at, value) in &mine {
                if theirs.get(at).is_none_or(|have| have < value) {
                    want.insert(*at, *value);
                }
            }
            let want = columns(&want);
            prop_assert_eq!((rest.times, rest.values), (want.times, want.values));
        }
    }
}
