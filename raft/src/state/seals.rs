//! Seals: windows that were ended, their cuts, and who has forgotten them.
//!
//! Why numbers without gaps: replicas apply the seals of a tenant in a partition in order, each once, and know from
//! the number alone whether they have missed one. Why a seal stays until every replica has forgotten it: a replica
//! that was away must still learn what became of the samples it holds. Drawn in `model::block`.

use std::sync::Arc;

use engram_model::TimeRange;
use engram_model::block::{BlockMeta, Cut, Origin, Seal, Seals};
use engram_model::digest::Digest;
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::TenantId;

use super::draft::{Change, Draft, Row, Table};
use super::ring::PartitionRow;
use super::{Stop, blocks, check, tenant_key, tenants};
use crate::command::Outcome;
use crate::error::Refusal;

/// Most seals of one tenant in one partition that are open at once; each has samples set aside on every replica.
pub const OPEN_SEALS_MAX: usize = 256;
/// Longest window in milliseconds: 31 days.
const WINDOW_MS_MAX: u64 = 31 * 24 * 60 * 60 * 1000;

/// The seals of whom, where.
type Key = (TenantId, PartitionId);

impl Row for Seals {
    const TABLE: Table = Table::Seals;
    type Key = Key;

    fn key((tenant, partition): &Key) -> Vec<u8> {
        tenant_key(tenant, &partition.0.to_be_bytes())
    }

    fn change((tenant, partition): &Key, row: Arc<Self>) -> Option<Change> {
        Some(Change::Seals(tenant.clone(), *partition, row))
    }
}

fn partition(draft: &Draft<'_>, partition: PartitionId) -> Result<PartitionRow, Stop> {
    Ok(draft.row::<PartitionRow>(&partition)?.ok_or(Refusal::UnknownPartition { partition })?)
}

pub(super) fn seal(draft: &mut Draft<'_>, key: &Key, number: u64, window: TimeRange) -> Result<Outcome, Stop> {
    tenants::known(draft, &key.0)?;
    partition(draft, key.1)?;
    let length = if window.is_empty() { 0 } else { window.start.abs_diff(window.end) };
    if !(1..=WINDOW_MS_MAX).contains(&length) {
        let want = format!("1 to {WINDOW_MS_MAX} ms");
        return Err(Refusal::Bounds { what: "window".to_owned(), want, got: length }.into());
    }
    let mut row = draft.row::<Seals>(key)?.unwrap_or_default();
    if row.next != number {
        let (tenant, partition) = key.clone();
        return Err(Refusal::SealNumber { tenant, partition, expected: number, found: row.next }.into());
    }
    if row.open.len() >= OPEN_SEALS_MAX {
        let what = format!("open seals of {} in partition {}", key.0, key.1.0);
        return Err(Refusal::TooMany { what, max: OPEN_SEALS_MAX as u64 }.into());
    }
    row.open.push(Seal { number, window, cut: None, forgotten_by: Vec::new() });
    row.next += 1;
    draft.put(key, row)?;
    Ok(Outcome::Seal { number })
}

/// The row and the place of an open seal in it.
fn open(draft: &Draft<'_>, key: &Key, number: u64) -> Result<(Seals, usize), Stop> {
    let row = draft.row::<Seals>(key)?.unwrap_or_default();
    let at = row.open.binary_search_by_key(&number, |seal| seal.number);
    let unknown = Refusal::UnknownSeal { tenant: key.0.clone(), partition: key.1, number };
    Ok((row, at.map_err(|_| unknown)?))
}

