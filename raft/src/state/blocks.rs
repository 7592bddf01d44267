//! Blocks: which there are, which are on their way out, which are damaged.
//!
//! Why one table: a query, a compaction and a deletion must agree on which blocks exist, or samples are seen twice or
//! not at all. A replacement is one command: all its checks come before its first write, the digests of both sides
//! must add up, and its sources lose their place in the same entry in which its results get theirs. Sources keep their
//! rows, marked, until their objects are gone, so that old readers finish and nothing is orphaned.

use std::sync::Arc;

use engram_model::TimeRange;
use engram_model::block::{BlockId, BlockMeta, BlockRow, LEVEL_MAX, Mark, Origin};
use engram_model::digest::Digest;
use engram_model::tenant::TenantId;
use serde::{Deserialize, Serialize};

use super::draft::{Change, Draft, Leaves, Row, Table};
use super::{Stamp, Stop, bounded, check, seals, tenant_key, tenants};
use crate::command::Outcome;
use crate::error::{Error, Refusal};

/// Most blocks of a cluster: twice the design size.
pub const BLOCKS_MAX: u64 = 10_000_000;
/// Most blocks one command names.
pub const BLOCKS_PER_COMMAND_MAX: usize = 1_024;

/// Whose block, and its name.
type Key = (TenantId, BlockId);

impl Row for BlockRow {
    const TABLE: Table = Table::Blocks;
    type Key = Key;

    fn key((tenant, id): &Key) -> Vec<u8> {
        tenant_key(tenant, &id.0.to_be_bytes())
    }

    fn change((tenant, id): &Key, row: Arc<Self>) -> Option<Change> {
        Some(Change::Block(tenant.clone(), *id, Some(row)))
    }
}

impl Leaves for BlockRow {
    fn gone((tenant, id): &Key) -> Change {
        Change::Block(tenant.clone(), *id, None)
    }
}

/// How much there is, over all tenants; written only when it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) blocks: u64,
    pub(super) leases: u64,
}

impl Row for Counts {
    const TABLE: Table = Table::Meta;
    type Key = ();

    fn key(_: &()) -> Vec<u8> {
        b"counts".to_vec()
    }

    fn change(_: &(), _: Arc<Self>) -> Option<Change> {
        None
    }
}

impl Counts {
    pub(super) fn read(draft: &Draft<'_>) -> Result<Self, Error> {
        Ok(draft.row::<Self>(&())?.unwrap_or_default())
    }

    pub(super) fn write(self, draft: &mut Draft<'_>) -> Result<(), Error> {
        if self == Self::read(draft)? { Ok(()) } else { draft.put(&(), self) }
    }
}

fn row(draft: &Draft<'_>, key: &Key) -> Result<BlockRow, Stop> {
    let unknown = || Refusal::UnknownBlock { tenant: key.0.clone(), block: key.1 };
    Ok(draft.row::<BlockRow>(key)?.ok_or_else(unknown)?)
}

fn listed(what: &str, count: usize, sorted: bool) -> Result<(), Refusal> {
    if (1..=BLOCKS_PER_COMMAND_MAX).contains(&count) && sorted {
        return Ok(());
    }
    let want = format!("1 to {BLOCKS_PER_COMMAND_MAX}, sorted, each once");
    Err(Refusal::Bounds { what: what.to_owned(), want, got: count as u64 })
}

/// Writes checked blocks. Those that are there with the same content are passed over.
pub(super) fn admit(draft: &mut Draft<'_>, tenant: &TenantId, blocks: &[BlockMeta], index: u64) -> Result<(), Stop> {
    let mut counts = Counts::read(draft)?;
    let mut fresh = Vec::with_capacity(blocks.len());
    for block in blocks {
        match draft.row::<BlockRow>(&(tenant.clone(), block.id))? {
            None => fresh.push(block),
            Some(there) if there.meta == *block => {}
            Some(_) => return Err(Refusal::BlockExists { block: block.id }.into()),
        }
    }
    counts.blocks += fresh.len() as u64;
    if counts.blocks > BLOCKS_MAX {
        return Err(Refusal::TooMany { what: "blocks".to_owned(), max: BLOCKS_MAX }.into());
    }
    counts.write(draft)?;
    for block in fresh {
        let row = BlockRow { meta: block.clone(), index, marked: None, quarantined: None };
        draft.put(&(tenant.clone(), block.id), row)?;
    }
    Ok(())
}

