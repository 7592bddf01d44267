//! Blocks as a query reads them: opened once, read by ranges, from a directory or from a bucket.
//!
//! Why: storage says which bytes it needs and decodes them, but never waits; here is the waiting. A block in a directory
//! is read where it lies, by a thread that may block. One in a bucket is read through [`super::fetch`], step by step,
//! and decoded off the runtime.
//!
//! An opened block is the sparse table of its index; those used last stay, up to a bound. What is damaged is read once
//! more without the cache before anybody is told: a bit may have turned on the way or on the cache's disk.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engram_model::block::{BlockId, BlockRow};
use engram_model::error::{Class, Classed};
use engram_model::series::Series;
use engram_model::tenant::TenantId;
use engram_model::{Matcher, Millis, TimeRange};
use engram_storage::block::reader::series_of;
use engram_storage::block::{Block, BlockDir, Found, LabelValues, Load, Open, Select, Tombstones};
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;
use engram_storage::object::{Store, block_key};
use engram_storage::ranges::{Fetched, File, Place, Reading, Sizes, Step, drive};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};

use super::cache::Pages;
use super::fetch::{Cost, Fetcher};
use crate::error::Error;

/// Blocks that are read at once; each may hold a thread that blocks.
const READINGS_MAX: usize = 64;
/// Length of a file of deleted times that names none: magic, version, checksum.
const NO_TOMBSTONES_BYTES: u64 = 9;
/// Opened blocks that stay; each block of a directory holds its files open.
const OPENED_MAX: usize = 512;

/// Bounds of reading blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Bytes of opened indexes that stay in memory.
    pub index_bytes_max: u64,
    /// Bytes of pages that stay in memory (buckets only).
    pub memory_bytes_max: u64,
    /// Bytes of pages that stay on the local disk (buckets only); 0: none.
    pub disk_bytes_max: u64,
    /// Bytes on their way from a bucket.
    pub in_flight_bytes_max: u64,
    /// Whether a late request is sent a second time.
    pub hedging: bool,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            index_bytes_max: 256 << 20,
            memory_bytes_max: 256 << 20,
            disk_bytes_max: 10 << 30,
            in_flight_bytes_max: 256 << 20,
            hedging: true,
        }
    }
}

/// Reads blocks. Cheap to clone.
#[derive(Clone)]
pub struct Blocks(Arc<Inner>);

struct Inner {
    store: Store,
    disk: Arc<dyn Disk>,
    fetcher: Fetcher,
    opened: Mutex<OpenedBlocks>,
    turns: Semaphore,
    metrics: ReadBlockMetrics,
    index_bytes_max: u64,
}

/// What reading blocks did so far.
#[derive(Debug, Default)]
pub struct ReadBlockMetrics {
    /// Blocks opened.
    pub opened: AtomicU64,
    /// Readings of blocks that found damage, after a second try.
    pub corrupt: AtomicU64,
    /// Bytes of chunks handed to queries.
    pub chunk_bytes: AtomicU64,
}

/// An opened block.
pub struct Opened {
    row: Arc<BlockRow>,
    /// Tenant and name, what its objects' keys begin with.
    key: String,
    block: Arc<Block>,
    dir: Option<Arc<BlockDir>>,
}

type Cell = Arc<OnceCell<Arc<Opened>>>;

/// A block that is opened, or about to be.
struct Entry {
    tenant: TenantId,
    cell: Cell,
    bytes: u64,
    used: u64,
}

/// Opened blocks; the one used longest ago goes first.
#[derive(Default)]
struct OpenedBlocks {
    all: HashMap<BlockId, Entry>,
    bytes: u64,
    uses: u64,
}

impl OpenedBlocks {
    fn cell(&mut self, tenant: &TenantId, id: BlockId) -> Cell {
        self.uses += 1;
        let fresh = || Entry { tenant: tenant.clone(), cell: Cell::default(), bytes: 0, used: 0 };
        let entry = self.all.entry(id).or_insert_with(fresh);
        entry.used = self.uses;
        let cell = entry.cell.clone();
        self.trim(id, u64::MAX);
        cell
    }

    fn remove(&mut self, id: BlockId) {
        if let Some(entry) = self.all.remove(&id) {
            self.bytes -= entry.bytes;
        }
    }

    /// Counts one that was just opened, and lets others go.
    fn opened(&mut self, id: BlockId, bytes: u64, bytes_max: u64) {
        if let Some(entry) = self.all.get_mut(&id) {
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
        }
        self.trim(id, bytes_max);
    }