pub(super) fn commit_cut(
    draft: &mut Draft<'_>,
    key: &Key,
    number: u64,
    (block, digest): (Option<&BlockMeta>, Digest),
    index: u64,
) -> Result<Outcome, Stop> {
    let (mut row, at) = open(draft, key, number)?;
    let seal = &mut row.open[at];
    if let Some(cut) = seal.cut {
        if cut.block == block.map(|b| b.id) && cut.digest == digest {
            return Ok(Outcome::Done);
        }
        let (tenant, partition) = key.clone();
        return Err(Refusal::CutAlready { tenant, partition, number, block: cut.block }.into());
    }
    seal.cut = Some(Cut { block: block.map(|b| b.id), digest, index });
    if let Some(block) = block {
        check::cut(block, (&key.0, key.1, number), seal.window, index)?;
        if block.digest.count > digest.count {
            let why = format!("{} samples, set aside were {}", block.digest.count, digest.count);
            return Err(Refusal::BadBlock { block: block.id, why }.into());
        }
        blocks::admit(draft, &key.0, std::slice::from_ref(block), index)?;
    }
    draft.put(key, row)?;
    Ok(Outcome::Done)
}

/// Checks a block that was cut late, for a seal whose cut is committed. It holds what all blocks of the index it was made
/// as of lack, so it must know the newest block of the seal: a commit that was thought lost and arrives after all would
/// put the same samples into two blocks.
pub(super) fn check_late(draft: &Draft<'_>, block: &BlockMeta, index: u64) -> Result<(), Stop> {
    let Origin::Cut { partition, seal: number } = block.origin else { return Ok(()) };
    let key = (block.tenant.clone(), partition);
    let (row, at) = open(draft, &key, number)?;
    let seal = &row.open[at];
    let Some(cut) = seal.cut else {
        return Err(Refusal::NotCut { tenant: key.0, partition, number }.into());
    };
    check::cut(block, (&key.0, partition, number), seal.window, index)?;
    if block.as_of < cut.index {
        let (expected, found) = (block.as_of, cut.index);
        return Err(Refusal::SealCompleted { tenant: key.0, partition, number, expected, found }.into());
    }
    Ok(())
}

/// A late block of a seal is agreed: only from here on do blocks hold all that is known of it.
pub(super) fn completed(draft: &mut Draft<'_>, key: &Key, number: u64, index: u64) -> Result<(), Stop> {
    let (mut row, at) = open(draft, key, number)?;
    if let Some(cut) = &mut row.open[at].cut {
        cut.index = index;
        draft.put(key, row)?;
    }
    Ok(())
}

pub(super) fn forgot(draft: &mut Draft<'_>, key: &Key, number: u64, node: NodeId) -> Result<Outcome, Stop> {
    let replicas = partition(draft, key.1)?;
    let holds =
        |id: NodeId| replicas.current.replicas.contains(&id) || replicas.next.iter().flatten().any(|n| *n == id);
    if !holds(node) {
        let why = format!("node {} holds none of it", node.0);
        return Err(Refusal::Replicas { partition: key.1, why }.into());
    }
    let next = draft.row::<Seals>(key)?.unwrap_or_default().next;
    let (mut row, at) = match open(draft, key, number) {
        // Everybody has forgotten it already: the answer to an earlier attempt was lost.
        Err(Stop::Refused(_)) if (1..next).contains(&number) => return Ok(Outcome::Done),
        other => other?,
    };
    let seal = &mut row.open[at];
    if seal.cut.is_none() {
        return Err(Refusal::NotCut { tenant: key.0.clone(), partition: key.1, number }.into());
    }
    // Who holds it no more need not be remembered; the list stays as short as the sets.
    seal.forgotten_by.retain(|id| holds(*id));
    if let Err(at) = seal.forgotten_by.binary_search(&node) {
        seal.forgotten_by.insert(at, node);
    }
    let forgotten = |id: &NodeId| seal.forgotten_by.contains(id);
    let all = replicas.current.replicas.iter().all(forgotten) && replicas.next.iter().flatten().all(forgotten);
    if all {
        row.open.remove(at);
    }
    draft.put(key, row)?;
    Ok(Outcome::Done)
}

/// A partition in which a tenant has open seals.
pub(super) fn first_open(draft: &Draft<'_>, tenant: &TenantId, partitions: u32) -> Result<Option<PartitionId>, Stop> {
    for partition in (0..partitions).map(PartitionId) {
        if draft.row::<Seals>(&(tenant.clone(), partition))?.is_some_and(|row| !row.open.is_empty()) {
            return Ok(Some(partition));
        }
    }
    Ok(None)
}