pub(super) fn add(draft: &mut Draft<'_>, tenant: &TenantId, blocks: &[BlockMeta], index: u64) -> Result<Outcome, Stop> {
    tenants::living(draft, tenant)?;
    listed("blocks", blocks.len(), blocks.is_sorted_by(|a, b| a.id < b.id))?;
    let mut late = Vec::new();
    for block in blocks {
        check::block(block, tenant, index)?;
        match block.origin {
            Origin::Imported => {}
            // The answer to an earlier attempt was lost; the seal may be closed by now.
            Origin::Cut { .. } if is_there(draft, block)? => {}
            Origin::Cut { partition, seal } => {
                seals::check_late(draft, block, index)?;
                late.push((partition, seal));
            }
            Origin::Compacted => {
                let why = "a compacted block replaces its sources, it cannot be added".to_owned();
                return Err(Refusal::BadBlock { block: block.id, why }.into());
            }
        }
    }
    admit(draft, tenant, blocks, index)?;
    for (partition, seal) in late {
        seals::completed(draft, &(tenant.clone(), partition), seal, index)?;
    }
    Ok(Outcome::Done)
}

/// Whether this very block was added before.
fn is_there(draft: &Draft<'_>, block: &BlockMeta) -> Result<bool, Stop> {
    let row = draft.row::<BlockRow>(&(block.tenant.clone(), block.id))?;
    Ok(row.is_some_and(|row| row.meta == *block))
}

/// What the sources of a replacement have in common.
struct Sources {
    rows: Vec<BlockRow>,
    digest: Digest,
    level: u32,
    range: TimeRange,
}

fn sources(draft: &Draft<'_>, tenant: &TenantId, ids: &[BlockId]) -> Result<Sources, Stop> {
    let mut all = Sources {
        rows: Vec::with_capacity(ids.len()),
        digest: Digest::EMPTY,
        level: 0,
        range: TimeRange { start: i64::MAX, end: i64::MIN },
    };
    for id in ids {
        let row = row(draft, &(tenant.clone(), *id))?;
        if let Some(mark) = &row.marked {
            return Err(Refusal::BlockMarked { block: *id, index: mark.index }.into());
        }
        all.digest.add(row.meta.digest);
        all.level = all.level.max(row.meta.level);
        all.range.start = all.range.start.min(row.meta.range.start);
        all.range.end = all.range.end.max(row.meta.range.end);
        all.rows.push(row);
    }
    Ok(all)
}

/// Checks the results of a replacement and writes both sides.
fn swap(
    draft: &mut Draft<'_>,
    (tenant, ids): (&TenantId, &[BlockId]),
    (sources, results, level): (Sources, &[BlockMeta], u32),
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    for block in results {
        check::block(block, tenant, stamp.index)?;
        check::replacement(block, ids, level, sources.range)?;
        if draft.row::<BlockRow>(&(tenant.clone(), block.id))?.is_some() {
            return Err(Refusal::BlockExists { block: block.id }.into());
        }
    }
    admit(draft, tenant, results, stamp.index)?;
    let mark = mark_of(stamp, "replaced");
    for (id, mut row) in ids.iter().zip(sources.rows) {
        row.marked = Some(mark.clone());
        draft.put(&(tenant.clone(), *id), row)?;
    }
    Ok(Outcome::Done)
}

fn mark_of(stamp: Stamp, why: &str) -> Mark {
    Mark { index: stamp.index, at: stamp.at, by: stamp.by, why: why.to_owned() }
}

/// Whether the very same replacement was committed before: the answer to an earlier attempt was lost.
fn done_already(draft: &Draft<'_>, tenant: &TenantId, results: &[BlockMeta]) -> Result<bool, Stop> {
    for block in results {
        if block.tenant != *tenant || !is_there(draft, block)? {
            return Ok(false);
        }
    }
    Ok(!results.is_empty())
}

