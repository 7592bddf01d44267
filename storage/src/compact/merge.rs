//! Many block directories → one, or one per shard or stretch of time.
//!
//! One series at a time, in order of labels: a heap of cursors gives the next label set and the blocks that have it;
//! their chunks are merged, mostly by copying them, and go to the block they belong to by time and hash.
//! Memory: per source the texts of its symbols and two buffers, per result what [`BlockWriter`] holds, and the chunks
//! of one series.
//!
//! Before the results are handed out they have been read back and recomputed (by the writer), and their digests with
//! those of what was dropped have been held against the digests of the sources. When that fails, each source is
//! recomputed to say which one is damaged; the results are removed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use engram_model::block::{BlockId, Shard};
use engram_model::digest::Digest;
use engram_model::{Labels, Matcher, Millis, TimeRange};

use super::cursor::{At, Cursor};
use super::series::{self, Outcome, Part};
use crate::Error;
use crate::block::meta::Parent;
use crate::block::{BlockDir, BlockWriter, SEGMENT_BYTES_MAX, Spec, Written, remove, verify};
use crate::chunk::Chunk;
use crate::disk::Disk;

/// Most bytes of all sources that are held in buffers.
const BUFFERS_BYTES_MAX: u64 = 128 << 20;
/// Bytes read at once from a file of a source, where there are few of them.
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// A block to be merged.
#[derive(Debug)]
pub struct Input {
    /// Where it lies.
    pub block: BlockDir,
    /// Digest of its samples, as agreed.
    pub digest: Digest,
    /// Deletions up to this index are carried out in it.
    pub as_of: u64,
}

/// Samples to be taken out.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Index of the metadata that ordered it: blocks made before hold such samples, later ones do not.
    pub index: u64,
    /// Series that pass all matchers of one of these.
    pub selectors: Vec<Vec<Matcher>>,
    /// Samples of this time.
    pub range: TimeRange,
}

impl Hidden {
    /// Whether a series is meant.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        let passes = |m: &Matcher| m.matches(labels.get(&m.name).unwrap_or_default());
        self.selectors.iter().any(|matchers| matchers.iter().all(passes))
    }
}

/// A block to be written.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub id: BlockId,
    /// Its range.
    pub range: TimeRange,
    /// Its part of the series; none: all.
    pub shard: Option<Shard>,
}

impl Target {
    fn takes(&self, hash: u128) -> bool {
        self.shard.is_none_or(|shard| shard.count > 0 && hash % u128::from(shard.count) == u128::from(shard.index))
    }
}

/// What is to be done.
#[derive(Debug)]
pub struct Task {
    /// The blocks to merge.
    pub inputs: Vec<Input>,
    /// The blocks to write; every sample belongs to exactly one.
    pub targets: Vec<Target>,
    /// What was deleted.
    pub hidden: Vec<Hidden>,
    /// No chunk crosses a multiple of this.
    pub window_ms: i64,
    /// Level of the results.
    pub level: u32,
    /// External labels of the results.
    pub labels: BTreeMap<String, String>,
}

/// How far a merge is, and the way to stop it. Shared with whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    series: AtomicU64,
    bytes: AtomicU64,
    is_cancelled: AtomicBool,
}

impl Progress {
    /// Series merged so far.
    #[must_use]
    pub fn series(&self) -> u64 {
        self.series.load(Ordering::Relaxed)
    }

    /// Bytes of chunks read so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Asks the merge to stop before its next series.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

/// What came of a merge.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// Each target that got samples, with its block.
    pub blocks: Vec<(Target, Written)>,
    /// Samples that another one of the same series and time stands for.
    pub duplicates: Digest,
    /// Samples that were deleted.
    pub deleted: Digest,
}

/// Why there is no result. Nothing is left of it on the disk but what a failing disk keeps.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// A source is damaged, or is not the block that was agreed.
    #[error("source {id} is damaged: {source}")]
    Source {
        /// Which.
        id: BlockId,
        /// What is wrong with it.
        source: Error,
    },
    /// It was asked to stop.
    #[error("the merge was stopped")]
    Cancelled,
    /// The disk, or a bug.
    #[error(transparent)]
    Other(#[from] Error),
}

