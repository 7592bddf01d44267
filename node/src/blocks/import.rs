//! Taking in a block of another system: bytes come → directory → recomputed → object store → metadata.
//!
//! Why the bytes come through the node: whoever imports has the rights to the other system's store, the node has those
//! to ours, and neither gets the other's. Nothing that is sent is believed: the block is read back from the disk and all
//! of it recomputed before it is uploaded, and only what was recomputed goes into the metadata.
//!
//! ```text
//! imports/<tenant>-<ulid>/…   while it is taken in; removed when it is done or fails, or at a start
//! ```
//!
//! The block gets a name of its own, of the time it came, so that whoever looks for leftovers by their age does not take
//! an upload for one. The name it came with is kept as its source: an import that broke off goes on where it was, a block
//! that is known is told so. A block that is quarantined here is replaced, when the same content comes again.
//!
//! One import of a block at a time, by a lease: its fence goes with the commit, so a block that is sent again because no
//! answer came is taken in once, to whichever node it is sent.
//!
//! What a crash leaves: a directory that the next start removes, or objects without a row, which the sweeper finds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_model::Millis;
use engram_model::block::{BlockFile, BlockId, BlockMeta, BlockRow, Origin, Shard};
use engram_model::digest::{Digest, slot_of};
use engram_model::error::{Class, Classed};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_storage::block::{BlockDir, Meta as BlockInfo, Report, remove, verify};
use engram_storage::disk::{Disk, DiskFile};
use engram_storage::object::Store;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::check::Depth;
use super::reach::Reach;
use super::tar::{Files, Reader};
use super::uploader;
use crate::error::Error;
use crate::meta::Meta;
use crate::meta::blocks::Lease;

/// Blocks that are taken in at once; others are told to come again.
const AT_ONCE_MAX: usize = 2;
/// Bytes that are handed to the disk at once.
const PIECE_BYTES: usize = 1 << 20;
/// Segments of one block.
const SEGMENTS_MAX: u32 = 4000;
/// How long the metadata may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(30);
/// How long another node waits for one that took a block in and is gone.
const LEASE: Duration = Duration::from_secs(120);
/// Who changes the metadata.
const BY: &str = "import";

/// What is known of a block by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    No,
    /// It is here, with this content.
    Here(Digest),
    /// It is here and damaged.
    Damaged(Digest),
    /// It was here and is part of this block now.
    Within(BlockId),
}

/// A block that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Series in it.
    pub series: u64,
    /// Content of it; its count is the number of samples.
    pub digest: Digest,
    /// Bytes of its objects.
    pub bytes: u64,
    /// Whether it took the place of a damaged one.
    pub repaired: bool,
}

/// Takes blocks in. Cheap to clone.
#[derive(Clone)]
pub struct Imports(Arc<Inner>);

struct Inner {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    store: Store,
    meta: Meta,
    reach: Reach,
    clock: Clock,
    turns: Arc<Semaphore>,
    /// What this node takes in.
    busy: Mutex<BTreeSet<(TenantId, BlockId)>>,
}

/// A block that is taken in; others may send it again when dropped.
struct Busy(Arc<Inner>, (TenantId, BlockId));

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.lock().remove(&self.1);
    }
}

/// The directory of a block that is taken in; removed when dropped.
struct Work {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = remove(&*self.disk, &self.path) {
            tracing::warn!(%error, "what an import leaves could not be removed");
        }
    }
}

