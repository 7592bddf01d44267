//! Which blocks are merged next: a plain function of what is agreed of them.
//!
//! Why pure: the plan decides about data that exists once. It is the same on every node that sees the same metadata,
//! it can be shown to a person before it happens (`engram blocks plan`), and its tests run it to its end thousands of
//! times. It never looks into the bucket.
//!
//! Time is divided into *cells* by each of the ranges in [`Rules::ranges_ms`] (2 h, 12 h, 24 h), aligned to the epoch.
//! Two blocks *meet* when some series may be in both: the parts of the series they hold ([`Shard`]) have a hash in
//! common. In order:
//!
//! 1. **Split.** A block that reaches over a border of the largest cells and overlaps another it meets is cut at these
//!    borders. Only blocks of other systems are like that; one that overlaps nothing is left alone.
//! 2. **Merge.** From the smallest range to the largest: blocks inside one cell that meet, directly or through others,
//!    become one, or one per shard when that one would be too large. So every overlap ends: two blocks that overlap
//!    lie in one cell of the largest range, or one of them is split. Where more meet than one job may have
//!    ([`Rules::sources_max`]), those that hold the same part of the series come first.
//! 3. **Rewrite.** A block that was made before a deletion of some of its samples is written anew without them.
//!
//! A cell waits while something is still on its way into it: a sealed window that is not cut, a block that came a short
//! while ago ([`SETTLE_PART`]), or, unless nothing has come for as long as the cell is, newer blocks that show that
//! the tenant's time has passed it.
//!
//! It ends: a split leaves fewer blocks that cross a border or hold more of the series than their neighbours, a merge
//! of all that meet leaves none that meet in that cell, and a merge of some of them leaves fewer blocks.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use engram_model::block::{BlockId, BlockMeta, LEVEL_MAX, SHARDS_MAX, Shard};
use engram_model::{Millis, TimeRange};

/// A cell is quiet when nothing came into it for this part of its length: five minutes for two hours.
pub const SETTLE_PART: i64 = 24;
/// Most blocks one job writes: each has its buffers and a part of the index in memory.
pub const OUTPUTS_MAX: u32 = 64;
/// Most names of sources in all results of a job together: they go through the metadata in one command.
const NAMES_MAX: u32 = 4_096;

/// How blocks are compacted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Lengths of the cells in milliseconds, growing; each divides the next.
    pub ranges_ms: Vec<i64>,
    /// A block is not meant to have more series.
    pub series_max: u64,
    /// A block is not meant to be longer than so many bytes.
    pub bytes_max: u64,
    /// Most blocks of one job, where there is a way to keep to it; at least 2.
    pub sources_max: usize,
    /// How long after a deletion blocks are written anew for it alone: so that several deletions cost one rewrite.
    pub rewrite_after_ms: i64,
}

impl Default for Rules {
    fn default() -> Self {
        const HOUR: i64 = 3_600_000;
        Self {
            ranges_ms: vec![2 * HOUR, 12 * HOUR, 24 * HOUR],
            series_max: 2_000_000,
            bytes_max: 8 << 30,
            sources_max: 128,
            rewrite_after_ms: HOUR,
        }
    }
}

impl Rules {
    /// Whether the rules can be followed with windows of that length.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn check(&self, window_ms: i64) -> Result<(), String> {
        let mut before = window_ms;
        if self.ranges_ms.is_empty() || before <= 0 {
            return Err("there must be at least one range of compaction, and a window".to_owned());
        }
        for (i, range) in self.ranges_ms.iter().enumerate() {
            if *range < before || range % before != 0 || (i > 0 && *range == before) {
                return Err(format!(
                    "range of compaction {range} ms must be a multiple of the one before, {before} ms"
                ));
            }
            before = *range;
        }
        if self.sources_max < 2 || self.series_max == 0 || self.bytes_max == 0 {
            return Err("limits of compaction leave nothing to merge".to_owned());
        }
        Ok(())
    }
}

/// A deletion, as far as the plan cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Index of the metadata that ordered it.
    pub index: u64,
    /// The deleted time.
    pub range: TimeRange,
    /// When it was ordered.
    pub at: Millis,
}