/// Merges; the results lie in `parent`, which exists.
///
/// # Errors
/// [`Failure`].
pub fn merge(disk: &Arc<dyn Disk>, parent: &Path, task: &Task, progress: &Progress) -> Result<Merged, Failure> {
    let done = check(task).map_err(Failure::from).and_then(|()| Merge::run(disk, parent, task, progress));
    let failed = match done.and_then(|merged| conserved(task, &merged).map(|()| merged)) {
        Ok(merged) => return Ok(merged),
        Err(failed) => failed,
    };
    for target in &task.targets {
        for name in [target.id.to_string(), BlockWriter::unfinished_name(target.id)] {
            if let Err(error) = remove(&**disk, &parent.join(name)) {
                tracing::warn!(%error, "what is left of a merge cannot be removed");
            }
        }
    }
    match &failed {
        Failure::Other(Error::Corrupt { .. } | Error::Misuse { .. }) => Err(blame(task, progress).unwrap_or(failed)),
        _ => Err(failed),
    }
}

/// The source that is damaged, if any is.
fn blame(task: &Task, progress: &Progress) -> Option<Failure> {
    task.inputs.iter().find_map(|input| {
        if progress.is_cancelled() {
            return Some(Failure::Cancelled);
        }
        let id = input.block.meta().ulid;
        match verify(&input.block, input.block.meta()) {
            Err(source @ Error::Corrupt { .. }) => Some(Failure::Source { id, source }),
            Ok(report) if report.digest() != input.digest => {
                let what = format!("its digest is {:?}, agreed was {:?}", report.digest(), input.digest);
                Some(Failure::Source { id, source: Error::corrupt(&input.block.place().path, 0, what) })
            }
            _ => None,
        }
    })
}

/// The law of conservation.
fn conserved(task: &Task, merged: &Merged) -> Result<(), Failure> {
    let sources: Digest = task.inputs.iter().map(|input| input.digest).sum();
    let results = merged.blocks.iter().map(|(_, written)| written.report.digest());
    let found: Digest = results.chain([merged.duplicates, merged.deleted]).sum();
    if found != sources {
        let what = format!("a merge does not conserve its samples: {found:?} came of {sources:?}");
        return Err(Error::Misuse { what }.into());
    }
    Ok(())
}

fn check(task: &Task) -> Result<(), Error> {
    let misuse = |what: &str| Err(Error::Misuse { what: format!("a merge {what}") });
    if task.window_ms <= 0 || task.inputs.is_empty() || task.targets.is_empty() {
        return misuse("has no sources, no results or no window");
    }
    // Chunks are cut at windows: so each lies on one side of a border between results.
    let first = task.targets.iter().map(|target| target.range.start).min().unwrap_or(0);
    let is_border = |start: Millis| start == first || start % task.window_ms == 0;
    if !task.targets.iter().all(|target| is_border(target.range.start)) {
        return misuse("divides a window");
    }
    Ok(())
}

struct Merge<'a> {
    task: &'a Task,
    progress: &'a Progress,
    cursors: Vec<Cursor<'a>>,
    writers: Vec<BlockWriter>,
    merged: Merged,
}

/// A series and the input that has it; sorts by labels.
#[derive(Debug)]
struct Next {
    at: At,
    input: usize,
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Next {}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.labels.cmp(&other.at.labels).then(self.input.cmp(&other.input))
    }
}

impl<'a> Merge<'a> {
    fn run(disk: &Arc<dyn Disk>, parent: &Path, task: &'a Task, progress: &'a Progress) -> Result<Merged, Failure> {
        let piece = (BUFFERS_BYTES_MAX / 2 / task.inputs.len() as u64).clamp(16 << 10, PIECE_BYTES_MAX);
        let cursors = task.inputs.iter().map(|input| Cursor::open(&input.block, piece));
        let cursors = cursors.collect::<Result<Vec<_>, _>>()?;
        let writers =
            task.targets.iter().map(|target| BlockWriter::create(Arc::clone(disk), parent, spec(task, target)));
        let writers = writers.collect::<Result<Vec<_>, _>>()?;
        let mut this = Self { task, progress, cursors, writers, merged: Merged::default() };
        this.all_series()?;
        let Self { cursors, writers, mut merged, .. } = this;
        drop(cursors);
        for (target, writer) in task.targets.iter().zip(writers) {
            if progress.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            merged.blocks.extend(writer.finish()?.map(|written| (*target, written)));
        }
        Ok(merged)
    }

