//! Tenants: limits, and the shard size with its history.
//!
//! Why the history: a tenant whose shard shrank still has samples on the partitions it used before, and reads must
//! cover those owners. Why versions: two operators (or an operator and the reconciler) who change limits at once
//! must not overwrite each other unseen; the caller names the version it read.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::tenant::{TenantId, TenantLimits};
use serde::{Deserialize, Serialize};

use super::draft::{Change, Draft, Leaves, Row, Table};
use super::ring::{PARTITIONS_MAX, cluster};
use super::{Stamp, Stop, deletions, seals};
use crate::command::Outcome;
use crate::error::Refusal;

/// Most tenants of a cluster: ten times the design size. A first write makes a tenant, so somebody must stop it.
pub const TENANTS_MAX: u32 = 100_000;
/// Most shard sizes one tenant's history keeps; at the bound a change is refused.
pub const SHARD_SIZES_MAX: usize = 512;

/// A shard size and since when it applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSize {
    /// How many partitions; 0: all.
    pub size: u32,
    /// Log index since which it applies.
    pub index: u64,
    /// Log time since which it applies.
    pub at: Millis,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRow {
    /// Grows by one at each change; starts at 1.
    pub version: u64,
    /// What it may do.
    pub limits: TenantLimits,
    /// Every shard size it had, oldest first; the last applies now. Never empty.
    pub shards: Vec<ShardSize>,
    /// Its first write, or whoever made it.
    pub created: Stamp,
    /// The last change.
    pub changed: Stamp,
    /// Set once it is marked for deletion.
    pub deleted: Option<Stamp>,
}

impl TenantRow {
    /// The shard size that applies now; 0: all partitions.
    #[must_use]
    pub fn shard_size(&self) -> u32 {
        self.shards.last().map_or(0, |s| s.size)
    }

    /// The shard size that covers every former owner too: the largest ever, 0 (all) above every number. A larger
    /// shard holds every partition of a smaller one.
    #[must_use]
    pub fn shard_size_ever(&self) -> u32 {
        let all = self.shards.iter().any(|s| s.size == 0);
        if all { 0 } else { self.shards.iter().map(|s| s.size).max().unwrap_or(0) }
    }

    /// Log index since which [`Self::shard_size_ever`] is what it is: who does not know that entry does not know every
    /// owner.
    #[must_use]
    pub fn grown_at(&self) -> u64 {
        let ever = self.shard_size_ever();
        self.shards.iter().find(|s| s.size == ever).map_or(0, |s| s.index)
    }
}

impl Row for TenantRow {
    const TABLE: Table = Table::Tenants;
    type Key = TenantId;

    fn key(key: &TenantId) -> Vec<u8> {
        key.as_str().as_bytes().to_vec()
    }

    fn change(key: &TenantId, row: Arc<Self>) -> Option<Change> {
        Some(Change::Tenant(key.clone(), Some(row)))
    }
}

impl Leaves for TenantRow {
    fn gone(key: &TenantId) -> Change {
        Change::Tenant(key.clone(), None)
    }
}

fn check_shard(size: u32) -> Result<(), Refusal> {
    if size <= PARTITIONS_MAX {
        return Ok(());
    }
    let want = format!("0 to {PARTITIONS_MAX}");
    Err(Refusal::Bounds { what: "shard size".to_owned(), want, got: u64::from(size) })
}

/// Refuses a tenant that was never made.
pub(super) fn known(draft: &Draft<'_>, tenant: &TenantId) -> Result<TenantRow, Stop> {
    Ok(draft.row::<TenantRow>(tenant)?.ok_or_else(|| Refusal::UnknownTenant { tenant: tenant.clone() })?)
}

/// Refuses a tenant that takes nothing new.
pub(super) fn living(draft: &Draft<'_>, tenant: &TenantId) -> Result<(), Stop> {
    match known(draft, tenant)?.deleted {
        Some(_) => Err(Refusal::TenantDeleted { tenant: tenant.clone() }.into()),
        None => Ok(()),
    }
}