/// What is known of a tenant.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Its blocks that are neither marked for removal nor damaged, in any order.
    pub blocks: &'a [&'a BlockMeta],
    /// Windows that are sealed and not cut yet.
    pub open: &'a [TimeRange],
    /// Sources of jobs that are being done.
    pub busy: &'a BTreeSet<BlockId>,
    /// Its deletions.
    pub deletions: &'a [Order],
    /// Whether somebody has looked and found that a block holds nothing of the deletion of that index.
    pub is_free_of: &'a dyn Fn(BlockId, u64) -> bool,
    /// The time.
    pub now: Millis,
    /// Whether deletions are to be carried out now and not when a rewrite is worth it.
    pub clean: bool,
}

impl std::fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").field("blocks", &self.blocks).field("open", &self.open).finish_non_exhaustive()
    }
}

/// Why a job is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JobKind {
    /// A block is cut at the borders of the largest cells, or by series.
    Split,
    /// Blocks become one, or one per shard.
    Merge,
    /// Deleted samples are taken out of a block.
    Rewrite,
}

impl JobKind {
    /// As a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Merge => "merge",
            Self::Rewrite => "rewrite",
        }
    }
}

/// One block that a job writes, unless nothing is left for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its range.
    pub range: TimeRange,
    /// The series in it.
    pub shard: Option<Shard>,
}

/// Blocks to be replaced, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Why.
    pub kind: JobKind,
    /// The cell, or the range of the one block.
    pub range: TimeRange,
    /// The blocks, sorted by name; none is in two jobs of a plan.
    pub sources: Vec<BlockId>,
    /// What is written: every sample of the sources belongs to exactly one.
    pub outputs: Vec<Output>,
    /// Level of what is written.
    pub level: u32,
    /// Bytes of the sources.
    pub bytes: u64,
    /// Since when it could have been done.
    pub due_at: Millis,
}

impl Job {
    /// What two nodes that plan the same job call it: the time, and which part of the series.
    #[must_use]
    pub fn key(&self) -> String {
        let shard = self.outputs.first().and_then(|output| output.shard);
        let shard = shard.map_or_else(String::new, |shard| format!("-{}-of-{}", shard.index, shard.count));
        format!("{}-{}{shard}", self.range.start, self.range.end)
    }
}

/// The jobs that can be done now, in the order in which they should be.
#[must_use]
pub fn plan(rules: &Rules, facts: &Facts<'_>) -> Vec<Job> {
    let mut blocks = facts.blocks.to_vec();
    blocks.sort_by_key(|block| (block.range.start, block.range.end, block.id));
    let newest = blocks.iter().map(|block| block.range.end).max().unwrap_or(Millis::MIN);
    let mut planner = Planner { rules, facts, blocks, newest, used: facts.busy.clone(), jobs: Vec::new() };
    planner.splits();
    for range_ms in &rules.ranges_ms {
        planner.merges(*range_ms);
    }
    planner.rewrites();
    planner.jobs
}

struct Planner<'a> {
    rules: &'a Rules,
    facts: &'a Facts<'a>,
    /// Sorted by time.
    blocks: Vec<&'a BlockMeta>,
    /// Where the newest block ends.
    newest: Millis,
    used: BTreeSet<BlockId>,
    jobs: Vec<Job>,
}

impl<'a> Planner<'a> {
    fn splits(&mut self) {
        let Some(cell_ms) = self.rules.ranges_ms.last().copied() else { return };
        for block in self.blocks.clone() {
            let inside = cell_of(block.range.start, cell_ms);
            let is_busy = self.used.contains(&block.id);
            if is_busy || block.range.end <= inside.end || !self.overlaps_another(block) {
                continue;
            }
            let mut outputs = Vec::new();
            let mut start = block.range.start;
            while start < block.range.end {
                let is_last = outputs.len() + 1 == OUTPUTS_MAX as usize;
                let border = cell_of(start, cell_ms).end;
                let end = if is_last { block.range.end } else { border.min(block.range.end) };
                outputs.push(Output { range: TimeRange::new(start, end), shard: block.shard });
                start = end;
            }
            self.push(JobKind::Split, block.range, &[block], outputs, block.made_at);
        }
    }

    fn overlaps_another(&self, block: &BlockMeta) -> bool {
        let until = self.blocks.partition_point(|other| other.range.start < block.range.end);
        let mut near = self.blocks[..until].iter().filter(|other| other.range.end > block.range.start);
        near.any(|other| other.id != block.id && meet(shard_of(other), shard_of(block)))
    }

