//! Leases: who may cut, compact or sweep, with a fencing number.
//!
//! Why a number: a holder that was paused for longer than its lease does not know that it lost it. Every command it
//! made under the lease carries the number it was given and is refused when the lease has another one by now, so an
//! old holder can waste work but decide nothing. The number is the log index of the entry that gave the lease: it
//! grows for ever without being stored, so a lease that nobody holds needs no row. Time is log time; an expired lease
//! that nobody wanted is still its holder's.

use std::collections::BTreeSet;
use std::sync::Arc;

use engram_model::Millis;
use engram_model::place::NodeId;
use serde::{Deserialize, Serialize};

use super::blocks::Counts;
use super::draft::{Change, Draft, Leaves, Row, Table};
use super::{Stamp, Stop, bounded};
use crate::command::{Fence, Holder, Outcome};
use crate::error::Refusal;

/// Most leases held at once.
pub const LEASES_MAX: u64 = 100_000;
/// Longest lease in milliseconds: a day.
pub const LEASE_TTL_MS_MAX: i64 = 24 * 60 * 60 * 1000;
/// Most leases one command clears away.
const EXPIRED_MAX: usize = 64;
/// How long after its end a lease may be cleared away, in milliseconds.
const EXPIRED_FOR_MS: i64 = 60 * 60 * 1000;

/// A lease that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// Who.
    pub holder: Holder,
    /// The number of this holding.
    pub fence: u64,
    /// Log time from which on another may take it.
    pub expires_at: Millis,
}

impl LeaseRow {
    /// Whether it may be cleared away at a log time.
    #[must_use]
    pub fn long_expired(&self, at: Millis) -> bool {
        self.expires_at.saturating_add(EXPIRED_FOR_MS) < at
    }
}

impl Row for LeaseRow {
    const TABLE: Table = Table::Leases;
    type Key = str;

    fn key(key: &str) -> Vec<u8> {
        key.as_bytes().to_vec()
    }

    fn change(key: &str, row: Arc<Self>) -> Option<Change> {
        Some(Change::Lease(key.to_owned(), Some(row)))
    }
}

impl Leaves for LeaseRow {
    fn gone(key: &str) -> Change {
        Change::Lease(key.to_owned(), None)
    }
}

/// Whether a command made under this lease may still be.
pub(super) fn check(draft: &Draft<'_>, fence: &Fence) -> Result<(), Stop> {
    let found = draft.row::<LeaseRow>(&fence.key)?.map(|row| row.fence);
    if found == Some(fence.number) {
        return Ok(());
    }
    Err(Refusal::Fenced { key: fence.key.clone(), expected: fence.number, found }.into())
}

pub(super) fn acquire(
    draft: &mut Draft<'_>,
    key: &str,
    holder: Holder,
    ttl_ms: i64,
    expired: &[String],
    stamp: &Stamp,
) -> Result<Outcome, Stop> {
    bounded("lease", key)?;
    known(draft, holder.node)?;
    if !(1..=LEASE_TTL_MS_MAX).contains(&ttl_ms) {
        let want = format!("1 to {LEASE_TTL_MS_MAX} ms");
        return Err(Refusal::Bounds { what: "lease".to_owned(), want, got: ttl_ms.unsigned_abs() }.into());
    }
    if expired.len() > EXPIRED_MAX {
        let want = format!("at most {EXPIRED_MAX}");
        let got = expired.len() as u64;
        return Err(Refusal::Bounds { what: "expired leases".to_owned(), want, got }.into());
    }
    let old = draft.row::<LeaseRow>(key)?;
    if let Some(old) = &old
        && old.holder.node != holder.node
        && stamp.at < old.expires_at
    {
        let (node, expires_at) = (old.holder.node, old.expires_at);
        return Err(Refusal::LeaseHeld { key: key.to_owned(), node, expires_at }.into());
    }
    let mut gone = BTreeSet::new();
    for other in expired.iter().filter(|other| *other != key) {
        if draft.row::<LeaseRow>(other)?.is_some_and(|row| row.long_expired(stamp.at)) {
            gone.insert(other);
        }
    }
    let mut counts = Counts::read(draft)?;
    counts.leases = counts.leases.saturating_sub(gone.len() as u64) + u64::from(old.is_none());
    if counts.leases > LEASES_MAX {
        return Err(Refusal::TooMany { what: "leases".to_owned(), max: LEASES_MAX }.into());
    }
    counts.write(draft)?;
    gone.into_iter().for_each(|other| draft.delete::<LeaseRow>(other));
    let fence = old.filter(|old| old.holder == holder).map_or(stamp.index, |old| old.fence);
    let expires_at = stamp.at.saturating_add(ttl_ms);
    draft.put(key, LeaseRow { holder, fence, expires_at })?;
    Ok(Outcome::Lease { fence, expires_at })
}

fn known(draft: &Draft<'_>, id: NodeId) -> Result<(), Stop> {
    if draft.row::<super::NodeRow>(&id)?.is_some() { Ok(()) } else { Err(Refusal::UnknownNode { id }.into()) }
}

pub(super) fn release(draft: &mut Draft<'_>, fence: &Fence) -> Result<Outcome, Stop> {
    check(draft, fence)?;
    let mut counts = Counts::read(draft)?;
    counts.leases = counts.leases.saturating_sub(1);
    counts.write(draft)?;
    draft.delete::<LeaseRow>(&fence.key);
    Ok(Outcome::Done)
}