    fn trim(&mut self, keep: BlockId, bytes_max: u64) {
        while self.all.len() > OPENED_MAX || (self.bytes > bytes_max && self.all.len() > 1) {
            let oldest = self.all.iter().filter(|(other, _)| **other != keep).min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            self.remove(oldest);
        }
    }
}

/// Series found in a block; their chunks are not read yet.
pub struct Selected {
    opened: Arc<Opened>,
    /// The series, in the block's order.
    pub found: Vec<Found>,
}

impl Selected {
    /// The block it was found in.
    #[must_use]
    pub fn row(&self) -> &BlockRow {
        &self.opened.row
    }

    /// Times that were deleted of a series by whoever made the block, first and last inside.
    #[must_use]
    pub fn deleted(&self, found: &Found) -> &[(Millis, Millis)] {
        self.opened.block.deleted(found)
    }

    /// Leaves out all chunks but the one with the last sample of the range, where that is known: not where something
    /// was deleted, for the last chunk may be gone as a whole.
    pub fn keep_last(&mut self) {
        let block = &self.opened.block;
        for series in self.found.iter_mut().filter(|series| block.deleted(series).is_empty()) {
            if let [.., before, last] = &*series.chunks
                && before.last < last.first
            {
                series.chunks = vec![*last];
            }
        }
    }
}

fn failed(error: &engram_storage::Error) -> Error {
    Error::new(error.class(), error.to_string())
}

/// The lengths of a block's files, as the metadata has them.
fn sizes(row: &BlockRow) -> Result<Sizes, Error> {
    let mut sizes = Sizes::default();
    for file in &row.meta.files {
        if file.name == File::Index.path() {
            sizes.index = file.bytes;
        } else if file.name.starts_with("chunks/") {
            let number = u32::try_from(sizes.chunks.len() + 1).unwrap_or(u32::MAX);
            if file.name != File::Chunks(number).path() {
                let text = format!("block {}: segments have a hole, {} comes next", row.meta.id, file.name);
                return Err(Error::new(Class::Internal, text));
            }
            sizes.chunks.push(file.bytes);
        }
    }
    Ok(sizes)
}

impl Blocks {
    /// Of a store; with a bucket, pages are kept below the directory `cache` too, as soon as it could be looked through.
    #[must_use]
    pub fn new(store: Store, options: BlockOptions, cache: Option<PathBuf>) -> Self {
        let pages = Pages::new(if store.local_root().is_some() { 0 } else { options.memory_bytes_max });
        if let Some(dir) = cache.filter(|_| store.local_root().is_none() && options.disk_bytes_max > 0) {
            let pages = pages.clone();
            // Not waited for: a cold cache is slow, not wrong.
            engram_storage::blocking::blocking(move || {
                if let Err(error) = pages.open_disk(&RealDisk, &dir, options.disk_bytes_max) {
                    tracing::warn!(dir = %dir.display(), %error, "blocks are read without a cache on disk");
                }
            });
        }
        let fetcher = Fetcher::new(store.clone(), pages, options.in_flight_bytes_max, options.hedging);
        let opened = Mutex::new(OpenedBlocks::default());
        let inner = Inner {
            store,
            disk: Arc::new(RealDisk),
            fetcher,
            opened,
            turns: Semaphore::new(READINGS_MAX),
            metrics: ReadBlockMetrics::default(),
            index_bytes_max: options.index_bytes_max,
        };
        Self(Arc::new(inner))
    }

    /// What it did so far.
    #[must_use]
    pub fn metrics(&self) -> &ReadBlockMetrics {
        &self.0.metrics
    }

    /// What fetches from a bucket, for its counters.
    #[must_use]
    pub fn fetcher(&self) -> &Fetcher {
        &self.0.fetcher
    }

    /// Closes the tenant's blocks that are not among `rows` any more: an open file keeps its space on the disk.
    pub fn keep_only(&self, tenant: &TenantId, rows: &[Arc<BlockRow>]) {
        let mut opened = self.0.opened.lock();
        let own: Vec<_> = opened.all.iter().filter(|(_, entry)| entry.tenant == *tenant).map(|(id, _)| *id).collect();
        if own.is_empty() {
            return;
        }
        let there: HashSet<_> = rows.iter().map(|row| row.meta.id).collect();
        own.iter().filter(|id| !there.contains(id)).for_each(|id| opened.remove(*id));
    }