impl Imports {
    /// Imports by way of the directory `root`, which is made when it is not there and emptied.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        store: Store,
        reach: Reach,
        clock: Clock,
    ) -> Result<Self, engram_storage::Error> {
        disk.create_dir(root)?;
        for left in disk.list_dirs(root)?.iter().map(|name| root.join(name)) {
            disk.list_dirs(&left)?.iter().try_for_each(|name| remove(&*disk, &left.join(name)))?;
            remove(&*disk, &left)?;
        }
        let (turns, meta) = (Arc::new(Semaphore::new(AT_ONCE_MAX)), reach.meta().clone());
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            disk,
            store,
            meta,
            reach,
            clock,
            turns,
            busy: Mutex::default(),
        })))
    }

    /// What is known of a block.
    #[must_use]
    pub fn known(&self, tenant: &TenantId, id: BlockId) -> Known {
        match self.find(tenant, id) {
            None => Known::No,
            Some(row) if row.quarantined.is_some() => Known::Damaged(row.meta.digest),
            Some(row) if row.meta.id == id || row.meta.origin == Origin::Imported => Known::Here(row.meta.digest),
            Some(row) => Known::Within(row.meta.id),
        }
    }

    /// The block that holds the samples of the block `id`: itself, what it was imported as, or what that was compacted
    /// into while it is remembered.
    fn find(&self, tenant: &TenantId, id: BlockId) -> Option<Arc<BlockRow>> {
        let view = self.0.meta.blocks(tenant);
        let holds = |row: &BlockRow, id: BlockId| row.meta.id == id || row.meta.sources.contains(&id);
        let mut names = vec![id];
        names.extend(view.blocks.iter().filter(|row| holds(row, id)).map(|row| row.meta.id));
        let living = view.blocks.iter().filter(|row| row.marked.is_none());
        living.filter(|row| names.iter().any(|name| holds(row, *name))).min_by_key(|row| row.meta.id != id).cloned()
    }

    /// Takes in the block `id` of `tenant`, whose files come as a tar archive. Answered when it is in the metadata.
    ///
    /// # Errors
    /// Invalid when the archive holds no sound block of this name, Conflict when a block of this name is there, Limited
    /// while others are taken in, Internal when the disk refuses, Unavailable when the store or the metadata do.
    ///
    /// # Cancel safety
    /// Dropping the future gives the import up, unless it has reached the metadata already.
    pub async fn take(
        &self,
        tenant: &TenantId,
        id: BlockId,
        archive: BoxStream<'static, Result<Bytes, Error>>,
    ) -> Result<Imported, Error> {
        let busy = || Error::new(Class::Limited, format!("{AT_ONCE_MAX} blocks are being imported: retry later"));
        let _turn = self.0.turns.clone().try_acquire_owned().map_err(|_| busy())?;
        if !self.0.reach.is_open() {
            return Err(self.0.reach.closed());
        }
        let _mine = self.alone(tenant, id)?;
        let lease = self.lease(tenant, id).await?;
        let done = self.take_under(tenant, id, archive, &lease).await;
        if let Err(error) = self.0.meta.release(&lease, PROPOSE_WITHIN).await {
            tracing::debug!(%error, lease = lease.key, "a lease is not given back, it expires by itself");
        }
        done
    }

    /// One of those who send the same block to this node.
    fn alone(&self, tenant: &TenantId, id: BlockId) -> Result<Busy, Error> {
        let key = (tenant.clone(), id);
        if !self.0.busy.lock().insert(key.clone()) {
            return Err(Error::new(Class::Limited, format!("block {id} is being imported: retry later")));
        }
        Ok(Busy(self.0.clone(), key))
    }

    /// The right to add a block. What is looked up afterwards holds: of an earlier attempt whose answer nobody waited for,
    /// the commit is there by now, or will be refused for its fence.
    async fn lease(&self, tenant: &TenantId, id: BlockId) -> Result<Lease, Error> {
        let (meta, key) = (&self.0.meta, format!("import/{tenant}/{id}"));
        let held = || Error::new(Class::Limited, format!("another node imports block {id}: retry later"));
        // A fence of this very node outlives the request that took it, so it is given back first.
        let old = meta.lease(&key, LEASE, PROPOSE_WITHIN).await?.ok_or_else(held)?;
        meta.release(&old, PROPOSE_WITHIN).await?;
        meta.lease(&key, LEASE, PROPOSE_WITHIN).await?.ok_or_else(held)
    }

    async fn take_under(
        &self,
        tenant: &TenantId,
        id: BlockId,
        archive: BoxStream<'static, Result<Bytes, Error>>,
        lease: &Lease,
    ) -> Result<Imported, Error> {
        let damaged = match self.find(tenant, id) {
            None => None,
            Some(row) if row.quarantined.is_some() => Some(row),
            Some(row) => {
                let text = format!("tenant {tenant} has the block {id} already, as {}", row.meta.id);
                return Err(Error::new(Class::Conflict, text));
            }
        };
        self.0.meta.tenant_or_create(tenant, PROPOSE_WITHIN).await?;
        let as_of = self.0.meta.index();
        // Two who send the same block do not write into one directory.
        let name = format!("{tenant}-{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
        let parent = self.0.root.join(name);
        // Dropped in the other order: what is inside goes first.
        let _parent = Work { disk: self.0.disk.clone(), path: parent.clone() };
        let work = Work { disk: self.0.disk.clone(), path: parent.join(id.to_string()) };
        self.receive(&work.path, archive).await?;
        let (mut meta, report) = self.check(&work.path, id).await?;
        let digest = report.digest();
        let fresh = BlockId::new(self.0.clock.now(), uuid::Uuid::new_v4().as_u128());
        let named = match &damaged {
            None => Named::imported(fresh, id, as_of),
            Some(row) if row.meta.digest == digest => Named::instead_of(fresh, &row.meta),
            Some(row) => {
                let why = format!("it holds {digest:?}, the damaged block {} held {:?}", row.meta.id, row.meta.digest);
                return Err(Error::new(Class::Conflict, format!("block {id} repairs nothing: {why}")));
            }
        };
        meta.ulid = named.id;
        let path = parent.join(named.id.to_string());
        let _renamed = Work { disk: self.0.disk.clone(), path: path.clone() };
        rename(self.0.disk.clone(), work.path.clone(), path.clone(), meta.clone()).await?;
        let files = self.0.store.put_block(&path, tenant, named.id).await.map_err(|e| node_error(&e))?;
        let block = named.row(tenant, &meta, &report, files, self.0.clock.now());
        uploader::confirm(&self.0.store, &block, Depth::Objects).await?;
        let imported = Imported { series: report.series, digest, bytes: block.bytes(), repaired: damaged.is_some() };
        let _members = self.0.reach.turn().await?;
        match damaged {
            None => self.0.meta.add_blocks(BY, tenant, vec![block], Some(lease), PROPOSE_WITHIN).await?,
            Some(row) => {
                self.0.meta.repair_block(tenant, row.meta.id, vec![block], Some(lease), PROPOSE_WITHIN).await?;
            }
        }
        tracing::info!(%tenant, block = %id, series = imported.series, samples = digest.count, "a block was imported");
        Ok(imported)
    }

    /// Writes what comes below `path`.
    async fn receive(&self, path: &Path, mut archive: BoxStream<'static, Result<Bytes, Error>>) -> Result<(), Error> {
        let disk = self.0.disk.clone();
        let mut state = (Reader::default(), Receiver { disk, dir: path.to_owned(), file: None, names: Vec::new() });
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            let next = archive.next().await.transpose()?;
            let is_end = next.is_none();
            piece.extend_from_slice(&next.unwrap_or_default());
            if piece.len() >= PIECE_BYTES || is_end {
                let bytes = std::mem::replace(&mut piece, Vec::with_capacity(PIECE_BYTES));
                let work = move || {
                    let done = state.0.feed(&bytes, &mut state.1);
                    (state, done)
                };
                let (back, done) = blocking(work).await?;
                done.map_err(Error::invalid)?;
                state = back;
            }
            if is_end {
                break;
            }
        }
        if !state.0.is_whole() {
            return Err(Error::invalid("the archive ends early"));
        }
        Ok(())
    }

    /// Reads it back and recomputes it.
    async fn check(&self, path: &Path, id: BlockId) -> Result<(BlockInfo, Report), Error> {
        let (disk, path) = (self.0.disk.clone(), path.to_owned());
        let work = move || -> Result<(BlockInfo, Report), String> {
            let dir = BlockDir::open(&*disk, &path).map_err(|e| e.to_string())?;
            let meta = dir.meta().clone();
            if meta.ulid != id {
                return Err(format!("the archive holds block {}, not {id}", meta.ulid));
            }
            acceptable(&meta)?;
            let report = verify(&dir, &meta).map_err(|e| e.to_string())?;
            inside(&meta, &report)?;
            Ok((meta, report))
        };
        blocking(work).await?.map_err(|why| Error::invalid(format!("block {id} is not taken: {why}")))
    }
}

