//! A damaged block made again from the blocks it was compacted from.
//!
//! Why that works at all: the objects of replaced blocks stay for a grace, and a block's digest says what it must hold.
//! So the merge is done once more, and its result takes the place of the damaged block only when it is the same content
//! to the last bit; anything else changes nothing.
//!
//! What it cannot do: a block that was cut or imported has no sources, and those of an old one are gone. Then the block
//! stays in quarantine until somebody imports it again from a backup (`engram import` puts it in the place of the damaged
//! one).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::block::{BlockId, BlockMeta, BlockRow, Shard};
use engram_model::error::{Class, Classed};
use engram_model::time::Clock;
use engram_storage::block::{BlockDir, Written, remove};
use engram_storage::compact::{Input, Progress, Target, Task, merge};
use engram_storage::disk::Disk;
use engram_storage::head::HeadOptions;
use engram_storage::object::{Store, block_key};

use super::check::{self, Depth, Pace};
use super::import::Named;
use super::uploader;
use crate::error::Error;
use crate::meta::Meta;

/// How long the metadata may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of one request.
const PIECE_BYTES: u64 = 8 << 20;

/// What blocks are made again with.
#[derive(Clone)]
pub struct Workshop {
    /// Who knows of the blocks.
    pub meta: Meta,
    /// Where they lie.
    pub store: Store,
    /// The disk of the work directory.
    pub disk: Arc<dyn Disk>,
    /// A directory that this room alone uses; emptied before each use.
    pub work: PathBuf,
    /// Gives new blocks their names.
    pub clock: Clock,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This block stands in its place.
    Repaired(BlockId),
    /// Why not: nothing was changed.
    Impossible(String),
}

impl Workshop {
    /// Makes a quarantined block again.
    ///
    /// # Errors
    /// The store, the disk or the metadata refuse: later may work.
    pub async fn repair(&self, damaged: &BlockMeta) -> Result<Outcome, Error> {
        let tenant = &damaged.tenant;
        if damaged.sources.is_empty() {
            return Ok(Outcome::Impossible("it was not made of other blocks".to_owned()));
        }
        let view = self.meta.blocks(tenant);
        let mut sources: Vec<Arc<BlockRow>> = Vec::new();
        for id in &damaged.sources {
            let Some(row) = view.blocks.iter().find(|row| row.meta.id == *id) else {
                return Ok(Outcome::Impossible(format!("its source {id} is gone")));
            };
            let checked = check::block(&self.store, &row.meta, Depth::Objects, Pace::default()).await?;
            if !checked.found.is_empty() {
                return Ok(Outcome::Impossible(format!("its source {id} is damaged too: {}", checked.why())));
            }
            sources.push(row.clone());
        }
        self.empty().await?;
        let done = self.remake(damaged, &sources).await;
        self.empty().await?;
        done
    }

    async fn remake(&self, damaged: &BlockMeta, sources: &[Arc<BlockRow>]) -> Result<Outcome, Error> {
        let mut places = Vec::new();
        for row in sources {
            places.push((self.place(&row.meta).await?, row.meta.digest, row.meta.as_of));
        }
        let id = BlockId::new(self.clock.now(), uuid::Uuid::new_v4().as_u128());
        let whole = sources
            .iter()
            .map(|row| row.meta.range)
            .reduce(|a, b| TimeRange::new(a.start.min(b.start), a.end.max(b.end)));
        let targets = targets(id, damaged, whole.unwrap_or(damaged.range));
        let (disk, results) = (self.disk.clone(), self.work.join("results"));
        let work = move || -> Result<Option<Written>, Error> {
            let inputs = places.iter().map(|(path, digest, as_of)| {
                let block = BlockDir::open(&*disk, path).map_err(|e| failed(&e))?;
                Ok(Input { block, digest: *digest, as_of: *as_of })
            });
            let inputs = inputs.collect::<Result<Vec<_>, Error>>()?;
            disk.create_dir(&results).map_err(|e| failed(&e))?;
            let (window_ms, hidden, labels) = (HeadOptions::default().window_ms, Vec::new(), Default::default());
            let task = Task { inputs, targets, hidden, window_ms, level: 1, labels };
            let merged = merge(&disk, &results, &task, &Progress::default());
            let merged = merged.map_err(|e| Error::new(Class::Internal, e.to_string()))?;
            Ok(merged.blocks.into_iter().find(|(target, _)| target.id == id).map(|(_, written)| written))
        };
        let Some(written) = blocking(work).await?? else {
            return Ok(Outcome::Impossible("its sources hold nothing of it".to_owned()));
        };
        if written.report.digest() != damaged.digest {
            let what = "its sources hold other samples, as after a deletion";
            return Ok(Outcome::Impossible(what.to_owned()));
        }
        let files = self.store.put_block(&written.path, &damaged.tenant, id).await.map_err(|e| failed(&e))?;
        let named = Named::instead_of(id, damaged);
        let row = named.row(&damaged.tenant, &written.meta, &written.report, files, self.clock.now());
        uploader::confirm(&self.store, &row, Depth::Objects).await?;
        self.meta.repair_block(&damaged.tenant, damaged.id, vec![row], None, PROPOSE_WITHIN).await?;
        Ok(Outcome::Repaired(id))
    }