    /// How many blocks are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.0.opened.lock().all.len()
    }

    /// The series of a block that all matchers pass, with chunks in `range`. More than `series_max` candidates (0: no
    /// limit) are refused as Limited before they are read.
    ///
    /// # Errors
    /// Limited; Unavailable when the store does not answer; Internal for damage.
    pub async fn select(
        &self,
        row: &Arc<BlockRow>,
        matchers: &[Matcher],
        range: TimeRange,
        series_max: u64,
        cost: &Cost,
    ) -> Result<Selected, Error> {
        let opened = self.opened(row, cost).await?;
        let series_max = if series_max == 0 { u64::MAX } else { series_max };
        let reading = || Select::new(opened.block.clone(), matchers.to_vec(), range, series_max);
        let found = self.read(&opened, reading, cost).await?.map_err(|error| match error {
            engram_storage::Error::TooLarge { len, max, .. } => {
                crate::peer::too_many_series(&row.meta.tenant, len, max)
            }
            other => self.told(&opened, &other),
        })?;
        cost.blocks.fetch_add(1, Ordering::Relaxed);
        Ok(Selected { opened, found })
    }

    /// Reads the chunks of what was found. `bytes_max` (0: no limit) bounds what one query reads in all.
    ///
    /// # Errors
    /// Limited; Unavailable when the store does not answer; Internal for damage.
    pub async fn load(&self, selected: Selected, bytes_max: u64, cost: &Cost) -> Result<Vec<Series>, Error> {
        let Selected { opened, found } = selected;
        let bytes = Load::new(opened.block.clone(), found.clone()).bytes();
        let sum = cost.chunk_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if bytes_max > 0 && sum > bytes_max {
            return Err(too_many_bytes(&opened.row.meta.tenant, sum, bytes_max));
        }
        let chunks = found.iter().map(|series| series.chunks.len() as u64).sum();
        cost.chunks.fetch_add(chunks, Ordering::Relaxed);
        self.0.metrics.chunk_bytes.fetch_add(bytes, Ordering::Relaxed);
        let reading = || Load::new(opened.block.clone(), found.clone());
        let loaded = self.read(&opened, reading, cost).await?.map_err(|error| self.told(&opened, &error))?;
        Ok(loaded.into_iter().map(|(labels, chunks)| series_of(labels, chunks)).collect())
    }

    /// All label names of a block.
    ///
    /// # Errors
    /// Unavailable when the store does not answer; Internal for damage.
    pub async fn label_names(&self, row: &Arc<BlockRow>, cost: &Cost) -> Result<Vec<String>, Error> {
        Ok(self.opened(row, cost).await?.block.index().label_names().map(str::to_owned).collect())
    }

    /// All values of one label in a block.
    ///
    /// # Errors
    /// Unavailable when the store does not answer; Internal for damage.
    pub async fn label_values(&self, row: &Arc<BlockRow>, name: &str, cost: &Cost) -> Result<Vec<String>, Error> {
        let opened = self.opened(row, cost).await?;
        let reading = || LabelValues::new(opened.block.clone(), name);
        self.read(&opened, reading, cost).await?.map_err(|error| self.told(&opened, &error))
    }

    /// What is wrong, with what was known before.
    fn told(&self, opened: &Opened, error: &engram_storage::Error) -> Error {
        let known = opened.row.quarantined.as_ref();
        let known = known.map_or_else(String::new, |why| format!(" (the block is in quarantine: {why})"));
        Error::new(error.class(), format!("{error}{known}"))
    }

    async fn opened(&self, row: &Arc<BlockRow>, cost: &Cost) -> Result<Arc<Opened>, Error> {
        let cell = self.0.opened.lock().cell(&row.meta.tenant, row.meta.id);
        let opened = cell.get_or_try_init(|| self.open(row, cost)).await?;
        Ok(opened.clone())
    }

    async fn open(&self, row: &Arc<BlockRow>, cost: &Cost) -> Result<Arc<Opened>, Error> {
        let (tenant, id) = (&row.meta.tenant, row.meta.id);
        let key = format!("{tenant}/{id}");
        let (dir, place, tombstones) = match self.0.store.local_block(tenant, id) {
            Some(path) => {
                let disk = self.0.disk.clone();
                let dir = engram_storage::blocking::blocking(move || BlockDir::open(&*disk, &path)).await;
                let dir = dir.map_err(|e| Error::new(Class::Internal, format!("opening a block failed: {e}")))?;
                let dir = Arc::new(dir.map_err(|e| failed(&e))?);
                (Some(dir.clone()), dir.place().clone(), self.tombstones(row).await?)
            }
            None => (None, Place { path: (&key).into(), sizes: sizes(row)? }, self.tombstones(row).await?),
        };
        // Read and kept like any part of the index, so that a restart finds it on the disk.
        let reading = || Open::new(place.clone(), tombstones.clone());
        let block = match &dir {
            Some(dir) => on_disk(dir.clone(), reading()).await?,
            None => self.in_bucket(id, &key, &place.sizes, reading, cost).await?,
        };
        let block = Arc::new(block.map_err(|error| {
            self.count_damage(&error);
            failed(&error)
        })?);
        self.0.metrics.opened.fetch_add(1, Ordering::Relaxed);
        let bytes = block.index().heap_bytes() as u64;
        self.0.opened.lock().opened(id, bytes, self.0.index_bytes_max);
        Ok(Arc::new(Opened { row: row.clone(), key, block, dir }))
    }

    /// What was deleted from a block by those who made it. Ours have none.
    async fn tombstones(&self, row: &BlockRow) -> Result<Tombstones, Error> {
        let name = File::Tombstones.path();
        if !row.meta.files.iter().any(|file| file.name == name && file.bytes > NO_TOMBSTONES_BYTES) {
            return Ok(Tombstones::default());
        }
        let key = block_key(&row.meta.tenant, row.meta.id, &name);
        let Some(bytes) = self.0.store.get(&key).await.map_err(|e| failed(&e))? else {
            return Err(Error::new(Class::Internal, format!("{key} is gone")));
        };
        let broken = |b| failed(&engram_storage::Error::broken(key.as_ref(), 0, b));
        Tombstones::read(&bytes).map_err(broken)
    }

    async fn read<R: Reading + Send + 'static>(
        &self,
        opened: &Opened,
        reading: impl Fn() -> R,
        cost: &Cost,
    ) -> Result<Result<R::Out, engram_storage::Error>, Error>
    where
        R::Out: Send,
    {
        let (id, sizes) = (opened.row.meta.id, &opened.block.place().sizes);
        let closed = |_| Error::unavailable("the node is stopping");
        let _turn = self.0.turns.acquire().await.map_err(closed)?;
        let done = match &opened.dir {
            Some(dir) => on_disk(dir.clone(), reading()).await?,
            None => self.in_bucket(id, &opened.key, sizes, reading, cost).await?,
        };
        if let Err(error) = &done {
            self.count_damage(error);
        }
        Ok(done)
    }

    fn count_damage(&self, error: &engram_storage::Error) {
        if matches!(error, engram_storage::Error::Corrupt { .. }) {
            self.0.metrics.corrupt.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn in_bucket<R: Reading + Send + 'static>(
        &self,
        id: BlockId,
        key: &str,
        sizes: &Sizes,
        reading: impl Fn() -> R,
        cost: &Cost,
    ) -> Result<Result<R::Out, engram_storage::Error>, Error>
    where
        R::Out: Send,
    {
        let done = self.steps(id, key, sizes, reading(), cost).await?;
        if !matches!(done, Err(engram_storage::Error::Corrupt { .. })) {
            return Ok(done);
        }
        self.0.fetcher.pages().forget(id);
        self.steps(id, key, sizes, reading(), cost).await
    }

    async fn steps<R: Reading + Send + 'static>(
        &self,
        id: BlockId,
        key: &str,
        sizes: &Sizes,
        mut reading: R,
        cost: &Cost,
    ) -> Result<Result<R::Out, engram_storage::Error>, Error>
    where
        R::Out: Send,
    {
        let mut have = Fetched::new();
        loop {
            let step = engram_storage::blocking::blocking(move || {
                let step = reading.step(&have);
                (reading, step)
            });
            let step = step.await.map_err(|e| Error::new(Class::Internal, format!("reading a block failed: {e}")))?;
            reading = step.0;
            match step.1 {
                Ok(Step::Done(out)) => return Ok(Ok(out)),
                Ok(Step::Need(wants)) => match self.0.fetcher.fetch((id, key), sizes, &wants, cost).await {
                    Ok(fetched) => have = fetched,
                    Err(error) => return Ok(Err(error)),
                },
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

async fn on_disk<R: Reading + Send + 'static>(
    dir: Arc<BlockDir>,
    mut reading: R,
) -> Result<Result<R::Out, engram_storage::Error>, Error>
where
    R::Out: Send,
{
    let done = engram_storage::blocking::blocking(move || drive(&mut reading, &*dir)).await;
    done.map_err(|e| Error::new(Class::Internal, format!("reading a block failed: {e}")))
}

/// What is said where a query would read more of blocks than the tenant may.
fn too_many_bytes(tenant: &TenantId, bytes: u64, max: u64) -> Error {
    let text = format!(
        "tenant {tenant}: the query reads {bytes} bytes of chunks and more, limit max_fetched_chunk_bytes_per_query is \
         {max}: narrow it with more matchers or a shorter range, or raise the limit"
    );
    Error::new(Class::Limited, text)
}