pub(super) fn replace(
    draft: &mut Draft<'_>,
    tenant: &TenantId,
    (ids, results): (&[BlockId], &[BlockMeta]),
    (duplicates, deleted): (Digest, Digest),
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    listed("sources", ids.len(), check::sorted(ids))?;
    if !results.is_empty() {
        listed("results", results.len(), results.is_sorted_by(|a, b| a.id < b.id))?;
    }
    if done_already(draft, tenant, results)? {
        return Ok(Outcome::Done);
    }
    let sources = sources(draft, tenant, ids)?;
    for row in &sources.rows {
        if let Some(why) = &row.quarantined {
            return Err(Refusal::BlockQuarantined { block: row.meta.id, why: why.clone() }.into());
        }
    }
    let accounted = results.iter().map(|block| block.digest).chain([duplicates, deleted]).sum();
    if sources.digest != accounted {
        return Err(Refusal::Digest { sources: sources.digest, accounted }.into());
    }
    // A day that late samples keep coming into is merged again and again.
    let level = sources.level.saturating_add(1).min(LEVEL_MAX);
    swap(draft, (tenant, ids), (sources, results, level), stamp)
}

pub(super) fn repair(
    draft: &mut Draft<'_>,
    tenant: &TenantId,
    damaged: BlockId,
    results: &[BlockMeta],
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    listed("results", results.len(), results.is_sorted_by(|a, b| a.id < b.id))?;
    if done_already(draft, tenant, results)? {
        return Ok(Outcome::Done);
    }
    let sources = sources(draft, tenant, &[damaged])?;
    if sources.rows.iter().any(|row| row.quarantined.is_none()) {
        return Err(Refusal::NotQuarantined { block: damaged }.into());
    }
    let accounted = results.iter().map(|block| block.digest).sum();
    if sources.digest != accounted {
        return Err(Refusal::Digest { sources: sources.digest, accounted }.into());
    }
    let level = sources.level;
    swap(draft, (tenant, &[damaged]), (sources, results, level), stamp)
}

pub(super) fn mark(
    draft: &mut Draft<'_>,
    tenant: &TenantId,
    ids: &[BlockId],
    why: &str,
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    listed("blocks", ids.len(), check::sorted(ids))?;
    bounded("reason", why)?;
    let rows: Vec<BlockRow> = ids.iter().map(|id| row(draft, &(tenant.clone(), *id))).collect::<Result<_, _>>()?;
    let mark = mark_of(stamp, why);
    for mut row in rows.into_iter().filter(|row| row.marked.is_none()) {
        row.marked = Some(mark.clone());
        draft.put(&(tenant.clone(), row.meta.id), row)?;
    }
    Ok(Outcome::Done)
}

pub(super) fn drop_marked(draft: &mut Draft<'_>, tenant: &TenantId, ids: &[BlockId]) -> Result<Outcome, Stop> {
    listed("blocks", ids.len(), check::sorted(ids))?;
    let mut there = Vec::with_capacity(ids.len());
    for id in ids {
        let key = (tenant.clone(), *id);
        let Some(row) = draft.row::<BlockRow>(&key)? else { continue };
        if row.marked.is_none() {
            return Err(Refusal::BlockInUse { block: *id }.into());
        }
        there.push(key);
    }
    let mut counts = Counts::read(draft)?;
    counts.blocks = counts.blocks.saturating_sub(there.len() as u64);
    counts.write(draft)?;
    there.iter().for_each(|key| draft.delete::<BlockRow>(key));
    Ok(Outcome::Done)
}

pub(super) fn quarantine(draft: &mut Draft<'_>, key: &Key, why: Option<&str>) -> Result<Outcome, Stop> {
    bounded("reason", why.unwrap_or_default())?;
    let mut row = row(draft, key)?;
    if row.quarantined.as_deref() != why {
        row.quarantined = why.map(str::to_owned);
        draft.put(key, row)?;
    }
    Ok(Outcome::Done)
}