/// Whether a block is of a kind that is taken; why not.
///
/// # Errors
/// A text for people.
pub fn acceptable(meta: &BlockInfo) -> Result<(), String> {
    let resolution = meta.thanos.as_ref().map_or(0, |thanos| thanos.downsample.resolution);
    if resolution != 0 {
        return Err(format!(
            "it is downsampled to one sample in {resolution} ms: its chunks hold aggregates, not samples; import the raw \
             blocks of its time"
        ));
    }
    if meta.stats.num_samples == 0 {
        return Err("it holds no samples".to_owned());
    }
    Ok(())
}

/// Whether its samples lie where it says.
fn inside(meta: &BlockInfo, report: &Report) -> Result<(), String> {
    let (first, last) = (report.slots.keys().next(), report.slots.keys().next_back());
    let (Some(first), Some(last)) = (first, last) else { return Err("it holds no samples".to_owned()) };
    if *first < slot_of(meta.min_time) || *last >= meta.max_time {
        return Err(format!("it has samples outside its range from {} to {}", meta.min_time, meta.max_time));
    }
    Ok(())
}

/// What a block is called here, and where it stands.
pub(super) struct Named {
    pub(super) id: BlockId,
    origin: Origin,
    sources: Vec<BlockId>,
    level: u32,
    shard: Option<Shard>,
    as_of: u64,
}