pub(super) fn create(
    draft: &mut Draft<'_>,
    tenant: &TenantId,
    limits: &TenantLimits,
    shard_size: u32,
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    check_shard(shard_size)?;
    let mut cluster = cluster(draft)?;
    if let Some(row) = draft.row::<TenantRow>(tenant)? {
        if row.deleted.is_some() {
            return Err(Refusal::TenantDeleted { tenant: tenant.clone() }.into());
        }
        return Ok(Outcome::Tenant { version: row.version, created: false });
    }
    if cluster.tenant_count >= TENANTS_MAX {
        return Err(Refusal::TooMany { what: "tenants".to_owned(), max: u64::from(TENANTS_MAX) }.into());
    }
    cluster.tenant_count += 1;
    draft.put(&(), cluster)?;
    let row = TenantRow {
        version: 1,
        limits: limits.clone(),
        shards: vec![ShardSize { size: shard_size, index: stamp.index, at: stamp.at }],
        created: stamp.clone(),
        changed: stamp,
        deleted: None,
    };
    draft.put(tenant, row)?;
    Ok(Outcome::Tenant { version: 1, created: true })
}

/// The tenant's row if it lives and is at the version the caller has read.
fn at_version(draft: &Draft<'_>, tenant: &TenantId, expected: u64) -> Result<TenantRow, Stop> {
    let row = known(draft, tenant)?;
    if row.version != expected {
        return Err(Refusal::Version { tenant: tenant.clone(), expected, found: row.version }.into());
    }
    if row.deleted.is_some() {
        return Err(Refusal::TenantDeleted { tenant: tenant.clone() }.into());
    }
    Ok(row)
}

pub(super) fn update(
    draft: &mut Draft<'_>,
    (tenant, expected): (&TenantId, u64),
    limits: Option<&TenantLimits>,
    shard_size: Option<u32>,
    stamp: Stamp,
) -> Result<Outcome, Stop> {
    let mut row = at_version(draft, tenant, expected)?;
    if let Some(size) = shard_size.filter(|size| *size != row.shard_size()) {
        check_shard(size)?;
        if row.shards.len() >= SHARD_SIZES_MAX {
            return Err(Refusal::TooMany { what: "shard sizes".to_owned(), max: SHARD_SIZES_MAX as u64 }.into());
        }
        row.shards.push(ShardSize { size, index: stamp.index, at: stamp.at });
    }
    if let Some(limits) = limits {
        row.limits = limits.clone();
    }
    row.version += 1;
    row.changed = stamp;
    let version = row.version;
    draft.put(tenant, row)?;
    Ok(Outcome::Tenant { version, created: false })
}

pub(super) fn delete(draft: &mut Draft<'_>, tenant: &TenantId, expected: u64, stamp: Stamp) -> Result<Outcome, Stop> {
    let mut row = at_version(draft, tenant, expected)?;
    row.version += 1;
    row.deleted = Some(stamp.clone());
    row.changed = stamp;
    let version = row.version;
    draft.put(tenant, row)?;
    Ok(Outcome::Tenant { version, created: false })
}

/// Forgets a tenant of which nothing is left.
pub(super) fn remove(draft: &mut Draft<'_>, tenant: &TenantId) -> Result<Outcome, Stop> {
    let in_use = |why: String| Err(Refusal::TenantInUse { tenant: tenant.clone(), why }.into());
    if known(draft, tenant)?.deleted.is_none() {
        return in_use("it is not marked for deletion".to_owned());
    }
    let deletions = deletions::count(draft, tenant)?;
    if deletions > 0 {
        return in_use(format!("{deletions} deletions of its series are not carried out"));
    }
    let mut cluster = cluster(draft)?;
    if let Some(partition) = seals::first_open(draft, tenant, cluster.partition_count)? {
        return in_use(format!("partition {} has an open seal", partition.0));
    }
    cluster.tenant_count = cluster.tenant_count.saturating_sub(1);
    draft.put(&(), cluster)?;
    draft.delete::<TenantRow>(tenant);
    Ok(Outcome::Done)
}