    fn all_series(&mut self) -> Result<(), Failure> {
        let mut heap = BinaryHeap::with_capacity(self.cursors.len());
        for input in 0..self.cursors.len() {
            self.advance(input, &mut heap)?;
        }
        let mut same: Vec<Next> = Vec::new();
        while let Some(Reverse(next)) = heap.pop() {
            if self.progress.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            same.push(next);
            while heap.peek().is_some_and(|Reverse(next)| next.at.labels == same[0].at.labels) {
                same.extend(heap.pop().map(|Reverse(next)| next));
            }
            self.one_series(&same)?;
            for Next { input, .. } in same.drain(..) {
                self.advance(input, &mut heap)?;
            }
        }
        Ok(())
    }

    fn advance(&mut self, input: usize, heap: &mut BinaryHeap<Reverse<Next>>) -> Result<(), Error> {
        heap.extend(self.cursors[input].next()?.map(|at| Reverse(Next { at, input })));
        Ok(())
    }

    fn one_series(&mut self, same: &[Next]) -> Result<(), Error> {
        let labels = &same[0].at.labels;
        let hash = labels.hash128();
        let mut parts = Vec::with_capacity(same.len());
        for next in same {
            let chunks = self.cursors[next.input].chunks(&next.at)?;
            let bytes: u64 = chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum();
            self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
            parts.push(Part { chunks, deleted: self.deleted(next) });
        }
        let merged = series::merge(hash, &parts, self.task.window_ms);
        let Outcome { chunks, duplicates, deleted } = merged
            .map_err(|broken| Error::Misuse { what: format!("a chunk of {labels} does not decode: {broken}") })?;
        self.merged.duplicates.add(duplicates);
        self.merged.deleted.add(deleted);
        self.write(labels, hash, &chunks)?;
        self.progress.series.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The deleted times of a series in one source, first and last inside.
    fn deleted(&self, next: &Next) -> Vec<(Millis, Millis)> {
        let input = &self.task.inputs[next.input];
        let mut deleted = input.block.tombstones().of(next.at.series).to_vec();
        let orders = self.task.hidden.iter().filter(|hidden| hidden.index > input.as_of && !hidden.range.is_empty());
        let orders = orders.filter(|hidden| hidden.selects(&next.at.labels));
        deleted.extend(orders.map(|hidden| (hidden.range.start, hidden.range.end - 1)));
        deleted
    }

    /// Gives each chunk to the result it belongs to.
    fn write(&mut self, labels: &Labels, hash: u128, chunks: &[Chunk]) -> Result<(), Error> {
        let mut taken = 0;
        for (target, writer) in self.task.targets.iter().zip(&mut self.writers) {
            if !target.takes(hash) {
                continue;
            }
            let from = chunks.partition_point(|chunk| chunk.first < target.range.start);
            let until = chunks.partition_point(|chunk| chunk.first < target.range.end);
            if from < until {
                writer.add(labels, &chunks[from..until])?;
                taken += until - from;
            }
        }
        if taken != chunks.len() {
            let what = format!("{} of {} chunks of {labels} belong to no result", chunks.len() - taken, chunks.len());
            return Err(Error::Misuse { what });
        }
        Ok(())
    }
}

fn spec(task: &Task, target: &Target) -> Spec {
    let metas = || task.inputs.iter().map(|input| input.block.meta());
    let sources: BTreeSet<BlockId> = metas().flat_map(|meta| meta.compaction.sources.iter().copied()).collect();
    let parent =
        |meta: &crate::block::Meta| Parent { ulid: meta.ulid, min_time: meta.min_time, max_time: meta.max_time };
    Spec {
        id: target.id,
        range: target.range,
        window_ms: task.window_ms,
        level: task.level,
        sources: sources.into_iter().collect(),
        parents: metas().map(parent).collect(),
        labels: task.labels.clone(),
        segment_bytes_max: SEGMENT_BYTES_MAX,
    }
}
