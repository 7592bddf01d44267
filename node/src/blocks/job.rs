//! One job of compaction, from its lease to its commit.
//!
//! ```text
//! lease compact/<tenant>/<job>            one node at a time; its fence goes with the commit
//!   → look again: are the sources still what was planned?
//!   → sources on this node's disk (fetch.rs)
//!   → merged into verified blocks, the digest conserved (storage::compact)
//!   → objects → one ReplaceBlocks: from then on queries read the results
//! ```
//!
//! A crash anywhere before the commit changes nothing: the work directory is emptied at the next start, and objects that
//! no metadata names are the sweeper's. A source that turns out to be damaged is quarantined: it is told, plans leave it
//! out, and the others go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engram_model::block::{BlockId, BlockMeta, Deletion, Origin};
use engram_model::error::{Class, Classed};
use engram_model::tenant::TenantId;
use engram_model::{Matcher, Millis};
use engram_storage::block::{self, Block, BlockDir, Open, Select, Tombstones};
use engram_storage::compact::{Failure, Hidden, Input, Job, JobKind, Merged, Progress, Target, Task, merge};
use engram_storage::disk::Disk;
use engram_storage::object::Store;

use super::build::unique;
use super::check::Depth;
use super::fetch::{self, Missing};
use super::planning::{Planner, hidden_of};
use super::uploader;
use crate::error::Error;
use crate::memory;
use crate::meta::blocks::{BlocksView, Lease, Replacement};

/// How long a lease lasts; it is renewed at a third of it.
const LEASE: Duration = Duration::from_secs(60);
/// How long one command may take.
pub(super) const PROPOSE_WITHIN: Duration = Duration::from_secs(10);
/// Attempts to learn what became of a commit.
const COMMIT_ATTEMPTS: u32 = 5;

/// What jobs are done with.
#[derive(Clone)]
pub struct Workshop {
    /// The plan's own view of the world.
    pub planner: Planner,
    /// Where blocks lie.
    pub store: Store,
    /// The disk of the work directory.
    pub disk: Arc<dyn Disk>,
    /// Where sources are copied to and results built. This room alone uses it.
    pub work: PathBuf,
    /// No chunk of a result crosses a multiple of this.
    pub window_ms: i64,
}

/// What became of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Bytes of the sources.
    pub bytes_in: u64,
    /// Bytes of the results.
    pub bytes_out: u64,
    /// Blocks written.
    pub blocks: u64,
    /// Samples that were dropped because another one stands for them.
    pub duplicates: u64,
    /// Samples that were deleted.
    pub deleted: u64,
}

/// Why a job was not done.
#[derive(Debug)]
pub enum NotDone {
    /// Another node is at it, or the plan is out of date.
    NotNow,
    /// A source is damaged; it is quarantined now.
    Damaged(BlockId, String),
    /// It is to be tried again.
    Failed(Error),
}

impl From<Error> for NotDone {
    fn from(error: Error) -> Self {
        if error.class == Class::Conflict { Self::NotNow } else { Self::Failed(error) }
    }
}

impl Workshop {
    /// Does a job.
    ///
    /// # Errors
    /// [`NotDone`]; the sources are untouched then.
    ///
    /// # Cancel safety
    /// Dropping the future stops the work; what is left in the work directory goes at the next start of the actor.
    pub async fn carry_out(&self, tenant: &TenantId, job: &Job) -> Result<Done, NotDone> {
        let meta = self.planner.meta();
        let key = format!("compact/{tenant}/{}", job.key());
        let Some(lease) = meta.lease(&key, LEASE, PROPOSE_WITHIN).await? else { return Err(NotDone::NotNow) };
        let name = BlockId::new(self.planner.now(), unique()).to_string();
        let dir = self.work.join(name);
        let done = tokio::select! {
            biased; // both go on side by side: in an order that can be repeated
            done = self.under_lease(tenant, job, &lease, &dir) => done,
            lost = self.keep(&lease) => Err(NotDone::Failed(lost)),
        };
        self.clear(&dir).await;
        if let Err(error) = meta.release(&lease, PROPOSE_WITHIN).await {
            tracing::debug!(%error, lease = lease.key, "a lease is not given back, it expires by itself");
        }
        if let Err(NotDone::Damaged(block, why)) = &done {
            self.quarantine(tenant, *block, why).await;
        }
        done
    }

