//! Series → block directory, verified, then renamed into place.
//!
//! Why so careful: once a block is committed its samples are forgotten everywhere else, so what is in it must be known
//! and not hoped. Every chunk is decoded as it is added and its samples summed to a digest; when all is written and
//! durable, the files are read back from the disk, everything in them is recomputed ([`super::verify`](mod@super::verify)),
//! and only when both sums agree does the directory get its name.
//!
//! A crash before leaves a directory `<name>.tmp-for-creation`, which Prometheus removes when it starts, as
//! [`clean`] does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_model::block::BlockId;
use engram_model::series::Columns;
use engram_model::{Labels, TimeRange};

use super::chunks::{ChunksWriter, SEGMENT_BYTES_MAX};
use super::dir::{BlockDir, remove};
use super::meta::{Compaction, Downsample, IndexStats, Meta, MetaFile, Ours, Parent, Stats, Thanos};
use super::tombstones::Tombstones;
use super::verify::{Report, verify};
use crate::Error;
use crate::chunk::Chunk;
use crate::disk::Disk;
use crate::disk::out::Out;
use crate::index::writer::IndexWriter;
use crate::ranges::{File, Sizes};

/// What a directory is called until it is whole.
const UNFINISHED: &str = ".tmp-for-creation";

/// What the writer must be told of a block.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub id: BlockId,
    /// Its range; every chunk lies inside.
    pub range: TimeRange,
    /// No chunk crosses a multiple of this.
    pub window_ms: i64,
    /// 1 for a block cut from a head, one more at each compaction.
    pub level: u32,
    /// The blocks of level 1 in it; empty: itself.
    pub sources: Vec<BlockId>,
    /// The blocks it is made of.
    pub parents: Vec<Parent>,
    /// External labels, for Thanos' section.
    pub labels: BTreeMap<String, String>,
    /// A segment ends before it would be longer; at most [`SEGMENT_BYTES_MAX`].
    pub segment_bytes_max: u64,
}

impl Spec {
    /// A block cut from a head.
    #[must_use]
    pub fn cut(id: BlockId, range: TimeRange, window_ms: i64) -> Self {
        let (sources, parents, labels) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { id, range, window_ms, level: 1, sources, parents, labels, segment_bytes_max: SEGMENT_BYTES_MAX }
    }
}

/// A block that is whole, durable and has its name.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its directory.
    pub path: PathBuf,
    /// What it is.
    pub meta: Meta,
    /// What was counted when it was read back.
    pub report: Report,
    /// How long its files are.
    pub sizes: Sizes,
}

/// Takes series in order of labels. Dropped without [`BlockWriter::finish`] it leaves an unfinished directory.
#[derive(Debug)]
pub struct BlockWriter {
    disk: Arc<dyn Disk>,
    parent: PathBuf,
    unfinished: PathBuf,
    spec: Spec,
    chunks: ChunksWriter,
    index: IndexWriter,
    last: Option<Labels>,
    report: Report,
    columns: Columns,
}

impl BlockWriter {
    /// What the directory of a block is called until it is whole.
    #[must_use]
    pub fn unfinished_name(id: BlockId) -> String {
        format!("{id}{UNFINISHED}")
    }

    /// Begins a block in the directory `parent`, which exists.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Misuse`] when the specification makes no sense.
    pub fn create(disk: Arc<dyn Disk>, parent: &Path, spec: Spec) -> Result<Self, Error> {
        if spec.window_ms <= 0 || spec.range.is_empty() {
            return Err(misuse(format!("block {} has an empty range or window", spec.id)));
        }
        let unfinished = parent.join(Self::unfinished_name(spec.id));
        remove(&*disk, &unfinished)?;
        disk.create_dir(&unfinished.join("chunks"))?;
        let chunks = ChunksWriter::new(&unfinished, spec.segment_bytes_max);
        let index = IndexWriter::new(&*disk, &unfinished.join("index.spool"))?;
        let (parent, report) = (parent.to_owned(), Report::default());
        Ok(Self { disk, parent, unfinished, spec, chunks, index, last: None, report, columns: Columns::default() })
    }

