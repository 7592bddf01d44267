//! Tombstones: which times of which series were deleted from a block after it was written.
//!
//! Why we read them although we write none: blocks of others have them, and showing deleted samples again would
//! surprise whoever deleted them.
//!
//! ```text
//! u32 0x0130ba30 | u8 1 | { uvarint series | varint first | varint last } | u32 crc32c of the entries
//! ```
//!
//! Source: `prometheus tsdb/docs/format/tombstones.md`, `tsdb/tombstones/tombstones.go`.

use std::collections::BTreeMap;

use engram_model::Millis;

use crate::codec::{Broken, Reader, crc32c, put_u32};

const MAGIC: u32 = 0x0130_ba30;
const VERSION: u8 = 1;

/// Deleted intervals by series (its place in the index); first and last millisecond both inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tombstones(BTreeMap<u64, Vec<(Millis, Millis)>>);

impl Tombstones {
    /// Reads the whole file.
    ///
    /// # Errors
    /// The bytes are damaged.
    pub fn read(bytes: &[u8]) -> Result<Self, Broken> {
        let mut r = Reader::new(bytes);
        if (r.u32()?, r.u8()?) != (MAGIC, VERSION) {
            return Err(Broken { at: 0, what: "these are no tombstones, version 1" });
        }
        let from = r.at();
        let body = r.bytes(r.rest().len().checked_sub(4).ok_or(Broken { at: from, what: "tombstones end early" })?)?;
        if r.u32()? != crc32c(body) {
            return Err(Broken { at: from, what: "checksum of tombstones differs" });
        }
        let mut r = Reader::new(body);
        let mut found = BTreeMap::<u64, Vec<_>>::new();
        while !r.is_empty() {
            let series = r.uvarint()?;
            found.entry(series).or_default().push((r.varint()?, r.varint()?));
        }
        Ok(Self(found))
    }

    /// The file of a block from which nothing was deleted.
    pub(super) fn none() -> Vec<u8> {
        let mut bytes = Vec::new();
        put_u32(&mut bytes, MAGIC);
        bytes.push(VERSION);
        put_u32(&mut bytes, crc32c(&[]));
        bytes
    }

    /// Whether nothing was deleted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was deleted of a series.
    #[must_use]
    pub fn of(&self, series: u32) -> &[(Millis, Millis)] {
        self.0.get(&u64::from(series)).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{put_uvarint, put_varint};

    #[test]
    fn intervals_are_read_and_damage_is_told() {
        assert_eq!(Tombstones::none(), [0x01, 0x30, 0xba, 0x30, 1, 0, 0, 0, 0], "as promtool writes it");
        assert!(Tombstones::read(&Tombstones::none()).unwrap().is_empty());
        let mut body = Vec::new();
        for (series, first, last) in [(7, -5, 5), (9, 1, 1), (7, 10, 20)] {
            put_uvarint(&mut body, series);
            put_varint(&mut body, first);
            put_varint(&mut body, last);
        }
        let mut bytes = Tombstones::none()[..5].to_vec();
        bytes.extend_from_slice(&body);
        put_u32(&mut bytes, crc32c(&body));
        let read = Tombstones::read(&bytes).unwrap();
        assert_eq!((read.of(7), read.of(8)), (&[(-5, 5), (10, 20)][..], &[][..]));
        for i in 0..bytes.len() {
            assert!(Tombstones::read(&bytes[..i]).is_err());
            let mut bad = bytes.clone();
            bad[i] ^= 4;
            assert!(Tombstones::read(&bad).is_err(), "byte {i}");
        }
    }
}