    async fn under_lease(&self, tenant: &TenantId, job: &Job, lease: &Lease, dir: &Path) -> Result<Done, NotDone> {
        let view = self.planner.meta().blocks(tenant);
        let sources = sources(&view, job).ok_or(NotDone::NotNow)?;
        let mut deletions: Vec<Arc<Deletion>> = view.deletions.clone();
        deletions.retain(|one| one.range.overlaps(job.range) || job.kind != JobKind::Rewrite);
        if let (JobKind::Rewrite, [source]) = (job.kind, &sources[..])
            && self.is_free(tenant, source, &deletions).await?
        {
            return Ok(Done::default());
        }
        let hidden = deletions.iter().map(|one| hidden_of(one)).collect::<Result<Vec<_>, _>>()?;
        let mut dirs = Vec::with_capacity(sources.len());
        for source in &sources {
            dirs.push(self.fetch(source, &dir.join("sources")).await?);
        }
        let merged = self.merge(job, &sources, dirs, hidden, dir).await?;
        let mut results = Vec::with_capacity(merged.blocks.len());
        for (target, written) in &merged.blocks {
            let put = self.store.put_block(&written.path, tenant, target.id).await;
            let files = put.map_err(|e| Error::new(e.class(), e.to_string()))?;
            results.push(BlockMeta {
                id: target.id,
                tenant: tenant.clone(),
                range: target.range,
                level: job.level,
                origin: Origin::Compacted,
                shard: target.shard,
                sources: job.sources.clone(),
                series: written.report.series,
                chunks: written.report.chunks,
                digest: written.report.digest(),
                files,
                as_of: view.index,
                made_at: self.planner.now(),
            });
        }
        for result in &results {
            uploader::confirm(&self.store, result, Depth::Lengths).await?;
        }
        let done = Done {
            bytes_in: sources.iter().map(BlockMeta::bytes).sum(),
            bytes_out: results.iter().map(BlockMeta::bytes).sum(),
            blocks: results.len() as u64,
            duplicates: merged.duplicates.count,
            deleted: merged.deleted.count,
        };
        let (duplicates, deleted) = (merged.duplicates, merged.deleted);
        let what = Replacement { sources: job.sources.clone(), results, duplicates, deleted };
        self.commit(tenant, what, lease).await?;
        Ok(done)
    }

    /// Whether a block holds nothing of these deletions: then it need not be written anew, and that is remembered.
    async fn is_free(
        &self,
        tenant: &TenantId,
        source: &BlockMeta,
        deletions: &[Arc<Deletion>],
    ) -> Result<bool, NotDone> {
        let damaged = |missing: Missing| not_done(source.id, missing);
        let open = &mut Open::new(fetch::place_of(source), Tombstones::default());
        let opened: Arc<Block> = Arc::new(fetch::drive(&self.store, source, open).await.map_err(damaged)?);
        let mut free = Vec::new();
        for deletion in deletions.iter().filter(|one| one.index > source.as_of) {
            let hidden = hidden_of(deletion)?;
            if self.selects(source, &opened, hidden).await? {
                return Ok(false);
            }
            free.push(deletion.index);
        }
        self.planner.is_free(tenant, source.id, free);
        Ok(true)
    }