    /// A directory that holds the block: where it lies, or a copy.
    async fn place(&self, meta: &BlockMeta) -> Result<PathBuf, Error> {
        if let Some(path) = self.store.local_block(&meta.tenant, meta.id) {
            return Ok(path);
        }
        let dir = self.work.join("sources").join(meta.id.to_string());
        for file in &meta.files {
            let (disk, path) = (self.disk.clone(), dir.join(&file.name));
            let made = blocking(move || {
                disk.create_dir(path.parent().unwrap_or(Path::new(".")))?;
                disk.create(&path)
            });
            let to: Arc<dyn engram_storage::disk::DiskFile> = Arc::from(made.await?.map_err(|e| failed(&e))?);
            let (key, mut at) = (block_key(&meta.tenant, meta.id, &file.name), 0);
            while at < file.bytes {
                let bytes =
                    self.store.get_range(&key, at, PIECE_BYTES.min(file.bytes - at)).await.map_err(|e| failed(&e))?;
                let (file, from) = (to.clone(), at);
                at += bytes.len() as u64;
                blocking(move || file.write_at(from, &bytes)).await?.map_err(|e| failed(&e))?;
            }
        }
        Ok(dir)
    }

    /// Removes what is in the work directory.
    async fn empty(&self) -> Result<(), Error> {
        let (disk, work) = (self.disk.clone(), self.work.clone());
        let removing = move || -> Result<(), engram_storage::Error> {
            disk.create_dir(&work)?;
            for inner in disk.list_dirs(&work)?.iter().map(|name| work.join(name)) {
                disk.list_dirs(&inner)?.iter().try_for_each(|name| remove(&*disk, &inner.join(name)))?;
                remove(&*disk, &inner)?;
            }
            Ok(())
        };
        blocking(removing).await?.map_err(|e| failed(&e))
    }
}

/// The block that is wanted, as `id`, and others for what its sources hold beside it: every sample of a merge must go
/// somewhere.
fn targets(id: BlockId, damaged: &BlockMeta, whole: TimeRange) -> Vec<Target> {
    let beside = |n: u128| BlockId(id.0.wrapping_add(n));
    let range = damaged.range;
    let mut all = Vec::new();
    if whole.start < range.start {
        all.push(Target { id: beside(1), range: TimeRange::new(whole.start, range.start), shard: None });
    }
    match damaged.shard {
        None => all.push(Target { id, range, shard: None }),
        Some(shard) => all.extend((0..shard.count).map(|index| {
            let id = if index == shard.index { id } else { beside(3 + u128::from(index)) };
            Target { id, range, shard: Some(Shard { index, count: shard.count }) }
        })),
    }
    if range.end < whole.end {
        all.push(Target { id: beside(2), range: TimeRange::new(range.end, whole.end), shard: None });
    }
    all
}

fn failed(error: &engram_storage::Error) -> Error {
    Error::new(error.class(), error.to_string())
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let ended = |e| Error::new(Class::Internal, format!("the repair failed: {e}"));
    engram_storage::blocking::blocking(work).await.map_err(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_sample_of_the_sources_has_one_target() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut meta) = super::super::check::tests::stored(dir.path()).await;
        let id = BlockId(9);
        assert_eq!(targets(id, &meta, meta.range).len(), 1);
        meta.range = TimeRange::new(10, 20);
        meta.shard = Some(Shard { index: 2, count: 4 });
        let all = targets(id, &meta, TimeRange::new(0, 30));
        let ranges: Vec<_> = all.iter().map(|target| (target.range.start, target.range.end)).collect();
        assert_eq!(ranges, [(0, 10), (10, 20), (10, 20), (10, 20), (10, 20), (20, 30)]);
        let own: Vec<_> = all.iter().filter(|target| target.id == id).collect();
        assert_eq!((own.len(), own[0].shard), (1, meta.shard));
        let mut ids: Vec<_> = all.iter().map(|target| target.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all.len());
    }
}