    fn merges(&mut self, cell_ms: i64) {
        let mut cells: BTreeMap<Millis, Vec<&'a BlockMeta>> = BTreeMap::new();
        for block in &self.blocks {
            let cell = cell_of(block.range.start, cell_ms);
            if block.range.end <= cell.end && !block.range.is_empty() {
                cells.entry(cell.start).or_default().push(block);
            }
        }
        for (start, blocks) in cells {
            let cell = cell_of(start, cell_ms);
            if blocks.len() < 2 || self.facts.open.iter().any(|open| open.overlaps(cell)) {
                continue;
            }
            for group in groups(&blocks) {
                // What a job makes of a part of the group belongs to the group too: it is worth waiting for.
                let is_busy = group.iter().any(|block| self.used.contains(&block.id));
                if !is_busy && let Some(due_at) = self.due(cell, &group) {
                    self.merge(cell, &group, due_at);
                }
            }
        }
    }

    /// Since when a group of a cell could be merged; none while it has to wait.
    fn due(&self, cell: TimeRange, group: &[&BlockMeta]) -> Option<Millis> {
        let len = cell.end.saturating_sub(cell.start);
        let came = group.iter().map(|block| block.made_at).max().unwrap_or(Millis::MAX);
        let quiet = came.saturating_add(len / SETTLE_PART);
        let idle = came.saturating_add(len);
        let due_at = if self.newest >= cell.end { quiet } else { idle };
        (group.len() > 1 && due_at <= self.facts.now).then_some(due_at)
    }