    /// Adds a series with all its chunks, in order of time. After an error the block cannot be finished.
    ///
    /// # Errors
    /// [`Error::Misuse`] when the series does not sort behind the one before, has no labels or no chunk, or a chunk
    /// overlaps the one before, crosses a window, lies outside the range or is not what it says; [`Error::Io`].
    pub fn add(&mut self, labels: &Labels, chunks: &[Chunk]) -> Result<(), Error> {
        self.check(labels, chunks)?;
        let hash = labels.hash128();
        let mut metas = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            self.columns.clear();
            let decoded = chunk.decode(&mut self.columns).map_err(|broken| broken.what);
            let counted = decoded.and_then(|()| self.report.chunk(hash, chunk, &self.columns));
            counted.map_err(|what| misuse(format!("chunk of {labels} at {}: {what}", chunk.first)))?;
            metas.push(self.chunks.add(&*self.disk, chunk)?);
        }
        self.report.series += 1;
        self.index.add(labels, &metas)?;
        self.last = Some(labels.clone());
        Ok(())
    }

    fn check(&self, labels: &Labels, chunks: &[Chunk]) -> Result<(), Error> {
        if labels.is_empty() || chunks.is_empty() {
            return Err(misuse(format!("series {labels} has no labels or no chunks")));
        }
        if self.last.as_ref().is_some_and(|last| last >= labels) {
            return Err(misuse(format!("series {labels} does not sort behind the one before")));
        }
        let (range, window) = (self.spec.range, self.spec.window_ms);
        for (i, chunk) in chunks.iter().enumerate() {
            let behind = i == 0 || chunks[i - 1].last < chunk.first;
            let inside = range.contains(chunk.first) && range.contains(chunk.last) && chunk.first <= chunk.last;
            if !behind || !inside || chunk.first.div_euclid(window) != chunk.last.div_euclid(window) {
                let (first, last) = (chunk.first, chunk.last);
                return Err(misuse(format!("chunk of {labels} from {first} to {last} overlaps or crosses a border")));
            }
        }
        Ok(())
    }

    /// Completes the block; nothing when no series was added. A block of that name must not exist.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when what was read back is not what was written. What is unfinished stays on
    /// the disk for [`clean`] or the next attempt.
    pub fn finish(self) -> Result<Option<Written>, Error> {
        let Self { disk, parent, unfinished, spec, chunks, index, report, .. } = self;
        if report.series == 0 {
            drop((chunks, index));
            remove(&*disk, &unfinished)?;
            return Ok(None);
        }
        let chunk_max_size = chunks.chunk_bytes_max;
        let segments = chunks.finish()?;
        let index = index.finish(&*disk, &unfinished.join(File::Index.path()))?;
        let index_stats = IndexStats { series_max_size: index.series_bytes_max, chunk_max_size };
        let sizes = Sizes { index: index.bytes, chunks: segments };
        let meta = meta_of(&spec, &report, &sizes, index_stats);
        for (file, bytes) in [(File::Tombstones, Tombstones::none()), (File::Meta, meta.to_bytes())] {
            let mut out = Out::create(&*disk, &unfinished.join(file.path()))?;
            out.put(&bytes)?;
            out.finish()?;
        }
        disk.sync_dir(&unfinished.join("chunks"))?;
        disk.sync_dir(&unfinished)?;

        let dir = BlockDir::open(&*disk, &unfinished)?;
        dir.drop_cache()?;
        let read = verify(&dir, dir.meta())?;
        if read != report || *dir.meta() != meta {
            return Err(Error::corrupt(&unfinished, 0, "what was read back is not what was written"));
        }
        drop(dir);
        let path = parent.join(spec.id.to_string());
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(&parent)?;
        Ok(Some(Written { path, meta, report: read, sizes }))
    }
}

fn misuse(what: String) -> Error {
    Error::Misuse { what }
}

fn meta_of(spec: &Spec, report: &Report, sizes: &Sizes, index_stats: IndexStats) -> Meta {
    let mut files: Vec<_> = (1_u32..)
        .zip(&sizes.chunks)
        .map(|(n, size)| MetaFile { rel_path: File::Chunks(n).path(), size_bytes: *size })
        .collect();
    files.push(MetaFile { rel_path: File::Index.path(), size_bytes: sizes.index });
    files.push(MetaFile { rel_path: File::Meta.path(), size_bytes: 0 });
    Meta {
        ulid: spec.id,
        min_time: spec.range.start,
        max_time: spec.range.end,
        stats: Stats {
            num_samples: report.digest().count,
            num_series: report.series,
            num_chunks: report.chunks,
            num_tombstones: 0,
        },
        compaction: Compaction {
            level: spec.level,
            sources: if spec.sources.is_empty() { vec![spec.id] } else { spec.sources.clone() },
            parents: spec.parents.clone(),
        },
        version: 1,
        thanos: Some(Thanos {
            version: 1,
            labels: spec.labels.clone(),
            downsample: Downsample::default(),
            source: "engram".to_owned(),
            files,
            index_stats,
        }),
        engram: Some(Ours { version: 1, digest: report.digest(), window_ms: spec.window_ms }),
    }
}

/// Removes what crashes left unfinished in `parent`; no writer may be at work there. Returns how many.
///
/// # Errors
/// [`Error::Io`].
pub fn clean(disk: &dyn Disk, parent: &Path) -> Result<usize, Error> {
    let mut names = disk.list_dirs(parent)?;
    names.retain(|name| name.ends_with(UNFINISHED));
    names.iter().try_for_each(|name| remove(disk, &parent.join(name)))?;
    Ok(names.len())
}
