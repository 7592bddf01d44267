//! Deletions: orders to delete series of a tenant.
//!
//! Why here: a deletion must be hidden by every reader at once, and must be known by whoever makes a block, or it
//! comes back. Its log index names it and orders it against blocks ([`engram_model::block::BlockMeta::as_of`]).

use std::sync::Arc;

use engram_model::TimeRange;
use engram_model::block::Deletion;
use engram_model::tenant::TenantId;
use serde::{Deserialize, Serialize};

use super::draft::{Change, Draft, Leaves, Row, Table};
use super::{Stamp, Stop, tenant_key, tenants};
use crate::command::Outcome;
use crate::error::Refusal;

/// Most deletions of one tenant that are not carried out everywhere yet: each is looked at by every query.
pub const DELETIONS_MAX: u32 = 1_000;
/// Most selectors of one deletion.
pub const SELECTORS_MAX: usize = 64;
/// Longest selector in bytes.
pub const SELECTOR_BYTES_MAX: usize = 4 << 10;

impl Row for Deletion {
    const TABLE: Table = Table::Deletions;
    type Key = (TenantId, u64);

    fn key((tenant, index): &(TenantId, u64)) -> Vec<u8> {
        tenant_key(tenant, &index.to_be_bytes())
    }

    fn change((tenant, index): &(TenantId, u64), row: Arc<Self>) -> Option<Change> {
        Some(Change::Deletion(tenant.clone(), *index, Some(row)))
    }
}

impl Leaves for Deletion {
    fn gone((tenant, index): &(TenantId, u64)) -> Change {
        Change::Deletion(tenant.clone(), *index, None)
    }
}

/// How many deletions a tenant has.
#[derive(Debug, Serialize, Deserialize)]
struct Count {
    deletions: u32,
}

impl Row for Count {
    const TABLE: Table = Table::Meta;
    type Key = TenantId;

    fn key(tenant: &TenantId) -> Vec<u8> {
        [b"deletions/", tenant.as_str().as_bytes()].concat()
    }

    fn change(_: &TenantId, _: Arc<Self>) -> Option<Change> {
        None
    }
}

/// How many deletions a tenant has that are not carried out everywhere.
pub(super) fn count(draft: &Draft<'_>, tenant: &TenantId) -> Result<u32, Stop> {
    Ok(draft.row::<Count>(tenant)?.map_or(0, |row| row.deletions))
}

pub(super) fn add(
    draft: &mut Draft<'_>,
    tenant: &TenantId,
    selectors: &[String],
    range: TimeRange,
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    tenants::known(draft, tenant)?;
    let bounds =
        |what: &str, want: String, got: usize| Refusal::Bounds { what: what.to_owned(), want, got: got as u64 };
    if !(1..=SELECTORS_MAX).contains(&selectors.len()) {
        return Err(bounds("selectors", format!("1 to {SELECTORS_MAX}"), selectors.len()).into());
    }
    if let Some(long) = selectors.iter().map(String::len).find(|bytes| !(1..=SELECTOR_BYTES_MAX).contains(bytes)) {
        return Err(bounds("a selector", format!("1 to {SELECTOR_BYTES_MAX} bytes"), long).into());
    }
    if range.is_empty() {
        return Err(bounds("the deleted range", "not empty".to_owned(), 0).into());
    }
    let have = count(draft, tenant)?;
    if have >= DELETIONS_MAX {
        return Err(Refusal::TooMany { what: format!("deletions of {tenant}"), max: DELETIONS_MAX.into() }.into());
    }
    draft.put(tenant, Count { deletions: have + 1 })?;
    let index = stamp.index;
    let row = Deletion { index, selectors: selectors.to_vec(), range, at: stamp.at, by: stamp.by };
    draft.put(&(tenant.clone(), index), row)?;
    Ok(Outcome::Deletion { index })
}

pub(super) fn remove(draft: &mut Draft<'_>, key: &(TenantId, u64)) -> Result<Outcome, Stop> {
    if draft.row::<Deletion>(key)?.is_none() {
        return Err(Refusal::UnknownDeletion { tenant: key.0.clone(), index: key.1 }.into());
    }
    let have = count(draft, &key.0)?;
    draft.put(&key.0, Count { deletions: have.saturating_sub(1) })?;
    draft.delete::<Deletion>(key);
    Ok(Outcome::Done)
}