impl Named {
    fn imported(id: BlockId, source: BlockId, as_of: u64) -> Self {
        Self { id, origin: Origin::Imported, sources: vec![source], level: 1, shard: None, as_of }
    }

    /// A sound block with the content of a damaged one.
    pub(super) fn instead_of(id: BlockId, damaged: &BlockMeta) -> Self {
        let (level, shard, as_of) = (damaged.level, damaged.shard, damaged.as_of);
        Self { id, origin: Origin::Compacted, sources: vec![damaged.id], level, shard, as_of }
    }

    /// What the metadata are told.
    pub(super) fn row(
        self,
        tenant: &TenantId,
        meta: &BlockInfo,
        report: &Report,
        files: Vec<BlockFile>,
        made_at: Millis,
    ) -> BlockMeta {
        BlockMeta {
            id: self.id,
            tenant: tenant.clone(),
            range: meta.range(),
            level: self.level,
            origin: self.origin,
            shard: self.shard,
            sources: self.sources,
            series: report.series,
            chunks: report.chunks,
            digest: report.digest(),
            files,
            as_of: self.as_of,
            made_at,
        }
    }
}

/// Gives a block another name, in `meta.json` too.
async fn rename(disk: Arc<dyn Disk>, from: PathBuf, to: PathBuf, meta: BlockInfo) -> Result<(), Error> {
    let work = move || -> Result<(), engram_storage::Error> {
        let path = from.join("meta.json");
        disk.remove(&path)?;
        let file = disk.create(&path)?;
        file.write_at(0, &meta.to_bytes())?;
        file.sync_all()?;
        disk.rename(&from, &to)
    };
    blocking(work).await?.map_err(|e| node_error(&e))
}

/// The file that comes.
struct Receiver {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file: Option<(Box<dyn DiskFile>, u64)>,
    names: Vec<String>,
}

impl Files for Receiver {
    fn begin(&mut self, name: &str, _: u64) -> Result<(), String> {
        let number = name.strip_prefix("chunks/").filter(|number| number.len() == 6);
        let is_segment = number.and_then(|n| n.parse().ok()).is_some_and(|n: u32| (1..=SEGMENTS_MAX).contains(&n));
        if !is_segment && !["meta.json", "index", "tombstones"].contains(&name) {
            // Marks and notes that other systems leave beside a block.
            return if name.ends_with(".json") { Ok(()) } else { Err(format!("{name:?} is no file of a block")) };
        }
        if self.names.iter().any(|have| have == name) {
            return Err(format!("{name:?} comes twice"));
        }
        self.names.push(name.to_owned());
        let path = self.dir.join(name);
        let made = path.parent().map_or(Ok(()), |dir| self.disk.create_dir(dir)).and_then(|()| self.disk.create(&path));
        self.file = Some((made.map_err(|e| e.to_string())?, 0));
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some((file, at)) = &mut self.file else { return Ok(()) };
        file.write_at(*at, bytes).map_err(|e| e.to_string())?;
        *at += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        self.file.take().map_or(Ok(()), |(file, _)| file.sync_all().map_err(|e| e.to_string()))
    }
}

fn node_error(error: &engram_storage::Error) -> Error {
    Error::new(error.class(), error.to_string())
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let failed = |e| Error::new(Class::Internal, format!("the import failed: {e}"));
    engram_storage::blocking::blocking(work).await.map_err(failed)
}