    async fn selects(&self, source: &BlockMeta, opened: &Arc<Block>, hidden: Hidden) -> Result<bool, NotDone> {
        let range = hidden.range;
        for matchers in hidden.selectors {
            let matchers: Vec<Matcher> = matchers;
            let mut select = Select::new(opened.clone(), matchers, range, u64::MAX);
            let found = fetch::drive(&self.store, source, &mut select).await.map_err(|m| not_done(source.id, m))?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A source on this node's disk. What came damaged is fetched once more: the damage may have happened on the way.
    async fn fetch(&self, source: &BlockMeta, to: &Path) -> Result<PathBuf, NotDone> {
        match fetch::block(&self.store, &self.disk, source, to).await {
            Ok(path) => Ok(path),
            Err(Missing::Failed(error)) => Err(NotDone::Failed(error)),
            Err(Missing::Damaged(why)) => {
                tracing::warn!(block = %source.id, why, "a source of a compaction came damaged, it is fetched again");
                let again = fetch::block(&self.store, &self.disk, source, &to.join("again")).await;
                again.map_err(|missing| not_done(source.id, missing))
            }
        }
    }

    async fn merge(
        &self,
        job: &Job,
        sources: &[BlockMeta],
        dirs: Vec<PathBuf>,
        hidden: Vec<Hidden>,
        dir: &Path,
    ) -> Result<Merged, NotDone> {
        let progress = Arc::new(Progress::default());
        let _guard = CancelOnDrop(progress.clone());
        let now: Millis = self.planner.now();
        let target = |output: &engram_storage::compact::Output| {
            let id = BlockId::new(now, unique());
            Target { id, range: output.range, shard: output.shard }
        };
        let targets: Vec<Target> = job.outputs.iter().map(target).collect();
        let named: Vec<_> =
            sources.iter().zip(dirs).map(|(meta, dir)| (meta.id, meta.digest, meta.as_of, dir)).collect();
        let (disk, dir, level, window_ms) = (self.disk.clone(), dir.to_owned(), job.level, self.window_ms);
        let labels = [("__tenant__".to_owned(), sources.first().map_or(String::new(), |one| one.tenant.to_string()))];
        let work = move || {
            let mut inputs = Vec::with_capacity(named.len());
            for (id, digest, as_of, path) in named {
                let opened = BlockDir::open(&*disk, &path);
                let block = opened.map_err(|source| {
                    if matches!(source, engram_storage::Error::Corrupt { .. }) || source.is_not_found() {
                        Failure::Source { id, source }
                    } else {
                        Failure::Other(source)
                    }
                })?;
                inputs.push(Input { block, digest, as_of });
            }
            disk.create_dir(&dir)?;
            let task = Task { inputs, targets, hidden, window_ms, level, labels: labels.into() };
            let merged = merge(&disk, &dir, &task, &progress);
            drop(task);
            memory::give_back();
            merged
        };
        let joined = engram_storage::blocking::blocking(work).await;
        let merged = joined.map_err(|e| Error::new(Class::Internal, format!("a merge failed: {e}")))?;
        merged.map_err(|failure| match failure {
            Failure::Source { id, source } => NotDone::Damaged(id, source.to_string()),
            Failure::Cancelled => NotDone::NotNow,
            Failure::Other(error) => NotDone::Failed(Error::new(error.class(), error.to_string())),
        })
    }

    /// Commits; while the outcome is unknown, again: the same replacement twice changes nothing.
    async fn commit(&self, tenant: &TenantId, what: Replacement, lease: &Lease) -> Result<(), NotDone> {
        let meta = self.planner.meta();
        let mut attempt = 1;
        loop {
            match meta.replace_blocks(tenant, what.clone(), lease, PROPOSE_WITHIN).await {
                Err(error)
                    if matches!(error.class, Class::Timeout | Class::Unavailable) && attempt < COMMIT_ATTEMPTS =>
                {
                    tracing::warn!(%error, attempt, "whether a compaction is committed is unknown, asked again");
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => return other.map_err(NotDone::from),
            }
        }
    }

    /// Renews the lease until it is lost.
    async fn keep(&self, lease: &Lease) -> Error {
        loop {
            tokio::time::sleep(LEASE / 3).await;
            match self.planner.meta().lease(&lease.key, LEASE, PROPOSE_WITHIN).await {
                Ok(Some(have)) if have.fence == lease.fence => {}
                Ok(_) => return Error::new(Class::Unavailable, format!("lease {} is another node's now", lease.key)),
                // It may still be ours: the fence decides.
                Err(error) => tracing::warn!(%error, lease = lease.key, "a lease was not renewed"),
            }
        }
    }

    /// Tells everybody that a block is damaged, unless it is on its way out anyway.
    async fn quarantine(&self, tenant: &TenantId, block: BlockId, why: &str) {
        let meta = self.planner.meta();
        if meta.block(tenant, block).is_none_or(|row| row.marked.is_some()) {
            return;
        }
        tracing::error!(%tenant, %block, why, "a block is damaged and not read any more");
        let why: String = why.chars().take(500).collect();
        if let Err(error) = meta.quarantine_block("compactor", tenant, block, Some(why), PROPOSE_WITHIN).await {
            tracing::warn!(%tenant, %block, %error, "a damaged block is not quarantined yet");
        }
    }

    /// Removes a directory of the work directory; what cannot be removed is told and goes at the next start.
    pub(super) async fn clear(&self, dir: &Path) {
        let (disk, dir) = (self.disk.clone(), dir.to_owned());
        let cleared = engram_storage::blocking::blocking(move || (clear(&*disk, &dir), dir)).await;
        if let Ok((Err(error), dir)) = cleared {
            tracing::warn!(dir = %dir.display(), %error, "what is left of a compaction cannot be removed");
        }
    }
}

/// Stops the merge of a job that nobody waits for any more.
struct CancelOnDrop(Arc<Progress>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn not_done(block: BlockId, missing: Missing) -> NotDone {
    match missing {
        Missing::Damaged(why) => NotDone::Damaged(block, why),
        Missing::Failed(error) => NotDone::Failed(error),
    }
}

/// The sources of a job, if all are there and none is on its way out or damaged.
fn sources(view: &BlocksView, job: &Job) -> Option<Vec<BlockMeta>> {
    let find = |id: &BlockId| view.blocks.iter().find(|row| row.meta.id == *id);
    let usable = |row: &&Arc<engram_model::block::BlockRow>| row.marked.is_none() && row.quarantined.is_none();
    job.sources.iter().map(|id| find(id).filter(usable).map(|row| row.meta.clone())).collect()
}

/// Removes a directory of blocks and of directories of blocks.
pub(super) fn clear(disk: &dyn Disk, dir: &Path) -> Result<(), engram_storage::Error> {
    let names = match disk.list_dirs(dir) {
        Ok(names) => names,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names {
        let inner = dir.join(&name);
        if matches!(name.as_str(), "sources" | "again") {
            clear(disk, &inner)?;
        } else {
            block::remove(disk, &inner)?;
        }
    }
    disk.remove_dir(dir)
}
