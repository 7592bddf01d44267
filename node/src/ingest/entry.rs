//! What the node writes into its log: whose bytes these are, before the bytes of the head itself.
//!
//! ```text
//! entry := kind (u8)  partition (u32, big-endian)  tenant length (u8)  tenant (UTF-8)  body (the head's own bytes)
//! ```
//! Kinds: 1 a change of this head (an append, a seal, something forgotten) · 2 a checkpoint of this head begins · 3 a
//! piece of it · 4 it is complete · 5 a round of checkpoints begins · 6 every head of this partition has its checkpoint
//! of this round · 7 this head was empty and is dropped. The body of 7 is the index (u64, big-endian) at which a
//! dropped head had forgotten samples, nothing for 0; the body of 6 is such an index and the position of its round (u64),
//! because what one round gave up may be written after the next has begun. A checkpoint counts only when
//! it is complete: until then the head that the entries before it built stays, so a crash in the middle of one loses
//! nothing. When all partitions of a round are done, whole segments before its entry are dropped. Drawn in
//! `docs/formats/log.md`.

use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;

/// What an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A change of the head.
    Append,
    /// From here pieces of a checkpoint follow.
    CheckpointBegin,
    /// A piece of a checkpoint.
    CheckpointPiece,
    /// The checkpoint is complete and replaces what was before.
    CheckpointEnd,
    /// Every head of every partition gets a checkpoint after this entry. (Partition and tenant mean nothing.)
    Round,
    /// Every head of this partition has its checkpoint. (The tenant means nothing.)
    PartitionEnd,
    /// The head was empty and is dropped.
    HeadEnd,
}

/// A decoded entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it means.
    pub kind: Kind,
    /// Of which partition.
    pub partition: PartitionId,
    /// Of which tenant.
    pub tenant: TenantId,
    /// The head's own bytes.
    pub body: &'a [u8],
}

/// Starts an entry in `out`; the body is appended by the caller.
pub fn begin(out: &mut Vec<u8>, kind: Kind, partition: PartitionId, tenant: &TenantId) {
    out.push(match kind {
        Kind::Append => 1,
        Kind::CheckpointBegin => 2,
        Kind::CheckpointPiece => 3,
        Kind::CheckpointEnd => 4,
        Kind::Round => 5,
        Kind::PartitionEnd => 6,
        Kind::HeadEnd => 7,
    });
    let name = tenant.as_str().as_bytes();
    out.extend_from_slice(&partition.0.to_be_bytes());
    // TenantId holds 1 to 150 bytes.
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name);
}

/// Writes the body of an entry that tells an index.
pub fn put_index(out: &mut Vec<u8>, index: u64) {
    if index > 0 {
        out.extend_from_slice(&index.to_be_bytes());
    }
}

/// Reads the body of an entry that tells an index.
///
/// # Errors
/// It is neither empty nor eight bytes long.
pub fn read_index(body: &[u8]) -> Result<u64, String> {
    match <[u8; 8]>::try_from(body) {
        Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
        Err(_) if body.is_empty() => Ok(0),
        Err(_) => Err(format!("an index of {} bytes", body.len())),
    }
}

/// Writes the body of a partition's end: the index of [`put_index`], and the position of the round it ends.
pub fn put_end(out: &mut Vec<u8>, index: u64, round: u64) {
    out.extend_from_slice(&index.to_be_bytes());
    out.extend_from_slice(&round.to_be_bytes());
}

/// Reads the body of a partition's end: the index, and the round's position. Logs of before had no position.
///
/// # Errors
/// It is no such body.
pub fn read_end(body: &[u8]) -> Result<(u64, Option<u64>), String> {
    match body.split_first_chunk::<8>() {
        Some((index, round)) if round.len() == 8 => Ok((u64::from_be_bytes(*index), Some(read_index(round)?))),
        _ => Ok((read_index(body)?, None)),
    }
}

/// What an entry means and of which partition it is: the tenant and the body are not looked at.
///
/// # Errors
/// What was expected and what was found.
pub fn peek(bytes: &[u8]) -> Result<(Kind, PartitionId), String> {
    let head = bytes.first_chunk::<6>().ok_or_else(|| format!("entry of {} bytes has no head", bytes.len()))?;
    let kind = match head[0] {
        1 => Kind::Append,
        2 => Kind::CheckpointBegin,
        3 => Kind::CheckpointPiece,
        4 => Kind::CheckpointEnd,
        5 => Kind::Round,
        6 => Kind::PartitionEnd,
        7 => Kind::HeadEnd,
        other => return Err(format!("entry of unknown kind {other}")),
    };
    Ok((kind, PartitionId(u32::from_be_bytes([head[1], head[2], head[3], head[4]]))))
}

/// Reads an entry; the text says what is wrong with one that is none.
///
/// # Errors
/// What was expected and what was found.
pub fn decode(bytes: &[u8]) -> Result<Entry<'_>, String> {
    decode_after(bytes, None)
}

/// As [`decode`]; `before` is a tenant that is likely the one of this entry, too.
///
/// # Errors
/// What was expected and what was found.
pub fn decode_after(bytes: &[u8], before: Option<TenantId>) -> Result<Entry<'_>, String> {
    let (kind, partition) = peek(bytes)?;
    let (head, rest) = bytes.split_at(6);
    let (name, body) = rest
        .split_at_checked(usize::from(head[5]))
        .ok_or_else(|| format!("entry names a tenant of {} bytes and has {}", head[5], rest.len()))?;
    let read = || {
        let name = std::str::from_utf8(name).map_err(|e| format!("tenant of an entry: {e}"))?;
        TenantId::new(name).map_err(|e| format!("tenant of an entry: {e}"))
    };
    let tenant = before.filter(|tenant| tenant.as_str().as_bytes() == name).map_or_else(read, Ok)?;
    Ok(Entry { kind, partition, tenant, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let tenant = TenantId::new("team-a").unwrap();
        for kind in [Kind::Append, Kind::CheckpointBegin, Kind::CheckpointPiece, Kind::CheckpointEnd, Kind::HeadEnd] {
            let mut bytes = Vec::new();
            begin(&mut bytes, kind, PartitionId(63), &tenant);
            bytes.extend_from_slice(b"body");
            let want = Entry { kind, partition: PartitionId(63), tenant: tenant.clone(), body: b"body" };
            assert_eq!(decode(&bytes), Ok(want));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(entry) = decode(&bytes) {
                let mut again = Vec::new();
                begin(&mut again, entry.kind, entry.partition, &entry.tenant);
                again.extend_from_slice(entry.body);
                prop_assert_eq!(&again, &bytes);
                let known = decode_after(&bytes, Some(entry.tenant.clone()));
                prop_assert_eq!(known.as_ref(), Ok(&entry));
                prop_assert_eq!(decode_after(&bytes, Some(TenantId::anonymous())), Ok(entry));
            }
        }
    }
}