    fn merge(&mut self, cell: TimeRange, group: &[&'a BlockMeta], due_at: Millis) {
        if group.len() > self.rules.sources_max && self.merge_some(cell, group, due_at) {
            return;
        }
        // All of a group agree in this remainder.
        let common = group.iter().map(|block| shard_of(block).count).fold(0, gcd);
        let index = shard_of(group[0]).index % common;
        let parts = self.parts(group, common);
        let shards = (0..parts).map(|part| Shard { index: index + common * part, count: common * parts });
        self.push(JobKind::Merge, cell, group, outputs(group, shards), due_at);
    }

    /// A step towards a group that is small enough: blocks of one part of the series become one; where there are no two
    /// such, the one that holds the largest part is divided as finely as the next, so that it falls into other groups.
    /// None of it can be undone by a smaller cell. Says whether there was such a step.
    fn merge_some(&mut self, cell: TimeRange, group: &[&'a BlockMeta], due_at: Millis) -> bool {
        let mut by_shard: BTreeMap<Shard, Vec<&'a BlockMeta>> = BTreeMap::new();
        group.iter().for_each(|block| by_shard.entry(shard_of(block)).or_default().push(block));
        let most = by_shard.iter().rev().max_by_key(|(_, blocks)| blocks.len());
        if let Some((shard, blocks)) = most.filter(|(_, blocks)| blocks.len() > 1) {
            let chosen = &blocks[..blocks.len().min(self.rules.sources_max)];
            self.push(JobKind::Merge, cell, chosen, outputs(chosen, std::iter::once(*shard)), due_at);
            return true;
        }
        let coarse = by_shard.keys().min_by_key(|shard| (shard.count, shard.index)).copied();
        let Some((shard, block)) = coarse.and_then(|shard| Some((shard, *by_shard.get(&shard)?.first()?))) else {
            return false;
        };
        let finer = by_shard.keys().map(|other| other.count / shard.count * u32::from(other.count % shard.count == 0));
        let Some(parts) = finer.filter(|parts| *parts > 1).min().map(|parts| parts.min(OUTPUTS_MAX)) else {
            return false;
        };
        let shards =
            (0..parts).map(|part| Shard { index: shard.index + shard.count * part, count: shard.count * parts });
        self.push(JobKind::Split, cell, &[block], outputs(&[block], shards), due_at);
        true
    }

    /// Into how many parts the series are divided: a power of two.
    fn parts(&self, sources: &[&BlockMeta], common: u32) -> u32 {
        // Blocks of one time hold different series, mostly; blocks of different times the same.
        let at = |start: Millis| sources.iter().filter(move |block| block.range.contains(start));
        let series = sources.iter().map(|one| at(one.range.start).map(|block| block.series).sum::<u64>()).max();
        let bytes: u64 = sources.iter().map(|block| block.bytes()).sum();
        let wanted = series.unwrap_or(0).div_ceil(self.rules.series_max).max(bytes.div_ceil(self.rules.bytes_max));
        let by_names = NAMES_MAX / u32::try_from(sources.len()).unwrap_or(NAMES_MAX).clamp(1, NAMES_MAX);
        let most = u64::from((SHARDS_MAX / common).min(by_names).clamp(1, OUTPUTS_MAX));
        let parts = wanted.clamp(1, most).next_power_of_two();
        u32::try_from(if parts > most { parts / 2 } else { parts }).unwrap_or(1)
    }

    fn rewrites(&mut self) {
        for block in self.blocks.clone() {
            if self.used.contains(&block.id) {
                continue;
            }
            let holds = |order: &&Order| {
                order.index > block.as_of
                    && order.range.overlaps(block.range)
                    && !(self.facts.is_free_of)(block.id, order.index)
            };
            let after = if self.facts.clean { 0 } else { self.rules.rewrite_after_ms };
            let due = self.facts.deletions.iter().filter(holds).map(|order| order.at.saturating_add(after)).min();
            if let Some(due_at) = due.filter(|at| self.facts.clean || *at <= self.facts.now) {
                let output = Output { range: block.range, shard: block.shard };
                self.push(JobKind::Rewrite, block.range, &[block], vec![output], due_at);
            }
        }
    }

    fn push(&mut self, kind: JobKind, range: TimeRange, sources: &[&BlockMeta], outputs: Vec<Output>, due_at: Millis) {
        let mut names: Vec<_> = sources.iter().map(|block| block.id).collect();
        names.sort_unstable();
        self.used.extend(&names);
        let level = sources.iter().map(|block| block.level).max().unwrap_or(0).saturating_add(1).min(LEVEL_MAX);
        let bytes = sources.iter().map(|block| block.bytes()).sum();
        self.jobs.push(Job { kind, range, sources: names, outputs, level, bytes, due_at });
    }
}

/// The cell a time lies in; the first and the last cell of all time are cut short.
fn cell_of(at: Millis, cell_ms: i64) -> TimeRange {
    let number = at.div_euclid(cell_ms);
    TimeRange::new(number.saturating_mul(cell_ms), number.saturating_add(1).saturating_mul(cell_ms))
}

/// One result for each of these parts, over all the time of the sources.
fn outputs(sources: &[&BlockMeta], shards: impl Iterator<Item = Shard>) -> Vec<Output> {
    let start = sources.iter().map(|block| block.range.start).min().unwrap_or(Millis::MIN);
    let end = sources.iter().map(|block| block.range.end).max().unwrap_or(Millis::MAX);
    let range = TimeRange::new(start, end);
    shards.map(|shard| Output { range, shard: (shard.count > 1).then_some(shard) }).collect()
}

/// The part of the series a block holds; all of them: the only part of one.
fn shard_of(block: &BlockMeta) -> Shard {
    block.shard.filter(|shard| shard.count > 0).unwrap_or(Shard { index: 0, count: 1 })
}

/// Whether some hash is in both parts.
fn meet(a: Shard, b: Shard) -> bool {
    let common = gcd(a.count, b.count);
    a.index % common == b.index % common
}

/// The greatest common divisor; at least 1.
fn gcd(a: u32, b: u32) -> u32 {
    let (mut a, mut b) = (a, b);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

/// Blocks that meet, directly or through others; each group in the order of `blocks`.
fn groups<'a>(blocks: &[&'a BlockMeta]) -> Vec<Vec<&'a BlockMeta>> {
    let mut shards: Vec<Shard> = blocks.iter().map(|block| shard_of(block)).collect();
    shards.sort_unstable();
    shards.dedup();
    // Which group each shard is in: the place of the group's first shard.
    let mut group: Vec<usize> = (0..shards.len()).collect();
    for i in 0..shards.len() {
        for j in 0..i {
            if group[i] != group[j] && meet(shards[i], shards[j]) {
                let (from, to) = (group[i].max(group[j]), group[i].min(group[j]));
                group.iter_mut().filter(|one| **one == from).for_each(|one| *one = to);
            }
        }
    }
    let mut found: BTreeMap<usize, Vec<&BlockMeta>> = BTreeMap::new();
    for block in blocks {
        if let Ok(i) = shards.binary_search(&shard_of(block)) {
            found.entry(group[i]).or_default().push(block);
        }
    }
    found.into_values().collect()
}
